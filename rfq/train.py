"""The training loop: config -> checkpoints, metrics and measurements on disk."""

import pathlib
import time
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
    with checkpoint.Checkpoints(run_dir, keep=experiment.log.keep_checkpoints) as saved:
        state, start = _restore(compiled, saved, described, experiment.seed)
        batches.set_state(start)
        for name in ("metrics.jsonl", "measures.jsonl"):
            rows = metrics.read(run_dir / name)
            metrics.rewrite(
                run_dir / name, [row for row in rows if row["step"] <= start]
            )
        state, loss, seconds = _loop(
            experiment, run_dir, described, mesh, compiled, batches, held_out, saved,
            state, start,
        )  # fmt: skip
    del state
    (run_dir / "failed.json").unlink(missing_ok=True)
    finished = {"num_steps": experiment.train.num_steps, "loss": loss, "seconds": seconds}
    metrics.write_text(done_file, metrics.to_json(finished) + "\n")


def _loop(
    experiment, run_dir, described, mesh, compiled, batches, held_out, saved, state, start
):  # fmt: skip
    """Dispatches steps; reads numbers one step late, in one transfer per log line."""
    log, num_steps = experiment.log, experiment.train.num_steps
    pending: list[tuple[int, dict[str, jax.Array]]] = []
    loss, note, seconds = float("nan"), "", 0.0
    clock = time.perf_counter()

    def flush() -> None:
        nonlocal pending, loss, note, clock, seconds
        if not pending:
            return
        rows = [(step, jax.device_get(values)) for step, values in pending]
        elapsed = time.perf_counter() - clock
        seconds, clock = seconds + elapsed, time.perf_counter()
        tokens_per_second = len(rows) * experiment.tokens_per_step / elapsed
        pending = []
        for step, values in rows:
            _check_finite(step, values, saved.latest_step(), run_dir)
            if step % log.log_every == 0 or step == num_steps:
                loss = float(values["loss"])
                note = f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s"
                row = {name: float(value) for name, value in values.items()}
                row |= {"step": step, "tokens_per_second": tokens_per_second}
                metrics.append(run_dir / "metrics.jsonl", row)

    def measure(step: int) -> None:
        row = _measured(compiled, state.params, held_out)
        metrics.append(run_dir / "measures.jsonl", {"step": step, **row})

    def pause() -> None:
        nonlocal clock
        clock = time.perf_counter()

    name = f"train {experiment.arm} seed {experiment.seed}"
    with metrics.progress(name, num_steps, start) as bar:
        if start == 0:
            measure(0)
            pause()
        for step in range(start + 1, num_steps + 1):
            batch = sharding.to_global(next(batches), mesh)
            state, values = compiled.train(state, batch)
            if step % log.log_every == 0:
                found = compiled.diagnose(state.opt_state)
                values |= {f"optim/{name}": value for name, value in found.items()}
            if pending and pending[-1][0] % log.log_every == 0:
                flush()
                bar.update(step, note)
            pending.append((step, values))
            measuring = step % log.measure_every == 0 or step == num_steps
            saving = step % log.checkpoint_every == 0 or step == num_steps
            if measuring or saving:
                flush()
            if measuring:
                measure(step)
            if saving:
                meta = {"step": step, **described}
                saved.save(step, state.params, state.opt_state, meta)
            if measuring or saving:
                pause()
    return state, loss, seconds


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


def _measured(compiled, params, held_out) -> dict[str, Any]:
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
