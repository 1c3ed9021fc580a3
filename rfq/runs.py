"""What a run directory is: whose it is, on what data, and whether that still fits.

config.json     the experiment, its fingerprint, the data's, versions, device
metrics.jsonl   one row per logged step
measures.jsonl  held-out loss and activation statistics per measured step
checkpoints/    see `checkpoint`
done.json       written when training has ended
failed.json     written when training diverged
quantize/       rows.jsonl and what else `ptq` measured
"""

import hashlib
import json
import pathlib
from typing import Any

from rfq import distributed, metrics, sharding
from rfq import experiment as experiment_lib
from rfq.data import manifest as manifest_lib
from rfq.data import pipeline, split, tokenize
from rfq.data.manifest import Manifest
from rfq.errors import InputError
from rfq.experiment import Experiment


def check(experiment: Experiment) -> Manifest:
    """Holds an experiment against its data and this machine, before anything compiles.

    Raises:
        InputError: one sentence about the first thing that does not fit.
    """
    manifest = manifest_lib.load(experiment.data.dir)
    tokenizer = tokenize.load(experiment.data.tokenizer)
    manifest_lib.check(
        manifest,
        vocab_size=experiment.model.vocab_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
    )
    mesh = sharding.make_mesh()
    sharding.check(experiment.train.batch_size, "train.batch_size", mesh)
    sharding.check(experiment.quantize.batch_size, "quantize.batch_size", mesh)
    sharding.check(experiment.log.measure_sequences, "log.measure_sequences", mesh)
    for name in split.SPLITS:
        pipeline.open_split(experiment.data.dir, name, experiment.model.seq_len)
    return manifest


def claim(
    experiment: Experiment, manifest: Manifest, run_dir: pathlib.Path
) -> dict[str, Any]:
    """Makes a run directory this experiment's, or refuses because it is another's.

    Returns:
        What stands in config.json.

    Raises:
        InputError: the directory cannot be written, or holds another experiment.
    """
    described = {
        "experiment": experiment_lib.to_dict(experiment),
        "fingerprint": experiment_lib.fingerprint(experiment),
        "data_fingerprint": data_fingerprint(manifest),
        "commit": distributed.commit(),
        "versions": distributed.versions(),
        "device": distributed.devices(),
    }
    metrics.make_directory(run_dir)
    if (run_dir / "config.json").exists():
        theirs = _read_config(run_dir)
        if theirs["fingerprint"] != described["fingerprint"]:
            where, ours, other = next(
                difference
                for difference in experiment_lib.differences(
                    described["experiment"], theirs["experiment"]
                )
                if difference[0].split(".")[0] not in experiment_lib.FREE_SECTIONS
            )
            raise InputError(
                f"{run_dir} holds another experiment ({where} is {other!r} there and "
                f"{ours!r} here); choose another --out or delete it"
            )
        if theirs["data_fingerprint"] != described["data_fingerprint"]:
            raise InputError(
                f"{run_dir} was trained on other data than those in "
                f"{experiment.data.dir!r}; choose another --out or delete it"
            )
    metrics.write_text(run_dir / "config.json", json.dumps(described, indent=1) + "\n")
    return described


def load(run_dir: pathlib.Path) -> tuple[Experiment, dict[str, Any]]:
    """Reads back the experiment of a run directory, and all of config.json.

    Raises:
        InputError: not a run directory, or not one of this version's.
    """
    described = _read_config(run_dir)
    return experiment_lib.from_dict(described["experiment"]), described


def data_fingerprint(manifest: Manifest) -> str:
    """Twelve hexadecimal digits that name the prepared windows."""
    return hashlib.sha256(manifest_lib.to_json(manifest).encode()).hexdigest()[:12]


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
