"""A sentence for a machine that runs out of memory or disk."""

import contextlib
import errno
import re
from collections.abc import Iterator

import jax

from rfq.costs import targets, told
from rfq.errors import InputError

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def said() -> Iterator[None]:
    """Turn running out of memory or disk, anywhere in a command, into an InputError.

    Raises:
        InputError: what was asked for, what there is, and what to lower.
    """
    try:
        yield
    except MemoryError as error:
        raise InputError(_memory(str(error))) from error
    except jax.errors.JaxRuntimeError as error:
        if not re.search("RESOURCE_EXHAUSTED|out of memory", str(error), re.I):
            raise
        raise InputError(_memory(str(error))) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f" under {error.filename!r}" if error.filename else ""
        raise InputError(
            f"there is no room on the disk{where} ({error.strerror}); make some, and "
            "the same command goes on from what is saved"
        ) from error


def _memory(text: str) -> str:
    what = (text.splitlines() or [""])[0].rpartition(": ")[2].strip(" .")
    there = targets.device_bytes()
    has = "" if there is None else f", and a device has {told.gib(there)}"
    return (
        f"out of memory ({what or 'for Python objects'}{has}); lower train.batch_size, "
        "quantize.batch_size or the model, raise sharding.microbatches, or set "
        "model.remat; `rfq train CONFIG --dry-run` says what a run needs"
    )
