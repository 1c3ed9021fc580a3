"""The command line: `rfq COMMAND ...`; every command parses and runs elsewhere."""

import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

from rfq import __version__, config_files, distributed, interrupt, metrics, runs
from rfq import experiment as experiment_lib
from rfq.commands import (
    bench,
    compare,
    diagnose,
    evaluate,
    exhausted,
    generate,
    given,
    importing,
    inspect,
    measure,
    parsing,
    prepare,
    quantize,
    report,
    theory,
    train,
)
from rfq.errors import Diverged, InputError, Preempted, lookup
from rfq.experiment import Experiment, QuantizeConfig

# Name -> (arguments, function, the config that may be overridden after them). A name of
# two words is a command of a group.
COMMANDS: Mapping[str, tuple[type, Callable, type | None]] = {
    "compare": (compare.Compare, compare.run, Experiment),
    "train": (train.Train, train.run, Experiment),
    "quantize": (quantize.Quantize, quantize.run, QuantizeConfig),
    "evaluate": (evaluate.Evaluate, evaluate.run, QuantizeConfig),
    "generate": (generate.Generate, generate.run, None),
    "import": (importing.Import, importing.run, None),
    "export": (importing.Export, importing.run_export, None),
    "measure": (measure.Measure, measure.run, QuantizeConfig),
    "report": (report.Report, report.run, None),
    "diagnose": (diagnose.Diagnose, diagnose.run, Experiment),
    "theory": (theory.Theory, theory.run, None),
    "prepare": (prepare.Prepare, prepare.run, None),
    "inspect": (inspect.Inspect, inspect.run, None),
    "prepare tokenizer": (prepare.PrepareTokenizer, prepare.run_tokenizer, None),
    "prepare tasks": (prepare.PrepareTasks, prepare.run_tasks, None),
    "bench train": (bench.BenchTrain, bench.run_train, Experiment),
    "bench optim": (bench.BenchOptim, bench.run_optim, Experiment),
    "bench quantize": (bench.BenchQuantize, bench.run_quantize, Experiment),
    "bench integers": (bench.BenchIntegers, bench.run_integers, None),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0 done, 1 diverged, 2 bad input, 75 told to end and saved, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with exhausted.said():
            status = _dispatch(argv)
    except InputError as error:
        distributed.abandon(2, error)
        status = _said(2, str(error))
    except Diverged as error:
        status = _said(1, str(error))
    except Preempted as error:
        status = _said(distributed.REQUEUE, str(error))
    except KeyboardInterrupt as error:
        distributed.abandon(interrupt.STATUS, error)
        status = _said(interrupt.STATUS, interrupt.SENTENCE)
    except Exception as error:
        distributed.abandon(1, error)
        raise
    distributed.leave()
    return status


def _said(status: int, text: str) -> int:
    """Tell why, once for all processes that end together."""
    if metrics.is_writer():
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
    group = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if group and argv[0] not in COMMANDS:
        if argv[1:] in (["-h"], ["--help"]):
            sys.stdout.write(_overview())
            return 0
        if not argv[1:]:
            raise InputError(
                f"rfq {argv[0]} stands for several commands; give one of "
                f"{', '.join(f'`rfq {name}`' for name in group)}"
            )
        num_words = 2
    name = " ".join(argv[:num_words])
    kind, function, overridden = lookup(COMMANDS, name, "command")
    prog, rest = f"rfq {name}", argv[num_words:]
    if overridden is None:
        function(parsing.parse(prog, kind, rest))
        return 0
    if {"-h", "--help"} & set(rest):
        _help(prog, kind, rest)
        return 0
    function(*parsing.parse_known(prog, kind, overridden, rest))
    return 0


def _overview() -> str:
    lines = [
        "rfq: residual and residual-free transformers, trained and quantized",
        "",
        "usage: rfq COMMAND ...   (rfq COMMAND --help explains a command)",
        "",
    ]
    width = max(map(len, COMMANDS))
    for name, (kind, _, _) in COMMANDS.items():
        summary = (kind.__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:{width}} {summary}")
    lines += [
        "",
        "start here:",
        "  rfq prepare embedded --out data/embedded",
        "  rfq compare demo --out runs/demo",
        "",
        "Compiled programs are kept in ~/.cache/rfq, up to 2 GiB of them, so that the "
        "next start is quick.",
        "RFQ_CACHE=DIR keeps them elsewhere, and RFQ_CACHE=off keeps none.",
    ]
    return "\n".join(lines) + "\n"


def _help(prog: str, kind: type, rest: Sequence[str]) -> None:
    """Print help on the command and, if a config or a run is named, on its fields."""
    parsing.show_help(prog, kind)
    for word in rest:
        if (pathlib.Path(word) / "config.json").is_file():
            run, _ = runs.load(pathlib.Path(word))
            parsing.show_help(f"{prog} {word}", type(run.quantize), run.quantize)
            return
        if not word.startswith("-") and config_files.exists(word):
            _help_on_config(f"{prog} {word}", word, rest)
            return


def _help_on_config(prog: str, name: str, rest: Sequence[str]) -> None:
    """Print help on the fields of a config, or of the first arm that it stands for."""
    path, *more = config_files.find(name)
    scale = None
    if config_files.is_family(path):
        words = [part for word in rest for part in given.split_equals(word)]
        scales = [word for word in words if word in config_files.SCALES]
        scale = (*scales, *config_files.SCALES)[0]
    experiment, *others = experiment_lib.load_arms(path, scale)
    parsing.show_help(prog, Experiment, experiment)
    names = [arm.arm for arm in (experiment, *others)] + [each.stem for each in more]
    if len(names) > 1:
        sys.stdout.write(
            f"the values are those of the first arm of: {', '.join(names)}\n"
        )
