"""What reads a run, killed by the system at seeded moments and started again."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from rfq import metrics
from tests import tiny
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


def _start(words: list[str], env) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rfq", *words],
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr


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
    began = time.monotonic()
    _finish(_start(_words(words, whole), one_device_env))
    took = time.monotonic() - began
    rng = np.random.default_rng(len(command))
    killed = 0
    for share in rng.uniform(0.3, 1.0, num_kills):
        process = _start(_words(words, folder), one_device_env)
        try:
            # The first third is imports, where there is nothing to break.
            process.communicate(timeout=share * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
        for path in folder.rglob("*.jsonl"):
            metrics.read(path)
    # What is nearly done may end before its moment comes.
    assert killed >= num_kills // 2
    _finish(_start(_words(words, folder), one_device_env))
    assert _written(folder, names) == _written(whole, names)
