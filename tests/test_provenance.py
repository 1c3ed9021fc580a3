import subprocess
import sys

import jax
import pytest

from rfq import provenance

_PATTERNS = {
    "/dev/nvidia[0-9]*": "NVIDIA",
    "/dev/kfd": "AMD",
    "/dev/accel[0-9]*": "TPU",
    "/dev/vfio/[0-9]*": "TPU",
}


@pytest.fixture
def machine(monkeypatch):
    """A machine that shows one device file and runs jax on one backend."""

    def shows(
        pattern: str | None, *, backend: str = "cpu", platforms: str = ""
    ) -> None:
        monkeypatch.setattr(
            provenance.glob, "glob", lambda asked: [asked] if asked == pattern else []
        )
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        monkeypatch.setenv("JAX_PLATFORMS", platforms)

    return shows


@pytest.mark.parametrize("pattern", _PATTERNS)
def test_an_accelerator_that_jax_does_not_use_is_named(machine, pattern):
    machine(pattern)
    warning = provenance.unused_accelerator()
    assert warning is not None
    assert _PATTERNS[pattern] in warning
    assert "jax runs on the CPU" in warning
    assert "install" in warning
    assert "\n" not in warning


@pytest.mark.parametrize("pattern", _PATTERNS)
def test_an_accelerator_in_use_or_turned_off_on_purpose_is_no_warning(machine, pattern):
    machine(pattern, backend="gpu")
    assert provenance.unused_accelerator() is None
    machine(pattern, platforms="cpu")
    assert provenance.unused_accelerator() is None


def test_a_machine_without_an_accelerator_is_no_warning(machine):
    machine(None)
    assert provenance.unused_accelerator() is None


def test_what_a_run_is_computed_with_is_recorded():
    assert f"{jax.device_count()} cpu device(s)" in provenance.devices()
    found = provenance.versions()
    assert found["jax"] == jax.__version__
    assert found["python"].startswith(f"{sys.version_info.major}.")


def test_a_commit_is_told_from_a_changed_checkout_and_from_no_checkout(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "rfq" / "x.py"))
    read = provenance.commit.__wrapped__
    assert read() == "unknown"

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(
            ["git", *identity, *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    head = git("rev-parse", "--short=12", "HEAD")
    assert read() == head
    (tmp_path / "untracked").write_text("two")
    assert read() == head
    (tmp_path / "file").write_text("two")
    assert read() == f"{head}+changes"


def test_the_code_has_a_name():
    assert provenance.code() == provenance.code.__wrapped__()
    assert len(provenance.code()) == 12
