"""Post-training quantization of a run: weights, then ranges, then the whole grid.

Appendix D: "Weights are quantized first, followed by activations." Per weight width the
activations are calibrated once on the weight-quantized model; the activation widths
then share those ranges.
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rfq import distributed, heldout, metrics, rows, runs, sharding, steps
from rfq import taps as tap_lib
from rfq.data import manifest as manifest_lib
from rfq.errors import Preempted
from rfq.experiment import Experiment
from rfq.model import layers, transformer
from rfq.model.config import BLOCK_SITES, NORMALIZED_SITES, TAP_SETS, num_params
from rfq.quant import calibrate, distortion, grid, propagation
from rfq.quant.spec import QuantSpec
from rfq.rows import Setting
from rfq.stats import bootstrap, central
from rfq.tasks import decode, questions, scoring
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
    sweep, common = _open(experiment, run_dir)
    out = run_dir / "quantize"
    files = ("rows.jsonl", "sites.jsonl", "losses.jsonl")
    kept = {name: _kept(out / name, common) for name in files}
    seen = metrics.read(out / "statistics.json")
    if not seen or seen[0]["num_tokens"] != common["eval_tokens"]:
        metrics.rewrite(out / "statistics.json", [sweep.statistics()])

    wanted = _settings(experiment, experiment.quantize.specs)
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
                raise _preempted(number, len(wanted), out)
    return [kept["rows.jsonl"][setting] for setting in wanted]


def run_tasks(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Ask the tasks of `experiment.tasks` under its specs on a finished run.

    Appends a row per `Setting` to quantize/tasks.jsonl, with the fields of
    `questions.summarize`, and writes what was answered to each document to the file
    `items` of quantize/items. Rows that are already there are kept.

    Returns:
        The rows that were asked for, in the order of the settings.

    Raises:
        InputError: as `run`; a task's file is missing or wrong.
        Preempted: as `run`.
    """
    runs.require_finished(experiment, run_dir)
    with runs.alone_in(run_dir):
        return _run_tasks(experiment, run_dir)


def _run_tasks(experiment: Experiment, run_dir: pathlib.Path) -> list[dict[str, Any]]:
    """Ask the settings one after the other, each where it was not asked yet."""
    asked = questions.load(experiment, sharding.make_mesh(config=experiment.sharding))
    sweep, common = _open(experiment, run_dir)
    path, folder = run_dir / "quantize" / "tasks.jsonl", run_dir / "quantize" / "items"
    metrics.make_directory(folder)
    kept = {
        _setting_of(row): row
        for row in _matching(path, common)
        if row.get("questions") == asked.digest
    }
    wanted = _settings(experiment, experiment.tasks.specs)
    missing = [setting for setting in wanted if setting not in kept]
    needed = {s: None for m in missing for s in (sweep.full(m), sweep.canonical(m))}
    answered: dict[Setting, scoring.Answers] = {}
    num_batches = len(asked.plan.batches)
    name = f"tasks {experiment.arm} seed {experiment.seed}"
    with (
        metrics.progress(name, len(needed) * num_batches) as bar,
        distributed.preemption() as told_to_end,
    ):
        for number, setting in enumerate(missing, start=1):
            started = time.perf_counter()
            full, own = sweep.full(setting), sweep.canonical(setting)
            for each in (full, own):
                if each not in answered:
                    before = len(answered) * num_batches
                    answered[each] = sweep.answer(
                        each,
                        asked.plan,
                        lambda done, at=before, spec=each.spec: bar.update(
                            at + done, spec
                        ),
                    )
            spec = QuantSpec.parse(setting.spec)
            items = f"{'-'.join(map(str, (*setting, asked.digest)))}.jsonl"
            bits = {"weight_bits": spec.weight_bits, "act_bits": spec.act_bits}
            row = rows.make(
                "tasks",
                {**common, "questions": asked.digest},
                setting._asdict(),
                bits,
                questions.summarize(asked, answered[own], answered[full]),
                {"items": items, "seconds": time.perf_counter() - started},
            )
            metrics.rewrite(folder / items, questions.items(asked, answered[own]))
            metrics.append(path, row)
            kept[setting] = row
            if told_to_end():
                raise _preempted(number, len(missing), path)
    return [kept[setting] for setting in wanted]


def _is_whole(setting: Setting, found: Mapping[str, Mapping[Setting, Any]]) -> bool:
    """Return True for a setting with row, losses and, if it quantizes any, sites."""
    quantizes = QuantSpec.parse(setting.spec).act_bits is not None
    needed = ["rows.jsonl", "losses.jsonl", *(["sites.jsonl"] if quantizes else [])]
    return all(setting in found[name] for name in needed)


def _preempted(number: int, total: int, out: pathlib.Path) -> Preempted:
    return Preempted(
        f"told to end: {number} of {total} settings are saved in {out}; the same "
        "command goes on from there"
    )


def setting(experiment: Experiment, spec: str, taps: str, stream: str) -> Setting:
    """Make one setting in float32, the rest as the first of the experiment's own.

    Args:
        experiment: the experiment of the run.
        spec: a WnAm setting.
        taps: tap set, "" for the first.
        stream: placement, "" for the first.

    Raises:
        InputError: a name is unknown.
    """
    config = experiment.quantize
    given = dataclasses.replace(
        config,
        specs=(spec,),
        taps=(taps or config.taps[0],),
        streams=(stream or config.streams[0],),
    )
    return Setting(
        spec,
        "float32",
        given.taps[0],
        given.streams[0],
        given.calibrators[0],
        given.calibration_seeds[0],
        given.granularities[0],
        given.schemes[0],
    )


def _open(
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


def _settings(experiment: Experiment, specs: Sequence[str]) -> list[Setting]:
    """List the whole grid of some WnAm settings, each once.

    Full precision is scored in float32, which every increase is measured against, and
    as trained where that was in another dtype (D17). All else is float32 (D9).
    """
    config, trained = experiment.quantize, experiment.model.compute_dtype
    settings = []
    for spec, taps, stream, calibrator, seed, granularity, scheme in itertools.product(
        specs,
        config.taps,
        config.streams,
        config.calibrators,
        config.calibration_seeds,
        config.granularities,
        config.schemes,
    ):
        setting = Setting(
            spec, "float32", taps, stream, calibrator, seed, granularity, scheme
        )
        if spec == "FP" and trained != "float32":
            settings.append(setting._replace(compute_dtype=trained))
        settings.append(setting)
    return list(dict.fromkeys(settings))


def _kept(
    path: pathlib.Path, common: Mapping[str, Any]
) -> dict[Setting, dict[str, Any]]:
    """Return rows computed under the same settings, by key, and drop the others."""
    kept = {_setting_of(row): row for row in _matching(path, common)}
    metrics.rewrite(path, kept.values())
    return kept


def _matching(path: pathlib.Path, common: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return rows that answer the same question as those that are about to be made."""
    recorded = metrics.read(path)
    return [row for row in recorded if all(row.get(n) == common[n] for n in _ASKED)]


def _setting_of(row: Mapping[str, Any]) -> Setting:
    return Setting._make(
        row.get(name, rows.DEFAULTS.get(name)) for name in Setting._fields
    )


class Sweep:
    """One checkpoint seen through quantizers; every intermediate is computed once."""

    def __init__(self, experiment: Experiment, run_dir: pathlib.Path):
        self._experiment = experiment
        self._run_dir = run_dir
        self._mesh = sharding.make_mesh(config=experiment.sharding)
        config = experiment.quantize
        self.heldout = self._batches("heldout", config.eval_tokens)
        # Caches on the class would keep every sweep and its arrays forever.
        self._steps = functools.cache(self._compile)
        self._quantized = functools.lru_cache(maxsize=1)(self._quantize)
        self._calibration = functools.cache(self._draw)
        self._observed = functools.cache(self._observe)
        self._chosen = functools.cache(self._choose)
        self._losses = functools.cache(self._score)
        self._effects = functools.cache(self._distort)
        self._divergence = functools.cache(self._diverge)
        self._gains = functools.cache(self._propagate)

    def _batches(self, split: str, num_tokens: int, seed: int | None = None):
        return heldout.batches(
            self._experiment,
            split,
            num_tokens=num_tokens,
            batch_size=self._experiment.quantize.batch_size,
            mesh=self._mesh,
            seed=seed,
        )

    def _draw(self, seed: int):
        tokens = self._experiment.quantize.calibration_tokens
        return self._batches("calibration", tokens, seed)

    @property
    def calibration_tokens(self) -> int:
        """Tokens behind every range."""
        seed = self._experiment.quantize.calibration_seeds[0]
        return heldout.num_tokens(self._calibration(seed))

    def _compile(self, taps: str) -> steps.QuantSteps:
        return steps.compile_quant(self._experiment, self._mesh, taps)

    @functools.cached_property
    def _tokens_per_byte(self) -> float:
        manifest = manifest_lib.load(self._experiment.data.mixture.directories[0])
        return manifest.splits["heldout"].tokens_per_byte

    @functools.cached_property
    def _params(self) -> Params:
        compiled = self._steps(self._experiment.quantize.taps[0])
        return runs.final_params(self._experiment, self._run_dir, compiled.params)

    def _quantize(self, weight_bits: int | None, scheme: str) -> Params:
        if weight_bits is None:
            return self._params
        compiled = self._steps(self._experiment.quantize.taps[0])
        return compiled.quantize(self._params, jnp.int32(weight_bits), scheme)

    def _observe(
        self, weight_bits: int | None, scheme: str, taps: str, seed: int
    ) -> dict[str, calibrate.SiteSample]:
        """Observe the sites of the weight-quantized model (D5)."""
        compiled, params = self._steps(taps), self._quantized(weight_bits, scheme)
        return calibrate.observe(
            lambda batch: compiled.calibrate(params, batch),
            lambda batch, binnings: compiled.histogram(params, batch, binnings),
            self._calibration(seed),
            TAP_SETS[taps],
        )

    @functools.cached_property
    def _known_rms(self) -> dict[str, np.ndarray]:
        return calibrate.known_rms(self._params, NORMALIZED_SITES, sharding.fetched)

    def _samples(
        self, spec: QuantSpec, setting: Setting
    ) -> dict[str, calibrate.SiteSample]:
        how = (setting.scheme, setting.taps, setting.calibration_seed)
        return self._observed(spec.weight_bits, *how)

    def _targets(self, spec: QuantSpec, setting: Setting) -> steps.Targets:
        """Look up what each tapped site is rounded to; both streams have the same."""
        return self._chosen(spec, setting._replace(stream="branch"))

    def _choose(self, spec: QuantSpec, setting: Setting) -> steps.Targets:
        """Choose what each tapped site is rounded to."""
        bits = spec.act_bits
        assert bits is not None, "only quantized activations have a target"
        if setting.granularity == "per_tensor":
            ranges = calibrate.ranges(
                self._samples(spec, setting),
                setting.calibrator,
                bits,
                grid.SCHEMES[setting.scheme],
                self._known_rms,
            )
            return calibrate.grids(ranges, bits, setting.scheme)

        def of_site(site: str) -> grid.Dynamic:
            stacked = (self._experiment.model.num_layers,)
            shape = stacked if site in BLOCK_SITES else ()
            num_bits = jnp.full(shape, bits, jnp.int32)
            return grid.Dynamic(num_bits, setting.granularity, setting.scheme)

        return {site: of_site(site) for site in TAP_SETS[setting.taps]}

    def _bound(
        self, spec: QuantSpec, setting: Setting, programs: steps.Programs
    ) -> Callable[[Any], Any]:
        """Return the program of a setting, with its weights and targets put in."""
        params = self._quantized(spec.weight_bits, setting.scheme)
        if spec.act_bits is None:
            as_trained = setting.compute_dtype != "float32"
            plain = programs.as_trained if as_trained else programs.plain
            return lambda batch: plain(params, batch)
        targets = self._targets(spec, setting)
        quantized = programs.quantized[setting.stream]
        return lambda batch: quantized(params, batch, targets)

    def _score(self, spec: QuantSpec, setting: Setting) -> np.ndarray:
        """Compute the mean loss of each held-out sequence."""
        score = self._bound(spec, setting, self._steps(setting.taps).score)
        return heldout.losses(score, self.heldout)

    def answer(
        self,
        setting: Setting,
        plan: scoring.Plan,
        progress: Callable[[int], None],
    ) -> scoring.Answers:
        """Compute the log-likelihoods of requests under a setting."""
        setting = self.canonical(setting)
        spec = QuantSpec.parse(setting.spec)
        programs = self._steps(setting.taps).answer
        return scoring.answer(self._bound(spec, setting, programs), plan, progress)

    def model(self, setting: Setting) -> decode.Model:
        """Return the model of a setting, for decoding."""
        setting = self.canonical(setting)
        spec = QuantSpec.parse(setting.spec)
        params = self._quantized(spec.weight_bits, setting.scheme)
        config = self._experiment.model
        if spec.act_bits is None:
            return decode.Model(params, config, transformer.PLAIN, {})
        seams = transformer.Seams(
            tap_lib.Taps(tap_lib.fake_quantize, TAP_SETS[setting.taps]),
            layers.STREAMS[setting.stream],
        )
        targets = self._targets(spec, setting)
        return decode.Model(params, config, seams, targets)

    def _distort(self, spec: QuantSpec, setting: Setting) -> dict[str, tap_lib.Effect]:
        """Measure what each site's grid does to the clean activations, per layer."""
        compiled = self._steps(setting.taps)
        params = self._quantized(spec.weight_bits, setting.scheme)
        targets = self._targets(spec, setting)
        limits = calibrate.bulk_limits(self._samples(spec, setting))
        effects_by_site = tap_lib.by_site(
            compiled.distort(params, batch, targets, limits) for batch in self.heldout
        )
        return {
            site: functools.reduce(tap_lib.merge_effects, effects)
            for site, effects in effects_by_site.items()
        }

    def _diverge(self, spec: QuantSpec, setting: Setting) -> dict[str, np.ndarray]:
        """Measure R_l: how far the quantized model is from the full-precision one.

        Both models run on the first batch only.
        """
        compiled = self._steps(setting.taps)
        distortions = compiled.diverge[setting.stream](
            self._params,
            self._quantized(spec.weight_bits, setting.scheme),
            self.heldout[0],
            self._targets(spec, setting),
        )
        return {
            site: distortion.nmse_of(d)
            for site, d in jax.device_get(distortions).items()
        }

    def _propagate(self, taps: str, stream: str) -> dict[str, dict[str, np.ndarray]]:
        """Measure how much of an error at one site arrives at another, unquantized."""
        compiled = self._steps(taps)
        return jax.device_get(compiled.propagate[stream](self._params, self.heldout[0]))

    def _predict(self, spec: QuantSpec, setting: Setting) -> dict[str, np.ndarray]:
        """Predict R_l from the sites' own errors and how far they travel.

        R at 16 bits is measured: it is what rounding the weights does.
        """
        finest = dataclasses.replace(spec, act_bits=grid.MAX_BITS)

        def own(spec: QuantSpec) -> dict[str, np.ndarray]:
            effects = self._effects(spec, setting._replace(stream="branch"))
            return {s: distortion.nmse_of(e.error) for s, e in effects.items()}

        coarse, fine = own(spec), own(finest)
        added = propagation.predict(
            self._gains(setting.taps, setting.stream),
            {site: coarse[site] - fine[site] for site in coarse},
        )
        measured = self._divergence(finest, setting)
        errors = {site: np.atleast_1d(r) + added[site] for site, r in measured.items()}
        return errors | {"head_in": propagation.normalized(errors["head_in"])}

    @functools.cached_property
    def _loss_per_error(self) -> float:
        compiled = self._steps(self._experiment.quantize.taps[0])
        return float(compiled.loss_per_error(self._params, self.heldout[0]))

    @functools.cached_property
    def _measured(self) -> dict[str, dict[str, Record]]:
        """What one pass tells of every full-precision site on the held-out tokens."""
        compiled = self._steps(self._experiment.quantize.taps[0])
        return heldout.merge(
            [compiled.measure(self._params, batch) for batch in self.heldout]
        )

    def evaluate(
        self, setting: Setting
    ) -> tuple[rows.Outcome, dict[str, Any], list[float]]:
        """Measure one setting: its outcome, each site's part, each sequence's loss."""
        spec = QuantSpec.parse(setting.spec)
        setting = self.canonical(setting)
        full = self._losses(QuantSpec.parse("FP"), self.full(setting))
        losses = self._losses(spec, setting)
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
        effects = self._effects(spec, setting._replace(stream="branch"))
        relative = self._divergence(spec, setting)
        sites = {
            site: heldout.as_lists(tap_lib.effect_numbers(effect))
            for site, effect in effects.items()
        }
        predicted = self._predict(spec, setting)
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

    def full(self, setting: Setting) -> Setting:
        """Return full precision in float32, which a setting's changes are against."""
        return self.canonical(setting._replace(spec="FP", compute_dtype="float32"))

    def canonical(self, setting: Setting) -> Setting:
        """Return the one of several settings with the same result that is computed."""
        first, spec = self._experiment.quantize, QuantSpec.parse(setting.spec)
        if spec.act_bits is None:  # Nothing is tapped.
            setting = setting._replace(
                stream="branch", granularity=first.granularities[0]
            )
            if spec.weight_bits is None:
                setting = setting._replace(scheme=first.schemes[0])
        if spec.act_bits is None or setting.granularity != "per_tensor":
            setting = setting._replace(  # Nothing is calibrated.
                calibrator=first.calibrators[0],
                calibration_seed=first.calibration_seeds[0],
            )
        if spec.act_bits is None:
            return setting
        if self._experiment.model.skip == "residual_free":  # No skip path carries it.
            return setting._replace(stream="branch")
        return setting

    def statistics(self) -> dict[str, Any]:
        """Return all that is measured of the full-precision model, per site and layer.

        Counts are over (x - center) / scale, with a center and a scale of each layer.
        """
        compiled = self._steps(self._experiment.quantize.taps[0])
        binnings = {
            site: central.to_float32(record["binning"])
            for site, record in self._measured.items()
        }
        counted = heldout.merge(
            [
                compiled.histogram(self._params, batch, binnings)
                for batch in self.heldout
            ]
        )
        records = {site: {**self._measured[site], **counted[site]} for site in counted}
        edges, counts = heldout.histograms(records)
        return {
            "unit": "(x - center) / scale",
            "num_tokens": heldout.num_tokens(self.heldout),
            "edges": edges,
            "sites": {
                site: {**counts[site], **heldout.describe(record)}
                for site, record in records.items()
            },
            "weights": {
                name: heldout.as_lists(numbers)
                for name, numbers in jax.device_get(
                    compiled.weigh(self._params)
                ).items()
            },
        }
