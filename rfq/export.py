"""Quantized checkpoints: integer codes and their grids in files that run on their own.

DIR/<spec>/model.safetensors  codes, steps and zero points, and what stays float32
DIR/<spec>/quantized.json     the experiment, the setting, the other file's sha256

Codes of at most 4 bits lie two in a byte. The embedding, which is the head too, its
projections and the gains stay float32 (D4).
"""

import dataclasses
import hashlib
import importlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from rfq import experiment as experiment_lib
from rfq import files, heldout, metrics, runs, sharding, steps, taps
from rfq import params as params_lib
from rfq.data import manifest as manifest_lib
from rfq.errors import InputError
from rfq.experiment import Experiment
from rfq.model import layers, products, transformer
from rfq.model.config import (
    FED_BY,
    NORMALIZED_SITES,
    TAP_SETS,
    ModelConfig,
    num_params,
)
from rfq.quant import calibrate, grid, integer
from rfq.quant.spec import QuantSpec
from rfq.tasks import decode
from rfq.types import Batch, Params

FORMAT = "rfq.quantized.1"
_TENSORS, _CONFIG = "model.safetensors", "quantized.json"
_AGAIN = "write it again with `rfq quantize RUN --export DIR`"


class Quantized(NamedTuple):
    """A model whose hidden matrices are integers, with the grids of its products.

    Attributes:
        params: The parameter tree, codes in the places of the matrices.
        weights: {matrix: `Grid`}, leaves [L, ...].
        sites: {site of the full tap set: `Grid`}, leaves [L] or scalar; empty where
            the weights alone are quantized.
    """

    params: Params
    weights: dict[str, grid.Grid]
    sites: dict[str, grid.Grid]

    @property
    def states(self) -> dict[str, grid.Grid | integer.Operands]:
        """What the taps and the dot take, by site and by parameter."""
        if not self.sites:
            return dict(self.weights)
        operands = {
            name: integer.Operands(self.sites[FED_BY[name]], w)
            for name, w in self.weights.items()
        }
        return {**self.sites, **operands}


def run(
    experiment: Experiment, run_dir: pathlib.Path, out: pathlib.Path
) -> list[dict[str, Any]]:
    """Write each of `experiment.quantize.specs` as a checkpoint and score the file.

    The full tap set is calibrated on the rounded weights (D5), by the first of the
    calibrators and seeds, and a residual skip carries the first of the streams.

    Returns:
        What `evaluate` says of each checkpoint.

    Raises:
        InputError: a setting cannot run on integers, the run is not finished or its
            data do not fit, or safetensors is not installed.
    """
    config = experiment.quantize
    how = (config.granularities[0], config.schemes[0])
    if how != ("per_tensor", "asymmetric"):
        raise InputError(
            f"an export has one asymmetric grid a tensor, and not {' and '.join(how)}; "
            "leave out --granularities and --schemes"
        )
    specs = [_checked(text, experiment.model) for text in dict.fromkeys(config.specs)]
    _safetensors()
    run_described = runs.reopen(experiment, run_dir)
    manifest = runs.check(experiment)
    described = {
        **run_described,
        "tokenizer_fingerprint": manifest.recipe.tokenizer_fingerprint,
    }
    with runs.alone_in(out):
        return _run(experiment, run_dir, out, specs, described)


def _run(
    experiment: Experiment,
    run_dir: pathlib.Path,
    out: pathlib.Path,
    specs: list[QuantSpec],
    run_described: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Export one checkpoint after another; `run_described` tells each of the run."""
    config = experiment.quantize
    mesh = sharding.make_mesh(config=experiment.sharding)
    encode = steps.compile_integer(experiment, mesh, config.streams[0]).encode
    compiled = steps.compile_quant(experiment, mesh, "full")
    params = runs.final_params(experiment, run_dir, compiled.params)
    batches = heldout.batches(
        experiment,
        "calibration",
        num_tokens=config.calibration_tokens,
        batch_size=config.batch_size,
        mesh=mesh,
        seed=config.calibration_seeds[0],
    )
    described = {
        "format": FORMAT,
        "taps": "full",
        "stream": config.streams[0],
        "calibrator": config.calibrators[0],
        "calibration_seed": config.calibration_seeds[0],
        "calibration_tokens": heldout.num_tokens(batches),
        **run_described,
    }
    rows = []
    with metrics.progress(f"export {experiment.arm}", len(specs)) as bar:
        for number, spec in enumerate(specs, start=1):
            assert spec.weight_bits is not None
            codes, tree = encode(params, spec.weight_bits)
            weights = {name: g for name, g in tree["blocks"].items() if g is not None}
            sites = {}
            if spec.act_bits is not None:
                sites = _site_grids(
                    params, compiled, batches, spec, config.calibrators[0]
                )
            quantized = jax.device_get(Quantized(codes, weights, sites))
            save(out / spec.name, quantized, {**described, "spec": spec.name})
            multihost_utils.sync_global_devices(str(out / spec.name))
            rows.append(evaluate(out / spec.name))
            bar.update(number, spec.name)
    return rows


def _checked(text: str, model: ModelConfig) -> QuantSpec:
    """Return a setting that can be exported, or raise a sentence that says why not."""
    spec = QuantSpec.parse(text)
    if spec.methods:
        raise InputError(
            f"quantize.specs has {text!r}, and an export rounds to nearest without "
            f"methods; export {spec.widths} (--calibrators mse chooses its ranges as "
            "+clip does)"
        )
    wide = max(spec.weight_bits or 0, spec.act_bits or 0) > integer.MAX_DOT_BITS
    if spec.weight_bits is None or (spec.act_bits is not None and wide):
        raise InputError(
            f"quantize.specs has {text!r}, which cannot run on integers; export WnAm "
            f"with n and m from 2 to {integer.MAX_DOT_BITS}, or Wn alone, for example "
            "--specs W8A8 W4A8 W4"
        )
    if spec.act_bits is not None and model.mlp_width > integer.MAX_CONTRACTED:
        raise InputError(
            f"{text!r} cannot be exported: model.width * model.mlp_ratio = "
            f"{model.mlp_width} products of 8-bit codes can overflow int32, which "
            f"holds {integer.MAX_CONTRACTED}; export weights alone, for example W8"
        )
    return spec


def _site_grids(
    params: Params,
    compiled: steps.QuantSteps,
    batches: list[Batch],
    spec: QuantSpec,
    calibrator: str,
) -> dict[str, grid.Grid]:
    """Make the grid of every site, as `ptq` calibrates it."""
    assert spec.act_bits is not None
    rounded = compiled.quantize(params, jnp.int32(spec.weight_bits))
    observed = calibrate.observe(
        lambda batch: compiled.calibrate(rounded, batch),
        lambda batch, binnings: compiled.histogram(rounded, batch, binnings),
        batches,
        TAP_SETS["full"],
    )
    ranges = calibrate.ranges(
        observed,
        calibrator,
        spec.act_bits,
        grid.grid_from_range,
        calibrate.known_rms(params, NORMALIZED_SITES, sharding.fetched),
    )
    return calibrate.grids(ranges, spec.act_bits)


def evaluate(directory: pathlib.Path, data_dir: str | None = None) -> dict[str, Any]:
    """Score a quantized checkpoint on held-out text, from its files alone.

    Args:
        directory: What `save` wrote.
        data_dir: Where the prepared data are now, if not where they were.

    Returns:
        spec, stream, loss in nats per token, bits_per_byte, eval_tokens; num_bytes of
        the tensors' file beside float32_bytes and bfloat16_bytes of the parameters.

    Raises:
        InputError: the files are damaged, or the data were prepared otherwise.
    """
    quantized, described = load(directory)
    experiment, manifest = _located(described, directory, data_dir)
    config = experiment.quantize
    mesh = sharding.make_mesh(config=experiment.sharding)
    sharding.check(config.batch_size, "quantize.batch_size", mesh)
    batches = heldout.batches(
        experiment,
        "heldout",
        num_tokens=config.eval_tokens,
        batch_size=config.batch_size,
        mesh=mesh,
    )
    compiled = steps.compile_integer(experiment, mesh, described["stream"])
    score = compiled.score if quantized.sites else compiled.score_weights_only
    params = jax.tree.map(
        lambda leaf, declared: jax.device_put(leaf, declared.sharding),
        quantized.params,
        compiled.params,
    )
    states = jax.device_put(quantized.states, sharding.replicated(mesh))
    losses = heldout.losses(lambda batch: score(params, batch, states), batches)
    loss = float(losses.mean())
    return {
        "spec": described["spec"],
        "stream": described["stream"],
        "loss": loss,
        "bits_per_byte": heldout.bits_per_byte(
            loss, manifest.splits["heldout"].tokens_per_byte
        ),
        "eval_tokens": heldout.num_tokens(batches),
        "num_bytes": (directory / _TENSORS).stat().st_size,
        "float32_bytes": 4 * num_params(experiment.model),
        "bfloat16_bytes": 2 * num_params(experiment.model),
    }


def _located(
    described: Mapping[str, Any], directory: pathlib.Path, data_dir: str | None
) -> tuple[Experiment, manifest_lib.Manifest]:
    """Find the experiment of a checkpoint and check that its data are those it knew."""
    experiment = runs.located(
        experiment_lib.from_dict(described["experiment"]), described, directory
    )
    if data_dir is not None:
        data = dataclasses.replace(experiment.data, dir=data_dir)
        experiment = dataclasses.replace(experiment, data=data)
    manifest = manifest_lib.load(experiment.data.dir)
    manifest_lib.check(
        manifest,
        vocab_size=experiment.model.num_tokens,
        tokenizer_fingerprint=described["tokenizer_fingerprint"],
    )
    return experiment, manifest


def opened(
    directory: pathlib.Path, data_dir: str | None = None
) -> tuple[Experiment, decode.Model]:
    """Open a quantized checkpoint for decoding on its integers.

    Args:
        directory: What `save` wrote.
        data_dir: As for `evaluate`.

    Raises:
        InputError: As `evaluate`.
    """
    quantized, described = load(directory)
    experiment, _ = _located(described, directory, data_dir)
    rounds = bool(quantized.sites)
    seams = transformer.Seams(
        taps.Taps(taps.fake_quantize, TAP_SETS["full"]) if rounds else taps.NO_TAPS,
        layers.STREAMS[described["stream"]],
        products.integer_matmul if rounds else products.dequantized_matmul,
    )
    params, states = jax.device_put((dict(quantized.params), quantized.states))
    return experiment, decode.Model(params, experiment.model, seams, states)


# --- Files --------------------------------------------------------------------------


def is_quantized(directory: pathlib.Path) -> bool:
    """Return True for a directory that `save` wrote, whole or not."""
    return any((directory / name).exists() for name in (_TENSORS, _CONFIG))


def save(
    directory: pathlib.Path, quantized: Quantized, described: Mapping[str, Any]
) -> None:
    """Write both files of a quantized checkpoint, each in one step, from process 0.

    A kill between the two files leaves a pair that `load` refuses.

    Args:
        directory: Made if it does not exist.
        quantized: Host arrays.
        described: The JSON that `run` writes beside the tensors.

    Raises:
        InputError: the directory cannot be written, or safetensors is not installed.
    """
    blob = _safetensors().save(_to_tensors(quantized))
    metrics.make_directory(directory)
    if not metrics.is_writer():
        return
    files.replace(directory / _TENSORS, blob)
    written = {
        **described,
        "levels": {
            "weights": _levels(quantized.weights),
            "sites": _levels(quantized.sites),
        },
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    metrics.write_text(directory / _CONFIG, json.dumps(written, indent=1) + "\n")


def load(directory: pathlib.Path) -> tuple[Quantized, dict[str, Any]]:
    """Read back what `save` wrote, every array bit for bit.

    Returns:
        The model, host arrays, and what describes it.

    Raises:
        InputError: a file is missing, damaged or not of this format, or safetensors
            is not installed.
    """
    described = _read_described(directory)
    path = directory / _TENSORS
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); {_AGAIN}"
        ) from error
    if hashlib.sha256(blob).hexdigest() != described["sha256"]:
        raise InputError(
            f"{path} is not the file that {directory / _CONFIG} describes (its sha256 "
            f"differs): it is truncated, damaged or from another export; {_AGAIN}"
        )
    try:
        quantized = _from_tensors(_safetensors().load(blob), described)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{directory / _CONFIG} does not fit {path} ({error}); {_AGAIN}"
        ) from error
    return quantized, described


def _read_described(directory: pathlib.Path) -> dict[str, Any]:
    path = directory / _CONFIG
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{str(directory)!r} is not a quantized checkpoint ({path.name}: "
            f"{error.strerror}); give a directory that `rfq quantize RUN --export DIR` "
            "made, such as DIR/W8A8"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {_AGAIN}") from error
    found = described.get("format") if isinstance(described, dict) else None
    if found != FORMAT:
        raise InputError(f"{path} has format {found!r}, not {FORMAT!r}; {_AGAIN}")
    return described


def _to_tensors(quantized: Quantized) -> dict[str, np.ndarray]:
    """Turn flat names into arrays of dtypes that the file format has."""
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(quantized.params):
        name = _file_name(path)
        if leaf.dtype == jnp.int4:
            tensors[f"{name}.codes"] = np.asarray(integer.pack_int4(leaf))
        else:
            suffix = ".codes" if params_lib.leaf_name(path) in quantized.weights else ""
            tensors[f"{name}{suffix}"] = np.asarray(leaf)
    for group in ("weights", "sites"):
        for name, stored in getattr(quantized, group).items():
            code = np.min_scalar_type(int(np.max(stored.levels)))
            tensors[f"{group}.{name}.step"] = np.asarray(stored.step)
            tensors[f"{group}.{name}.zero_point"] = np.asarray(stored.zero_point, code)
    return tensors


def _from_tensors(
    tensors: Mapping[str, np.ndarray], described: Mapping[str, Any]
) -> Quantized:
    """Invert `_to_tensors`; raise KeyError or ValueError where the two do not fit."""
    model = experiment_lib.from_dict(described["experiment"]).model
    spec = QuantSpec.parse(described["spec"])
    if spec.weight_bits is None:
        raise ValueError(f"its spec is {spec.name}")
    dtype = integer.storage_dtype(spec.weight_bits)

    def leaf(path, declared: jax.ShapeDtypeStruct) -> np.ndarray:
        name = _file_name(path)
        if params_lib.TABLE[params_lib.leaf_name(path)].kind != "matrix":
            return _shaped(tensors, name, declared.shape)
        if dtype != jnp.int4:
            return _shaped(tensors, f"{name}.codes", declared.shape)
        num_bytes = (math.prod(declared.shape) + 1) // 2
        packed = _shaped(tensors, f"{name}.codes", (num_bytes,))
        unpacked = integer.unpack_int4(jnp.asarray(packed), declared.shape)
        return jax.device_get(unpacked)

    shapes = transformer.shapes(model)
    params = jax.tree_util.tree_map_with_path(leaf, shapes)

    def grid_of(name: str, levels: float) -> grid.Grid:
        step = tensors[f"{name}.step"]
        zero_point = _shaped(tensors, f"{name}.zero_point", step.shape)
        leaves = (step, zero_point, np.full_like(step, levels))
        return grid.Grid(*(jnp.asarray(leaf, jnp.float32) for leaf in leaves))

    levels = described["levels"]
    matrices = [
        name for name in shapes["blocks"] if params_lib.TABLE[name].kind == "matrix"
    ]
    sites = TAP_SETS["full"] if spec.act_bits is not None else ()
    return Quantized(
        params,
        {name: grid_of(f"weights.{name}", levels["weights"]) for name in matrices},
        {name: grid_of(f"sites.{name}", levels["sites"]) for name in sites},
    )


def _shaped(
    tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    if tensors[name].shape != shape:
        raise ValueError(f"{name} has shape {tensors[name].shape}, not {shape}")
    return tensors[name]


def _levels(grids: Mapping[str, grid.Grid]) -> float | None:
    """Return the largest code, which all grids share; None where there are no grids."""
    found = {float(value) for g in grids.values() for value in np.unique(g.levels)}
    assert len(found) <= 1, found
    return found.pop() if found else None


def _file_name(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)


def _safetensors():
    """Import `safetensors.numpy`, only where such files are read or written."""
    try:
        return importlib.import_module("safetensors.numpy")
    except ImportError as error:
        raise InputError(
            "quantized checkpoints are safetensors files, and safetensors is not "
            "installed; install the extra rfq[export]"
        ) from error
