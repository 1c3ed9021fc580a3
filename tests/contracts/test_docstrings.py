"""What `rfq.optim`, `stats`, `quant` and `tasks` offer has a page and examples."""

import doctest
import inspect
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from rfq import optim, quant, stats, tasks

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = (optim, quant, stats, tasks)
FUNCTIONS = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in PACKAGES
    for name in package.__all__
    if inspect.isroutine(getattr(package, name))
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_are_true(name):
    # As a reader would type them: with the rank promotion that jax has by default.
    with jax.numpy_rank_promotion("allow"):
        found = doctest.DocTestFinder(recurse=False).find(FUNCTIONS[name], name)
        examples = [test for test in found if test.examples]
        assert examples, f"{name} has no example"
        runner = doctest.DocTestRunner(verbose=False)
        assert all(runner.run(test).failed == 0 for test in examples)


@pytest.mark.slow
def test_every_public_name_has_a_page(tmp_path):
    command = [sys.executable, ROOT / "launch" / "api_reference.py", tmp_path]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Its warnings are errors.
    subprocess.run(command, check=True, env=env, cwd=tmp_path)
    for package in PACKAGES:
        page = (tmp_path / f"{package.__name__.replace('.', '/')}.html").read_text()
        for name in package.__all__:
            if not isinstance(getattr(package, name), types.ModuleType):
                assert f'id="{name}"' in page, (package.__name__, name)
