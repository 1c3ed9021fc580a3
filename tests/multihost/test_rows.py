"""A run's rows: on one device, on eight, and from two processes of four each."""

import dataclasses
import pathlib
import shutil
import subprocess

import pytest

from rfq import metrics, ptq, runs
from rfq.data import prepare, tokenize
from rfq.sharding import ShardingConfig
from rfq.tasks import ask
from tests import tiny
from tests.launch import place
from tests.multihost import watched

SPECS = ("FP", "W8A8")
CONFIG = """
from rfq.sharding import ShardingConfig
from tests import tiny


def config():
    given = tiny.experiment({data!r}, sharding=ShardingConfig(strategy="fsdp_tp"))
    # Even, so that two devices share it.
    given = tiny.with_fields(given, "model", vocab_size=512)
    given = tiny.with_fields(given, "data", tokenizer="embedded")
    given = tiny.with_fields(
        given, "quantize", specs={specs!r}, streams=("in_place",)
    )
    return tiny.with_fields(
        given, "tasks", names=("cloze_easy",), cloze_items=16, specs=("FP",)
    )
"""
_APART = (*tiny.TIMES, "commit", "device")
pytestmark = [pytest.mark.slow, pytest.mark.mesh]


@pytest.fixture(scope="module")
def job(tmp_path_factory, one_device_env):
    """What two processes made with launch/local.sh, and what each opened to write."""
    folder = place.of_this_checkout(tmp_path_factory.mktemp("job"), watched.__name__)
    data = folder / "prepared"
    prepare.prepare(
        str(tiny.write_text(folder / "text.jsonl")),
        data,
        tokenizer=tokenize.load("embedded"),
        window_len=2 * tiny.SEQ_LEN,
        calibration_fraction=0.15,
        heldout_fraction=0.15,
    )
    config = folder / "config.py"
    config.write_text(CONFIG.format(data=str(data), specs=SPECS))
    out = folder / "out"
    for command in (("compare", str(config), "--out", str(out)), ("report", str(out))):
        ended = subprocess.run(
            ["bash", "launch/local.sh", "-n", "2", "-d", "4", "--", *command],
            cwd=folder,
            env={
                **one_device_env,
                "WRITES": str(folder / "writes"),
                "RFQ_LOST_SECONDS": "60",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
    written = [
        {
            pathlib.Path(line).relative_to(out)
            for line in (folder / f"writes.{index}").read_text().splitlines()
            if pathlib.Path(line).is_relative_to(out)
        }
        for index in range(2)
    ]
    return out, written


def test_only_process_0_writes(job):
    out, (first, second) = job
    for name in ("report.html", "arms/tiny/seed-0/metrics.jsonl"):
        assert (out / name).is_file()
    names = {path.name for path in first}
    assert "metrics.jsonl" in names
    # A whole file is opened under a name of its own, beside the one that it gets.
    assert any(name.startswith(".report.html.") for name in names)
    # Of a checkpoint every process writes its part.
    assert all("checkpoints" in path.parts for path in second)


def scored(run_dir: pathlib.Path, num_devices: int, strategy: str, to: pathlib.Path):
    """A copy of a run, quantized and asked again on another mesh."""
    run_dir = shutil.copytree(
        run_dir, to / "run", ignore=shutil.ignore_patterns("quantize")
    )
    experiment, _ = runs.load(run_dir)
    there = dataclasses.replace(experiment, sharding=ShardingConfig(strategy=strategy))
    with pytest.MonkeyPatch.context() as patch:
        if num_devices == 1:
            tiny.quick(patch)
        ptq.run(there, run_dir)
        ask.run(there, run_dir)
    return run_dir


@pytest.fixture(scope="module")
def one_device(job, tmp_path_factory):
    run_dir = job[0] / "arms" / "tiny" / "seed-0"
    return scored(run_dir, 1, "ddp", tmp_path_factory.mktemp("one"))


def numbers(value, path=""):
    """{path: leaf} of nested JSON, without what says when and where it was made."""
    if isinstance(value, dict):
        pairs = [(k, v) for k, v in value.items() if k not in _APART]
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    else:
        return {path: value}
    found = {}
    for key, inner in pairs:
        found |= numbers(inner, f"{path}/{key}")
    return found


@pytest.mark.parametrize("where", ["two processes, fsdp_tp", "eight devices, fsdp"])
def test_rows_are_those_of_one_device(where, job, one_device, tmp_path):
    there = job[0] / "arms" / "tiny" / "seed-0"
    if where == "eight devices, fsdp":
        there = scored(there, 8, "fsdp", tmp_path)
    for name in ("rows.jsonl", "losses.jsonl", "tasks.jsonl"):
        ours, theirs = (
            list(map(numbers, metrics.read(run / "quantize" / name)))
            for run in (there, one_device)
        )
        assert len(ours) == len(theirs) > 0
        for row, expected in zip(ours, theirs, strict=True):
            assert row.keys() == expected.keys()
            for key, value in expected.items():
                # Sums in another order move a value by 1e-6 of itself. Where it lies so
                # near the boundary of two levels, which is one of 1e4 at 8 bits, it
                # falls to the other side: some 10 of the 1e5 values that are rounded,
                # each by a step that moves a token's loss by less than 1e-3 and so the
                # mean of 1,024 by less than 1e-6.
                if isinstance(value, float):
                    value = pytest.approx(value, rel=1e-5, abs=1e-5)
                assert row[key] == value, key
