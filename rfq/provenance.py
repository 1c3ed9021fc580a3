"""The code, commit, versions and devices that compute the numbers of a run."""

import functools
import glob
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax


def described() -> dict[str, object]:
    """Return what every record of a run or a measurement says of its origin."""
    return {"commit": commit(), "versions": versions(), "device": devices()}


@functools.cache
def code() -> str:
    """Return twelve hexadecimal digits that name the source of the package."""
    root = pathlib.Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def devices() -> str:
    """Return a line that counts the devices, their kind and the processes."""
    first = jax.devices()[0]
    return (
        f"{jax.device_count()} {first.platform} device(s) ({first.device_kind}), "
        f"{jax.process_count()} process(es), jax {jax.__version__}"
    )


def unused_accelerator() -> str | None:
    """Return a warning if jax runs on the CPU of a machine with an accelerator."""
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
    """Return the versions of Python and of the packages that make the numbers."""
    packages = ("rfq", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    by_package = {"python": platform.python_version()}
    for package in packages:
        try:
            by_package[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            by_package[package] = "not installed"
    return by_package


@functools.cache
def commit() -> str:
    """Return the commit of the checkout, or "unknown" outside git.

    "+changes" follows it where tracked files differ from it.
    """
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
