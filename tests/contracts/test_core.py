"""What pip installs without extras: rfq.optim, stats, quant and what they rest on."""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from rfq import __main__ as entry

ROOT = pathlib.Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Everything in these but the decoder itself, which is a flax module.
CORE = ("optim", "stats", "quant", "model", "taps", "params")
DECODER = {"rfq.model.transformer", "rfq.model.init"}
# Imports the core and prints the third-party packages that came with it. Refused is
# whatever the extra brings, as if it were not installed.
IMPORT = f"""
import importlib, json, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {entry.NEEDED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
import rfq
names = []
for name in {CORE!r}:
    module = importlib.import_module(f"rfq.{{name}}")
    names.append(module.__name__)
    inside = pkgutil.walk_packages(getattr(module, "__path__", ()), f"rfq.{{name}}.")
    names += [found.name for found in inside]
for name in set(names) - {DECODER!r}:
    importlib.import_module(name)
import jax
assert jax.config.jax_compilation_cache_dir is None
print(json.dumps(sorted(names)))
"""


def _names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", text).group() for text in requirements)
    return {name.lower().replace("_", "-") for name in found}


def _run(*words: str, python: str = sys.executable, **env: str):
    left_out = ("PYTHONPATH", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "RFQ_CACHE")
    kept = {k: v for k, v in os.environ.items() if k not in left_out}
    return subprocess.run(
        [python, *words],
        cwd=ROOT.parent,
        env={**kept, "JAX_PLATFORMS": "cpu", **env},
        capture_output=True,
        text=True,
    )


def test_what_rfq_needs_is_what_the_extra_brings():
    provided = importlib.metadata.packages_distributions()
    needed = {dist for name in entry.NEEDED for dist in provided[name]}
    extra = _names(PROJECT["optional-dependencies"]["run"])
    assert extra <= _names([*needed])
    # A namespace, such as orbax, may come from more than the one that is listed.
    for name in entry.NEEDED:
        assert extra & _names(provided[name]), name


def test_the_core_imports_nothing_of_the_extra():
    result = _run("-c", IMPORT, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    names = json.loads(result.stdout)
    assert len(names) > 30 and set(names) >= {"rfq.model.layers", *DECODER}


def test_a_command_without_the_extra_is_one_sentence(tmp_path):
    """An interpreter that sees jax and numpy only, as far as rfq looks."""
    code = "import sys; sys.path.insert(0, sys.argv.pop()); import rfq.__main__ as m;"
    code += "sys.argv = ['rfq', '--help']; sys.exit(m.main())"
    result = _run("-I", "-S", "-c", code, str(ROOT))
    assert result.returncode == 2 and not result.stdout
    (sentence,) = result.stderr.splitlines()
    assert "pip install 'rfq[run]'" in sentence
    assert all(name in sentence for name in entry.NEEDED)


@pytest.mark.slow
def test_the_core_installs_by_itself(tmp_path):
    """What pip really leaves in a fresh environment, where it can reach an index."""
    _run("-m", "venv", str(tmp_path / "venv"))
    python = str(tmp_path / "venv" / "bin" / "python")
    reached = _run(
        "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "absl-py"
    )
    if reached.returncode:
        pytest.skip("not run: pip reaches no package index")
    install = _run("-m", "pip", "install", "-q", str(ROOT), python=python)
    assert install.returncode == 0, install.stderr
    listed = _run("-m", "pip", "list", "--format=json", python=python)
    names = _names([entry["name"] for entry in json.loads(listed.stdout)])
    run = _names(PROJECT["optional-dependencies"]["run"])
    assert len(names - {"pip", "setuptools"}) <= 16 and not names & run
    assert _run("-c", IMPORT, python=python).returncode == 0
    program = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "rfq")], capture_output=True, text=True
    )
    assert program.returncode == 2 and "pip install 'rfq[run]'" in program.stderr
