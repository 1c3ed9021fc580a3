"""What this process runs on, said before anything else happens."""

import functools
import glob
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax


def devices() -> str:
    """One line: how many devices of which kind, in how many processes."""
    first = jax.devices()[0]
    return (
        f"{jax.device_count()} {first.platform} device(s) ({first.device_kind}), "
        f"{jax.process_count()} process(es), jax {jax.__version__}"
    )


def unused_accelerator() -> str | None:
    """A warning when the machine shows an accelerator but jax runs on its CPU."""
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
        return None
    seen = [
        name
        for pattern, name in (
            ("/dev/nvidia[0-9]*", "an NVIDIA GPU (install the extra rfq[cuda])"),
            ("/dev/kfd", "an AMD GPU (install jax for ROCm)"),
            ("/dev/accel[0-9]*", "a TPU (install the extra rfq[tpu])"),
            ("/dev/vfio/[0-9]*", "a TPU (install the extra rfq[tpu])"),
        )
        if glob.glob(pattern)
    ]
    if not seen:
        return None
    return f"warning: this machine shows {seen[0]}, but jax runs on the CPU"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make the numbers."""
    packages = ("rfq", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def commit() -> str:
    """The checkout's commit, "+changes" when files differ, "unknown" outside git."""
    root = pathlib.Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return "unknown"
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.decode().strip() + ("+changes" if status.stdout.strip() else "")
