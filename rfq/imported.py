"""DRIVER of `rfq import` and `rfq export`: public checkpoints as runs, and back.

An imported run is a run directory like any other, trained for no step by rfq:

RUN/config.json        the experiment; `origin` says which checkpoint it was
RUN/tokenizer.json     the checkpoint's tokenizer (or tokenizer.model)
RUN/data/              text that was prepared with it, where the data are not given
RUN/checkpoints/0/     the parameters, float32
"""

import dataclasses
import importlib
import json
import pathlib
import re
import shutil
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import checkpoint, metrics, optim, runs
from rfq.data import manifest as manifest_lib
from rfq.data import prepare, sources, tokenize
from rfq.errors import InputError
from rfq.experiment import (
    DataConfig,
    Experiment,
    LogConfig,
    QuantizeConfig,
    TrainConfig,
)
from rfq.model import transformer
from rfq.model.config import ModelConfig
from rfq.model.init import InitConfig
from rfq.optim.schedule import ScheduleConfig
from rfq.origins import OriginConfig
from rfq.public import families, tensors
from rfq.public.sources import Source, open_source
from rfq.types import Params

# Sequences of a batch: held-out text comes in whole batches, and a public vocabulary
# makes large logits.
_BATCH = 8
# Shares of --data that become held-out and calibration text: nothing is trained on it.
_HELDOUT, _CALIBRATION = 0.4, 0.2


def run(
    spec: str,
    out: pathlib.Path,
    *,
    data: str = "embedded",
    tokenizer: str | None = None,
    seq_len: int | None = None,
) -> Experiment:
    """Make a run directory of a public checkpoint.

    Everything is checked before anything is written. The directory appears when it is
    whole.

    Args:
        spec: As `public.sources.open_source` takes it.
        out: The run directory, which must not exist yet or be empty.
        data: A directory that `rfq prepare` made with the checkpoint's tokenizer, or
            text as `rfq prepare` takes it, which is prepared in the run directory.
        tokenizer: A tokenizer.json or .model that replaces the checkpoint's.
        seq_len: Tokens of a sequence; None is 512, or all of a shorter context.

    Returns:
        The experiment of the run.

    Raises:
        InputError: the checkpoint, its tokenizer, the data or the directory cannot be
            used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"--out {str(out)!r} is not empty; choose another directory or delete it"
        )
    if not _is_prepared(data):
        sources.open_source(data)
    with open_source(spec) as source:
        model = families.to_model(source.config, source.where, seq_len=seq_len)
        tensors.check(source.tensors, model, source.where)
        given = None if tokenizer is None else pathlib.Path(tokenizer)
        name, content = source.tokenizer() if given is None else _read(given)
        model = _with_padding(model, _loaded(name, content), source.where)
        metrics.make_directory(out.parent)
        # The steps behind it cannot be checked without doing them; what they leave is
        # gone if they fail.
        with tempfile.TemporaryDirectory(
            dir=out.parent, prefix=f".{out.name}."
        ) as part:
            folder = pathlib.Path(part) / "run"
            folder.mkdir()
            params, origin = _load(source, model)
            (folder / name).write_bytes(content)
            experiment = _experiment(source, model, origin)
            made = tokenize.load(str(folder / name))
            place = prepared(data, folder / "data", made, model)
            experiment = on_data(experiment, place, folder / name)
            runs.check(experiment)
            if out.exists():
                out.rmdir()
            # config.json holds absolute paths, so the last step is in the last place.
            folder.rename(out)
            try:
                moved = str(out / "data") if place == str(folder / "data") else place
                return _finish(on_data(experiment, moved, out / name), out, params)
            except BaseException:
                shutil.rmtree(out, ignore_errors=True)
                raise


def export(experiment: Experiment, run_dir: pathlib.Path, out: pathlib.Path) -> None:
    """Write a run as a Hugging Face directory; an imported one bit for bit.

    Raises:
        InputError: the model has no public equivalent, the run is not finished, or the
            directory cannot be written.
    """
    origin = experiment.origin
    family, dtype = origin.family or "llama", origin.dtype or "float32"
    context = origin.context or experiment.model.seq_len
    config = families.to_config(experiment.model, family, dtype, context)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            f"--hf {str(out)!r} is not empty; choose another directory or delete it"
        )
    params = jax.device_get(
        runs.final_params(experiment, run_dir, transformer.shapes(experiment.model))
    )
    named = {
        name: tensor.astype(jnp.dtype(dtype))
        for name, tensor in tensors.named(params, experiment.model)
    }
    metrics.make_directory(out)
    try:
        library = importlib.import_module("safetensors.numpy")
    except ImportError as error:
        raise InputError(
            "a Hugging Face directory holds safetensors, and safetensors is not "
            "installed; install the extra rfq[import]"
        ) from error
    library.save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    metrics.write_text(out / "config.json", json.dumps(config, indent=1) + "\n")
    tokenizer = pathlib.Path(experiment.data.tokenizer)
    if tokenizer.is_file():
        shutil.copyfile(tokenizer, out / f"tokenizer{tokenizer.suffix}")


# --- The parts of an import ----------------------------------------------------------


def _load(source: Source, model: ModelConfig) -> tuple[Params, OriginConfig]:
    """Read all tensors."""
    with metrics.progress(f"import {source.name}", len(source.tensors)) as bar:
        params, digest = tensors.load(
            source.tensors, model, source.where, lambda done: bar.update(done)
        )
    # The widest type holds all values of the others.
    widest = max(tensors.DTYPES.index(t.dtype) for t in source.tensors.values())
    kinds = {tensor.dtype for tensor in source.tensors.values()}
    return params, OriginConfig(
        family=families.family_of(source.config, source.where),
        dtype=tensors.DTYPES[widest] if len(kinds) == 1 else "float32",
        context=families.context_of(source.config, source.where),
        digest=digest,
    )


def _experiment(source: Source, model: ModelConfig, origin: OriginConfig) -> Experiment:
    """Describe an imported model; nothing here trains it."""
    arm = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.name).strip("-._") or "imported"
    tokens = _BATCH * model.seq_len
    return Experiment(
        arm=arm,
        model=model,
        init=InitConfig(recipe="gpt2"),
        optimizer=optim.AdamWConfig(),
        schedule=ScheduleConfig(warmup_steps=0),
        train=TrainConfig(num_steps=0, batch_size=_BATCH),
        log=LogConfig(measure_sequences=_BATCH),
        quantize=QuantizeConfig(
            calibration_tokens=2 * tokens, eval_tokens=4 * tokens, batch_size=_BATCH
        ),
        origin=origin,
    )


def on_data(
    experiment: Experiment, dir: str, tokenizer: pathlib.Path | None = None
) -> Experiment:
    """Return the experiment on other prepared data, and with another tokenizer."""
    own = experiment.data.tokenizer if tokenizer is None else str(tokenizer)
    data = DataConfig(dir=dir, tokenizer=own)
    return dataclasses.replace(experiment, data=data)


def _is_prepared(data: str) -> bool:
    return (pathlib.Path(data) / manifest_lib.FILE_NAME).is_file()


def prepared(
    data: str, folder: pathlib.Path, tokenizer: tokenize.Tokenizer, model: ModelConfig
) -> str:
    """Return the directory of prepared data; text is prepared in `folder`."""
    if _is_prepared(data):
        return data
    prepare.prepare(
        data,
        folder,
        tokenizer=tokenizer,
        window_len=model.seq_len,
        heldout_fraction=_HELDOUT,
        calibration_fraction=_CALIBRATION,
        progress=metrics.progress,
    )
    return str(folder)


def _finish(experiment: Experiment, out: pathlib.Path, params: Params) -> Experiment:
    """Write config.json, the checkpoint and done.json."""
    described = runs.claim(experiment, out)
    with checkpoint.Checkpoints(out, keep=1) as saved:
        meta: dict[str, Any] = {"step": 0, "seconds": 0.0, **described}
        saved.save(0, params, {"count": np.int32(0)}, meta)
    done = {"num_steps": 0, "seconds": 0.0}
    metrics.write_text(out / "done.json", json.dumps(done) + "\n")
    return experiment


def _read(path: pathlib.Path) -> tuple[str, bytes]:
    tokenize.load(str(path))  # It says what is wrong with a file.
    return f"tokenizer{path.suffix}", path.read_bytes()


def _loaded(name: str, content: bytes) -> tokenize.Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        path.write_bytes(content)
        return tokenize.load(str(path))


def _with_padding(
    model: ModelConfig, tokenizer: tokenize.Tokenizer, where: str
) -> ModelConfig:
    padding = model.vocab_size - tokenizer.vocab_size
    if padding < 0:
        raise InputError(
            f"the tokenizer of {where} has {tokenizer.vocab_size} ids and its model "
            f"{model.vocab_size}; give the model's own tokenizer with --tokenizer"
        )
    return dataclasses.replace(model, vocab_padding=padding)
