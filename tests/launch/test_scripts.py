"""The launch scripts: syntax, help, and how set-up behaves, with a fake Python.

The fake runs code as a real interpreter without packages would, but `-m venv` and
`-m pip` only leave a trace in a log, so that a set-up takes a moment, not minutes.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / ".ci" / "run"])

VERSION = f"python3.{sys.version_info.minor}"
FAKE = f"""#!/bin/bash
case "$1 $2" in
  "-m venv")
    echo "venv ${{@:3}}" >>"$FAKE_LOG"
    mkdir -p "${{@: -1}}/bin" "${{@: -1}}/lib/{VERSION}/site-packages"
    cp "$FAKE_PYTHON" "${{@: -1}}/bin/python"
    ;;
  "-m pip")
    echo "pip ${{@:3}}" >>"$FAKE_LOG"
    sleep "${{FAKE_PIP_SECONDS:-0}}"
    [ -z "$FAKE_PIP_ERROR" ] || {{ echo "$FAKE_PIP_ERROR" >&2; exit 1; }}
    ;;
  *) exec {sys.executable} $FAKE_FLAGS "$@" ;;
esac
"""


class Sandbox:
    """A repository of set-up's inputs only, beside a fake interpreter."""

    def __init__(self, where: Path):
        self.repo = where / "repo"
        (self.repo / "launch").mkdir(parents=True)
        shutil.copy(ROOT / "launch" / "setup.sh", self.repo / "launch")
        for name in ("pyproject.toml", "requirements.lock", "requirements-dev.lock"):
            shutil.copy(ROOT / name, self.repo)
        self.python = where / "bin" / "python3"
        self.python.parent.mkdir()
        self.write_python(FAKE)
        self.log_path = where / "log"
        self.venv = self.repo / ".venv"
        self.state = self.venv / "rfq-setup-state"

    def write_python(self, text: str) -> None:
        self.python.write_text(text)
        self.python.chmod(0o755)

    def environment(self, **extra: str) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHON", "RFQ_VENV", "RFQ_SYSTEM_PYTHON")
        }
        return {
            **inherited,
            "PYTHON": str(self.python),
            "FAKE_PYTHON": str(self.python),
            "FAKE_LOG": str(self.log_path),
            "FAKE_FLAGS": "-S",
            **extra,
        }

    def command(self, *args: str) -> list[str]:
        return ["bash", str(self.repo / "launch" / "setup.sh"), *args]

    def setup(self, *args: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args),
            env=self.environment(**extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def log(self) -> list[str]:
        return self.log_path.read_text().splitlines() if self.log_path.exists() else []

    def wait_for_pip(self) -> None:
        deadline = time.monotonic() + 30
        while not any(line.startswith("pip") for line in self.log()):
            assert time.monotonic() < deadline, "set-up never reached pip"
            time.sleep(0.02)


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def _says_in_one_sentence(result: subprocess.CompletedProcess[str], *parts: str):
    assert result.returncode != 0
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("launch/setup.sh: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_passes_shellcheck(script):
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    result = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", ["setup.sh", "quickstart.sh", "test.sh"])
def test_help_explains_and_does_nothing(script, tmp_path):
    copy = tmp_path / "launch" / script
    copy.parent.mkdir()
    shutil.copy(ROOT / "launch" / script, copy)
    result = subprocess.run(["bash", copy, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: launch/{script}")
    assert list(tmp_path.iterdir()) == [copy.parent]


def test_a_second_run_has_nothing_to_do(sandbox):
    assert sandbox.setup().returncode == 0
    first = sandbox.log()
    assert any("--requirement requirements.lock" in line for line in first)
    again = sandbox.setup()
    assert again.returncode == 0
    assert "up to date" in again.stderr
    assert sandbox.log() == first


def test_developer_tools_come_on_top_and_stay(sandbox):
    assert sandbox.setup().returncode == 0
    assert sandbox.setup("--dev").returncode == 0
    log = sandbox.log()
    assert sum(line.startswith("venv") for line in log) == 1
    assert any("--requirement requirements-dev.lock" in line for line in log)
    assert "up to date" in sandbox.setup().stderr
    # A new lock updates what is there, the tools included.
    with (sandbox.repo / "requirements.lock").open("a") as file:
        file.write("\n")
    assert "updating" in sandbox.setup().stderr
    assert "--requirement requirements-dev.lock" in sandbox.log()[-2]
    assert sum(line.startswith("venv") for line in sandbox.log()) == 1


def test_two_at_once_install_once(sandbox):
    first = subprocess.Popen(
        sandbox.command(),
        env=sandbox.environment(FAKE_PIP_SECONDS="1"),
        stderr=subprocess.PIPE,
        text=True,
    )
    sandbox.wait_for_pip()
    second = sandbox.setup()
    _, first_said = first.communicate(timeout=30)
    assert first.returncode == 0, first_said
    assert second.returncode == 0
    assert "another set-up is at work" in second.stderr
    assert "up to date" in second.stderr
    assert sum(line.startswith("venv") for line in sandbox.log()) == 1


def test_an_interrupted_set_up_starts_afresh(sandbox):
    killed = subprocess.Popen(
        sandbox.command(),
        env=sandbox.environment(FAKE_PIP_SECONDS="30"),
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    sandbox.wait_for_pip()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(timeout=30)
    assert sandbox.state.read_text() == ""
    (sandbox.venv / "half-a-package").touch()
    assert "making" in sandbox.setup().stderr
    assert not (sandbox.venv / "half-a-package").exists()
    assert "up to date" in sandbox.setup().stderr
    left = {path.name for path in sandbox.repo.glob(".venv*")}
    assert left == {".venv", ".venv.lock"}


def test_another_place_gets_another_environment(sandbox):
    assert sandbox.setup().returncode == 0
    elsewhere = sandbox.repo / "elsewhere"
    assert sandbox.setup(RFQ_VENV="elsewhere").returncode == 0
    assert (elsewhere / sandbox.state.name).exists()
    assert sum(line.startswith("venv") for line in sandbox.log()) == 2


def test_another_interpreter_makes_the_environment_anew(sandbox):
    assert sandbox.setup().returncode == 0
    _, wanted, dev = sandbox.state.read_text().split()
    sandbox.state.write_text(f"another-interpreter {wanted} {dev}\n")
    assert "making" in sandbox.setup().stderr
    assert sum(line.startswith("venv") for line in sandbox.log()) == 2


def test_pip_that_fails_leaves_no_finished_environment(sandbox):
    result = sandbox.setup(FAKE_PIP_ERROR="No matching distribution")
    _says_in_one_sentence(result, "pip could not install", "requirements.lock", "PIP_")
    assert "No matching distribution" in result.stderr
    assert sandbox.state.read_text() == ""


def test_a_jax_with_an_accelerator_is_kept(sandbox, tmp_path):
    """Its versions become pip constraints; the lock, which pins jax, is not used."""
    site = tmp_path / "site"
    for name, version in [("jax", "0.11.2"), ("jax_cuda13_plugin", "0.11.2")]:
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    result = sandbox.setup(PYTHONPATH=str(site))
    assert result.returncode == 0, result.stderr
    assert "jax==0.11.2" in result.stderr
    borrowed = sandbox.venv / "lib" / VERSION / "site-packages" / "zz-borrowed.pth"
    assert str(site) in borrowed.read_text()
    installs = [line for line in sandbox.log() if line.startswith("pip")]
    assert len(installs) == 1
    assert "--constraint" in installs[0]
    assert "requirements.lock" not in installs[0]


def test_no_python_at_all(sandbox, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "dirname", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    result = sandbox.setup(PYTHON="", PATH=str(tools))
    _says_in_one_sentence(result, "no Python 3.11 or newer", "none at all", "PYTHON=")


def test_only_an_old_python(sandbox, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "cat", "dirname", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    # Answers the version check with no, and the question for its name with a version.
    old = tools / "python3"
    old.write_text(
        '#!/bin/bash\ncase "$2" in *exit*) exit 1 ;; *) echo "$3 is 3.9.2" ;; esac\n'
    )
    old.chmod(0o755)
    result = sandbox.setup(PYTHON="", PATH=str(tools))
    _says_in_one_sentence(result, "no Python 3.11 or newer", "python3 is 3.9.2")
    result = sandbox.setup(PYTHON="python3", PATH=str(tools))
    _says_in_one_sentence(result, "PYTHON=python3", "python3 is 3.9.2")


def test_a_python_that_does_not_run(sandbox):
    _says_in_one_sentence(
        sandbox.setup(PYTHON="/nowhere/python"), "/nowhere/python", "does not run"
    )


def test_a_python_without_venv(sandbox):
    sandbox.write_python(
        FAKE.replace("  *)", '  "-c import ensurepip, venv") exit 1 ;;\n  *)')
    )
    _says_in_one_sentence(sandbox.setup(), "no venv module", "python3-venv")


def test_a_place_that_cannot_be_written(sandbox):
    result = sandbox.setup(RFQ_VENV="/dev/null/venv")
    _says_in_one_sentence(result, "/dev/null/venv", "RFQ_VENV")


def test_somebody_elses_folder_is_left_alone(sandbox):
    sandbox.venv.mkdir()
    (sandbox.venv / "thesis.tex").touch()
    _says_in_one_sentence(sandbox.setup(), "did not make it", "RFQ_VENV")
    assert (sandbox.venv / "thesis.tex").exists()


def test_system_python_that_lacks_something_is_told_what(sandbox):
    project = sandbox.repo / "pyproject.toml"
    text = project.read_text()
    project.write_text(text.replace('"six>=1.17"', '"six>=99", "no-such-package>=1"'))
    assert project.read_text() != text
    result = sandbox.setup(RFQ_SYSTEM_PYTHON="1", FAKE_FLAGS="")
    _says_in_one_sentence(result, "no-such-package>=1", "six>=99 (has ")
    assert not any(line.startswith("pip") for line in sandbox.log())


def test_system_python_needs_no_pip(sandbox):
    result = sandbox.setup(RFQ_SYSTEM_PYTHON="1", FAKE_FLAGS="")
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in sandbox.log()] == ["venv"]
    assert "--without-pip" in sandbox.log()[0]
    packages = sandbox.venv / "lib" / VERSION / "site-packages"
    assert (packages / "rfq-source.pth").read_text().strip() == str(sandbox.repo)
    script = sandbox.venv / "bin" / "rfq"
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith(f"#!{sandbox.venv}/bin/python\n")


def test_unknown_arguments_and_values(sandbox):
    _says_in_one_sentence(sandbox.setup("--developer"), "--developer", "--dev")
    _says_in_one_sentence(sandbox.setup(RFQ_SYSTEM_PYTHON="yes"), "yes", "0 nor 1")


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_versions_and_names_no_host(name):
    lines = (ROOT / name).read_text().splitlines()
    assert lines
    for line in lines:
        assert "://" not in line
        assert "==" in line


def test_the_developer_lock_contains_the_runtime_lock():
    runtime = set((ROOT / "requirements.lock").read_text().splitlines())
    developer = set((ROOT / "requirements-dev.lock").read_text().splitlines())
    assert runtime < developer
