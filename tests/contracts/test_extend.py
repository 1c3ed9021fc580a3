"""What CONTRIBUTING.md's "Extend it" says of each line, done in a copy of the package.

One file and one row make an extension, and the contract of its table holds for it:
tests that take their cases from the tables run in the copy, those about the new rows
alone.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NEW = "newcomer"  # The name of every new row.


class Extension(NamedTuple):
    """A line of CONTRIBUTING.md's table.

    Attributes:
        file: where the code goes; made if it is not there.
        code: what is appended, or put before `before`.
        before: a line of `file`; "" for its end.
        table: the file of the table.
        row: what goes into it, for which `after` is the table's first line.
        after: see row.
        imported: what the table's file must import, "" for nothing.
    """

    file: str
    code: str
    before: str
    table: str
    after: str
    row: str
    imported: str = ""


OPTIMIZER = '''
"""Descent by steps of one size, the smallest optimizer."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from rfq.optim import adamw, build, matrix, public


class Stack(NamedTuple):
    def diagnostics(self):
        return {}


def unit(g, stack, t):
    size = jnp.linalg.norm(g, axis=(1, 2), keepdims=True)
    return g / jnp.maximum(size, 1e-30), stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewcomerConfig(build.MatrixConfig):
    """Gradients of unit norm for matrices, Adam for the others."""

    def rule(self):
        return matrix.Rule(init=lambda num, m, n, dtype: Stack(), step=unit)

    def other(self):
        return adamw.AdamWConfig().directions([], None).other


newcomer = public.transform(NewcomerConfig, "newcomer")
'''

STATISTIC = '''
"""The mean magnitude."""

from typing import NamedTuple

import jax.numpy as jnp


class Record(NamedTuple):
    total: object
    count: object


def record(x):
    magnitude = jnp.abs(x.astype(jnp.float32))
    return Record(jnp.sum(magnitude), jnp.float32(x.size))


def merge(a, b):
    return Record(a.total + b.total, a.count + b.count)


def mean_magnitude(r):
    return r.total / r.count
'''

# Line of the table in CONTRIBUTING.md -> what it asks for.
EXTENSIONS = {
    "optimizer": Extension(
        file="rfq/optim/newcomer.py",
        code=OPTIMIZER,
        before="",
        table="rfq/optim/__init__.py",
        after="OPTIMIZERS",
        row='"newcomer": NewcomerConfig,',
        imported="from rfq.optim.newcomer import NewcomerConfig",
    ),
    "statistic": Extension(
        file="rfq/stats/newcomer.py",
        code=STATISTIC,
        before="",
        table="rfq/taps.py",
        after="STATISTICS",
        row='"newcomer": Statistic(lambda x, state: newcomer.record(x), '
        'newcomer.merge, {"newcomer_mean": newcomer.mean_magnitude}),',
        imported="from rfq.stats import newcomer",
    ),
    "quantizer": Extension(
        file="rfq/quant/grid.py",
        code="""
        def newcomer(lo, hi, num_bits):
            return symmetric_full(2.0 * lo, 2.0 * hi, num_bits)


        """,
        before="# (range_lo, range_hi, num_bits) -> Grid",
        table="rfq/quant/grid.py",
        after="SCHEMES",
        row='"newcomer": newcomer,',
    ),
    "connection": Extension(
        file="rfq/model/layers.py",
        code="""
        def newcomer_connection(x, update):
            return 0.5 * x + update


        """,
        before="class Norm(",
        table="rfq/model/layers.py",
        after="SKIPS",
        row='"newcomer": Connection(newcomer_connection),',
    ),
    "norm": Extension(
        file="rfq/model/layers.py",
        code="""
        def newcomer_norm(x, gain):
            return -rms_norm(x, gain)


        """,
        before="class Norm(",
        table="rfq/model/layers.py",
        after="NORMS",
        row='"newcomer": Norm(newcomer_norm),',
    ),
    "attention kind": Extension(
        file="rfq/model/layers.py",
        code="""
        def newcomer_attention(attend, q_BTHK, v_BTHK):
            return 0.5 * (attend(q_BTHK, None) + v_BTHK)


        """,
        before="class AttentionKind(",
        table="rfq/model/layers.py",
        after="ATTENTION_KINDS",
        row='"newcomer": AttentionKind(newcomer_attention),',
    ),
    "initialization": Extension(
        file="rfq/model/init.py",
        code="""
        def _newcomer_recipe(config, model, key):
            del config
            return _gaussian_matrices(model, key, lambda name, fan_in, fan_out: 0.1)


        """,
        before="RECIPES",
        table="rfq/model/init.py",
        after="RECIPES",
        row='"newcomer": _newcomer_recipe,',
    ),
    "site": Extension(
        file="rfq/model/transformer.py",
        code='        update = site("newcomer", update)\n',
        before="        x_BTD = connect(x_BTD, tapped, update)",
        table="rfq/model/config.py",
        after="BLOCK_SITES",
        row='"newcomer",',
    ),
    "data source": Extension(
        file="rfq/data/sources.py",
        code="""
        def _newcomer():
            def documents():
                yield Document("one", "A text.")

            return Source("newcomer", (Piece("one", 7, documents),))


        """,
        before="# A new source is one function",
        table="rfq/data/sources.py",
        after="SOURCES",
        row='"newcomer": _newcomer,',
    ),
}


def _extended(directory: pathlib.Path) -> None:
    """Copies the package and its tests, and adds every row."""
    for name in ("rfq", "tests", "configs"):
        shutil.copytree(
            ROOT / name,
            directory / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    shutil.copy(ROOT / "pyproject.toml", directory)
    for extension in EXTENSIONS.values():
        file = directory / extension.file
        text = file.read_text() if file.exists() else ""
        code = textwrap.dedent(extension.code)
        if code.startswith("update = "):
            code = extension.code
        if extension.before:
            assert extension.before in text, extension
            text = text.replace(
                extension.before, code.lstrip("\n") + extension.before, 1
            )
        else:
            text += code
        file.write_text(text.lstrip("\n"))
        table = directory / extension.table
        text = table.read_text()
        head = re.compile(rf"^{extension.after}\b[^\n]*[{{(]$", re.M)
        place = head.search(text).end()
        text = f"{text[:place]}\n    {extension.row}{text[place:]}"
        if extension.imported:
            text = text.replace("\nfrom rfq", f"\n{extension.imported}\nfrom rfq", 1)
        table.write_text(text)


CONTRACTS = (
    "tests/contracts/test_tables.py",
    "tests/contracts/test_optimizers.py",
    "tests/model/test_layers.py",
    "tests/model/test_init.py",
    "tests/test_taps.py",
    "tests/quant/test_grid.py",
    "tests/data/test_sources.py",
)


def test_the_table_in_contributing_has_these_lines():
    """Each names the file of the code, and the table with its file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("## Extend it")[1].split("##")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    named = []
    for new, code, row in (line.strip("|").split("|") for line in lines):
        for name in new.strip().split(", "):
            named.append(name)
            extension = EXTENSIONS[name]
            assert f"`{extension.file.replace(NEW, 'NAME')}`" in code
            assert f"`{extension.after}`" in row
            place = "there" if extension.table == extension.file else extension.table
            assert place in row
    assert named == list(EXTENSIONS)


@pytest.mark.slow
def test_one_file_and_one_row_make_an_extension(tmp_path, one_device_env):
    _extended(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-n", "0", "-k", NEW, *CONTRACTS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    print(done.stdout)
