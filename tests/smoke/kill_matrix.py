"""Kills training at seeded moments, starts it again, and compares every loss bit.

    python -m tests.smoke.kill_matrix --out DIR   (--help lists the numbers)

Prints a Markdown table, one row a kill, and exits with 1 if a run that was killed and
started again differs from the one that nothing interrupted. A worker (see `_work`) arms
its own end: at a numbered call of a phase's function, and a random moment after it.
"""

import argparse
import itertools
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from rfq import checkpoint, cli, distributed, metrics, train
from rfq.data import pipeline
from tests import tiny

ROOT = pathlib.Path(__file__).parents[2]
_SECONDS = 600.0  # Longer than any start takes on a busy machine.
_LOST_SECONDS = 5  # Silence after which the other process is declared gone.

# Phase -> the function during which it ends, the calls of it and the seconds to wait.
PHASES = {
    "step": (metrics.Progress, "update", (3, 12), 0.05),
    "checkpoint write": (checkpoint.Checkpoints, "save", (1, 3), 0.3),
    "data prefetch": (pipeline._Concatenated, "read", (6, 16), 0.0),
    "evaluation": (train, "_measure", (1, 2), 0.05),
}
HOST_LOSS = "host loss"

CONFIG = """
from tests import tiny


def config():
    given = tiny.experiment({data!r})
    given = tiny.with_fields(given, "train", num_steps={num_steps})
    return tiny.with_fields(
        given,
        "log",
        log_every=1,
        measure_every=8,
        checkpoint_every=5,
        statistics=("moments",),
    )
"""


def _arm(phase: str, call: int, seconds: float, number: int) -> None:
    """Makes this process signal itself so long after a call of the phase began."""
    owner, name, _, _ = PHASES[phase]
    inner, calls = getattr(owner, name), itertools.count(1)

    def end() -> None:
        time.sleep(seconds)
        sys.stderr.write(f"signalled at {time.time()}\n")
        sys.stderr.flush()
        os.kill(os.getpid(), number)

    def armed(*args, **kwargs):
        if next(calls) == call:
            if seconds:
                threading.Thread(target=end, daemon=True).start()
            else:
                end()
        return inner(*args, **kwargs)

    setattr(owner, name, armed)


def _work(words: Sequence[str]) -> int:
    """PHASE CALL SECONDS SIGNAL and the words of rfq; PHASE "none" arms nothing."""
    phase, call, seconds, number, *command = words
    if phase != "none":
        _arm(phase, int(call), float(seconds), int(number))
    return cli.main(command)


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if "RFQ_" not in name}
    quick = "--xla_backend_optimization_level=0"
    return {
        **kept,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick,
        "PYTHONPATH": str(ROOT),
        "OPENBLAS_NUM_THREADS": "1",
        **more,
    }


def _start(env: dict[str, str], config: pathlib.Path, out: pathlib.Path, *end: str):
    words = end or ("none", "0", "0", "0")
    command = ["train", str(config), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.smoke.kill_matrix", "--work", *words, *command],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _job(config: pathlib.Path, out: pathlib.Path, victim: int | None, *end: str):
    """Runs two processes of one device each; returns (status, output) of both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for index in range(2):
        env = _environment(
            RFQ_COORDINATOR=f"127.0.0.1:{port}",
            RFQ_NUM_PROCESSES="2",
            RFQ_PROCESS_ID=str(index),
            RFQ_LOST_SECONDS=str(_LOST_SECONDS),
        )
        started.append(_start(env, config, out, *(end if index == victim else ())))
    said = [""] * 2

    def read(index: int) -> None:
        said[index] = started[index].communicate(timeout=_SECONDS)[0]

    readers = [threading.Thread(target=read, args=(index,)) for index in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return [(process.returncode, said[i]) for i, process in enumerate(started)]


def _rows(run_dir: pathlib.Path) -> list[dict]:
    """Step and every number of the loss sequence, without what clocks say."""
    return [
        {key: value for key, value in row.items() if key not in tiny.TIMES}
        for name in ("metrics.jsonl", "measures.jsonl")
        for row in metrics.read(run_dir / name)
    ]


def _differs(run_dir: pathlib.Path, whole: pathlib.Path) -> bool:
    """True if any row of a run is not one of the uninterrupted run's."""
    expected = _rows(whole)
    return any(row not in expected for row in _rows(run_dir))


def _moment(rng: np.random.Generator, phase: str) -> tuple[str, str]:
    _, _, (first, last), seconds = PHASES[phase]
    return str(rng.integers(first, last)), f"{rng.uniform(0, 1) * seconds:.3f}"


def _resumed(said: str) -> str:
    found = re.search(r"resuming at step (\d+)", said)
    return found.group(1) if found else "0"


def _last_step(run_dir: pathlib.Path) -> int:
    rows = metrics.read(run_dir / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def _alone(folder, data, num_steps, num_kills, num_terms, rng) -> Iterator[tuple]:
    """One process: a chain of kills, each run going on where the last one ended."""
    config, whole = folder / "alone.py", folder / "whole"
    config.write_text(CONFIG.format(data=str(data), num_steps=num_steps))
    env = _environment()
    process = _start(env, config, whole)
    said = process.communicate(timeout=_SECONDS)[0]
    assert process.returncode == 0, said
    names = list(itertools.islice(itertools.cycle(PHASES), num_kills))
    wanted = [(name, signal.SIGKILL) for name in names]
    wanted += [
        (str(rng.choice(list(PHASES))), signal.SIGTERM) for _ in range(num_terms)
    ]
    chain, run_dir = 0, folder / "killed-0"
    while wanted:
        phase, number = wanted[0]
        moment = _moment(rng, phase)
        process = _start(env, config, run_dir, phase, *moment, str(int(number)))
        said = process.communicate(timeout=_SECONDS)[0]
        ended = time.time()
        if process.returncode == 0:  # Done before its moment came: begin another run.
            assert not _differs(run_dir, whole)
            chain += 1
            run_dir = folder / f"killed-{chain}"
            continue
        expected = -9 if number == signal.SIGKILL else distributed.REQUEUE
        assert process.returncode == expected, said
        signalled = re.search(r"signalled at (\S+)", said)
        seconds = ended - float(signalled.group(1)) if signalled else 0.0
        same = not _differs(run_dir, whole) and "damaged" not in said
        yield (
            f"{number.name} in {phase}, call {moment[0]} + {float(moment[1]):.3f} s",
            *(_resumed(said), _last_step(run_dir), seconds, same),
        )
        wanted.pop(0)
    process = _start(env, config, run_dir)
    said = process.communicate(timeout=_SECONDS)[0]
    assert process.returncode == 0, said
    same = _rows(run_dir) == _rows(whole)
    yield ("no signal: to the end", _resumed(said), _last_step(run_dir), 0.0, same)


def _in_company(folder, data, num_kills, rng) -> Iterator[tuple]:
    """Two processes, one of which is killed: the other must say so and end in time."""
    config, whole = folder / "two.py", folder / "two-whole"
    config.write_text(CONFIG.format(data=str(data), num_steps=40))
    run_dir = folder / "two-killed"
    for status, said in _job(config, whole, None):
        assert status == 0, said
    for index in range(num_kills):
        victim = (index + 1) % 2
        moment = _moment(rng, "step")
        ended = _job(config, run_dir, victim, "step", *moment, str(int(signal.SIGKILL)))
        finished = time.time()
        (_, lost), (status, said) = ended[victim], ended[1 - victim]
        assert ended[victim][0] == -9, lost
        # Process 0 holds the job's memory: when it is gone, jax itself may be first to
        # end the others (by SIGABRT), in its words.
        named = f"process {victim} of 2" in said or (victim == 0 and "leader" in said)
        accepted = (distributed.REQUEUE, *([-6] if victim == 0 else []))
        assert status in accepted and named, said
        seconds = finished - float(re.search(r"signalled at (\S+)", lost).group(1))
        yield (
            f"SIGKILL of process {victim} of 2 ({HOST_LOSS})",
            _resumed(ended[0][1]),
            _last_step(run_dir),
            seconds,
            not _differs(run_dir, whole),
        )
    ended = _job(config, run_dir, None)
    assert [status for status, _ in ended] == [0, 0], ended
    yield (
        "no signal: both to the end",
        _resumed(ended[0][1]),
        _last_step(run_dir),
        0.0,
        _rows(run_dir) == _rows(whole),
    )


def run(
    folder: pathlib.Path,
    *,
    num_steps: int,
    kills: int,
    host_kills: int,
    terms: int,
    seed: int,
) -> list[tuple]:
    """Prints the table while it grows; returns its rows, `same` last.

    Args:
        folder: An empty directory.
        num_steps: Of the run of a process that is alone.
        kills: SIGKILLs of a process that is alone, dealt to the phases.
        host_kills: SIGKILLs of one of two processes.
        terms: SIGTERMs of a process that is alone.
        seed: Of all moments.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    data = tiny.prepared(folder)
    print("| moment | began at step | reached step | seconds to the end | same bits |")
    print("|---|---|---|---|---|")
    rows = []
    parts = (
        [_alone(folder, data, num_steps, kills, terms, rng)] if kills + terms else []
    )
    if host_kills:
        parts.append(_in_company(folder, data, host_kills, rng))
    for row in itertools.chain(*parts):
        what, began, reached, seconds, same = row
        took = f"{seconds:.1f}" if seconds else ""
        said = "yes" if same else "NO"
        print(f"| {what} | {began} | {reached} | {took} | {said} |", flush=True)
        rows.append(row)
    return rows


def main(argv: Sequence[str]) -> int:
    """The command line; see the module's docstring."""
    if argv[:1] == ["--work"]:
        return _work(argv[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.smoke.kill_matrix")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--kills", type=int, default=17)
    parser.add_argument("--host-kills", type=int, default=3)
    parser.add_argument("--terms", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"--out {args.out} is not empty")
    rows = run(
        args.out,
        num_steps=args.num_steps,
        kills=args.kills,
        host_kills=args.host_kills,
        terms=args.terms,
        seed=args.seed,
    )
    return 0 if all(row[-1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
