import io
import json
import math

import hypothesis
import pytest
import rich.console
from hypothesis import strategies as st
from jax._src import distributed

from rfq import metrics
from rfq.errors import InputError

_ROWS = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != "nonfinite"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _numbers(value) -> list:
    if isinstance(value, dict):
        return [n for item in value.values() for n in _numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in _numbers(item)]
    return [value]


@hypothesis.example({"a": math.nan, "b": [1.0, {"c": -math.inf}], "d": 1.5})
@hypothesis.given(_ROWS)
def test_every_row_is_strict_json_and_names_what_was_not_finite(row):
    read = json.loads(metrics.to_json(row), parse_constant=_refuse)
    lost = read.pop("nonfinite", [])
    assert set(read) == set(row)
    for key, value in row.items():
        bad = [isinstance(n, float) and not math.isfinite(n) for n in _numbers(value)]
        assert (key in lost) == any(bad)
        expected = [
            None if is_bad else n
            for n, is_bad in zip(_numbers(value), bad, strict=True)
        ]
        assert _numbers(read[key]) == expected


def test_a_finite_row_has_no_nonfinite_entry():
    row = {"loss": 1.5, "step": 3, "ok": True, "name": "NaN", "none": None}
    assert metrics.to_json(row) == json.dumps(row)


def test_appended_rows_are_read_back_in_order(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"step": step, "loss": 1 / (step + 3)} for step in range(5)]
    for row in rows:
        metrics.append(path, row)
    assert metrics.read(path) == rows
    assert metrics.read(tmp_path / "absent.jsonl") == []


@pytest.mark.parametrize("torn", ['{"step": 2, "lo', '{"step": 2}', ""])
def test_a_last_line_without_its_line_feed_is_dropped(tmp_path, torn):
    # Even a line that parses may have lost digits: 0.12 of 0.123.
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n' + torn)
    assert metrics.read(path) == [{"step": 0}, {"step": 1}]


def test_a_broken_line_inside_a_file_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 0}\n{"step":\n{"step": 2}\n')
    with pytest.raises(InputError, match=r"rows\.jsonl line 2 is not JSON"):
        metrics.read(path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    metrics.rewrite(path, [{"a": 1}])

    def fail(*arguments: object) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(InputError, match=r"cannot be written \(power cut\)"):
            metrics.rewrite(path, [{"a": 2}, {"a": 3}])
    assert list(tmp_path.iterdir()) == [path]
    assert metrics.read(path) == [{"a": 1}]
    metrics.rewrite(path, [{"a": 2}])
    assert metrics.read(path) == [{"a": 2}]


def test_only_process_0_writes_and_speaks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed.global_state, "process_id", 1)
    metrics.append(tmp_path / "rows.jsonl", {"a": 1})
    metrics.write_text(tmp_path / "done.json", "{}")
    metrics.make_directory(tmp_path / "new")
    metrics.say("hello")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_what_is_said_is_not_markup_and_not_broken_into_lines(capsys):
    text = "[bold]W8A8[/bold] 0.5 'text' " + "x" * 300
    metrics.say(text)
    assert capsys.readouterr().out == text + "\n"


def test_a_directory_is_made_with_its_parents_and_left_empty(tmp_path):
    metrics.make_directory(tmp_path / "a" / "b")
    metrics.make_directory(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/below"])
def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written \(.+\); choose another"):
        metrics.make_directory(tmp_path / name)


class _Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_off_a_terminal_progress_is_a_line_every_15_seconds(monkeypatch, capsys):
    clock = _Clock()
    monkeypatch.setattr(metrics, "time", clock)
    with metrics.progress("train tiny", 100, 40) as shown:
        for step in range(41, 101):
            clock.now += 1.0
            shown.update(step, f"loss {step / 10:.3f}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # 60 seconds; a line when more than 15 have passed.
    # One step a second, from step 40: 16 done and 44 to go.
    assert lines[0] == "train tiny 56/100, 44 s left loss 5.600"


def test_progress_without_a_total_counts_and_promises_nothing(monkeypatch, capsys):
    clock = _Clock()
    monkeypatch.setattr(metrics, "time", clock)

    with metrics.progress("count", None) as shown:
        for done in range(1, 41):
            clock.now += 1.0
            shown.update(done)
    assert capsys.readouterr().out.splitlines() == ["count 16", "count 32"]


def test_on_a_terminal_progress_is_a_bar_with_its_note(monkeypatch):
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(metrics, "_console", console)
    with metrics.progress("train tiny", 3) as shown:
        for step in (1, 2, 3):
            shown.update(step, f"loss {step}.5")
    assert "train tiny" in screen.getvalue()
    assert "3/3" in screen.getvalue()
    assert "loss 3.5" in screen.getvalue()
