"""Compiled programs on disk, so that a second start of a command compiles nothing.

jax keeps them and names each by a sum of all that it is made from: its operations,
their shapes, jaxlib, the XLA flags, the processor or accelerator. This file says where
they are, keeps that place small, and answers when it fails.
"""

import contextlib
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Mapping

import jax

from rfq import metrics

_WHERE = "jax_compilation_cache_dir"
_MAX_BYTES = 2 * 2**30
_FAILED = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '([^']*)': (.*)",
    re.DOTALL,
)


def directory(environ: Mapping[str, str]) -> pathlib.Path | None:
    """Return where programs are kept, or None where RFQ_CACHE is empty or "off".

    RFQ_CACHE names the directory. Without it, the directory is "rfq" among the user's
    caches, which is $XDG_CACHE_HOME or ~/.cache.
    """
    given = environ.get("RFQ_CACHE")
    if given is not None:
        return None if given in ("", "off") else pathlib.Path(given).expanduser()
    with contextlib.suppress(RuntimeError):  # This user may have no home.
        caches = environ.get("XDG_CACHE_HOME") or "~/.cache"
        return pathlib.Path(caches).expanduser() / "rfq"
    return None


def start() -> None:
    """Keep what is compiled from here on, unless jax was told a place of its own.

    Every program is kept, however small, because a hundred small ones take seconds.
    """
    kept = directory(os.environ)
    if kept is None or getattr(jax.config, _WHERE) is not None:
        return
    jax.config.update(_WHERE, str(kept.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    shrink(kept, _MAX_BYTES)
    warnings.showwarning = _answering(kept, warnings.showwarning)


def shrink(kept: pathlib.Path, max_bytes: int) -> None:
    """Delete the programs that were longest not used until the rest fits.

    Other processes may use the directory at the same time: a program that is gone when
    it is read is compiled again.
    """
    found = []
    for path in kept.glob("*-cache"):
        with contextlib.suppress(OSError):  # Another process may have deleted it.
            seen = path.stat()
            found.append((max(seen.st_atime, seen.st_mtime), seen.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= max_bytes:
            return
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _answering(
    kept: pathlib.Path, show: Callable[..., object]
) -> Callable[..., object]:
    """Make a `warnings.showwarning` that answers for the cache; no run stops by it.

    jax only warns, once a program, and compiles. A program that cannot be read was cut
    short when its writer was killed or the disk was full. jax would leave it there for
    ever, so it is deleted, and written again. What cannot be written is told once.
    """
    told = False

    def answer(message: Warning | str, *rest: object, **more: object) -> None:
        nonlocal told
        failed = _FAILED.match(str(message))
        if failed is None:
            show(message, *rest, **more)
            return
        doing, name, why = failed.groups()
        for path in kept.glob(f"{name}-*-cache"):
            with contextlib.suppress(OSError):
                path.unlink()
        if not told and (doing == "writing" or not kept.is_dir()):
            told = True
            metrics.say(
                f"compiled programs cannot be kept in {str(kept)!r} ({why}), so each "
                "start compiles them again; let RFQ_CACHE name a directory with room, "
                "or set it to off"
            )

    return answer
