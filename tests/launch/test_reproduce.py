"""The paper's experiment through its script, at toy scale, killed once on the way."""

import os
import signal
import subprocess
import time

import pytest

from rfq import metrics
from tests import tiny
from tests.launch import place

ARMS = {
    *("residual_adamw", "residual_kl_shampoo", "residual_muon", "residual_soap"),
    *("residual_free_kl_shampoo", "residual_free_soap", "residual_free_muon"),
}
SPECS = ("FP", "W8A8")
TOY = f"""
    --model.num-layers 2 --model.width 16 --model.num-heads 2 --model.vocab-size 259
    --model.seq-len {tiny.SEQ_LEN} --model.loss-chunks 1 --model.compute-dtype float32
    --schedule.warmup-steps 2 --train.num-steps 4 --train.batch-size 8
    --log.measure-every 4 --log.measure-sequences 8 --log.checkpoint-every 2
    --log.statistics moments --log.log-every 1
    --quantize.specs {" ".join(SPECS)} --quantize.batch-size 8
    --quantize.calibration-tokens 256 --quantize.eval-tokens 256
    --tasks.names cloze_easy --tasks.specs FP --tasks.cloze-items 8
""".split()


def _start(folder, data, env) -> subprocess.Popen[str]:
    script = [str(folder / "launch" / "reproduce_paper.sh"), "--data", str(data)]
    return subprocess.Popen(
        ["bash", *script, "--tokenizer", "byte", *TOY],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_one_command_ends_with_the_report_of_seven_arms(
    tmp_path, tmp_path_factory, one_device_env
):
    folder, data = place.of_this_checkout(tmp_path), tiny.data(tmp_path_factory)
    out = folder / "runs" / "paper"
    process = _start(folder, data, one_device_env)
    while not list(out.glob("arms/*/*/done.json")) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (finished,) = out.glob("arms/*/*/done.json")
    before = finished.stat().st_mtime_ns

    process = _start(folder, data, one_device_env)
    said, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert said.splitlines()[-1] == "report: runs/paper/report.html"
    assert finished.stat().st_mtime_ns == before  # It was not trained again.
    assert (out / "report.html").is_file()
    rows = metrics.read(out / "rows.jsonl")
    # Both placements of every arm, in float32 as they were trained.
    assert {(row["arm"], row["spec"], row["stream"]) for row in rows} == {
        (arm, spec, stream)
        for arm in ARMS
        for spec in SPECS
        for stream in ("branch", "in_place")
    }
    assert len(rows) == len(ARMS) * len(SPECS) * 2
    for arm in ARMS:
        asked = out / "arms" / arm / "seed-0" / "quantize" / "tasks.jsonl"
        assert {row["spec"] for row in metrics.read(asked)} == {"FP"}
