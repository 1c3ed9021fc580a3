"""Run directories: the experiment and data of a run, and whether they still fit.

config.json     the experiment, its fingerprint, the data's and where they lay,
                versions, device
metrics.jsonl   one row per logged step
measures.jsonl  held-out loss and activation statistics per measured step
checkpoints/    see `checkpoint`
done.json       written when training has ended
failed.json     written when training diverged
quantize/       rows.jsonl and what else `ptq` measured
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from rfq import checkpoint, distributed, files, heldout, metrics, provenance, sharding
from rfq import experiment as experiment_lib
from rfq.data import manifest as manifest_lib
from rfq.data import pipeline, tokenize
from rfq.data.manifest import Manifest
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import transformer
from rfq.types import Params


def check(experiment: Experiment) -> Manifest:
    """Check an experiment against its data and this machine, before anything compiles.

    Raises:
        InputError: one sentence about the first thing that does not fit.
    """
    manifests = _manifests(experiment)
    tokenizer = tokenize.load(experiment.data.tokenizer)
    for manifest in manifests:
        manifest_lib.check(
            manifest,
            vocab_size=experiment.model.num_tokens,
            tokenizer_fingerprint=tokenizer.fingerprint,
        )
    mesh = sharding.make_mesh(config=experiment.sharding)
    grid, log = experiment.quantize, experiment.log
    sharding.check(
        experiment.train.batch_size,
        "train.batch_size",
        mesh,
        experiment.sharding.microbatches,
    )
    sharding.check(grid.batch_size, "quantize.batch_size", mesh)
    sharding.check(log.measure_sequences, "log.measure_sequences", mesh)
    shapes = transformer.shapes(experiment.model)
    sharding.params_shardings(mesh, shapes)
    train_batches(experiment)
    sequence = experiment.model.seq_len
    for split, num_tokens, batch_size in (
        ("heldout", log.measure_sequences * sequence, log.measure_sequences),
        ("heldout", grid.eval_tokens, grid.batch_size),
        ("calibration", grid.calibration_tokens, grid.batch_size),
    ):
        heldout.choose(experiment, split, num_tokens=num_tokens, batch_size=batch_size)
    return manifests[0]


def _manifests(experiment: Experiment) -> list[Manifest]:
    return [manifest_lib.load(name) for name in experiment.data.mixture.directories]


def train_batches(experiment: Experiment) -> pipeline.Batches:
    """Iterate over this process's share of the training batches.

    Raises:
        InputError: as `pipeline.train_batches`.
    """
    return pipeline.train_batches(
        experiment.data.mixture,
        seq_len=experiment.model.seq_len,
        batch_size=experiment.train.batch_size,
        seed=experiment.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=experiment.data.num_workers,
    )


def epochs(experiment: Experiment) -> dict[str, float]:
    """Count how often the whole run goes through each set of its data."""
    mixture = experiment.data.mixture
    num_sequences = experiment.train.num_steps * experiment.train.batch_size
    counts = pipeline.epochs(mixture, experiment.model.seq_len, num_sequences)
    return dict(zip(mixture.directories, counts, strict=True))


@contextlib.contextmanager
def alone_in(directory: pathlib.Path) -> Iterator[None]:
    """Lock a directory against other writers, and make it if it is missing.

    Raises:
        InputError: the directory cannot be written, or another process is at work in
            it; see `files.locked`.
    """
    if not metrics.is_writer():
        yield
        return
    metrics.make_directory(directory)
    with files.locked(directory):
        yield


def claim(experiment: Experiment, run_dir: pathlib.Path) -> dict[str, Any]:
    """Claim a run directory for this experiment, or refuse because it is another's.

    config.json is written until training has ended, and from then on says with what
    settings, versions and device it did.

    Returns:
        What describes the run as of now.

    Raises:
        InputError: the directory cannot be written, or holds another experiment.
    """
    described = _described(experiment, run_dir)
    metrics.make_directory(run_dir)
    distributed.barrier("the run directory")
    if (run_dir / "config.json").exists():
        match(described, _read_config(run_dir), str(run_dir))
    if not is_finished(run_dir):
        text = json.dumps(described, indent=1) + "\n"
        metrics.write_text(run_dir / "config.json", text)
    return described


def reopen(experiment: Experiment, run_dir: pathlib.Path) -> dict[str, Any]:
    """Hold a finished run against its experiment, and against where its data are now.

    Returns:
        What describes the run as of now.

    Raises:
        InputError: training has not ended, or the run is of another experiment or of
            other data.
    """
    require_finished(experiment, run_dir)
    described, config = _described(experiment, run_dir), _read_config(run_dir)
    if config["data_fingerprint"] != described["data_fingerprint"]:
        given, own = experiment.data.dir, _data_of(config)["directories"][0]
        differences = _recipe_differences(described, config)
        raise InputError(
            f"the data in {given!r} are not those that {run_dir} was trained on"
            + (f" ({differences})" if differences else "")
            + "; give --data-dir the directory that `rfq prepare` made for it"
            + (f", which was {own!r}" if own != given else "")
        )
    match(described, config, str(run_dir))
    return described


def _described(experiment: Experiment, run_dir: pathlib.Path) -> dict[str, Any]:
    """Describe a run as of now, in fields on which all processes must agree."""
    described = {
        "experiment": experiment_lib.to_dict(experiment),
        "fingerprint": experiment_lib.fingerprint(experiment),
        "data_fingerprint": data_fingerprint(experiment),
        **provenance.described(),
    }
    code = {"code": provenance.code(), "out": str(run_dir)}
    distributed.agree("experiment, data, code or versions", described | code)
    return described | {"data": _places(experiment)}


def _places(experiment: Experiment) -> dict[str, Any]:
    """Say where the data lie, whatever directory the next command is given in."""
    tokenizer = experiment.data.tokenizer
    return {
        "directories": [
            str(pathlib.Path(name).absolute())
            for name in experiment.data.mixture.directories
        ],
        "tokenizer": (
            tokenizer
            if tokenizer in tokenize.TOKENIZERS
            else str(pathlib.Path(tokenizer).absolute())
        ),
        "recipe": manifest_lib.as_dict(_manifests(experiment)[0])["recipe"],
    }


def _data_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a config.json says of its data; older ones lack absolute paths."""
    data = config["experiment"]["data"]
    older = {
        "directories": [data["dir"], *data.get("also", ())],
        "tokenizer": data["tokenizer"],
        "recipe": {},
    }
    return older | config.get("data", {})


def _recipe_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """List how data were prepared otherwise, as far as it is known."""
    now, then = ours["data"]["recipe"], _data_of(theirs)["recipe"]
    return ", ".join(
        f"{field} {str(now.get(field))[:12]} and not {str(value)[:12]}"
        for field, value in then.items()
        if now.get(field) != value
    )


def located(
    experiment: Experiment, config: Mapping[str, Any], directory: pathlib.Path
) -> Experiment:
    """Return the experiment with its data and tokenizer where they are found.

    A path that does not exist from the working directory is looked for where it was at
    the time of the run, and then under its name in the directory of config.json, which
    may have been moved with what it holds.
    """
    data, places = experiment.data, _data_of(config)

    def found(given: str, place: str, exists: Callable[[str], bool]) -> str:
        candidates = (given, place, str(directory / pathlib.Path(place).name))
        return next(filter(exists, candidates), given)

    dir, *also = (
        found(given, place, _is_prepared)
        for given, place in zip(
            data.mixture.directories, places["directories"], strict=True
        )
    )
    tokenizer = data.tokenizer
    if tokenizer not in tokenize.TOKENIZERS:
        is_there = lambda path: pathlib.Path(path).exists()  # noqa: E731
        tokenizer = found(tokenizer, places["tokenizer"], is_there)
    moved = dataclasses.replace(data, dir=dir, also=tuple(also), tokenizer=tokenizer)
    return dataclasses.replace(experiment, data=moved)


def _is_prepared(directory: str) -> bool:
    return (pathlib.Path(directory) / manifest_lib.FILE_NAME).exists()


def is_finished(run_dir: pathlib.Path) -> bool:
    """Return True once training has reached its last step."""
    return distributed.broadcast("finished", (run_dir / "done.json").exists)


def match(ours: dict[str, Any], theirs: dict[str, Any], where: str) -> None:
    """Refuse what was trained by another experiment or on other data.

    Args:
        ours: As `claim` describes a run.
        theirs: The same, read from `where`.
        where: What holds it, for the message.

    Raises:
        InputError: names the first field that differs.
    """
    # Older files lack newer fields, which then have their defaults.
    completed = experiment_lib.to_dict(experiment_lib.from_dict(theirs["experiment"]))
    for field, mine, other in experiment_lib.differences(ours["experiment"], completed):
        if field.split(".")[0] not in experiment_lib.FREE_SECTIONS:
            raise InputError(
                f"{where} holds another experiment ({field} is {other!r} there and "
                f"{mine!r} here); choose another --out or delete it"
            )
    if theirs["data_fingerprint"] != ours["data_fingerprint"]:
        differences = _recipe_differences(ours, theirs)
        raise InputError(
            f"{where} was trained on other data than those in "
            f"{ours['experiment']['data']['dir']!r}"
            + (f" ({differences})" if differences else "")
            + "; choose another --out, or give --data.dir "
            f"{_data_of(theirs)['directories'][0]}"
        )


def load(run_dir: pathlib.Path) -> tuple[Experiment, dict[str, Any]]:
    """Read back the experiment of a run directory, and all of config.json.

    The data are where `located` finds them.

    Raises:
        InputError: not a run directory, or not one of this version's.
    """
    described = _read_config(run_dir)
    experiment = experiment_lib.from_dict(described["experiment"])
    return located(experiment, described, run_dir), described


def require_finished(experiment: Experiment, run_dir: pathlib.Path) -> None:
    """Raise an InputError unless training came to its end."""
    if not is_finished(run_dir):
        raise InputError(
            f"{run_dir} is not trained to its last step, {experiment.train.num_steps}; "
            "finish it with `rfq train` first"
        )


def final_params(experiment: Experiment, run_dir: pathlib.Path, target: Params):
    """Read the parameters at the end of training, placed as `target` says.

    Raises:
        InputError: the run is not finished, or its last checkpoint is gone or damaged.
    """
    require_finished(experiment, run_dir)
    last = experiment.train.num_steps
    with checkpoint.Checkpoints(run_dir, keep=None) as saved:
        if saved.latest_step() != last:
            damage = "is gone"
        else:
            damage = distributed.broadcast(
                "damage", lambda: saved.damage(last, ("params",))
            )
            damage = damage and f"is damaged ({damage})"
        if damage is not None:
            raise InputError(
                f"{run_dir} is finished but its checkpoint of step {last} {damage}; "
                "delete its done.json and run `rfq train` again"
            )
        return saved.params(last, target)


def train_seconds(run_dir: pathlib.Path) -> float:
    """Return the seconds of training until the end of a run, 0 where it has none."""
    done = metrics.read(run_dir / "done.json")
    return done[0]["seconds"] if done else 0.0


def data_fingerprint(experiment: Experiment) -> str:
    """Return twelve hexadecimal digits that name prepared windows and their mixture."""
    manifests = _manifests(experiment)
    sizes = [one.splits["train"].num_windows for one in manifests]
    shares = experiment.data.mixture.shares(sizes)
    described = [manifest_lib.as_dict(one) for one in manifests], shares
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:12]


def _read_config(run_dir: pathlib.Path) -> dict[str, Any]:
    path = run_dir / "config.json"
    if not path.is_file():
        raise InputError(
            f"{str(run_dir)!r} is not a run directory (it has no config.json); give "
            "one that `rfq train` or `rfq compare` made, such as "
            "runs/demo/arms/residual_adamw/seed-0"
        )
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); train again") from error
    missing = {"experiment", "fingerprint", "data_fingerprint"} - set(described)
    if missing:
        raise InputError(f"{path} lacks {sorted(missing)}; it is from another program")
    return described
