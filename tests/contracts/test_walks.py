"""The walks through the code in CONTRIBUTING.md pass files and names that exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text().partition("## Four walks\n")[2]
STEP = re.compile(r"^(\d+)\. `(rfq/\S+)`:? (?:`(\w+)`)?", re.M)
WALKS = {
    title: STEP.findall(steps)
    for title, steps in re.findall(r"^(.+):\n\n((?:\d+\. .+\n)+)", TEXT, re.M)
}


def test_there_are_four():
    assert len(WALKS) == 4
    assert sum(map(len, WALKS.values())) == len(re.findall(r"^\d+\. ", TEXT, re.M))


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_is_short_and_passes_what_exists(title):
    steps = WALKS[title]
    assert [int(number) for number, *_ in steps] == list(range(1, len(steps) + 1))
    assert len({path for _, path, _ in steps}) == len(steps) <= 9
    for _, path, name in steps:
        text = (ROOT / path).read_text()
        assert re.search(rf"^(def|class) {name}\b", text, re.M) or not name, path
