import dataclasses
import json

import numpy as np
import pytest

from rfq import compare, metrics, report
from rfq.data import ngram, pipeline
from rfq.errors import Diverged, InputError
from tests import tiny

VOCAB_SIZE = 259


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    tiny.quick(monkeypatch)


@pytest.fixture
def plain_report(monkeypatch):
    """Notes for which directories a report was asked, and writes none."""
    asked = []

    def run(results):
        asked.append(results.directory)
        return results.directory / "page"

    monkeypatch.setattr(report, "run", run)
    monkeypatch.setattr(
        report, "summary", lambda results: f"summary of {results.directory.name}"
    )
    return asked


def _arms(factory):
    """Two arms that share all programs: the second has another seed."""
    base = tiny.experiment(tiny.data(factory))
    base = tiny.with_fields(base, "quantize", specs=("FP", "A8", "A4"))
    return [
        dataclasses.replace(base, arm="first"),
        dataclasses.replace(base, arm="second", seed=3),
    ]


@pytest.fixture
def arms(tmp_path_factory):
    return _arms(tmp_path_factory)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A compare directory that nothing interrupted; do not write into it."""
    out = tmp_path_factory.mktemp("compared") / "out"
    with pytest.MonkeyPatch.context() as patch:
        tiny.quick(patch)
        page = compare.run(_arms(tmp_path_factory), out)
    assert page == out / "report.html"
    return out


def test_the_whole_job_is_in_one_directory(compared):
    for arm, seed in (("first", 0), ("second", 3)):
        run_dir = compared / "arms" / arm / f"seed-{seed}"
        for name in (
            "config.json",
            "metrics.jsonl",
            "measures.jsonl",
            "done.json",
            "quantize/rows.jsonl",
            "quantize/sites.jsonl",
            "quantize/statistics.json",
        ):
            assert (run_dir / name).stat().st_size > 0
    for pattern in ("report.html", "tables/*.md", "tables/*.csv", "figures/*.png"):
        found = list(compared.glob(pattern))
        assert found
        assert all(path.stat().st_size > 0 for path in found)


def test_the_rows_of_all_arms_are_in_one_file(compared):
    rows = metrics.read(compared / "rows.jsonl")
    apart = [
        metrics.read(compared / "arms" / arm / "quantize" / "rows.jsonl")
        for arm in ("first/seed-0", "second/seed-3")
    ]
    assert rows == apart[0] + apart[1]
    assert [(row["arm"], row["seed"]) for row in rows] == [
        *[("first", 0)] * 6,
        *[("second", 3)] * 6,
    ]
    # The seeds differ in the initialization and the order of the data.
    assert apart[0][0]["loss"] != apart[1][0]["loss"]


def test_the_floors_are_those_of_the_data(compared, arms):
    context = json.loads((compared / "context.json").read_text())
    directory = arms[0].data.dir
    assert context["floors"] == ngram.cross_entropies(
        pipeline.windows(directory, "train"),
        pipeline.windows(directory, "heldout"),
        VOCAB_SIZE,
    )
    assert 0 < context["floors"]["bigram"] < context["floors"]["unigram"]
    assert context["floors"]["trigram"] > 0
    assert context["data"]["tokenizer"] == "byte"
    assert context["data"]["splits"]["heldout"]["tokens"] > 0


def test_a_second_compare_does_nothing_twice(
    compared, arms, tmp_path, monkeypatch, plain_report
):
    out = tiny.copied(compared, tmp_path)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    tiny.no_work(monkeypatch)
    monkeypatch.setattr(ngram, "cross_entropies", lambda *arguments: 1 / 0)
    with tiny.compilations() as compiled:
        compare.run(arms, out)
    assert compiled == []
    assert plain_report == [out]
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_compare_killed_inside_an_arm_ends_with_the_same_rows(
    compared, arms, tmp_path, monkeypatch, plain_report, seed
):
    # An arm appends 6 logged and 3 measured steps, then 6 rows and 4 lines of sites.
    rng = np.random.default_rng(seed)
    for num_calls in rng.integers(2, 15, size=2):
        with monkeypatch.context() as patch, pytest.raises(tiny.Killed):
            tiny.kill_after(patch, metrics, "append", int(num_calls))
            compare.run(arms, tmp_path)
    assert plain_report == []
    compare.run(arms, tmp_path)
    assert plain_report == [tmp_path]
    assert tiny.lines(tmp_path / "rows.jsonl") == tiny.lines(compared / "rows.jsonl")
    for name in ("first/seed-0/metrics.jsonl", "second/seed-3/measures.jsonl"):
        ours, theirs = (out / "arms" / name for out in (tmp_path, compared))
        assert tiny.lines(ours) == tiny.lines(theirs)


def test_an_arm_that_diverges_does_not_stop_the_others(
    compared, arms, tmp_path, monkeypatch, plain_report, capsys
):
    with monkeypatch.context() as patch:
        tiny.poison(patch, step=6, arm="first")
        with pytest.raises(Diverged, match="first seed 0: training diverged: loss"):
            compare.run(arms, tmp_path)
    assert "first seed 0: training diverged" in capsys.readouterr().out
    assert plain_report == [tmp_path]
    second = tiny.lines(compared / "rows.jsonl")[6:]
    assert tiny.lines(tmp_path / "rows.jsonl") == second
    assert (tmp_path / "arms" / "first" / "seed-0" / "failed.json").exists()


def _refused(arms, out) -> str:
    with tiny.compilations() as compiled, pytest.raises(InputError) as caught:
        compare.run(arms, out)
    assert compiled == []
    assert not list(out.rglob("checkpoints"))
    return str(caught.value)


def test_the_same_arm_twice_is_a_sentence(arms, tmp_path):
    message = _refused([*arms, arms[0]], tmp_path)
    assert message.startswith("arm 'first' with seed 0 is given twice")
    assert list(tmp_path.iterdir()) == []


def test_an_arm_with_two_seeds_is_two_arms(arms, tmp_path):
    again = dataclasses.replace(arms[0], seed=1)
    directories = {compare.run_directory(tmp_path, arm) for arm in (*arms, again)}
    assert len(directories) == 3


def test_arms_on_different_data_are_a_sentence(arms, tmp_path):
    (tmp_path / "more").mkdir()
    other = tiny.experiment(tiny.prepared(tmp_path / "more", salt=1), arm="other")
    message = _refused([*arms, other], tmp_path / "out")
    assert "arms 'first' and 'other' use different data" in message


def test_the_last_arm_is_checked_before_the_first_is_trained(arms, tmp_path):
    greedy = tiny.with_fields(arms[1], "quantize", eval_tokens=16 * tiny.SEQ_LEN)
    assert "fewer than one batch of 32" in _refused([arms[0], greedy], tmp_path)


def test_a_directory_of_another_experiment_is_a_sentence(compared, arms, tmp_path):
    out = tiny.copied(compared, tmp_path)
    other = tiny.with_fields(arms[1], "optimizer", b1=0.5)
    with pytest.raises(InputError, match=r"optimizer\.b1 is 0\.9 there and 0\.5 here"):
        compare.run([arms[0], other], out)
    assert tiny.lines(out / "rows.jsonl") == tiny.lines(compared / "rows.jsonl")


def test_an_unwritable_directory_is_a_sentence(arms, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in _refused(arms, tmp_path / "file" / "out")
