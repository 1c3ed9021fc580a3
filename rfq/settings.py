"""The settings of a sweep: which are asked for, and which of them have one result."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rfq import rows
from rfq.experiment import Experiment
from rfq.quant.spec import QuantSpec
from rfq.rows import Setting

# The calibrator that "+clip" asks for: of all that clip it alone looks at the values,
# at the bits and at the scheme.
CLIP = "mse"

# `Setting.methods` where weights and activations are rounded to nearest.
NO_METHODS = Setting._field_defaults["methods"]


def one(experiment: Experiment, spec: str, taps: str, stream: str) -> Setting:
    """Make one setting in float32, the rest as the first of the experiment's own.

    Args:
        experiment: the experiment of the run.
        spec: a WnAm setting, with methods or without.
        taps: tap set, "" for the first.
        stream: placement, "" for the first.

    Raises:
        InputError: a name is unknown.
    """
    config = experiment.quantize
    named = dataclasses.replace(
        config,
        specs=(spec,),
        taps=(taps or config.taps[0],),
        streams=(stream or config.streams[0],),
    )
    listed = every(dataclasses.replace(experiment, quantize=named), (spec,))
    return next(one for one in listed if one.compute_dtype == "float32")


def every(experiment: Experiment, specs: Sequence[str]) -> list[Setting]:
    """List the whole grid of some WnAm settings, each once.

    A setting with "+clip" has the calibrator CLIP instead of those of the grid; its
    other methods are a field of their own.
    Full precision is scored in float32, which every increase is measured against, and
    as trained where that was in another dtype (D17). All else is float32 (D9).
    """
    config, trained = experiment.quantize, experiment.model.compute_dtype
    settings = []
    for text, *choices in itertools.product(
        specs,
        config.taps,
        config.streams,
        config.calibrators,
        config.calibration_seeds,
        config.granularities,
        config.schemes,
    ):
        spec = QuantSpec.parse(text)
        others = [name for name in spec.methods if name != "clip"]
        methods = "+".join(others) or NO_METHODS
        setting = Setting._make((spec.widths, "float32", *choices, methods))
        if "clip" in spec.methods:
            setting = setting._replace(calibrator=CLIP)
        if text == "FP" and trained != "float32":
            settings.append(setting._replace(compute_dtype=trained))
        settings.append(setting)
    return list(dict.fromkeys(settings))


def of(row: Mapping[str, Any]) -> Setting:
    """Return the setting of a record; what an older one lacks has its default."""
    return Setting._make(
        row.get(name, rows.DEFAULTS.get(name)) for name in Setting._fields
    )


def canonical(setting: Setting, experiment: Experiment) -> Setting:
    """Return the one of several settings with the same result that is computed."""
    first, spec = experiment.quantize, QuantSpec.parse(setting.spec)
    if spec.act_bits is None:  # Nothing is tapped.
        setting = setting._replace(stream="branch", granularity=first.granularities[0])
    elif experiment.model.skip == "residual_free":  # No skip path carries it.
        setting = setting._replace(stream="branch")
    if spec.weight_bits is None and spec.act_bits is None:
        setting = setting._replace(scheme=first.schemes[0], methods=NO_METHODS)
    if spec.act_bits is None or setting.granularity != "per_tensor":
        # No range is calibrated.
        setting = setting._replace(calibrator=first.calibrators[0])
        if not {"smooth", "gptq"} & set(setting.methods.split("+")):  # Nothing is.
            setting = setting._replace(calibration_seed=first.calibration_seeds[0])
    return setting


def full(setting: Setting, experiment: Experiment) -> Setting:
    """Return full precision in float32, which a setting's changes are against."""
    unrounded = setting._replace(spec="FP", compute_dtype="float32")
    return canonical(unrounded, experiment)
