"""Post-training quantization of a run: weights, then ranges, then the whole grid.

Appendix D: "Weights are quantized first, followed by activations." Per weight width the
activations are calibrated once on the weight-quantized model; the activation widths
then share those ranges.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import (
    distributed,
    heldout,
    ladder,
    metrics,
    rows,
    runs,
    settings,
    sharding,
    steps,
)
from rfq import taps as tap_lib
from rfq.data import manifest as manifest_lib
from rfq.errors import Preempted
from rfq.experiment import Experiment
from rfq.memo import once
from rfq.model import layers, transformer
from rfq.model.config import BLOCK_SITES, NORMALIZED_SITES, TAP_SETS, num_params
from rfq.quant import calibrate, distortion, grid, propagation
from rfq.quant.spec import QuantSpec
from rfq.rows import Setting
from rfq.stats import bootstrap, central
from rfq.tasks import decode, scoring
from rfq.types import Params, Record

# Two rows of one run that agree in these fields answer the same question.
_ASKED = ("config_fingerprint", "calibration_tokens", "eval_tokens")


def run(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Evaluate every setting of `experiment.quantize` on a finished run.

    Writes quantize/rows.jsonl (one row per `Setting`), sites.jsonl (what quantization
    does at each site and layer), losses.jsonl (of each held-out sequence) and
    statistics.json (activations and weights in full precision). Rows that are already
    there are kept, so a killed sweep goes on after its last row.

    Returns:
        The rows that were asked for, in the order of the settings.

    Raises:
        InputError: the run is not finished, or its data or checkpoint do not fit.
        Preempted: SIGTERM or SIGUSR1 came; the setting in work has its row.
    """
    runs.require_finished(experiment, run_dir)
    with runs.alone_in(run_dir):
        return _run(experiment, run_dir)


def _run(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Run the settings one after the other; write each where it is not yet."""
    sweep, common = opened(experiment, run_dir)
    out = run_dir / "quantize"
    files = ("rows.jsonl", "sites.jsonl", "losses.jsonl")
    kept = {name: _kept(out / name, common) for name in files}
    seen = metrics.read(out / "statistics.json")
    if not seen or seen[0]["num_tokens"] != common["eval_tokens"]:
        metrics.rewrite(out / "statistics.json", [sweep.statistics()])

    wanted = settings.every(experiment, experiment.quantize.specs)
    name = f"quantize {experiment.arm} seed {experiment.seed}"
    with (
        metrics.progress(name, len(wanted)) as bar,
        distributed.preemption() as told_to_end,
    ):
        for number, setting in enumerate(wanted, start=1):
            if not _is_whole(setting, kept):
                started = time.perf_counter()
                outcome, sites, losses = sweep.evaluate(setting)
                named = {**common, **setting._asdict()}
                for kind, values in (("sites", sites), ("losses", losses)):
                    if values and setting not in kept[f"{kind}.jsonl"]:
                        record = rows.make(kind, named, {kind: values})
                        metrics.append(out / f"{kind}.jsonl", record)
                seconds = {"seconds": time.perf_counter() - started}
                # Rows come last, so that a row never lacks its details.
                if setting not in kept["rows.jsonl"]:
                    row = rows.make("rows", named, outcome, seconds)
                    kept["rows.jsonl"][setting] = row
                    metrics.append(out / "rows.jsonl", row)
            bar.update(number, setting.spec)
            if told_to_end():
                raise preempted(number, len(wanted), out)
    return [kept["rows.jsonl"][setting] for setting in wanted]


def _is_whole(setting: Setting, kept: Mapping[str, Mapping[Setting, Any]]) -> bool:
    """Return True for a setting with row, losses and, if it quantizes any, sites."""
    quantizes = QuantSpec.parse(setting.spec).act_bits is not None
    needed = ["rows.jsonl", "losses.jsonl", *(["sites.jsonl"] if quantizes else [])]
    return all(setting in kept[name] for name in needed)


def preempted(number: int, total: int, out: pathlib.Path) -> Preempted:
    """Make the error that says how far a sweep came before it was told to end."""
    return Preempted(
        f"told to end: {number} of {total} settings are saved in {out}; the same "
        "command goes on from there"
    )


def opened(
    experiment: Experiment, run_dir: pathlib.Path
) -> tuple["Sweep", rows.Subject]:
    """Open a finished run; its records have the subject in common."""
    described = runs.reopen(experiment, run_dir)
    runs.check(experiment)
    metrics.make_directory(run_dir / "quantize")
    sweep = Sweep(experiment, run_dir)
    subject: rows.Subject = {
        "arm": experiment.arm,
        "seed": experiment.seed,
        "num_layers": experiment.model.num_layers,
        "width": experiment.model.width,
        "skip": experiment.model.skip,
        "optimizer": described["experiment"]["optimizer"]["name"],
        "calibration_tokens": sweep.calibration_tokens,
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
    return sweep, subject


def _kept(
    path: pathlib.Path, common: Mapping[str, Any]
) -> dict[Setting, dict[str, Any]]:
    """Return rows computed under the same settings, by key, and drop the others."""
    kept = {settings.of(row): row for row in matching(path, common)}
    metrics.rewrite(path, kept.values())
    return kept


def matching(path: pathlib.Path, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows that answer the same question as those that are about to be made."""
    recorded = metrics.read(path)
    return [row for row in recorded if all(row.get(n) == common[n] for n in _ASKED)]


def _unplaced(setting: Setting) -> Setting:
    """Return what is chosen and measured alike for both placements of the stream."""
    return setting._replace(stream="branch")


class Sweep:
    """One checkpoint seen through quantizers; every intermediate is computed once."""

    def __init__(self, experiment: Experiment, run_dir: pathlib.Path):
        self._experiment = experiment
        self._mesh = sharding.make_mesh(config=experiment.sharding)
        self._models = ladder.Models(experiment, run_dir, self._mesh, self._calibration)
        self.heldout = self._batches("heldout", experiment.quantize.eval_tokens)

    def _batches(self, split: str, num_tokens: int, seed: int | None = None):
        return heldout.batches(
            self._experiment,
            split,
            num_tokens=num_tokens,
            batch_size=self._experiment.quantize.batch_size,
            mesh=self._mesh,
            seed=seed,
        )

    @once
    def _calibration(self, seed: int):
        tokens = self._experiment.quantize.calibration_tokens
        return self._batches("calibration", tokens, seed)

    @property
    def calibration_tokens(self) -> int:
        """Tokens behind every range."""
        seed = self._experiment.quantize.calibration_seeds[0]
        return heldout.num_tokens(self._calibration(seed))

    def _steps(self, setting: Setting) -> steps.QuantSteps:
        return self._models.programs(setting.taps, ladder.recipe(setting).is_rotated)

    @functools.cached_property
    def _tokens_per_byte(self) -> float:
        manifest = manifest_lib.load(self._experiment.data.mixture.directories[0])
        return manifest.splits["heldout"].tokens_per_byte

    @once
    def _observed(
        self,
        weight_bits: int | None,
        scheme: str,
        taps: str,
        seed: int,
        recipe: ladder.Recipe,
    ) -> dict[str, calibrate.SiteSample]:
        """Observe the sites of the weight-quantized model (D5)."""
        compiled = self._models.programs(taps, recipe.is_rotated)
        params = self._models.quantized(weight_bits, scheme, recipe)
        return calibrate.observe(
            lambda batch: compiled.calibrate(params, batch),
            lambda batch, binnings: compiled.histogram(params, batch, binnings),
            self._calibration(seed),
            TAP_SETS[taps],
        )

    @once
    def _known_rms(self, recipe: ladder.Recipe) -> dict[str, np.ndarray]:
        params = self._models.unrounded(recipe)
        return calibrate.known_rms(params, NORMALIZED_SITES, sharding.fetched)

    def _samples(self, setting: Setting) -> dict[str, calibrate.SiteSample]:
        return self._observed(
            QuantSpec.parse(setting.spec).weight_bits,
            setting.scheme,
            setting.taps,
            setting.calibration_seed,
            ladder.recipe(setting),
        )

    def _weights(self, setting: Setting) -> Params:
        """Return the parameters of a setting, rounded as it says."""
        weight_bits = QuantSpec.parse(setting.spec).weight_bits
        recipe = ladder.recipe(setting)
        return self._models.quantized(weight_bits, setting.scheme, recipe)

    @once
    def _targets(self, setting: Setting) -> steps.Targets:
        """Choose what each tapped site is rounded to, whatever the placement."""
        bits = QuantSpec.parse(setting.spec).act_bits
        assert bits is not None, "only quantized activations have a target"
        if setting.granularity == "per_tensor":
            ranges = calibrate.ranges(
                self._samples(setting),
                setting.calibrator,
                bits,
                grid.SCHEMES[setting.scheme],
                self._known_rms(ladder.recipe(setting).unrounded),
            )
            return calibrate.grids(ranges, bits, setting.scheme)

        def of_site(site: str) -> grid.Dynamic:
            stacked = (self._experiment.model.num_layers,)
            shape = stacked if site in BLOCK_SITES else ()
            num_bits = jnp.full(shape, bits, jnp.int32)
            return grid.Dynamic(num_bits, setting.granularity, setting.scheme)

        return {site: of_site(site) for site in TAP_SETS[setting.taps]}

    def _bound(
        self, setting: Setting, programs: steps.Programs
    ) -> Callable[[Any], Any]:
        """Return the program of a setting, with its weights and targets put in."""
        params = self._weights(setting)
        if QuantSpec.parse(setting.spec).act_bits is None:
            as_trained = setting.compute_dtype != "float32"
            plain = programs.as_trained if as_trained else programs.plain
            return lambda batch: plain(params, batch)
        targets = self._targets(_unplaced(setting))
        quantized = programs.quantized[setting.stream]
        return lambda batch: quantized(params, batch, targets)

    @once
    def _losses(self, setting: Setting) -> np.ndarray:
        """Compute the mean loss of each held-out sequence."""
        score = self._bound(setting, self._steps(setting).score)
        return heldout.losses(score, self.heldout)

    def answer(
        self,
        setting: Setting,
        plan: scoring.Plan,
        progress: Callable[[int], None],
    ) -> scoring.Answers:
        """Compute the log-likelihoods of requests under a setting."""
        setting = settings.canonical(setting, self._experiment)
        programs = self._steps(setting).answer
        return scoring.answer(self._bound(setting, programs), plan, progress)

    def model(self, setting: Setting) -> decode.Model:
        """Return the model of a setting, for decoding."""
        setting = settings.canonical(setting, self._experiment)
        is_rotated = ladder.recipe(setting).is_rotated
        formed, turns = ladder.form(self._experiment, is_rotated)
        params, config = self._weights(setting), formed.model
        if QuantSpec.parse(setting.spec).act_bits is None:
            return decode.Model(params, config, transformer.Seams(turns=turns), {})
        seams = transformer.Seams(
            tap_lib.Taps(tap_lib.fake_quantize, TAP_SETS[setting.taps]),
            layers.STREAMS[setting.stream],
            turns=turns,
        )
        targets = self._targets(_unplaced(setting))
        return decode.Model(params, config, seams, targets)

    @once
    def _effects(self, setting: Setting) -> dict[str, tap_lib.Effect]:
        """Measure what each site's grid does to the clean activations, per layer."""
        compiled = self._steps(setting)
        params, targets = self._weights(setting), self._targets(setting)
        limits = calibrate.bulk_limits(self._samples(setting))
        effects_by_site = tap_lib.by_site(
            compiled.distort(params, batch, targets, limits) for batch in self.heldout
        )
        return {
            site: functools.reduce(tap_lib.merge_effects, effects)
            for site, effects in effects_by_site.items()
        }

    @once
    def _divergence(self, setting: Setting) -> dict[str, np.ndarray]:
        """Measure R_l: how far the quantized model is from the full-precision one.

        Both models run on the first batch only.
        """
        compiled = self._steps(setting)
        distortions = compiled.diverge[setting.stream](
            self._models.unrounded(ladder.recipe(setting).unrounded),
            self._weights(setting),
            self.heldout[0],
            self._targets(_unplaced(setting)),
        )
        return {
            site: distortion.nmse_of(d)
            for site, d in jax.device_get(distortions).items()
        }

    @once
    def _gains(
        self, taps: str, stream: str, recipe: ladder.Recipe
    ) -> dict[str, dict[str, np.ndarray]]:
        """Measure how much of an error at one site arrives at another, unquantized."""
        run = self._models.programs(taps, recipe.is_rotated).propagate[stream]
        return jax.device_get(run(self._models.unrounded(recipe), self.heldout[0]))

    def _predicted(self, setting: Setting) -> dict[str, np.ndarray]:
        """Predict R_l from the sites' own errors and how far they travel.

        R at 16 bits is measured: it is what rounding the weights does.
        """
        spec = QuantSpec.parse(setting.spec)
        widest = dataclasses.replace(spec, act_bits=grid.MAX_BITS)
        finest = setting._replace(spec=widest.name)

        def own(setting: Setting) -> dict[str, np.ndarray]:
            effects = self._effects(_unplaced(setting))
            return {s: distortion.nmse_of(e.error) for s, e in effects.items()}

        coarse, fine = own(setting), own(finest)
        added = propagation.predict(
            self._gains(setting.taps, setting.stream, ladder.recipe(setting).unrounded),
            {site: coarse[site] - fine[site] for site in coarse},
        )
        measured = self._divergence(finest)
        errors = {site: np.atleast_1d(r) + added[site] for site, r in measured.items()}
        return errors | {"head_in": propagation.normalized(errors["head_in"])}

    @functools.cached_property
    def _loss_per_error(self) -> float:
        return float(
            self._models.trained.loss_per_error(self._models.params, self.heldout[0])
        )

    @functools.cached_property
    def _measured(self) -> dict[str, dict[str, Record]]:
        """What one pass tells of every full-precision site on the held-out tokens."""
        return heldout.merge(
            [
                self._models.trained.measure(self._models.params, batch)
                for batch in self.heldout
            ]
        )

    def evaluate(
        self, setting: Setting
    ) -> tuple[rows.Outcome, dict[str, Any], list[float]]:
        """Measure one setting: its outcome, each site's part, each sequence's loss."""
        spec = QuantSpec.parse(setting.spec)
        setting = settings.canonical(setting, self._experiment)
        full = self._losses(settings.full(setting, self._experiment))
        losses = self._losses(setting)
        lo, hi = bootstrap.paired_interval(full, losses)
        gamma = {
            site: central.excess_kurtosis(self._measured[site]["moments"])
            for site in ("attn_norm_in", "final_norm_in")
        }
        outcome: rows.Outcome = {
            "weight_bits": spec.weight_bits,
            "act_bits": spec.act_bits,
            "loss": float(losses.mean()),
            "loss_increase": float(losses.mean() - full.mean()),
            "loss_increase_lo": lo,
            "loss_increase_hi": hi,
            "sqnr_db": None,
            "min_sqnr_db": None,
            "bulk_sqnr_db": None,
            "nmse": None,
            "clip_fraction": None,
            "dead_fraction": None,
            "relative_error": None,
            "predicted_error": None,
            "predicted_loss_increase": None,
            "excess_kurtosis": float(np.max(gamma["attn_norm_in"])),
            "final_norm_excess_kurtosis": float(gamma["final_norm_in"]),
            "bits_per_byte": heldout.bits_per_byte(
                float(losses.mean()), self._tokens_per_byte
            ),
        }
        if spec.act_bits is None:
            return outcome, {}, losses.tolist()
        effects = self._effects(_unplaced(setting))
        relative = self._divergence(setting)
        sites = {
            site: heldout.as_lists(tap_lib.effect_numbers(effect))
            for site, effect in effects.items()
        }
        predicted = self._predicted(setting)
        for site, error in relative.items():
            of_site = sites.setdefault(site, {})
            of_site["relative_error"] = np.atleast_1d(error).tolist()
            of_site["predicted_error"] = predicted[site].tolist()
        for name in ("nmse", "clip_fraction", "dead_fraction", "bulk_sqnr_db"):
            everywhere = np.concatenate([sites[site][name] for site in effects])
            outcome[name] = float(np.mean(everywhere))
        nmse = np.concatenate([sites[site]["nmse"] for site in effects])
        summary = distortion.summarize(nmse)
        outcome["sqnr_db"] = float(summary.mean_sqnr_db)
        outcome["min_sqnr_db"] = float(summary.min_sqnr_db)
        outcome["relative_error"] = float(relative["head_in"])
        error = float(predicted["head_in"][0])
        outcome["predicted_error"] = error
        outcome["predicted_loss_increase"] = self._loss_per_error * error
        return outcome, sites, losses.tolist()

    def statistics(self) -> dict[str, Any]:
        """Return all that is measured of the full-precision model."""
        binnings = {
            site: central.to_float32(record["binning"])
            for site, record in self._measured.items()
        }
        counted = heldout.merge(
            [
                self._models.trained.histogram(self._models.params, batch, binnings)
                for batch in self.heldout
            ]
        )
        return heldout.statistics(
            {site: {**self._measured[site], **counted[site]} for site in counted},
            jax.device_get(self._models.trained.weigh(self._models.params)),
            heldout.num_tokens(self.heldout),
        )
