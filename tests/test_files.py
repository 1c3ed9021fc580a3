import errno
import os
import signal
import subprocess
import sys

import hypothesis
import pytest
from hypothesis import strategies as st

from rfq import files
from rfq.errors import InputError

_LINES = st.lists(st.text("ab{}é", max_size=5), min_size=1, max_size=5)


@hypothesis.example(lines=["a" * 200_000, "b" * 200_000], cut=150_000)
@hypothesis.given(lines=_LINES, cut=st.integers(0, 60))
def test_a_file_cut_at_any_byte_grows_on_after_its_last_whole_line(
    tmp_path_factory, lines, cut
):
    path = tmp_path_factory.mktemp("cut") / "lines"
    for line in lines:
        files.append(path, line)
    assert files.whole_lines(path) == lines
    left = path.read_bytes()[:cut]
    path.write_bytes(left)
    kept = lines[: left.count(b"\n")]
    assert files.whole_lines(path) == kept
    files.append(path, "next")
    assert files.whole_lines(path) == [*kept, "next"]


def test_a_full_disk_is_one_sentence_and_leaves_the_file_as_it_was(
    tmp_path, monkeypatch
):
    path = tmp_path / "file"
    files.replace(path, "before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device\); make room"):
        files.replace(path, b"after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


_HOLD = """
import pathlib, sys
from rfq import files
with files.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_directory_is_locked_until_its_holder_ends_however_it_does(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(InputError) as caught, files.locked(tmp_path):
        pass
    said = f"{str(tmp_path)!r} is in use by another process (pid {process.pid} on "
    assert str(caught.value).startswith(said)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with files.locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_work_is_not_one_of_the_lock(tmp_path):
    with pytest.raises(FileNotFoundError), files.locked(tmp_path):
        raise FileNotFoundError
    with files.locked(tmp_path):
        pass
