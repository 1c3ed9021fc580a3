"""The notebooks run from top to bottom, here at a tiny scale, and are kept bare."""

import os
import pathlib
import re
import subprocess
import sys

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted(path.name for path in (ROOT / "colab").glob("*.ipynb"))
TINY = {"NUM_SAMPLES": "20_000", "NUM_STEPS": "12", "NUM_LAYERS": "2"}


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "colab" / name, as_version=4)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    (cell,) = (c for c in notebook.cells if tag in c.metadata.get("tags", ()))
    return cell


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_stripped(name):
    for cell in read(name).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_all_install_alike():
    assert len({tagged(read(name), "install").source for name in NOTEBOOKS}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path):
    notebook = read(name)
    # What is under test is installed already; the cell has a test of its own.
    notebook.cells.remove(tagged(notebook, "install"))
    sizes = tagged(notebook, "parameters")
    sizes.source, changed = re.subn(
        r"^(\w+) = .+$", lambda m: f"{m[1]} = {TINY[m[1]]}", sizes.source, flags=re.M
    )
    assert changed
    # One device, as in Colab; where drawings go is the notebook's own business.
    hidden = ("XLA_FLAGS", "MPLBACKEND")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    resources = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=1200, resources=resources)
    client.execute(env=env)
    outputs = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Traceback" not in printed and "nan" not in printed


def test_installing_leaves_an_rfq_alone(tmp_path):
    cell = tmp_path / "install.py"
    cell.write_text(tagged(read(NOTEBOOKS[0]), "install").source)
    found = subprocess.run(
        [sys.executable, cell],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RFQ_SOURCE": "/nowhere"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout == f"rfq was left alone: {ROOT}/rfq/__init__.py\n"
    assert list(tmp_path.iterdir()) == [cell]


@pytest.mark.slow
def test_installing_leaves_the_jax_of_the_runtime_alone(tmp_path):
    """In an environment that borrows this one's packages, as a runtime has its own."""
    venv = tmp_path / "runtime"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours, theirs = (
        subprocess.run([each, "-c", ask], check=True, capture_output=True, text=True)
        for each in (sys.executable, python)
    )
    borrowed = pathlib.Path(theirs.stdout.strip()) / "borrowed.pth"
    borrowed.write_text(ours.stdout)
    cell = tmp_path / "install.py"
    cell.write_text(tagged(read(NOTEBOOKS[0]), "install").source)
    env = {**os.environ, "RFQ_SOURCE": str(ROOT), "PYTHONPATH": ""}
    found = subprocess.run(
        [python, cell],
        cwd=tmp_path,
        env=env,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "jax" in found.stdout and "was left alone" in found.stdout
    where = [python, "-c", "import rfq, jax; print(rfq.__file__, jax.__file__)"]
    printed = subprocess.run(
        where, cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    ).stdout.split()
    assert [str(venv) in path for path in printed] == [True, False]
