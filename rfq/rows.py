"""The records that runs leave behind: their fields and types, written and read here.

`KINDS` is the table of the files. `make` checks a record when it is written, and `read`
turns a file into a polars frame with the strict schema of its kind. To add a field to
the settings of a row, add it to `Setting`; to add a number, add it to `Outcome`.

Reading follows three rules (D100). A field that a line lacks, because the line is older
than the field, takes its value from `DEFAULTS` and is null without one. A field that
this version does not know is ignored. A number that was recorded as not finite is NaN.
"""

import json
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import polars as pl

from rfq import metrics
from rfq.errors import InputError


class Subject(TypedDict):
    """The run that a record is about, and how it was made."""

    arm: str
    seed: int
    num_layers: int
    width: int
    skip: str
    optimizer: str
    calibration_tokens: int
    eval_tokens: int
    num_params: int
    num_steps: int
    tokens_seen: int
    config_fingerprint: str
    data_fingerprint: str
    commit: str
    versions: dict
    device: str


class Setting(NamedTuple):
    """The way a model was quantized; it names a record among those of its run.

    Attributes:
        spec: The WnAm name, or "FP".
        stream: The placement of the stream's quantizer, "branch" or "in_place".
        calibration_seed: The draw of calibration tokens.
        granularity: Which part of an activation shares a grid: "per_tensor", whose
            range is calibrated, or "per_token" and "per_group_N", whose ranges are
            those of each batch.
        scheme: How a range becomes a grid, of weights and activations.
        methods: What is done to the model beside rounding to nearest, rows of
            `quant.spec.METHODS` joined by "+", or "none". Of them "clip" is recorded
            as the calibrator that it chooses.
    """

    spec: str
    compute_dtype: str
    taps: str
    stream: str
    calibrator: str
    calibration_seed: int
    granularity: str = "per_tensor"
    scheme: str = "asymmetric"
    methods: str = "none"


# The fields of `Setting` that one table of a report has in common.
COMMON = tuple(
    name
    for name in Setting._fields
    if name not in ("spec", "compute_dtype", "stream", "calibration_seed")
)


class Outcome(TypedDict):
    """The numbers of one setting: losses in nats a token, distortions in `taps.Effect`.

    Numbers of quantized activations are None where activations are not quantized.
    """

    weight_bits: int | None
    act_bits: int | None
    loss: float
    loss_increase: float
    loss_increase_lo: float
    loss_increase_hi: float
    sqnr_db: float | None
    min_sqnr_db: float | None
    bulk_sqnr_db: float | None
    nmse: float | None
    clip_fraction: float | None
    dead_fraction: float | None
    relative_error: float | None
    predicted_error: float | None
    predicted_loss_increase: float | None
    excess_kurtosis: float
    final_norm_excess_kurtosis: float
    bits_per_byte: float


class Timed(TypedDict):
    """Seconds that a record took."""

    seconds: float


class Sites(TypedDict):
    """Numbers by site and statistic, one a layer."""

    sites: dict


class Losses(TypedDict):
    """The mean loss of each held-out sequence."""

    losses: list


class Tasks(TypedDict):
    """Accuracies on tasks, as `tasks.questions.summarize` gives them.

    Attributes:
        questions: A digest that names the questions.
        scores: The scores of each task.
        items: The name of the file with the answers.
    """

    questions: str
    weight_bits: int | None
    act_bits: int | None
    avg: float | None
    avg_se: float | None
    avg_without_boolq: float | None
    avg_change: float | None
    avg_change_lo: float | None
    avg_change_hi: float | None
    avg_chance: float | None
    avg_collapsed: list | None
    scores: dict
    items: str


class Logged(TypedDict):
    """A logged training step; optimizers add numbers of their own."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    seconds: float


class Measured(Sites):
    """The held-out loss and the activations at a measured training step."""

    step: int
    loss: float
    num_tokens: int
    edges: list


class Field(NamedTuple):
    """The type of a field, and whether it may be null when it is written."""

    type: Any  # A class.
    nullable: bool


def _fields(*parts: type) -> Mapping[str, Field]:
    found = {}
    for part in parts:
        for name, hint in typing.get_type_hints(part).items():
            options = typing.get_args(hint) if isinstance(hint, types.UnionType) else ()
            kept = [option for option in options if option is not type(None)]
            found[name] = Field(kept[0] if kept else hint, bool(options))
    return found


# The kind of a record -> its fields. A kind is written to the file KIND.jsonl.
KINDS: Mapping[str, Mapping[str, Field]] = {
    "rows": _fields(Subject, Setting, Outcome, Timed),
    "sites": _fields(Subject, Setting, Sites),
    "losses": _fields(Subject, Setting, Losses),
    "tasks": _fields(Subject, Setting, Tasks, Timed),
    "metrics": _fields(Logged),
    "measures": _fields(Measured),
}

# The value of a field in records that lack it.
DEFAULTS: Mapping[str, Any] = {
    "seed": 0,
    "compute_dtype": "float32",
    "calibration_seed": 0,
    "granularity": "per_tensor",
    "scheme": "asymmetric",
    "methods": "none",
    "predicted_error": None,
    "predicted_loss_increase": None,
}

# Fields that optimizers add to metrics and that readers use.
EXTRA: Mapping[str, Mapping[str, type[pl.DataType]]] = {
    "metrics": {"optim/update_rms": pl.Float64}
}

_DTYPES: Mapping[type, pl.DataType | type[pl.DataType]] = {
    str: pl.String,
    int: pl.Int64,
    float: pl.Float64,
    list: pl.List(pl.Float64),
    dict: pl.String,  # As JSON text.
}

# The types of the fields of a task's score that are not numbers.
_WORDS = ("split", "primary")


def schema(kind: str) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Give the polars schema of the frame that `read` makes of a kind.

    Args:
        kind: A name in `KINDS`.
    """
    named = {name: _DTYPES[field.type] for name, field in KINDS[kind].items()}
    return {**named, **EXTRA.get(kind, {})}


def make(kind: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    """Put the parts of a record together and check every field of its kind.

    Fields that the kind does not name are kept.

    Args:
        kind: A name in `KINDS`.
        parts: Mappings whose fields make the record.

    Raises:
        TypeError: a field is absent or has another type.
    """
    record: dict[str, Any] = {}
    for part in parts:
        record |= part
    for name, field in KINDS[kind].items():
        if name not in record:
            raise TypeError(f"a record of {kind!r} needs the field {name!r}")
        value = record[name]
        if not (value is None and field.nullable) and not _fits(value, field.type):
            raise TypeError(
                f"{name!r} of a record of {kind!r} is {value!r}, not a "
                f"{field.type.__name__}"
            )
    return record


def _fits(value: object, kind: type) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file of records; a file that is not there has none.

    Raises:
        InputError: a line is not a JSON object.
    """
    found = metrics.read(path)
    for number, record in enumerate(found, start=1):
        if not isinstance(record, dict):
            raise InputError(
                f"line {number} of {path} holds a {type(record).__name__}, not an "
                "object of fields; write the file again with the command that made it"
            )
    return found


def read(kind: str, path: pathlib.Path, **fixed: str | int) -> pl.DataFrame:
    """Read a file of records into a frame with the schema of its kind.

    Args:
        kind: A name in `KINDS`.
        path: A JSON-lines file; one that is not there gives an empty frame.
        fixed: As for `frame`.

    Raises:
        InputError: a line is not an object, or a field has another type.
    """
    return frame(kind, lines(path), str(path), **fixed)


def frame(
    kind: str,
    records: Sequence[Mapping[str, Any]],
    where: str = "a record",
    **fixed: str | int,
) -> pl.DataFrame:
    """Turn records into a frame with the schema of their kind.

    Objects become JSON text, which `by_layer` and `by_task` open.

    Args:
        kind: A name in `KINDS`.
        records: JSON objects.
        where: What holds them, for the message.
        fixed: Columns that have one value, whatever the records say.

    Raises:
        InputError: a field has another type.
    """
    dtypes = schema(kind)
    columns: dict[str, list[Any]] = {name: [] for name in dtypes}
    for number, record in enumerate(records, start=1):
        lost = record.get("nonfinite", ())
        for name, column in columns.items():
            value = record.get(name)
            if value is None:
                value = float("nan") if name in lost else DEFAULTS.get(name)
            column.append(
                _typed(value, dtypes[name], f"line {number} of {where}", name)
            )
    found = pl.DataFrame(columns, schema=dtypes, strict=True)
    literals = {
        name: pl.lit(value, pl.String if isinstance(value, str) else pl.Int64)
        for name, value in fixed.items()
    }
    return found.with_columns(**literals)


def _typed(value: Any, dtype: Any, where: str, name: str) -> Any:
    if value is None:
        return None
    if dtype == pl.String:
        fits = isinstance(value, str | dict)
        value = json.dumps(value) if isinstance(value, dict) else value
    elif isinstance(dtype, pl.List):
        fits = isinstance(value, list)
    else:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and (dtype == pl.Float64 or float(value).is_integer())
        value = (float if dtype == pl.Float64 else int)(value) if fits else value
    if not fits:
        raise InputError(
            f"{where}: the field {name!r} is {value!r}, which is not of the type "
            f"{dtype}; write the file again with the command that made it"
        )
    return value


def by_layer(records: pl.DataFrame) -> pl.DataFrame:
    """Open the column `sites`: one line a site, statistic and layer, from 1.

    It has every statistic that is one number a layer. A site that occurs once in the
    model has the layer 1. `histograms` reads the histograms.
    """
    index, site, statistic, layer, value = [], [], [], [], []
    for number, text in enumerate(records["sites"].to_list()):
        for found in _numbers(json.loads(text) if text else {}):
            for column, item in zip(
                (site, statistic, layer, value), found, strict=True
            ):
                column.append(item)
            index.append(number)
    opened = pl.DataFrame(
        [index, site, statistic, layer, value],
        schema={
            "index": pl.UInt32,
            "site": pl.String,
            "statistic": pl.String,
            "layer": pl.Int64,
            "value": pl.Float64,
        },
    )
    kept = records.drop("sites").with_row_index("index")
    return kept.join(opened, on="index", maintain_order="left_right").drop("index")


def _numbers(
    sites: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, int, float | None]]:
    for site, statistics in sites.items():
        for name, values in statistics.items():
            every = values if isinstance(values, list) else [values]
            if not any(isinstance(value, list) for value in every):
                for layer, value in enumerate(every, start=1):
                    yield site, name, layer, value


HISTOGRAMS = {
    "site": pl.String,
    "layer": pl.Int64,
    "depth": pl.Int64,
    "edges": pl.List(pl.Float64),
    "counts": pl.List(pl.Float64),
    "center": pl.Float64,
    "scale": pl.Float64,
    "mean": pl.Float64,
    "rms": pl.Float64,
    "excess_kurtosis": pl.Float64,
}


def histograms(
    edges: Sequence[float] | None, sites: Mapping[str, Mapping[str, Any]]
) -> pl.DataFrame:
    """Give the histograms of sites, one line a site and layer with all its numbers.

    Args:
        edges: Edges of (x - center) / scale, around all bins.
        sites: As in a record of measures, or in statistics.json.
    """
    found = []
    for site, record in sites.items():
        layers = record.get("counts") or []
        for layer, counts in enumerate(layers):
            one = {
                name: (record.get(name) or [None] * len(layers))[layer]
                for name in ("center", "scale", "mean", "rms", "excess_kurtosis")
            }
            place = {"site": site, "layer": layer + 1, "depth": len(layers)}
            found.append({**place, "edges": edges, "counts": counts, **one})
    return pl.DataFrame(found, schema=HISTOGRAMS, strict=False)


def by_task(records: pl.DataFrame) -> pl.DataFrame:
    """Open the column `scores`: one line a task, with `accuracy` its primary metric."""
    found: list[dict[str, Any]] = []
    for number, text in enumerate(records["scores"].to_list()):
        for task, score in (json.loads(text) if text else {}).items():
            accuracy = score.get(score.get("primary"))
            found.append({"index": number, "task": task, "accuracy": accuracy, **score})
    names = ("se", "change", "change_lo", "change_hi", "chance", "constant_lo")
    numbers = (*names, "constant_hi", "num_documents", "num_truncated", "accuracy")
    opened = pl.DataFrame(
        found,
        schema={
            "index": pl.UInt32,
            "task": pl.String,
            **dict.fromkeys(_WORDS, pl.String),
            **dict.fromkeys(numbers, pl.Float64),
        },
        strict=False,
    )
    kept = records.drop("scores").with_row_index("index")
    return kept.join(opened, on="index", maintain_order="left_right").drop("index")
