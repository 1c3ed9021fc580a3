"""The training loop: config -> checkpoints, metrics and measurements on disk."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from rfq import checkpoint, metrics, runs, sharding, steps
from rfq.data import pipeline
from rfq.errors import Diverged, InputError
from rfq.evals import heldout
from rfq.experiment import Experiment


def run(experiment: Experiment, run_dir: pathlib.Path) -> None:
    """Trains to the end, from wherever the run directory's newest checkpoint is.

    Writes config.json, metrics.jsonl, measures.jsonl, checkpoints/ and, at the end,
    done.json. A finished run returns at once. On one device a resumed run reproduces
    the uninterrupted one bit for bit.

    Raises:
        InputError: the data, the directory or its checkpoint do not fit the experiment.
        Diverged: a loss or gradient norm is not finite.
    """
    manifest = runs.check(experiment)
    described = runs.claim(experiment, manifest, run_dir)
    done_file = run_dir / "done.json"
    if done_file.exists():
        metrics.say(f"{experiment.arm} seed {experiment.seed}: training is finished")
        return
    mesh = sharding.make_mesh()
    compiled = steps.compile_train(experiment, mesh)
    batches = pipeline.train_batches(
        experiment.data.dir,
        seq_len=experiment.model.seq_len,
        batch_size=experiment.train.batch_size,
        seed=experiment.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    held_out = heldout.batches(
        experiment,
        "heldout",
        num_tokens=experiment.log.measure_sequences * experiment.model.seq_len,
        batch_size=experiment.log.measure_sequences,
        mesh=mesh,
    )
    num_steps, every = experiment.train.num_steps, experiment.log
    name = f"train {experiment.arm} seed {experiment.seed}"
    with checkpoint.Checkpoints(run_dir, keep=every.keep_checkpoints) as saved:
        state, start = _restore(compiled, saved, described, experiment.seed)
        batches.set_state(start)
        log = _Log(experiment, run_dir, start, saved.latest_step)
        with metrics.progress(name, num_steps, start) as bar:
            if start == 0:
                log.measured(0, _measure(compiled, state.params, held_out))
            for step in range(start + 1, num_steps + 1):
                batch = sharding.to_global(next(batches), mesh)
                state, values = compiled.train(state, batch)
                if log.due(step):
                    values |= _prefixed("optim", compiled.diagnose(state.opt_state))
                log.add(step, values)
                bar.update(step, log.note)
                if step % every.measure_every == 0 or step == num_steps:
                    log.drain()
                    log.measured(step, _measure(compiled, state.params, held_out))
                if step % every.checkpoint_every == 0 or step == num_steps:
                    log.drain()
                    meta = {"step": step, **described}
                    saved.save(step, state.params, state.opt_state, meta)
    (run_dir / "failed.json").unlink(missing_ok=True)
    finished = {"num_steps": num_steps, "loss": log.loss, "seconds": log.seconds}
    metrics.write_text(done_file, metrics.to_json(finished) + "\n")


class _Log:
    """Numbers of the steps: fetched late and together, checked, written.

    The numbers up to a logged step are read when the step after it has been dispatched,
    in one transfer, so that the device never waits for the host.
    """

    def __init__(
        self,
        experiment: Experiment,
        run_dir: pathlib.Path,
        start: int,
        last_checkpoint: Callable[[], int | None],
    ):
        self.note, self.loss, self.seconds = "", float("nan"), 0.0
        self._experiment = experiment
        self._run_dir = run_dir
        self._last_checkpoint = last_checkpoint
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._clock: float | None = None
        for name in ("metrics.jsonl", "measures.jsonl"):
            rows = metrics.read(run_dir / name)
            kept = [row for row in rows if row["step"] <= start]
            metrics.rewrite(run_dir / name, kept)

    def due(self, step: int) -> bool:
        """True for a step whose numbers are written."""
        last = self._experiment.train.num_steps
        return step % self._experiment.log.log_every == 0 or step == last

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        """Takes a dispatched step's numbers, and reads those that are due before it."""
        if self._pending and self.due(self._pending[-1][0]):
            self._flush()
        if self._clock is None:
            self._clock = time.perf_counter()
        self._pending.append((step, values))

    def drain(self) -> None:
        """Reads all that is pending; what follows is not a training step's time."""
        self._flush()
        self._clock = None

    def measured(self, step: int, row: dict[str, Any]) -> None:
        """Writes what was measured at a step."""
        metrics.append(self._run_dir / "measures.jsonl", {"step": step, **row})

    def _flush(self) -> None:
        if not self._pending or self._clock is None:
            return
        rows = [(step, jax.device_get(values)) for step, values in self._pending]
        now = time.perf_counter()
        elapsed, self._clock, self._pending = now - self._clock, now, []
        self.seconds += elapsed
        rate = len(rows) * self._experiment.tokens_per_step / elapsed
        for step, values in rows:
            _check_finite(step, values, self._last_checkpoint(), self._run_dir)
            if self.due(step):
                self.loss = float(values["loss"])
                self.note = f"loss {self.loss:.3f}, {rate:,.0f} tokens/s"
                row = {name: float(value) for name, value in values.items()}
                row |= {"step": step, "tokens_per_second": rate}
                metrics.append(self._run_dir / "metrics.jsonl", row)


def _prefixed(prefix: str, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _restore(compiled: steps.TrainSteps, saved, described, seed: int):
    """The newest checkpoint's state and step, or the freshly initialized ones."""
    start = saved.latest_step()
    if start is None:
        return compiled.init(jax.random.key(seed)), 0
    meta = saved.meta(start)
    for key in ("fingerprint", "data_fingerprint"):
        if meta.get(key) != described[key]:
            raise InputError(
                f"the checkpoint of step {start} has {key}={meta.get(key)!r}, this run "
                f"{described[key]!r}; train into another directory"
            )
    state = steps.TrainState(
        step=jax.device_put(np.int32(start), compiled.state.step.sharding),
        params=saved.params(start, compiled.state.params),
        opt_state=saved.opt_state(start, compiled.state.opt_state),
    )
    metrics.say(f"resuming at step {start}")
    return state, start


def _check_finite(step: int, values: dict[str, Any], last: int | None, run_dir) -> None:
    bad = [name for name in ("loss", "grad_norm") if not np.isfinite(values[name])]
    if not bad:
        return
    good = "no checkpoint was saved before" if last is None else f"step {last} is saved"
    message = (
        f"training diverged: {' and '.join(bad)} not finite at step {step} ({good}); "
        "try a lower optimizer.learning_rate, a longer schedule.warmup_steps or a "
        "smaller train.clip_norm"
    )
    failed = {"step": step, "message": message}
    metrics.write_text(run_dir / "failed.json", metrics.to_json(failed) + "\n")
    raise Diverged(message)


def _measure(compiled, params, held_out) -> dict[str, Any]:
    """Held-out loss and activation moments, merged over batches in float64."""
    measured = jax.device_get([compiled.measure(params, batch) for batch in held_out])
    losses, records = zip(*measured, strict=True)
    return {
        "loss": float(np.concatenate(losses).mean(dtype=np.float64)),
        "num_tokens": heldout.num_tokens(held_out),
        "sites": {
            site: heldout.describe(m)
            for site, m in heldout.merge_moments(records).items()
        },
    }
