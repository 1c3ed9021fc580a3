"""The examples in the README files of the package run as they are printed."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2] / "rfq"
EXAMPLES = [
    pytest.param(code, id=f"{path.parent.name} {number}")
    for path in sorted(ROOT.rglob("README.md"))
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S)
    )
]
# Frameworks that a checkout need not have.
OPTIONAL = ("equinox",)


def test_there_are_examples():
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code, capsys):
    for name in OPTIONAL:
        if re.search(rf"^import {name}\b", code, re.M):
            pytest.importorskip(name)
    # As a reader would run it: with the rank promotion that jax has by default.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(code, "README.md", "exec"), {"__name__": "example"})
    printed = capsys.readouterr().out
    assert printed and "nan" not in printed
