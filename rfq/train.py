"""The training loop: config -> checkpoints, metrics and measurements on disk."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rfq import (
    checkpoint,
    continued,
    distributed,
    heldout,
    metrics,
    rows,
    runs,
    sharding,
    steps,
)
from rfq import taps as tap_lib
from rfq.errors import Diverged, Preempted
from rfq.experiment import Experiment
from rfq.model.config import TAP_SETS


def run(
    experiment: Experiment,
    run_dir: pathlib.Path,
    source: continued.Source | None = None,
) -> None:
    """Train to the end, from wherever the run directory's newest checkpoint is.

    Writes config.json, metrics.jsonl, measures.jsonl, checkpoints/ and, at the end,
    done.json. A finished run returns at once. On one device a resumed run reproduces
    the uninterrupted one bit for bit.

    Args:
        experiment: What to train. `continued.continuing` makes one that goes on from
            another run.
        run_dir: Where it is written.
        source: The run whose parameters it starts with; None if it draws its own.

    Raises:
        InputError: the data, the directory, its checkpoint or the source do not fit the
            experiment.
        Diverged: a loss or gradient norm is not finite.
        Preempted: SIGTERM or SIGUSR1 came; the step in flight is done and saved.
    """
    runs.check(experiment)
    with runs.alone_in(run_dir):
        described = runs.claim(experiment, run_dir)
        if not runs.is_finished(run_dir):
            _train(experiment, run_dir, described, source)
            return
    metrics.say(f"{experiment.arm} seed {experiment.seed}: training is finished")


def _train(
    experiment: Experiment,
    run_dir: pathlib.Path,
    described: dict[str, Any],
    source: continued.Source | None,
) -> None:
    """Run the loop itself; `described` is what `runs.claim` says of the run."""
    mesh = sharding.make_mesh(config=experiment.sharding)
    peak_before = _peak_bytes()
    compiled = steps.compile_train(experiment, mesh)
    batches, epochs = runs.train_batches(experiment), runs.epochs(experiment)
    for directory, number in epochs.items():
        metrics.say(f"data: {number:.3g} epochs of {directory}")
    held_out = heldout.batches(
        experiment,
        "heldout",
        num_tokens=experiment.log.measure_sequences * experiment.model.seq_len,
        batch_size=experiment.log.measure_sequences,
        mesh=mesh,
    )
    num_steps, every = experiment.train.num_steps, experiment.log
    ends_here = False
    name = f"train {experiment.arm} seed {experiment.seed}"
    with (
        checkpoint.Checkpoints(run_dir, keep=every.keep_checkpoints) as saved,
        distributed.preemption() as told_to_end,
    ):
        restored = _restore(compiled, saved, described, run_dir)
        if restored is None:
            given = continued.params(experiment, source, compiled.state.params)
            if source is not None:
                continued.record(source, run_dir)
            restored = compiled.init(jax.random.key(experiment.seed), given), 0, 0.0
        state, start, seconds = restored
        batches.set_state(start)
        log = _Log(experiment, run_dir, start, seconds, saved.latest_step)
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
                ends_here = told_to_end()
                if step % every.checkpoint_every == 0 or step == num_steps or ends_here:
                    log.drain()
                    log.require_finite(step, {"state": compiled.finite(state)})
                    meta = {"step": step, "seconds": log.seconds, "logged": log.ends}
                    meta |= described
                    saved.save(step, state.params, state.opt_state, meta)
                if ends_here and step < num_steps:
                    raise Preempted(
                        f"told to end: saved at step {step} of {num_steps} in "
                        f"{run_dir}; the same command goes on from there"
                    )
    (run_dir / "failed.json").unlink(missing_ok=True)
    peak = _peak_bytes()
    finished = {
        "num_steps": num_steps,
        "loss": log.loss,
        "seconds": log.seconds,
        "epochs": list(epochs.values()),
        "state_bytes": sharding.bytes_per_device(compiled.state),
        # An arm that needs less than an earlier one in this process leaves no trace.
        "peak_bytes": peak if peak > peak_before else None,
    }
    metrics.write_text(run_dir / "done.json", metrics.to_json(finished) + "\n")
    distributed.barrier("the end of training")
    if ends_here:
        raise Preempted(
            f"told to end: training is finished in {run_dir}; the same command goes on "
            "from there"
        )


# What a run writes while it trains, rows by step; the loss of the last is the log's.
_FILES = ("measures.jsonl", "metrics.jsonl")


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
        seconds: float,
        last_checkpoint: Callable[[], int | None],
    ):
        self.note, self.seconds = "", seconds
        self._experiment = experiment
        self._run_dir = run_dir
        self._last_checkpoint = last_checkpoint
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._clock: float | None = None
        # File -> step of its last row, which a checkpoint saved now relies on.
        self.ends: dict[str, int] = {}
        self.loss = float("nan")
        # Rows that a killed run wrote after its last checkpoint are computed again.
        for name in _FILES:
            written = metrics.read(run_dir / name) if start > 0 else []
            kept = [row for row in written if row["step"] <= start]
            metrics.rewrite(run_dir / name, kept)
            if kept:
                self.ends[name], self.loss = kept[-1]["step"], kept[-1]["loss"]

    def due(self, step: int) -> bool:
        """Return True for a step whose numbers are written."""
        last = self._experiment.train.num_steps
        return step % self._experiment.log.log_every == 0 or step == last

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        """Take a dispatched step's numbers, and read those that are due before it."""
        if self._pending and self.due(self._pending[-1][0]):
            self._flush()
        if self._clock is None:
            self._clock = time.perf_counter()
        self._pending.append((step, values))

    def drain(self) -> None:
        """Read all that is pending; the time to the next step is no training time."""
        self._flush()
        self._clock = None

    def measured(self, step: int, row: dict[str, Any]) -> None:
        """Write what was measured at a step."""
        self._append("measures", {"step": step, **row})

    def _append(self, kind: str, row: dict[str, Any]) -> None:
        metrics.append(self._run_dir / f"{kind}.jsonl", rows.make(kind, row))
        self.ends[f"{kind}.jsonl"] = row["step"]

    def require_finite(self, step: int, finite_by_name: Mapping[str, Any]) -> None:
        """Stop the run unless every named thing was found to be finite.

        Raises:
            Diverged: it says where, what is saved and what to try, as failed.json does.
        """
        bad = [name for name, finite in finite_by_name.items() if not finite]
        if not bad:
            return
        last = self._last_checkpoint()
        saved = "no checkpoint is saved" if last is None else f"step {last} is saved"
        message = (
            f"training diverged: {' and '.join(bad)} not finite at step {step} "
            f"({saved}); try a lower optimizer.learning_rate, a longer "
            "schedule.warmup_steps or a smaller train.clip_norm"
        )
        failed = metrics.to_json({"step": step, "message": message})
        metrics.write_text(self._run_dir / "failed.json", failed + "\n")
        raise Diverged(message)

    def _flush(self) -> None:
        if not self._pending or self._clock is None:
            return
        numbers = [(step, jax.device_get(values)) for step, values in self._pending]
        now = time.perf_counter()
        elapsed, self._clock, self._pending = now - self._clock, now, []
        self.seconds += elapsed
        rate = len(numbers) * self._experiment.tokens_per_step / elapsed
        for step, values in numbers:
            is_finite = {
                name: np.isfinite(values[name]) for name in ("loss", "grad_norm")
            }
            self.require_finite(step, is_finite)
            if self.due(step):
                self.loss = float(values["loss"])
                self.note = f"loss {self.loss:.3f}, {rate:,.0f} tokens/s"
                row = {name: float(value) for name, value in values.items()}
                row |= {"step": step, "tokens_per_second": rate}
                row["seconds"] = self.seconds  # Training time so far, resumed or not.
                self._append("metrics", row)


def _prefixed(prefix: str, values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _restore(
    compiled: steps.TrainSteps,
    saved: checkpoint.Checkpoints,
    described: dict[str, Any],
    run_dir: pathlib.Path,
) -> tuple[steps.TrainState, int, float] | None:
    """Restore the newest checkpoint's state, step and seconds; None without one."""
    start = saved.latest_whole_step(
        lambda meta: distributed.broadcast("log", lambda: _lost_rows(run_dir, meta))
    )
    if start is None:
        return None
    meta = saved.meta(start)
    runs.match(described, meta, f"the checkpoint of step {start} in {run_dir}")
    state = steps.TrainState(
        step=jax.device_put(np.int32(start), compiled.state.step.sharding),
        params=saved.params(start, compiled.state.params),
        opt_state=saved.opt_state(start, compiled.state.opt_state),
    )
    metrics.say(f"resuming at step {start}")
    return state, start, meta["seconds"]


def _lost_rows(run_dir: pathlib.Path, meta: Mapping[str, Any]) -> str | None:
    """Say what files lack of the rows at the time of a checkpoint, or return None.

    A checkpoint of an earlier version does not say what it relies on, and passes.
    """
    for name, last in meta.get("logged", {}).items():
        rows = metrics.read(run_dir / name)
        if not any(row["step"] == last for row in rows[::-1]):
            return f"{name} has lost its row of step {last}"
    return None


def _measure(compiled, params, held_out) -> dict[str, Any]:
    """Measure the held-out loss and what `log.statistics` says of each site and layer.

    With "histogram" the paper's sites get their counts too, over the edges beside them.
    """
    measured = jax.device_get([compiled.measure(params, batch) for batch in held_out])
    losses, records = zip(*measured, strict=True)
    merged = {
        site: tap_lib.merged([seen[site] for seen in records]) for site in records[0]
    }
    counted = {s: merged[s] for s in TAP_SETS["paper"] if "histogram" in merged[s]}
    edges, counts = heldout.histograms(counted) if counted else ([], {})
    return {
        "loss": float(np.concatenate(losses).mean(dtype=np.float64)),
        "num_tokens": heldout.num_tokens(held_out),
        "edges": edges,
        "sites": {
            site: {**heldout.describe(record), **counts.get(site, {})}
            for site, record in merged.items()
        },
    }


def _peak_bytes() -> int:
    """Return the most bytes that one device here has held; 0 where it does not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(found.get("peak_bytes_in_use", 0) for found in stats)
