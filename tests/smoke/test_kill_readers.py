"""What reads a run, killed by the system in seeded writes and started again."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from rfq import metrics
from tests import tiny
from tests.smoke import killed_writer
from tests.tasks.documents import DOCUMENTS

ROOT = pathlib.Path(__file__).parents[2]

# Words of a command, what it writes below RUN and OUT, and how often it is killed; DIR
# holds the tasks.
COMMANDS = {
    "quantize": (
        "quantize RUN --specs FP A8 A4 W8A8",
        ("RUN/quantize/rows.jsonl", "RUN/quantize/sites.jsonl"),
        5,
    ),
    "tasks": (
        "evaluate RUN --tasks boolq piqa --tasks-dir DIR --specs FP A4",
        ("RUN/quantize/tasks.jsonl",),
        4,
    ),
    "export": (
        "quantize RUN --specs W8A8 W4 --export OUT",
        ("OUT/W8A8/quantized.json", "OUT/W4/quantized.json"),
        4,
    ),
    "report": ("report RUN --out OUT", ("OUT/tables",), 4),
}


def _words(words: str, folder: pathlib.Path) -> list[str]:
    names = {name: str(folder / name.lower()) for name in ("RUN", "OUT", "DIR")}
    return [names.get(word, word) for word in words.split()]


def _run(number: int, seconds: float, words: list[str], env):
    """Run a command that is killed in its write of this number; 0 is none."""
    armed = [killed_writer.__name__, str(number), str(seconds)]
    return subprocess.run(
        [sys.executable, "-m", *armed, *words],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def _finish(words: list[str], env) -> int:
    """Run a command to its end; how often it wrote."""
    done = _run(0, 0.0, words, env)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def _written(folder: pathlib.Path, names: tuple[str, ...]) -> list[object]:
    """What the files hold, without what a clock or another commit says."""
    found: list[object] = []
    for name in names:
        path = folder / name.replace("RUN", "run").replace("OUT", "out")
        if path.suffix == ".jsonl":
            found += tiny.lines(path, drop=(*tiny.TIMES, "commit"))
        elif path.suffix == ".json":
            found.append(json.loads(path.read_text())["sha256"])
        else:
            tables = sorted(path.glob("*.csv"))
            assert tables
            found += [(table.name, table.read_text("utf-8")) for table in tables]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_what_reads_a_run_goes_on_after_a_kill_to_the_same_files(
    tmp_path_factory, tmp_path, one_device_env, command
):
    words, names, num_kills = COMMANDS[command]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    for each in (whole, folder):
        shutil.copytree(tiny.quantized(tmp_path_factory), each / "run")
        if command == "quantize":
            shutil.rmtree(each / "run" / "quantize")
        (each / "dir").mkdir()
        for name in ("boolq", "piqa"):
            text = "".join(json.dumps(row) + "\n" for row in DOCUMENTS[name][:6])
            (each / "dir" / f"{name}.jsonl").write_text(text)
    num_writes = _finish(_words(words, whole), one_device_env)
    # A report starts over; of the others each kill leaves less to do for the next.
    most = num_writes if command == "report" else num_writes // (num_kills + 1)
    rng = np.random.default_rng(len(command))
    for _ in range(num_kills):
        number, seconds = int(rng.integers(1, max(1, most) + 1)), rng.uniform(0, 2e-3)
        killed = _run(number, seconds, _words(words, folder), one_device_env)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        for path in folder.rglob("*.jsonl"):
            metrics.read(path)
    _finish(_words(words, folder), one_device_env)
    assert _written(folder, names) == _written(whole, names)
