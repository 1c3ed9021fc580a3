"""The run from whose last parameters another one goes on (`rfq train --from RUN`).

RUN/source.json    in the new run: where the other one was, and its config.json

The new run needs the other one until its first checkpoint, and never again.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rfq import experiment as experiment_lib
from rfq import metrics, runs
from rfq import params as params_lib
from rfq.data import tokenize
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import transformer
from rfq.model.config import ModelConfig
from rfq.origins import StartConfig
from rfq.types import Params

_RECORD = "source.json"

# Fields of the model that the parameters do not depend on: how long sequences are, and
# how the same function is computed. A skip may become a weighted one, too.
_FREE = (
    "seq_len", "compute_dtype", "attention", "remat", "scan_unroll", "loss_chunks",
)  # fmt: skip


class Source(NamedTuple):
    """A finished run that another one goes on from.

    Attributes:
        place: Its directory, which may be gone by now.
        experiment: What it was trained as.
        described: Its config.json.
    """

    place: pathlib.Path
    experiment: Experiment
    described: Mapping[str, Any]


def find(place: pathlib.Path, run_dir: pathlib.Path | None) -> Source:
    """Read the run to go on from, or what `run_dir`, which has gone on, says of it.

    Raises:
        InputError: there is no such run, it is not finished, or it is `run_dir`.
    """
    if run_dir is not None and place.absolute() == run_dir.absolute():
        raise InputError(
            f"--from and --out are both {str(place)!r}; write the new run to another "
            "directory"
        )
    record = None if run_dir is None else run_dir / _RECORD
    if not (place / "config.json").exists() and record is not None and record.exists():
        described = json.loads(record.read_text(encoding="utf-8"))["config"]
        known = experiment_lib.from_dict(described["experiment"])
        return Source(place, runs.located(known, described, place), described)
    known, described = runs.load(place)
    runs.require_finished(known, place)
    return Source(place, known, described)


def continuing(experiment: Experiment, source: Source) -> Experiment:
    """Return the experiment that starts where the source ends.

    Raises:
        InputError: their models or their tokenizers do not agree.
    """
    _require_model(experiment.model, source)
    theirs = _tokenizer_of(source)
    ours = tokenize.load(experiment.data.tokenizer).fingerprint
    if ours != theirs:
        raise InputError(
            f"data.tokenizer={experiment.data.tokenizer!r} has the fingerprint "
            f"{ours[:12]} and that of {source.place} {theirs[:12]}, so that ids would "
            "stand for other text; prepare the data with "
            f"{source.experiment.data.tokenizer}, and give it as --data.tokenizer"
        )
    start = StartConfig(
        arm=source.experiment.arm,
        fingerprint=source.described["fingerprint"],
        data_fingerprint=source.described["data_fingerprint"],
    )
    origin = source.experiment.origin
    return dataclasses.replace(experiment, start=start, origin=origin)


def _require_model(model: ModelConfig, source: Source) -> None:
    own = source.experiment.model
    if model.skip not in (own.skip, "weighted"):
        raise InputError(
            f"model.skip={model.skip!r} does not agree with {own.skip!r} of "
            f"{source.place}; give --model.skip {own.skip}, or weighted with "
            "--train.skip-anneal 0.5 to take its skips away little by little"
        )
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        ours, theirs = (_value(config, name) for config in (model, own))
        if name not in (*_FREE, "skip") and ours != theirs:
            raise InputError(
                f"model.{name}={ours!r} does not agree with {theirs!r} of "
                f"{source.place}; give --model.{name.replace('_', '-')} {theirs}, or a "
                "config with the function continued(run), which takes the model of the "
                "run, such as continued/adamw"
            )


def _value(model: ModelConfig, name: str) -> Any:
    return model.kv_heads if name == "num_kv_heads" else getattr(model, name)


def _tokenizer_of(source: Source) -> str:
    """Return the fingerprint of the source's tokenizer; older runs do not record it."""
    recipe = source.described.get("data", {}).get("recipe", {})
    recorded = recipe.get("tokenizer_fingerprint")
    return recorded or tokenize.load(source.experiment.data.tokenizer).fingerprint


def params(experiment: Experiment, source: Source | None, target: Params) -> Params:
    """Read the parameters to start with; {} for a run that draws its own.

    Args:
        experiment: As `continuing` made it.
        source: The run that it goes on from.
        target: Shapes and places of the new run's parameters. What the source lacks,
            as the weights of its skips, is not in the result.

    Raises:
        InputError: there is a source to start from and it is not given, it is gone, or
            its checkpoint cannot be read; skips would be annealed from other weights
            than they have.
    """
    start = experiment.start
    if not start.fingerprint:
        return {}
    if source is None or not (source.place / "config.json").exists():
        where = "" if source is None else f", which is no longer in {source.place},"
        raise InputError(
            f"training starts from {start.arm!r}{where} and no checkpoint is there to "
            "go on from; give the directory of that run with --from"
        )
    shapes = transformer.shapes(source.experiment.model)
    wanted = params_lib.overlaid(shapes, target)
    found = runs.final_params(source.experiment, source.place, wanted)
    weights = found["blocks"].get("skip_weight")
    anneals = experiment.train.skip_anneal > 0
    if anneals and weights is not None:
        ends = float(np.min(weights)), float(np.max(weights))
        if set(ends) != {float(np.float32(experiment.init.skip_weight))}:
            raise InputError(
                f"init.skip_weight={experiment.init.skip_weight}, from which "
                f"train.skip_anneal starts, is not what the skips of {source.place} "
                f"have, from {ends[0]:g} to {ends[1]:g}; give --init.skip-weight, or "
                "--train.skip-anneal 0"
            )
    return found


def record(source: Source, run_dir: pathlib.Path) -> None:
    """Write in the new run where its parameters come from."""
    told = {"run": str(source.place.absolute()), "config": source.described}
    metrics.write_text(run_dir / _RECORD, json.dumps(told, indent=1) + "\n")
