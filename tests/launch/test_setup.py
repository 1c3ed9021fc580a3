"""launch/setup.sh makes real environments, with a pip that only leaves traces.

`pip` and `ensurepip` are modules that stand before the real ones on the path: a set-up
takes a moment, not minutes.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.place import ROOT, write

SHELL = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"])
# Leaves a program that names its interpreter, as the real one does.
PIP = """
import os, pathlib, sys, time
with open(os.environ["LOG"], "a") as log:
    print("pip", *sys.argv[1:], file=log)
time.sleep(float(os.environ.get("PIP_SECONDS", 0)))
if "PIP_ERROR" in os.environ:
    sys.exit(os.environ["PIP_ERROR"])
program = pathlib.Path(sys.prefix, "bin", "rfq")
program.write_text(f"#!{sys.executable}\\nimport sys; print('rfq in', sys.prefix)\\n")
program.chmod(0o755)
"""
RFQ = "import sys; print('rfq', *sys.argv[1:], 'in', sys.prefix)"


class Sandbox:
    """A repository of set-up's inputs, whose `rfq` says where it runs."""

    def __init__(self, where: pathlib.Path):
        self.repo = where / "repo"
        for name in ("setup.sh", "environment.py"):
            write(self.repo / "launch" / name, (ROOT / "launch" / name).read_text())
        for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
            shutil.copy(ROOT / name, self.repo)
        write(self.repo / "rfq" / "__init__.py", "")
        write(self.repo / "rfq" / "__main__.py", RFQ)
        self.stubs = where / "stubs"
        for name, text in (("pip", PIP), ("ensurepip", "")):
            write(self.stubs / name / "__init__.py", "")
            write(self.stubs / name / "__main__.py", text)
        self.log_path = where / "log"
        self.venv = self.repo / ".venv"
        self.state = self.venv / "rfq-setup-state"

    def environment(self, **extra: str) -> dict[str, str]:
        ours = ("PYTHON", "RFQ_VENV", "RFQ_SYSTEM_PYTHON", "VIRTUAL_ENV")
        kept = {name: value for name, value in os.environ.items() if name not in ours}
        stubs = {"PYTHONPATH": str(self.stubs), "LOG": str(self.log_path)}
        # Found first by a fresh shell: a Python that may itself be an environment's.
        path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, **stubs, "PATH": path, **extra}

    def start(self, *args: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.repo / "launch" / "setup.sh"), *args],
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def setup(self, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*args, **extra)
        out, said = process.communicate(timeout=60)
        return subprocess.CompletedProcess(args, process.returncode, out, said)

    def activated(self) -> dict[str, str]:
        """What `source .venv/bin/activate` changes."""
        path = f"{self.venv / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "VIRTUAL_ENV": str(self.venv)}

    def kill_in_pip(self, **env: str) -> None:
        calls = len(self.log())
        process = self.start(PIP_SECONDS="30", **env)
        deadline = time.monotonic() + 30
        while len(self.log()) == calls:
            assert time.monotonic() < deadline, "set-up never reached pip"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)

    def log(self) -> list[str]:
        return self.log_path.read_text().splitlines() if self.log_path.exists() else []

    def works(self) -> bool:
        """Whether the environment's program runs, and in it."""
        command = [str(self.venv / "bin" / "rfq")]
        env = self.environment()
        run = subprocess.run(
            command, env=env, capture_output=True, text=True, check=True
        )
        return run.stdout.split()[-1] == str(self.venv)

    def left(self) -> set[str]:
        return {path.name for path in self.repo.glob(".venv*")}

    def change_lock(self) -> None:
        with (self.repo / "requirements.lock").open("a") as file:
            file.write("\n")


@pytest.fixture
def sandbox(tmp_path) -> Sandbox:
    return Sandbox(tmp_path)


def _says_in_one_sentence(result: subprocess.CompletedProcess[str], *parts: str):
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("launch/setup.sh: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_a_script_parses_and_passes_shellcheck(script):
    subprocess.run(["bash", "-n", script], check=True)
    beside = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=beside)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_help_explains_and_does_nothing(sandbox):
    result = sandbox.setup("--help")
    assert result.returncode == 0 and result.stdout.startswith("usage: launch/setup.sh")
    assert not sandbox.left()


def test_a_second_run_has_nothing_to_do(sandbox):
    first = sandbox.setup()
    assert first.stdout == f"{sandbox.venv}/bin\n", first.stderr
    assert f"--requirement {sandbox.repo}/requirements.lock" in sandbox.log()[0]
    assert sandbox.works()
    for env in ({}, sandbox.activated(), {"PYTHON": str(sandbox.venv / "bin/python")}):
        again = sandbox.setup(**env)
        assert "up to date" in again.stderr and "making" not in again.stderr
        assert again.stdout == first.stdout
    assert len(sandbox.log()) == 2
    assert sandbox.left() == {".venv", ".venv.lock"}


def test_developer_tools_come_on_top_and_stay(sandbox):
    sandbox.setup()
    (sandbox.venv / "plug-in").touch()
    assert "updating" in sandbox.setup("--dev", **sandbox.activated()).stderr
    assert f"--requirement {sandbox.repo}/requirements-dev.lock" in sandbox.log()[2]
    assert "updating" not in sandbox.setup().stderr
    # A new lock updates what is there, the tools included.
    sandbox.change_lock()
    assert "updating" in sandbox.setup(**sandbox.activated()).stderr
    assert "requirements-dev.lock" in sandbox.log()[4]
    assert (sandbox.venv / "plug-in").exists() and sandbox.works()


@pytest.mark.slow
def test_two_at_once_install_once(sandbox):
    processes = [sandbox.start(PIP_SECONDS="0.5") for _ in range(2)]
    said = "".join(process.communicate(timeout=60)[1] for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert said.count("another set-up is at work") == 1
    assert said.count("up to date") == 2
    assert len(sandbox.log()) == 2


@pytest.mark.slow
def test_a_first_set_up_that_was_killed_starts_afresh(sandbox):
    sandbox.kill_in_pip()
    assert not sandbox.venv.exists()
    assert "making" in sandbox.setup().stderr
    assert sandbox.works() and sandbox.left() == {".venv", ".venv.lock"}


@pytest.mark.parametrize(
    ("end", "shell"), [("killed", "activated"), ("failed", "activated"), ("failed", "")]
)
def test_an_update_that_ends_badly_leaves_the_old_environment(sandbox, end, shell):
    sandbox.setup()
    sandbox.change_lock()
    env = sandbox.activated() if shell else {}
    if end == "killed":
        sandbox.kill_in_pip(**env)
    else:
        result = sandbox.setup(PIP_ERROR="No matching distribution", **env)
        _says_in_one_sentence(result, "pip failed", "launch/setup.sh --help")
        assert "No matching distribution" in result.stderr
    assert sandbox.works()
    assert "updating" in sandbox.setup(**env).stderr
    assert sandbox.works() and sandbox.left() == {".venv", ".venv.lock"}


@pytest.mark.parametrize("new_stands", [True, False])
def test_a_kill_between_the_renames_is_made_good(sandbox, new_stands):
    """Just before the new environment gets its place, and just after."""
    sandbox.setup()
    stands = sandbox.repo / ".venv.rfq-old"
    shutil.copytree(sandbox.venv, stands, symlinks=True)
    if not new_stands:
        sandbox.venv.rename(sandbox.repo / ".venv.rfq-new")
    result = sandbox.setup()
    assert result.returncode == 0 and len(sandbox.log()) == 2
    assert sandbox.works() and sandbox.left() == {".venv", ".venv.lock"}


def test_another_interpreter_or_place_makes_the_environment_anew(sandbox):
    sandbox.setup()
    env = sandbox.activated()
    made = json.loads(sandbox.state.read_text())
    for field in ("python", "target"):
        sandbox.state.write_text(json.dumps({**made, field: "another"}))
        assert "making" in sandbox.setup(**env).stderr
        assert json.loads(sandbox.state.read_text()) == made and sandbox.works()
    assert sandbox.setup(RFQ_VENV="elsewhere", **env).returncode == 0
    assert (sandbox.repo / "elsewhere" / sandbox.state.name).exists()
    assert sandbox.works()


@pytest.mark.slow
def test_the_state_of_an_older_set_up_is_one_of_ours(sandbox):
    sandbox.setup()
    sandbox.state.write_text("place wanted 0\n")
    assert "making" in sandbox.setup().stderr and sandbox.works()


def test_a_jax_with_an_accelerator_is_kept(sandbox):
    """Its versions are required beside ours; the lock, which pins jax, is not used."""
    for name, version in [("jax", "0.11.2"), ("jax_cuda13_plugin", "0.11.2")]:
        info = sandbox.stubs / f"{name}-{version}.dist-info" / "METADATA"
        write(info, f"Name: {name}\nVersion: {version}\n")
    result = sandbox.setup()
    pins = "jax==0.11.2 jax_cuda13_plugin==0.11.2"
    assert f"keeping {pins}" in result.stderr
    (borrowed,) = sandbox.venv.glob("lib/*/site-packages/zz-borrowed.pth")
    assert str(sandbox.stubs) in borrowed.read_text()
    (install,) = sandbox.log()
    assert pins in install and f"--editable {sandbox.repo}[run]" in install
    assert "making" not in sandbox.setup(**sandbox.activated()).stderr


def _tools(where: pathlib.Path) -> pathlib.Path:
    where.mkdir()
    for tool in ("bash", "cat", "dirname", "env"):
        (where / tool).symlink_to(shutil.which(tool))
    return where


def test_no_python_that_is_new_enough(sandbox, tmp_path):
    tools = _tools(tmp_path / "tools")
    result = sandbox.setup(PATH=str(tools))
    _says_in_one_sentence(result, "3.11 or newer", "python3 (not found)", "PYTHON=")
    # Answers the version check with no, and the question for its name with a version.
    old = '#!/bin/bash\n[ "$1" = --version ] && echo Python 3.9.2\n'
    write(tools / "python3", old)
    for env in ({}, {"PYTHON": "python3"}):
        result = sandbox.setup(PATH=str(tools), **env)
        _says_in_one_sentence(result, "3.11 or newer", "python3 (Python 3.9.2)")
    result = sandbox.setup(PYTHON="/nowhere/python")
    _says_in_one_sentence(result, "/nowhere/python (not found)")


def test_a_place_that_cannot_be_written(sandbox):
    result = sandbox.setup(RFQ_VENV="/dev/null/venv")
    _says_in_one_sentence(result, "/dev/null/venv", "RFQ_VENV")


def test_somebody_elses_folder_is_left_alone(sandbox):
    write(sandbox.venv / "thesis.tex", "")
    _says_in_one_sentence(sandbox.setup(), "is not of its making", "RFQ_VENV")
    assert (sandbox.venv / "thesis.tex").exists()


def test_system_python_needs_no_pip(sandbox):
    assert sandbox.setup(RFQ_SYSTEM_PYTHON="1").returncode == 0
    assert not sandbox.log() and sandbox.works()
    # It stays as it was made until the variable says otherwise.
    assert "making" not in sandbox.setup(**sandbox.activated()).stderr
    result = sandbox.setup(RFQ_SYSTEM_PYTHON="0", **sandbox.activated())
    assert result.returncode == 0 and len(sandbox.log()) == 2 and sandbox.works()


def test_system_python_that_lacks_something_leaves_what_there_is(sandbox):
    sandbox.setup()
    write(sandbox.repo / "rfq" / "__main__.py", "import sys; sys.exit('rfq needs six')")
    result = sandbox.setup(RFQ_SYSTEM_PYTHON="1")
    _says_in_one_sentence(result, "rfq failed")
    assert "rfq needs six" in result.stderr and sandbox.works()


def test_unknown_arguments_and_values(sandbox):
    _says_in_one_sentence(sandbox.setup("--developer"), "--developer", "--dev")
    result = sandbox.setup(RFQ_SYSTEM_PYTHON="yes")
    _says_in_one_sentence(result, "yes", "0 nor 1")


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_versions_and_names_no_host(name):
    lines = (ROOT / name).read_text().splitlines()
    assert lines and all("==" in line and "://" not in line for line in lines)


def test_the_developer_lock_contains_the_runtime_lock():
    runtime = set((ROOT / "requirements.lock").read_text().splitlines())
    developer = set((ROOT / "requirements-dev.lock").read_text().splitlines())
    assert runtime < developer
