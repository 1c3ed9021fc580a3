"""The whole path of a stranger, through the command line alone."""

import math
import pathlib

import pytest

from rfq import cli, metrics
from tests import tiny


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)
    monkeypatch.setattr(metrics, "_SECONDS_BETWEEN_LINES", math.inf)


def _run(capsys, *argv: str) -> list[str]:
    """The lines that a command which succeeds says."""
    capsys.readouterr()
    assert cli.main([str(word) for word in argv]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out.splitlines()


def test_prepare_train_stop_resume_quantize_evaluate_report(
    tmp_path, capsys, monkeypatch
):
    text = tiny.write_text(tmp_path / "text.jsonl")
    data, out = tmp_path / "data", tmp_path / "out"
    prepare = (
        *("prepare", text, "--out", data, "--tokenizer", "byte", "--window-len", 32),
        *("--calibration-fraction", 0.15, "--heldout-fraction", 0.15),
    )
    said = _run(capsys, *prepare)
    first = [line.split()[0] for line in said if not line.startswith("note:")]
    assert first == ["train", "calibration", "heldout", "data:"]
    written = {path: path.read_bytes() for path in data.iterdir()}
    assert _run(capsys, *prepare) == said
    assert {path: path.read_bytes() for path in data.iterdir()} == written

    config = tmp_path / "tiny.py"
    config.write_text(
        "from tests import tiny\n\n\n"
        f"def config():\n    return tiny.experiment({str(data)!r})\n"
    )
    run_dir = out / "arms" / "tiny" / "seed-0"
    train = ("train", config, "--out", run_dir)
    with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
        tiny.kill_after(patch, metrics, "append", 5)
        cli.main([str(word) for word in train])
    said = _run(capsys, *train)
    assert said[0].startswith("rfq ")
    assert "cpu device(s)" in said[0]
    assert "resuming at step 4" in said
    assert said[-2] == f"run: {run_dir}"
    assert said[-1] == f'next: rfq quantize {run_dir} --specs "FP W8A8 W4A4"'
    last = metrics.read(run_dir / "measures.jsonl")[-1]["loss"]
    assert said[-3].startswith(f"held-out loss {last:.4f} nats per token after step 12")
    assert "unigrams gives" in said[-3]
    assert "tiny seed 0: training is finished" in _run(capsys, *train)

    said = _run(capsys, "quantize", run_dir, "--specs", "FP", "A4")
    rows = metrics.read(run_dir / "quantize" / "rows.jsonl")
    assert [row["spec"] for row in rows] == ["FP", "FP", "A4", "A4"]
    for row, line in zip(rows, said[1:], strict=False):
        assert line.split()[:4] == [row["spec"], "paper", row["stream"], "loss"]
        assert f"loss {row['loss']:.4f} ({row['loss_increase']:+.4f}, 95 % " in line
    # The form with quotes, of a setting that is there and one that is not.
    _run(capsys, "quantize", run_dir, "--specs", "FP A3")
    more = metrics.read(run_dir / "quantize" / "rows.jsonl")
    assert more[:4] == rows
    assert [row["spec"] for row in more[4:]] == ["A3", "A3"]

    said = _run(capsys, "evaluate", run_dir)
    loss, bits = rows[0]["loss"], rows[0]["bits_per_byte"]
    assert f"held-out loss {loss:.4f} nats per token, {bits:.4f} bits per" in said[-1]
    assert metrics.read(run_dir / "quantize" / "rows.jsonl") == more

    said = _run(capsys, "report", out)
    page = pathlib.Path(said[-1].removeprefix("report: "))
    assert page == out / "report.html"
    assert "tiny" in page.read_text(encoding="utf-8")

    # From another place, with the data in another place.
    monkeypatch.chdir(tmp_path)
    data.rename(tmp_path / "moved")
    moved = ("--data-dir", tmp_path / "moved")
    assert _run(capsys, "evaluate", run_dir, *moved)[1:] == [
        f"tiny seed 0 (float32): held-out loss {loss:.4f} nats per token, "
        f"{bits:.4f} bits per byte, over {rows[0]['eval_tokens']:,} tokens"
    ]


def test_numbers_that_are_not_finite_are_said_and_not_a_crash(
    tmp_path_factory, tmp_path, capsys
):
    run_dir = tiny.copied(tiny.quantized(tmp_path_factory), tmp_path)
    path = run_dir / "quantize" / "rows.jsonl"
    rows = [
        {**row, "loss": float("nan"), "loss_increase_lo": float("-inf")}
        for row in metrics.read(path)
    ]
    metrics.rewrite(path, rows)
    said = _run(capsys, "quantize", run_dir)
    assert "loss not finite (+0.0000, 95 % not finite to +0.0000)" in said[1]
    assert "held-out loss not finite" in _run(capsys, "evaluate", run_dir)[-1]
    assert metrics.read(path)[0]["nonfinite"] == ["loss", "loss_increase_lo"]
