"""The settings of a sweep: which are asked for, and which of them have one result."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from rfq import rows
from rfq.experiment import Experiment
from rfq.quant.spec import QuantSpec
from rfq.rows import Setting


def one(experiment: Experiment, spec: str, taps: str, stream: str) -> Setting:
    """Make one setting in float32, the rest as the first of the experiment's own.

    Args:
        experiment: the experiment of the run.
        spec: a WnAm setting.
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

    Full precision is scored in float32, which every increase is measured against, and
    as trained where that was in another dtype (D17). All else is float32 (D9).
    """
    config, trained = experiment.quantize, experiment.model.compute_dtype
    settings = []
    for spec, *choices in itertools.product(
        specs,
        config.taps,
        config.streams,
        config.calibrators,
        config.calibration_seeds,
        config.granularities,
        config.schemes,
    ):
        setting = Setting._make((spec, "float32", *choices))
        if spec == "FP" and trained != "float32":
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
        setting = setting._replace(scheme=first.schemes[0])
    if spec.act_bits is None or setting.granularity != "per_tensor":
        setting = setting._replace(  # Nothing is calibrated.
            calibrator=first.calibrators[0],
            calibration_seed=first.calibration_seeds[0],
        )
    return setting


def full(setting: Setting, experiment: Experiment) -> Setting:
    """Return full precision in float32, which a setting's changes are against."""
    unrounded = setting._replace(spec="FP", compute_dtype="float32")
    return canonical(unrounded, experiment)
