"""The download script against a small server that has its faults on order."""

import contextlib
import functools
import hashlib
import http.server
import itertools
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch" / "fetch_fineweb_edu.sh"
FILES = {f"{i:03d}_00000.parquet": bytes([i]) * 10_000 for i in range(4)}
TREE = "/api/datasets/HuggingFaceFW/fineweb-edu/tree/main/sample/10BT"


class Hub(http.server.BaseHTTPRequestHandler):
    """Lists and serves FILES, from any byte on; cuts answers short when told to."""

    def __init__(self, cuts: list[int], log: list[str], *args):
        self.cuts, self.log = cuts, log
        super().__init__(*args)

    def do_GET(self):
        if self.path == TREE:
            rows = [{"path": "sample/10BT/README"}]
            for name, data in reversed(FILES.items()):
                lfs = {"size": len(data), "oid": hashlib.sha256(data).hexdigest()}
                rows.append({"path": f"sample/10BT/{name}", "lfs": lfs})
            self._send(200, json.dumps(rows).encode())
            return
        data = FILES[self.path.rsplit("/", 1)[-1]]
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.log.append(f"{self.path.rsplit('/', 1)[-1]} {start}")
        self._send(206 if start else 200, data[start:], start)

    def _send(self, status: int, data: bytes, start: int = 0):
        self.send_response(status)
        end = start + len(data)
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        cut = self.cuts.pop(0) if self.cuts and self.path != TREE else None
        with contextlib.suppress(OSError):
            self.wfile.write(data[:cut])
            if cut is not None:
                self.connection.close()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub():
    cuts, log = [], []
    handler = functools.partial(Hub, cuts, log)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.cuts, server.log = cuts, log
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(hub, *arguments):
    host = f"http://127.0.0.1:{hub.server_address[1]}"
    environment = {**os.environ, "RFQ_FINEWEB_HOST": host, "RFQ_FETCH_WAIT": "0"}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def found(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_sample_is_fetched_once(hub, tmp_path):
    out = tmp_path / "out"
    assert fetch(hub, "--out", out).returncode == 0
    assert found(out) == FILES
    hub.log.clear()
    assert "is there" in fetch(hub, "--out", out).stdout
    assert not hub.log


def test_a_cut_download_goes_on_where_it_stopped(hub, tmp_path):
    hub.cuts += [4000, 3000]
    assert fetch(hub, "--out", tmp_path).returncode == 0
    assert found(tmp_path) == FILES
    first = [line for line in hub.log if line.startswith("000")]
    assert [line.split()[1] for line in first] == ["0", "4000", "7000"]


def test_a_killed_fetch_goes_on(hub, tmp_path):
    (tmp_path / "001_00000.parquet.part").write_bytes(FILES["001_00000.parquet"][:77])
    assert fetch(hub, "--out", tmp_path).returncode == 0
    assert found(tmp_path) == FILES
    assert "001_00000.parquet 77" in hub.log


def test_shards_share_the_files_out(hub, tmp_path):
    for index in range(3):
        fetch(hub, "--out", tmp_path / str(index), "--shard", f"{index}/3")
    names = [sorted(found(tmp_path / str(index))) for index in range(3)]
    assert [len(part) for part in names] == [2, 1, 1]
    assert sorted(itertools.chain(*names)) == sorted(FILES)


@pytest.mark.parametrize(
    ("tokens", "count"),
    [(1, 1), (2_500_000_000, 1), (2_500_000_001, 2), (10_000_000_000, 4)],
)
def test_a_budget_of_tokens_takes_files_by_size(hub, tmp_path, tokens, count):
    run = fetch(hub, "--out", tmp_path, "--tokens", tokens, "--dry-run")
    assert run.stdout.startswith(f"{count} files"), run
    assert not hub.log and not list(tmp_path.iterdir())


def test_a_damaged_file_does_not_get_its_name(hub, tmp_path):
    (tmp_path / "000_00000.parquet.part").write_bytes(b"x" * 10_000)
    run = fetch(hub, "--out", tmp_path)
    assert run.returncode == 2 and "arrived damaged" in run.stderr
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_said_before_anything_is_fetched(hub, tmp_path):
    df = tmp_path / "bin" / "df"
    df.parent.mkdir()
    df.write_text("#!/bin/sh\necho header\necho disk 9 9 20 9% /\n")
    df.chmod(0o755)
    run = subprocess.run(
        ["bash", str(SCRIPT), "--out", str(tmp_path / "out")],
        env={
            **os.environ,
            "PATH": f"{df.parent}:{os.environ['PATH']}",
            "RFQ_FINEWEB_HOST": f"http://127.0.0.1:{hub.server_address[1]}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and "too few" in run.stderr, run
    assert not hub.log


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "--out DIR is missing"),
        (("--out",), "--out needs a value"),
        (("--out", "x", "--sample", "1BT"), "must be 10BT"),
        (("--out", "x", "--tokens", "many"), "whole number"),
        (("--out", "x", "--tokens", "99000000000"), "more than the sample"),
        (("--out", "x", "--shard", "2/2"), "0 <= i < n"),
        (("--out", "x", "--shard", "5/6"), "fewer files than shards"),
        (("--fast",), "unknown argument"),
    ],
)
def test_bad_arguments_are_one_sentence(hub, tmp_path, arguments, problem):
    arguments = [str(tmp_path / "x") if a == "x" else a for a in arguments]
    run = fetch(hub, *arguments)
    assert run.returncode == 2 and problem in run.stderr
    assert not (tmp_path / "x").exists()
