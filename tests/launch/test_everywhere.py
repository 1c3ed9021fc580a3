"""Every script of launch/ runs from any shell and folder, and its environment survives.

Set-up is the real one and the environment a real one, whose packages are borrowed from
the Python that runs this; only `rfq` is a few lines that say how they were called.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests.launch.place import ROOT, SRUN, write

RFQ = "import os, sys; print('rfq', *sys.argv[1:], 'of', sys.prefix, 'in', os.getcwd())"
# Arguments, what is said, and whether the work is done where the person stands.
RUNS = {
    "setup.sh": ((), "/.venv/bin", None),
    "quickstart.sh": (("--seeds", "0"), "--out runs/demo --seeds 0 of ", False),
    "reproduce_paper.sh": (("--dry-run",), "rfq compare configs/paper/", False),
    "local.sh": (("-n", "1", "--", "train", "x.py"), "[0] rfq train x.py of ", True),
    "gpu_node.sh": (("--", "train", "x.py"), "rfq train x.py of ", True),
    "sweep.sh": (("x.py", "--out", "o", "--over", "seed", "0"), "--seed 0 of ", True),
    "slurm.sh": (("train", "x.py"), "rfq train x.py of ", None),
    "test.sh": (("--", "--version"), "tests ", None),
    "docs.sh": (("site",), "/site/index.html", None),
    "tpu_pod.sh": (("--name", "a", "--zone", "z", "--dry-run", "--", "x"), "rfq", None),
    "fetch_fineweb_edu.sh": (("--out", "o", "--dry-run"), "1 files, 0 MB", None),
}
LISTED = '[{"path": "a.parquet", "lfs": {"size": 9, "oid": "0"}}]'


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> pathlib.Path:
    """A clone with an environment, as after `launch/setup.sh --dev`."""
    folder = tmp_path_factory.mktemp("a clone")
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, folder)
    write(folder / "rfq" / "__init__.py", "")
    write(folder / "rfq" / "__main__.py", RFQ)
    # The API reference of that is empty.
    write(folder / "launch" / "api_reference.py", "")
    for tool in ("ruff", "basedpyright", "lint-imports"):
        write(folder / "tools" / tool, "#!/bin/sh\n")
    write(folder / "tools" / "srun", SRUN)
    hub = folder / "api/datasets/HuggingFaceFW/fineweb-edu/tree/main/sample/10BT"
    write(hub, LISTED)
    made = _run(folder, folder, "setup.sh", "--dev", PYTHON=sys.executable)
    assert made.returncode == 0, made.stderr
    return folder


def _run(folder, where, script, *args, activated=False, **env):
    """One command in a new shell, in which the environment may be activated."""
    path = f"{folder}/tools:/usr/local/bin:/usr/bin:/bin"
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    ours = {
        "RFQ_SYSTEM_PYTHON": "1",
        "RFQ_FINEWEB_HOST": f"file://{str(folder).replace(' ', '%20')}",
        "SLURM_JOB_ID": "1",
        "SLURM_SUBMIT_DIR": str(folder),
        "CALLS": "/dev/null",
    }
    source = f'source "{folder}/.venv/bin/activate"; ' if activated else ""
    return subprocess.run(
        [
            "bash",
            "-c",
            f'{source}exec bash "$@"',
            "-",
            f"{folder}/launch/{script}",
            *args,
        ],
        cwd=where,
        env={**kept, "PATH": path, **ours, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_every_script_is_here():
    assert set(RUNS) == {path.name for path in ROOT.glob("launch/*.sh")}


@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=pytest.mark.slow) if s == "test.sh" else s for s in RUNS],
)
def test_a_script_runs_anywhere_and_leaves_the_environment(
    script, repository, tmp_path
):
    args, says, here = RUNS[script]
    before = os.stat(repository / ".venv")
    for activated in (False, True):
        for where in (repository, tmp_path):
            result = _run(repository, where, script, *args, activated=activated)
            assert result.returncode == 0, result.stdout + result.stderr
            assert says in result.stdout
            if here is not None:
                place = where if here else repository
                assert f"of {repository}/.venv in {place}\n" in result.stdout
            assert "setup: making" not in result.stderr
    after = os.stat(repository / ".venv")
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
