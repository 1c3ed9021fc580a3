"""What quickstart.sh, test.sh and .ci/run call, in what order, and what they return."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARALLEL = "-n auto --maxprocesses 4 --dist loadfile"
TOOLS = ["ruff", "basedpyright", "lint-imports", "python", "rfq"]


class Stage:
    """The launch scripts over tools that only log how they were called."""

    def __init__(self, repo: Path):
        self.repo = repo
        self.calls = repo / "calls"
        for script in ("launch/quickstart.sh", "launch/test.sh", ".ci/run"):
            copy = repo / script
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / script, copy)
        self._write("launch/setup.sh", "setup.sh")
        for tool in TOOLS:
            self._write(f".venv/bin/{tool}", tool)
        for arm in ("a", "b"):
            (repo / "configs" / "demo").mkdir(parents=True, exist_ok=True)
            (repo / "configs" / "demo" / f"{arm}.py").touch()

    def _write(self, path: str, name: str) -> None:
        file = self.repo / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f'#!/bin/bash\necho "{name} $*" >>"{self.calls}"\n'
            f'[ "$FAILING" != "{name} ${{1:-}}" ]\n'
        )
        file.chmod(0o755)

    def run(self, script: str, *args: str, failing: str = "") -> tuple[int, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RFQ_")}
        result = subprocess.run(
            ["bash", str(self.repo / script), *args],
            env={**inherited, "FAILING": failing},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return result.returncode, result.stdout

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_quickstart_sets_up_prepares_and_compares(stage):
    status, _ = stage.run("launch/quickstart.sh", "--train.num-steps", "3")
    assert status == 0
    assert stage.called() == [
        "setup.sh ",
        "rfq prepare embedded --out data/embedded",
        "rfq compare configs/demo/a.py configs/demo/b.py --out runs/demo "
        "--train.num-steps 3",
    ]


@pytest.mark.parametrize("failing", ["setup.sh ", "rfq prepare"])
def test_quickstart_stops_at_what_fails(stage, failing):
    status, _ = stage.run("launch/quickstart.sh", failing=failing)
    assert status != 0
    assert stage.called()[-1].startswith(failing)


def test_the_tests_leave_out_the_slow_ones_by_default(stage):
    status, said = stage.run("launch/test.sh", "--", "tests/quant", "-x")
    assert status == 0
    called = stage.called()
    assert called[0] == "setup.sh --dev"
    assert (
        called[-1]
        == f"python -m pytest {PARALLEL} -m not slow --timeout 300 tests/quant -x"
    )
    assert len(called) == 6
    assert said.count(" ok") == 5


def test_continuous_integration_runs_every_test(stage):
    status, _ = stage.run(".ci/run")
    assert status == 0
    assert stage.called()[-1] == f"python -m pytest {PARALLEL} --timeout 1200"


@pytest.mark.parametrize(
    ("failing", "name"),
    [
        ("ruff format", "format"),
        ("ruff check", "lint"),
        ("basedpyright --pythonpath", "types"),
        ("lint-imports --no-cache", "imports"),
        ("python -m", "tests"),
    ],
)
def test_a_failing_stage_fails_the_whole_and_stops_nothing(stage, failing, name):
    status, said = stage.run("launch/test.sh", failing=failing)
    assert status == 1
    assert len(stage.called()) == 6
    failed = [line.split()[0] for line in said.splitlines() if "FAILED" in line]
    assert failed == [name]


def test_an_unknown_argument_runs_nothing(stage):
    status, _ = stage.run("launch/test.sh", "--slow")
    assert status == 2
    assert not stage.calls.exists()
