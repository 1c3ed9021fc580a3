"""Small sources for the tests of data, and what an error must look like."""

import json
import pathlib
from collections.abc import Iterable

import pytest

from rfq.data import prepare, tokenize
from rfq.errors import InputError

WORDS = [
    "the",
    "union",
    "of",
    "states",
    "shall",
    "meet",
    "in",
    "congress",
    "and",
    "consider",
    "peace",
]


def write_jsonl(path: pathlib.Path, texts: Iterable[str]) -> pathlib.Path:
    rows = (json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts))
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path


def texts(num_documents: int) -> list[str]:
    """Documents of different lengths and contents."""
    return [
        " ".join(WORDS[(i * j + j) % len(WORDS)] for j in range(5 + 7 * i % 40))
        for i in range(num_documents)
    ]


def prepared(
    folder: pathlib.Path, name: str = "data", num_documents: int = 120, **settings
) -> pathlib.Path:
    """A prepared directory of byte tokens with several shards per split."""
    source = write_jsonl(folder / f"{name}.jsonl", texts(num_documents))
    settings = {
        "window_len": 32,
        "calibration_fraction": 0.2,
        "heldout_fraction": 0.2,
        "part_bytes": 6000,
        **settings,
    }
    out = folder / name
    prepare.prepare(str(source), out, tokenizer=tokenize.load("byte"), **settings)
    return out


def assert_one_sentence(caught: pytest.ExceptionInfo[InputError], *parts: str) -> None:
    """One line, lower case or a path at the start, no full stop, naming the parts."""
    message = str(caught.value)
    assert "\n" not in message and not message.endswith("."), message
    for part in parts:
        assert part in message, (part, message)
