"""One experiment: the subsystems' configs, composed and checked against each other.

Everything that a run depends on is in here, so that a checkpoint can describe itself.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from rfq import config_files, optim, taps
from rfq.data.mixture import Mixture
from rfq.errors import InputError, check_fields, lookup, nearest
from rfq.model import init as init_lib
from rfq.model.config import TAP_SETS, ModelConfig, check_groups, check_methods
from rfq.model.init import InitConfig
from rfq.model.layers import STREAMS
from rfq.optim.schedule import ScheduleConfig
from rfq.origins import OriginConfig, StartConfig
from rfq.quant import grid
from rfq.quant.aware import QatConfig
from rfq.quant.calibrate import CALIBRATORS
from rfq.quant.spec import QuantSpec
from rfq.sharding import ShardingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The prepared windows, which `rfq prepare` makes."""

    # Read what `rfq prepare --out` wrote here, with its held-out and calibration
    # splits.
    dir: str = "data/embedded"
    # Mix in the training splits of these prepared directories.
    also: tuple[str, ...] = ()
    # Give `dir` and each of `also` this share of the training; () takes their sizes.
    weights: tuple[float, ...] = ()
    # Read ahead in so many processes; 0 reads in a thread, which mostly is fast enough.
    num_workers: int = 0
    # Use "embedded", "byte" or a SentencePiece file: the tokenizer that prepared the
    # data.
    tokenizer: str = "embedded"

    def __post_init__(self):
        check_fields(self, "data")
        if self.num_workers < 0:
            raise InputError(f"data.num_workers={self.num_workers} must be >= 0")
        _ = self.mixture  # Checks the weights.

    @property
    def mixture(self) -> Mixture:
        """The prepared sets that are trained on."""
        return Mixture((self.dir, *self.also), self.weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of the run and size of a step."""

    num_steps: int = 50_000  # Call the optimizer so many times.
    batch_size: int = 512  # Sequences per step over all devices and hosts.
    clip_norm: float | None = 1.0  # Clip the global gradient norm; None does not (D18).
    # Add to the loss penalty_weight times the mean over blocks of
    # mean((|x| / penalty_threshold)^4) of their outputs x (TWEO, arXiv 2511.23225,
    # whose values are 0.01 and 3). With 0 the program has no such term.
    penalty_weight: float = 0.0
    penalty_threshold: float = 3.0
    # Over this share of the run the weights of model.skip "weighted" fall linearly from
    # init.skip_weight to 0, where they stay. 0 keeps them as they are.
    skip_anneal: float = 0.0

    def __post_init__(self):
        check_fields(self, "train")
        for name, least in (("num_steps", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"train.{name}={getattr(self, name)} must be >= 1")
        if not 0 <= self.skip_anneal <= 1:
            raise InputError(
                f"train.skip_anneal={self.skip_anneal} must be from 0 to 1, a share of "
                "the run"
            )
        if not 0 <= self.penalty_weight < math.inf:
            raise InputError(f"train.penalty_weight={self.penalty_weight} must be >= 0")
        if not self.penalty_threshold > 0:
            raise InputError(
                f"train.penalty_threshold={self.penalty_threshold} must be > 0"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"train.clip_norm={self.clip_norm} must be > 0 or None")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """The records that training writes, and how often, in steps."""

    log_every: int = 10  # Write a row of metrics.jsonl this often.
    measure_every: int = 1000  # Write measures.jsonl this often, at both ends too.
    measure_sequences: int = 64  # Measure on so many held-out sequences.
    # Measure these statistics, rows of `rfq.taps.STATISTICS`.
    statistics: tuple[str, ...] = ("moments", "range", "histogram")
    sample_tokens: int = 256  # Expensive ones (tokens, histogram) see so many tokens.
    checkpoint_every: int = 1000  # Save this often, and at the end.
    keep_checkpoints: int = 2  # Keep so many and delete older ones.

    def __post_init__(self):
        check_fields(self, "log")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"log.{field.name}={value} must be >= 1")
        for name in self.statistics:
            lookup(taps.STATISTICS, name, "log.statistics")


# Tables 2 to 4 of the paper, and four-bit weights.
_SPECS = (
    "FP",
    *(f"{w}A{bits}" for w in ("W8", "W16", "") for bits in (16, 12, 10, 8, 6, 4)),
    "W4A8",
    "W4A4",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """The grid that `rfq quantize` walks over (appendix D, "Quantization protocol")."""

    # Score these WnAm settings: W8A6, A8, W8, FP. Behind the widths a setting may add
    # methods to plain rounding, in this order: +clip (ranges of least error), +rotate
    # (Hadamard rotations), +smooth (SmoothQuant), +gptq, as in W4A4+clip+rotate+gptq.
    specs: tuple[str, ...] = _SPECS
    taps: tuple[str, ...] = ("paper",)  # Sites: "paper" (4 a block), "norms" or "full".
    # Choose what a residual skip carries past a quantized norm input (D19).
    streams: tuple[str, ...] = ("branch", "in_place")
    # Choose ranges with these rows of `rfq.quant.CALIBRATORS`.
    calibrators: tuple[str, ...] = ("min_max",)
    # Let these parts of an activation share a grid: "per_tensor", with a calibrated
    # range, or "per_token" or "per_group_N" (N neighbors), with each batch's own range.
    granularities: tuple[str, ...] = ("per_tensor",)
    # Turn ranges into grids with these rows of `rfq.quant.SCHEMES`.
    schemes: tuple[str, ...] = ("asymmetric",)
    calibration_tokens: int = 32_768  # Calibrate on at most so many tokens.
    calibration_seeds: tuple[int, ...] = (0,)  # Each draws its own calibration tokens.
    eval_tokens: int = 262_144  # Score at most so many held-out tokens.
    batch_size: int = 64  # Evaluate so many sequences per step.
    sample_tokens: int = 256  # Statistics that sort see so many tokens of a batch.
    # Measure on so many tokens how errors travel. It takes one pass a site and layer.
    gain_tokens: int = 1024

    def __post_init__(self):
        check_fields(self, "quantize")
        for text in self.specs:
            QuantSpec.parse(text)
        for name in self.taps:
            lookup(TAP_SETS, name, "quantize.taps")
        for name in self.streams:
            lookup(STREAMS, name, "quantize.streams")
        for name in self.calibrators:
            lookup(CALIBRATORS, name, "quantize.calibrators")
        for name in self.granularities:
            grid.check_activations(name, "quantize.granularities")
        for name in self.schemes:
            lookup(grid.SCHEMES, name, "quantize.schemes")
        for name in (
            "specs",
            "taps",
            "streams",
            "calibrators",
            "calibration_seeds",
            "granularities",
            "schemes",
        ):
            if not getattr(self, name):
                raise InputError(f"quantize.{name} is empty; name at least one")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"quantize.{field.name}={value} must be >= 1")
        if min(self.calibration_seeds) < 0:
            raise InputError(
                f"quantize.calibration_seeds={self.calibration_seeds} must be >= 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """Questions with right answers, and the settings under which they are asked."""

    # Ask rows of `rfq.tasks.TASKS`; "all" is the paper's eight, "cloze" needs no files.
    names: tuple[str, ...] = ()
    specs: tuple[str, ...] = ("FP",)  # WnAm settings; the rest is as in quantize.
    dir: str = "data/tasks"  # Read files that `rfq prepare tasks --out` wrote here.
    cloze_items: int = 200  # Ask at most so many questions of each cloze task.
    # Ask so many documents of each other task, evenly spaced in its file. None is all.
    max_documents: int | None = None

    def __post_init__(self):
        check_fields(self, "tasks")
        for text in self.specs:
            QuantSpec.parse(text)
        if self.cloze_items < 1:
            raise InputError(f"tasks.cloze_items={self.cloze_items} must be >= 1")
        if self.max_documents is not None and self.max_documents < 1:
            raise InputError(
                f"tasks.max_documents={self.max_documents} must be >= 1; None is all"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that determines a run: the four factors of the paper and the rest."""

    arm: str  # Name of the row, and of its directory.
    seed: int = 0  # Seeds the initialization and the order of the data.
    model: ModelConfig = ModelConfig()
    init: InitConfig = InitConfig()
    optimizer: optim.OptimizerConfig = optim.KLShampooConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    tasks: TasksConfig = TasksConfig()
    sharding: ShardingConfig = ShardingConfig()
    origin: OriginConfig = OriginConfig()
    start: StartConfig = StartConfig()
    qat: QatConfig = QatConfig()

    def __post_init__(self):
        # An imported model has been trained elsewhere.
        is_trained = self.train.num_steps > 0 or not self.origin.digest
        if is_trained and self.train.num_steps < 1:
            raise InputError(f"train.num_steps={self.train.num_steps} must be >= 1")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.arm):
            raise InputError(
                f"arm={self.arm!r} must be a file name: letters, digits, '_', '.', '-'"
            )
        if self.seed < 0:
            raise InputError(f"seed={self.seed} must be >= 0")
        if is_trained and self.schedule.warmup_steps >= self.train.num_steps:
            raise InputError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} must be less than "
                f"train.num_steps={self.train.num_steps}; for a run this short give "
                f"--schedule.warmup-steps {self.train.num_steps // 10} too"
            )
        if self.train.batch_size % self.sharding.microbatches:
            raise InputError(
                f"train.batch_size={self.train.batch_size} must be a multiple of "
                f"sharding.microbatches={self.sharding.microbatches}"
            )
        init_lib.check(self.init, self.model)
        lookup(TAP_SETS, self.qat.taps, "qat.taps")
        lookup(STREAMS, self.qat.stream, "qat.stream")
        if self.train.skip_anneal and self.model.skip != "weighted":
            raise InputError(
                f"train.skip_anneal={self.train.skip_anneal} needs "
                f"model.skip='weighted', not {self.model.skip!r}"
            )
        for tap_set in self.quantize.taps:
            for name in self.quantize.granularities:
                check_groups(self.model, tap_set, "quantize.granularities", name)
        check_groups(self.model, self.qat.taps, "qat.granularity", self.qat.granularity)
        for text in (*self.quantize.specs, *self.tasks.specs):
            check_methods(text, QuantSpec.parse(text).methods, self.model)
        for what, tokens in (
            ("calibration_tokens", self.quantize.calibration_tokens),
            ("eval_tokens", self.quantize.eval_tokens),
        ):
            if tokens < self.model.seq_len:
                raise InputError(
                    f"quantize.{what}={tokens} must be at least "
                    f"model.seq_len={self.model.seq_len}"
                )

    @property
    def tokens_per_step(self) -> int:
        """Trained tokens in one step."""
        return self.train.batch_size * self.model.seq_len


# Fields that do not change the trained function: a run may be named, stored, logged,
# quantized and placed differently and still be the same run.
FREE_SECTIONS = ("arm", "data", "log", "quantize", "tasks", "sharding")

# Fields that the first recorded rows lacked, with the values that reproduce those rows.
# A fingerprint leaves out fields at these values, so that old rows keep theirs.
_YOUNGER: Mapping[str, Mapping[str, object]] = {
    "model": {
        "first_layer": 1,
        "attention_kind": "softmax",
        "attention_gate": "none",
        "embedding": "plain",
        "num_kv_heads": None,
        "vocab_padding": 0,
        "norm_eps": 1e-6,
        "mlp": "gelu",
        "biases": "none",
        "head": "tied",
    },
    "init": {
        "qk_pair": "tied",
        "qk_identity": 0.3,
        "sharpness": [],
        "soft_layers": "none",
        "soft_logit": 2.0,
        "head_decay": 1.0,
        "skip_weight": 1.0,
    },
    "schedule": {"decay_share": 0.2},
    "train": {"penalty_weight": 0.0, "penalty_threshold": 3.0, "skip_anneal": 0.0},
    "optimizer": {"rates": {}, "anchors": {}, "max_precondition_dim": 16_384},
    "origin": dataclasses.asdict(OriginConfig()),
    "start": dataclasses.asdict(StartConfig()),
    "qat": dataclasses.asdict(QatConfig()),
}

# Old names of an optimizer's fields in recorded runs, and the one value that removed
# fields may have there.
_RENAMED: Mapping[str, Mapping[str, str]] = {
    "soap": {"max_precond_dim": "max_precondition_dim"},
}
_RETIRED: Mapping[str, Mapping[str, object]] = {"kl_shampoo": {"mode": "fast"}}


# Fields of the model that say how it is computed and not what: a fingerprint has, for
# each value, the one under which the first rows were recorded.
_HOW: Mapping[str, Mapping[object, object]] = {
    "remat": {"none": False, "block": True, "products": True},
    "attention": {"auto": "xla"},
}


def fingerprint(experiment: Experiment) -> str:
    """Return twelve hexadecimal digits that name the trained function and its path.

    Equal experiments have equal fingerprints: 1 and 1.0 are the same number.
    """
    described = to_dict(experiment)
    for section in FREE_SECTIONS:
        del described[section]
    optimizer = described["optimizer"]
    for old, new in _RENAMED.get(optimizer["name"], {}).items():
        optimizer[old] = optimizer.pop(new)
    optimizer.update(_RETIRED.get(optimizer["name"], {}))
    for name, recorded in _HOW.items():
        value = described["model"][name]
        described["model"][name] = recorded.get(value, value)
    for section, neutral in _YOUNGER.items():
        for name, value in neutral.items():
            if described[section].get(name) == value:
                del described[section][name]
        if not described[section]:
            del described[section]
    numbers = json.loads(json.dumps(described), parse_int=float)
    canonical = json.dumps(numbers, sort_keys=True).encode()
    return hashlib.sha256(canonical).hexdigest()[:12]


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Make a JSON-ready nested dict; the optimizer carries its `name`."""
    described = dataclasses.asdict(experiment)
    names = {config: name for name, config in optim.OPTIMIZERS.items()}
    described["optimizer"] = {
        "name": names[type(experiment.optimizer)],
        **described["optimizer"],
    }
    return json.loads(json.dumps(described))


def from_dict(described: dict[str, Any]) -> Experiment:
    """Invert `to_dict`.

    Raises:
        InputError: a field or a name is missing, unknown or impossible.
    """
    sections = dict(described)
    optimizer = dict(_section(sections.pop("optimizer", {}), "optimizer"))
    name = optimizer.pop("name", "")
    config = lookup(optim.OPTIMIZERS, name, "optimizer")
    for old, new in _RENAMED.get(name, {}).items():
        if old in optimizer:
            optimizer[new] = optimizer.pop(old)
    for field, left in _RETIRED.get(name, {}).items():
        if (value := optimizer.pop(field, left)) != left:
            raise InputError(
                f"optimizer.{field}={value!r} is no longer part of rfq; train the run "
                f"again with what {left!r} was, the only form that is left"
            )
    sections["optimizer"] = _build(config, optimizer, "optimizer")
    return _build(Experiment, sections, "experiment")


def _build(cls: type, values: dict[str, Any], where: str):
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise InputError(
            f"{where} has no field {unknown[0]!r}; it has {sorted(fields)}"
            f"{nearest(unknown[0], fields)}"
        )
    for name, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and name not in values:
            raise InputError(f"{where} lacks the field {name!r}")
    built = {}
    for name, value in values.items():
        section = type(fields[name].default)
        if dataclasses.is_dataclass(section) and not dataclasses.is_dataclass(value):
            value = _build(section, _section(value, name), name)
        built[name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def _section(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name}={value!r} must be a table of fields")
    return value


def differences(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> list:
    """List the dotted paths at which two nested dicts differ, with both values."""
    differing = []
    for key in sorted(set(ours) | set(theirs)):
        a, b = ours.get(key), theirs.get(key)
        where = f"{path}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            differing += differences(a, b, f"{where}.")
        elif a != b:
            differing.append((where, a, b))
    return differing


def load(name: str | pathlib.Path) -> Experiment:
    """Run a config file's `config()`; the file may lie anywhere.

    Raises:
        InputError: there is no such file, it holds a family, or what it makes is wrong.
    """
    (experiment,) = load_arms(name, None)
    return experiment


def load_arms(
    name: str | pathlib.Path, scale: str | None, source: Experiment | None = None
) -> tuple[Experiment, ...]:
    """Run a config file's `arms(scale)`, or `config()` where `scale` is None.

    Args:
        name: as for `load`.
        scale: the size of a family of arms.
        source: the experiment of the run that is continued, which the function
            `continued` of a config file takes.

    Raises:
        InputError: as `load`; a scale is missing or of no use; two arms have one name.
    """
    path = config_files.one(name)
    made = config_files.run(path, scale, source)
    for experiment in made:
        if not isinstance(experiment, Experiment):
            raise InputError(
                f"config {str(path)!r} returned {type(experiment).__name__}, not an "
                "rfq.experiment.Experiment"
            )
    names = [experiment.arm for experiment in made]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"config {str(path)!r} has two arms called {twice[0]!r}")
    return made
