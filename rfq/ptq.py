"""Post-training quantization of a run: weights, then ranges, then the whole grid.

Appendix D: "Weights are quantized first, followed by activations." Per weight width the
activations are calibrated once on the weight-quantized model; the activation widths
then share those ranges.
"""

import functools
import itertools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import checkpoint, metrics, runs, sharding, steps
from rfq.errors import InputError
from rfq.evals import heldout
from rfq.experiment import Experiment
from rfq.model.config import TAP_SETS, num_params
from rfq.quant import calibrate, distortion
from rfq.quant.spec import QuantSpec
from rfq.stats import bootstrap, histogram, moments
from rfq.types import Params

# What makes two rows of one run answers to the same question.
_ASKED = ("config_fingerprint", "calibration_tokens", "eval_tokens", "calibrator")
# What names a row among them.
_KEY = ("spec", "compute_dtype", "taps", "stream")


def run(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Evaluates every setting of `experiment.quantize` on a finished run.

    Writes quantize/rows.jsonl (one row per setting, tap set and stream), sites.jsonl
    (distortion per site and layer) and histograms.json. Rows that are already there are
    kept, so a killed sweep goes on after its last row.

    Returns:
        The rows that were asked for, in the order of the settings.

    Raises:
        InputError: the run is not finished, or its data or checkpoint do not fit.
    """
    manifest = runs.check(experiment)
    if not runs.is_finished(run_dir):
        raise InputError(
            f"{run_dir} is not trained to its last step, {experiment.train.num_steps}; "
            "finish it with `rfq train` first"
        )
    described = runs.claim(experiment, manifest, run_dir)
    out = run_dir / "quantize"
    metrics.make_directory(out)
    sweep = _Sweep(experiment, run_dir)
    common = {
        "arm": experiment.arm,
        "seed": experiment.seed,
        "num_layers": experiment.model.num_layers,
        "width": experiment.model.width,
        "skip": experiment.model.skip,
        "optimizer": described["experiment"]["optimizer"]["name"],
        "calibrator": experiment.quantize.calibrator,
        "calibration_tokens": heldout.num_tokens(sweep.calibration),
        "eval_tokens": heldout.num_tokens(sweep.heldout),
        "num_params": num_params(experiment.model),
        "num_steps": experiment.train.num_steps,
        "tokens_seen": experiment.train.num_steps * experiment.tokens_per_step,
        "config_fingerprint": described["fingerprint"],
        "data_fingerprint": described["data_fingerprint"],
        "commit": described["commit"],
        "versions": described["versions"],
        "device": described["device"],
    }
    found = {name: _kept(out / name, common) for name in ("rows.jsonl", "sites.jsonl")}
    seen = metrics.read(out / "histograms.json")
    if not seen or seen[0]["num_tokens"] != common["eval_tokens"]:
        metrics.rewrite(out / "histograms.json", [sweep.histograms()])

    wanted = list(dict.fromkeys(_settings(experiment)))
    name = f"quantize {experiment.arm} seed {experiment.seed}"
    with metrics.progress(name, len(wanted)) as bar:
        for number, key in enumerate(wanted, start=1):
            if key not in found["rows.jsonl"]:
                started = time.perf_counter()
                row, sites = sweep.evaluate(*key)
                row["bits_per_byte"] = heldout.bits_per_byte(
                    row["loss"], manifest.splits["heldout"].tokens_per_byte
                )
                named = {**common, **dict(zip(_KEY, key, strict=True))}
                if sites and key not in found["sites.jsonl"]:
                    metrics.append(out / "sites.jsonl", {**named, "sites": sites})
                seconds = time.perf_counter() - started
                found["rows.jsonl"][key] = {**named, **row, "seconds": seconds}
                metrics.append(out / "rows.jsonl", found["rows.jsonl"][key])
            bar.update(number, key[0])
    return [found["rows.jsonl"][key] for key in wanted]


def _settings(experiment: Experiment):
    """All (spec, compute dtype, taps, stream) of the grid.

    Full precision is scored in float32, which every increase is measured against, and
    as trained where that was in another dtype (D17). All else is float32 (D9).
    """
    config = experiment.quantize
    for spec, taps, stream in itertools.product(
        config.specs, config.taps, config.streams
    ):
        if spec == "FP" and experiment.model.compute_dtype != "float32":
            yield spec, experiment.model.compute_dtype, taps, stream
        yield spec, "float32", taps, stream


def _kept(path: pathlib.Path, common: Mapping[str, Any]) -> dict[tuple, dict[str, Any]]:
    """Rows computed under the same settings, by key; the file is left with those."""
    rows = {
        tuple(row[name] for name in _KEY): row
        for row in metrics.read(path)
        if all(row.get(name) == common[name] for name in _ASKED)
    }
    metrics.rewrite(path, rows.values())
    return rows


class _Sweep:
    """One checkpoint seen through quantizers; every intermediate is computed once."""

    def __init__(self, experiment: Experiment, run_dir: pathlib.Path):
        self._experiment = experiment
        self._run_dir = run_dir
        self._mesh = sharding.make_mesh()
        config = experiment.quantize
        self.calibration = self._batches("calibration", config.calibration_tokens)
        self.heldout = self._batches("heldout", config.eval_tokens)
        # On the class the caches would keep every sweep and its arrays forever.
        self._steps = functools.cache(self._compile)
        self._quantized = functools.lru_cache(maxsize=1)(self._quantize)
        self._ranges = functools.cache(self._calibrate)
        self._losses = functools.cache(self._score)
        self._distortion = functools.cache(self._distort)

    def _batches(self, split: str, num_tokens: int):
        return heldout.batches(
            self._experiment,
            split,
            num_tokens=num_tokens,
            batch_size=self._experiment.quantize.batch_size,
            mesh=self._mesh,
        )

    def _compile(self, taps: str) -> steps.QuantSteps:
        return steps.compile_quant(self._experiment, self._mesh, taps)

    @functools.cached_property
    def _params(self) -> Params:
        compiled = self._steps(self._experiment.quantize.taps[0])
        with checkpoint.Checkpoints(self._run_dir) as saved:
            step, last = saved.latest_step(), self._experiment.train.num_steps
            if step != last:
                raise InputError(
                    f"{self._run_dir} is finished but its checkpoint of step {last} is "
                    "gone; delete its done.json and run `rfq train` again"
                )
            return saved.params(last, compiled.params)

    def _quantize(self, weight_bits: int | None) -> Params:
        if weight_bits is None:
            return self._params
        compiled = self._steps(self._experiment.quantize.taps[0])
        return compiled.quantize(self._params, jnp.int32(weight_bits))

    def _calibrate(self, weight_bits: int | None, taps: str) -> steps.Ranges:
        """Static extremes over the calibration tokens (D5, D6)."""
        compiled, params = self._steps(taps), self._quantized(weight_bits)
        records = jax.device_get(
            [compiled.calibrate(params, batch) for batch in self.calibration]
        )
        merged = {
            site: functools.reduce(calibrate.merge, [r[site] for r in records])
            for site in records[0]
        }
        return calibrate.finalize(merged, TAP_SETS[taps])

    def _score(
        self, spec: QuantSpec, compute_dtype: str, taps: str, stream: str
    ) -> np.ndarray:
        """Mean loss of each held-out sequence."""
        compiled, params = self._steps(taps), self._quantized(spec.weight_bits)
        if spec.act_bits is None:
            as_trained = compute_dtype != "float32"
            score = compiled.score_as_trained if as_trained else compiled.score
            return heldout.losses(lambda batch: score(params, batch), self.heldout)
        ranges, bits = self._ranges(spec.weight_bits, taps), jnp.int32(spec.act_bits)
        quantized = compiled.score_quantized[stream]
        return heldout.losses(
            lambda batch: quantized(params, batch, ranges, bits), self.heldout
        )

    def _distort(self, spec: QuantSpec, taps: str) -> dict[str, distortion.Distortion]:
        """Each site's own error on the clean model's activations, per layer."""
        compiled, params = self._steps(taps), self._quantized(spec.weight_bits)
        ranges, bits = self._ranges(spec.weight_bits, taps), jnp.int32(spec.act_bits)
        records = jax.device_get(
            [compiled.distort(params, batch, ranges, bits) for batch in self.heldout]
        )
        return {
            site: functools.reduce(
                distortion.merge, [distortion.to_float64(r[site]) for r in records]
            )
            for site in records[0]
        }

    @functools.cached_property
    def _moments(self) -> dict[str, moments.Moments]:
        """Moments of every site of the full-precision model on the held-out tokens."""
        compiled = self._steps(self._experiment.quantize.taps[0])
        measured = [compiled.measure(self._params, batch) for batch in self.heldout]
        return heldout.merge_moments(jax.device_get(measured))

    def evaluate(
        self, text: str, compute_dtype: str, taps: str, stream: str
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """One row of the table, and the distortion of each site behind it."""
        spec = QuantSpec.parse(text)
        if spec.act_bits is None or self._experiment.model.skip == "residual_free":
            # Nothing is tapped, or no skip path could carry it: one result for both.
            losses = self._losses(spec, compute_dtype, taps, "branch")
        else:
            losses = self._losses(spec, compute_dtype, taps, stream)
        full = self._losses(QuantSpec.parse("FP"), "float32", taps, "branch")
        lo, hi = bootstrap.paired_interval(full, losses)
        kurtosis = moments.excess_kurtosis(self._moments["attn_norm_in"])
        final = moments.excess_kurtosis(self._moments["final_norm_in"])
        row = {
            "weight_bits": spec.weight_bits,
            "act_bits": spec.act_bits,
            "loss": float(losses.mean()),
            "loss_increase": float(losses.mean() - full.mean()),
            "loss_increase_lo": lo,
            "loss_increase_hi": hi,
            "sqnr_db": None,
            "nmse": None,
            "excess_kurtosis": float(np.max(kurtosis)),
            "final_norm_excess_kurtosis": float(final),
        }
        if spec.act_bits is None:
            return row, {}
        merged = self._distortion(spec, taps)
        sqnr = {site: distortion.sqnr_db_of(d) for site, d in merged.items()}
        nmse = {site: distortion.nmse_of(d) for site, d in merged.items()}
        row["sqnr_db"] = float(np.mean(np.concatenate(_flat(sqnr))))
        row["nmse"] = float(np.mean(np.concatenate(_flat(nmse))))
        sites = {
            site: {
                "sqnr_db": np.atleast_1d(sqnr[site]).tolist(),
                "nmse": np.atleast_1d(nmse[site]).tolist(),
            }
            for site in merged
        }
        return row, sites

    def histograms(self) -> dict[str, Any]:
        """Counts of each site and layer over x / rms(x), full-precision model."""
        compiled = self._steps(self._experiment.quantize.taps[0])
        scales = {
            site: jnp.asarray(np.sqrt(m.m2 / m.count + m.mean**2), jnp.float32)
            for site, m in self._moments.items()
        }
        records = jax.device_get(
            [compiled.histogram(self._params, b, scales) for b in self.heldout]
        )
        counts = {
            site: np.sum(
                [_coarse(r[site]["histogram"].counts) for r in records], axis=0
            )
            for site in records[0]
        }
        per_bin = np.sum([c.sum(axis=0) for c in counts.values()], axis=0)
        occupied = np.flatnonzero(per_bin)
        shown = slice(occupied[0], occupied[-1] + 1)
        edges = histogram.edges()[::_BINS_PER_BIN]
        return {
            "unit": "x / rms(x)",
            "num_tokens": heldout.num_tokens(self.heldout),
            "edges": edges[shown.start : shown.stop + 1].tolist(),
            "sites": {
                site: {
                    "counts": counts[site][:, shown].tolist(),
                    **heldout.describe(self._moments[site]),
                }
                for site in counts
            },
        }


# Fine bins that make one bin of a stored histogram: 0.14 of an RMS wide at the center.
_BINS_PER_BIN = 16


def _coarse(counts: np.ndarray) -> np.ndarray:
    """Counts [NUM_BINS] or [L, NUM_BINS] -> int64 [L, NUM_BINS / _BINS_PER_BIN]."""
    layers = np.atleast_2d(counts).astype(np.int64)
    return layers.reshape(layers.shape[0], -1, _BINS_PER_BIN).sum(axis=-1)


def _flat(per_site: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.atleast_1d(value) for value in per_site.values()]
