"""The import contracts and banned names hold, and each is caught when it is broken."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CONTRACTS = {
    contract["name"]: contract for contract in CONFIG["importlinter"]["contracts"]
}

# Beside the interpreter, or, for a borrowed interpreter, on PATH.
_BIN = Path(sys.executable).parent


def _tool(name: str) -> str:
    found = shutil.which(name, path=str(_BIN)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _run(where: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=120
    )


def _lint_imports(where: Path) -> subprocess.CompletedProcess[str]:
    return _run(where, _tool("lint-imports"), "--no-cache", "--no-logo")


def _ruff(where: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return _run(where, _tool("ruff"), "check", "--no-cache", *options, "rfq")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package and its configuration, to be broken."""
    shutil.copytree(
        ROOT / "rfq", tmp_path / "rfq", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _add(package: Path, module: str, line: str) -> None:
    """Appends a line to a module, which is made if it does not exist yet."""
    path = package / module
    for folder in (path.parent, *path.parent.parents):
        if folder == package:
            break
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").touch()
    with path.open("a") as file:
        file.write(f"\n{line}\n")


# contract -> (module, an import that it forbids, how the linter names the culprit)
BREAKS = {
    "Layers of the package": [
        ("rfq/stats/moments.py", "from rfq.model import layers", "rfq.model"),
        ("rfq/train.py", "from rfq import ptq", "rfq.ptq"),
        ("rfq/brand_new.py", "", "rfq.brand_new"),
    ],
    "Model, optim, data, quantized weights and tasks do not know each other": [
        ("rfq/optim/muon.py", "from rfq.data import pipeline", "rfq.data.pipeline"),
        ("rfq/tasks/task.py", "from rfq.data import sources", "rfq.data"),
    ],
    "Theory, but for its runner, rests on statistics, quantizers and the model": [
        ("rfq/theory/lemma.py", "from rfq.optim import matrix", "rfq.optim"),
    ],
    "Data and the documents of tasks never touch jax": [
        ("rfq/data/pipeline.py", "import jax.numpy as jnp", "jax"),
        ("rfq/tasks/task.py", "import jax", "jax"),
    ],
    "Libraries stay at their edges": [
        ("rfq/train.py", f"import {library}", library)
        for library in CONTRACTS["Libraries stay at their edges"]["forbidden_modules"]
    ],
}


def test_the_import_contracts_hold():
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_contract_has_an_example_that_breaks_it():
    assert CONTRACTS.keys() == BREAKS.keys()


@pytest.mark.parametrize("contract", BREAKS)
def test_a_broken_contract_is_caught(package, contract):
    for module, line, _ in BREAKS[contract]:
        _add(package, module, line)
    result = _lint_imports(package)
    assert result.returncode != 0
    assert f"{contract} BROKEN" in result.stdout
    report = result.stdout.split("Broken contracts")[-1]
    for module, _, culprit in BREAKS[contract]:
        assert module.removesuffix(".py").replace("/", ".") in report
        assert culprit in report


# banned name -> code that uses it
BANNED = {
    "jax.jit": "import functools\nimport jax\n\nstep = functools.partial(jax.jit, f)",
    "jax.pmap": "from jax import pmap",
    "jax.experimental.pjit": "from jax.experimental import pjit",
    "jax.random.PRNGKey": "import jax\n\nkey = jax.random.PRNGKey(0)",
    "flax.linen": "from flax import linen as nn",
}

# The per-file ignores of ruff excuse every banned name; these are the ones meant.
ALLOWED = {
    "rfq/steps.py": {"jax.jit"},
    "rfq/costs/bench.py": {"jax.jit"},
    "rfq/costs/bench_train.py": {"jax.jit"},
    "rfq/diagnose.py": {"jax.jit"},
    "rfq/integer_bench.py": {"jax.jit"},
    "rfq/ladder.py": {"jax.jit"},
    "rfq/theory": {"jax.jit"},
    "rfq/tasks/decode.py": {"jax.jit"},
    "rfq/model/transformer.py": {"flax.linen"},
}


def test_the_examples_cover_the_banned_names():
    tidy = CONFIG["ruff"]["lint"]["flake8-tidy-imports"]
    assert set(BANNED) == set(tidy["banned-api"])


@pytest.mark.parametrize("name", sorted(BANNED))
@pytest.mark.parametrize("module", ["rfq/train.py", "rfq/model/layers.py"])
def test_a_banned_name_is_caught(package, name, module):
    _add(package, module, BANNED[name])
    result = _ruff(package, "--select", "TID251", "--output-format", "concise")
    assert result.returncode != 0
    assert f"`{name}` is banned" in result.stdout
    assert module in result.stdout


def test_print_is_caught(package):
    _add(package, "rfq/train.py", "print(1)")
    result = _ruff(package, "--select", "T20", "--output-format", "concise")
    assert result.returncode != 0
    assert "`print` found" in result.stdout


def _banned_uses(where: Path) -> set[tuple[str, str]]:
    """(file, banned name) for every use in the package, excused or not."""
    excused = "lint.per-file-ignores = {}"
    result = _ruff(
        where,
        *("--select", "TID251", "--config", excused, "--output-format", "json"),
    )
    return {
        (
            Path(hit["filename"]).relative_to(where.resolve()).as_posix(),
            hit["message"].split("`")[1],
        )
        for hit in json.loads(result.stdout)
    }


def _not_meant(uses: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {
        (file, name)
        for file, name in uses
        if not any(
            name in names and (file == place or file.startswith(place + "/"))
            for place, names in ALLOWED.items()
        )
    }


def test_an_excused_file_uses_only_the_name_it_is_excused_for():
    assert not _not_meant(_banned_uses(ROOT))


def test_an_excuse_for_linen_is_none_for_jit(package):
    _add(package, "rfq/model/transformer.py", "import jax\n\nf = jax.jit(abs)")
    uses = _not_meant(_banned_uses(package))
    assert uses == {("rfq/model/transformer.py", "jax.jit")}


HEAVY = ["tensorflow_datasets", "orbax", "matplotlib", "grain", "sentencepiece", "tyro"]


@pytest.mark.parametrize("module", ["rfq", "rfq.optim", "rfq.stats", "rfq.quant"])
def test_importing_is_light(module):
    """No backend is created, and nothing is imported that only a driver needs."""
    code = f"""
import sys

import {module}

heavy = [name for name in {HEAVY} if name in sys.modules]
assert not heavy, heavy
if "jax" in sys.modules:
    from jax._src import xla_bridge  # No public function asks without creating one.

    assert not xla_bridge.backends_are_initialized()
"""
    result = _run(ROOT, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def test_importing_the_package_alone_does_not_import_jax():
    code = "import sys, rfq; assert 'jax' not in sys.modules; print(rfq.__version__)"
    result = _run(ROOT, sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
