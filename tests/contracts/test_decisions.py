"""The index of rfq/DECISIONS.md lists its entries, and what is referred to is there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "rfq" / "DECISIONS.md").read_text()
ENTRY = re.compile(r"^\*\*(D\d+) \(\d{4}-\d\d-\d\d\) (.+?\?)\*\* \S", re.M)
ROW = re.compile(r"^\| (D\d+) \| \[(.+?)\]\(#.+?\) \| (.+) \|$", re.M)


def _entries() -> list[tuple[str, str, str]]:
    """Number, topic and question of every entry, in the order of the file."""
    topics = re.split(r"^## (.+)$", TEXT, flags=re.M)
    return [
        (number, topic.lower(), question)
        for topic, body in zip(topics[1::2], topics[2::2], strict=True)
        for number, question in ENTRY.findall(body)
    ]


def test_the_index_lists_every_entry_once_by_number():
    entries = _entries()
    assert len(entries) == len(re.findall(r"^\*\*D\d+ ", TEXT, re.M)) >= 106
    assert ROW.findall(TEXT) == sorted(entries, key=lambda entry: int(entry[0][1:]))
    assert len({number for number, *_ in entries}) == len(entries)


def test_what_is_referred_to_has_an_entry():
    known = {number for number, *_ in _entries()}
    for folder in ("rfq", "configs", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md"}:
                named = set(re.findall(r"\bD\d+\b", path.read_text()))
                assert named <= known, f"{path} refers to {sorted(named - known)}"
