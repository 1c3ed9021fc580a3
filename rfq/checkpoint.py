"""Checkpoints: parameters, optimizer state and position, saved whole or not at all.

Orbax writes into a temporary directory, and renames it when every array has landed and
the SHA-256 of every file is written beside them. So a kill at any moment leaves the
previous checkpoint the newest, and what was damaged later is found before it is used.
Parameters are an item of their own, so that quantization and evaluation read nothing
else.

    checkpoints/STEP/           params/, opt_state/, meta/ and SHA256SUMS, as
                                `sha256sum --check` reads it
    checkpoints/damaged-STEP/   what did not match its sums, out of the way
"""

import concurrent.futures
import hashlib
import logging
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp

from rfq import distributed, metrics
from rfq.errors import Diverged, InputError, Preempted

_ITEMS = ("params", "opt_state", "meta")
_SUMS = "SHA256SUMS"
_NUM_THREADS = 8  # Hashing lets go of the interpreter lock.


def _is_news(record: logging.LogRecord) -> bool:
    """Return False for a traceback that orbax logs once a thread and then raises."""
    return record.exc_info is None or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_is_news)


class Checkpoints:
    """The checkpoints of one run directory; use as a context manager.

    Args:
        run_dir: The run directory.
        keep: How many to keep; None where nothing will be saved.

    Raises:
        InputError: the directory cannot be written; `save`, the next `save` or leaving
            the context says so of the files.
    """

    def __init__(self, run_dir: pathlib.Path, *, keep: int | None = None):
        self._directory = run_dir.absolute() / "checkpoints"
        self._saving: int | None = None
        try:
            self._manager = ocp.CheckpointManager(
                self._directory,
                item_names=_ITEMS,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep,
                    # Unfinished files of killed runs would otherwise fill the disk.
                    cleanup_tmp_directories=keep is not None,
                    enable_async_checkpointing=True,
                    async_options=ocp.AsyncOptions(
                        post_finalization_callback=self._write_sums,
                        # If one cannot be made, its users would wait for minutes.
                        create_directories_asynchronously=False,
                    ),
                ),
            )
        except OSError as error:
            raise self._unwritten(error) from error

    def __enter__(self) -> "Checkpoints":
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Wait until what was saved is on disk."""
        together = kind is None or issubclass(kind, Diverged | Preempted)
        if not together and jax.process_count() > 1:
            return  # The others will not come to the same barrier.
        try:
            self._manager.wait_until_finished()
            self._manager.close()
        except Exception as error:
            if kind is None or kind is Preempted:
                raise self._unwritten(error) from error

    def save(self, step: int, params, opt_state, meta: dict[str, Any]) -> None:
        """Save asynchronously; `meta` is JSON.

        Raises:
            InputError: this or the previous checkpoint cannot be written.
        """
        try:
            self._manager.wait_until_finished()
            self._saving = step
            self._require_room(params, opt_state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    opt_state=ocp.args.StandardSave(opt_state),
                    meta=ocp.args.JsonSave(meta),
                ),
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def _require_room(self, *trees) -> None:
        """Raise an OSError where the arrays are larger than what the disk has free.

        Orbax would find it later, in many threads at once, with a traceback from each.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees))
        free = shutil.disk_usage(self._directory).free
        if free < needed:
            raise OSError(
                f"it has {needed / 2**20:,.1f} MiB, and {free / 2**20:,.1f} are free"
            )

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            InputError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def latest_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def latest_whole_step(
        self, lacks: Callable[[dict[str, Any]], str | None] = lambda meta: None
    ) -> int | None:
        """Return the step of the newest checkpoint whose files are what was saved.

        A damaged one is reported and moved aside, so that its step can be saved again.

        Args:
            lacks: The JSON of a whole checkpoint -> what it needs and lacks, or None. A
                checkpoint that lacks something counts as damaged.
        """
        while (step := distributed.broadcast("newest", self.latest_step)) is not None:
            wrong = distributed.broadcast("damage", lambda step=step: self.damage(step))
            if wrong is None:
                wrong = lacks(self.meta(step))
            if wrong is None:
                return step
            distributed.broadcast("aside", lambda step=step: self._set_aside(step))
            self._manager.reload()
            before = distributed.broadcast("before", self.latest_step)
            instead = "the beginning" if before is None else f"step {before}"
            metrics.say(
                f"warning: checkpoint {self._directory / str(step)} cannot be used "
                f"({wrong}); it is moved to damaged-{step}, and training goes on from "
                f"{instead}"
            )
        return None

    def damage(self, step: int, items: tuple[str, ...] = _ITEMS) -> str | None:
        """Say what is wrong with the files of a checkpoint, or return None.

        It reads every byte of these items. A checkpoint without sums, from an older
        rfq, passes.
        """
        folder = self._directory / str(step)
        try:
            text = (folder / _SUMS).read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return f"{_SUMS}: {error}"
        lines = [line.partition("  ") for line in text.splitlines()]
        wanted = {name: digest for digest, _, name in lines if _item(name) in items}
        names = [name for name in _files(folder) if _item(name) in items]
        for name in sorted(set(names) ^ set(wanted)):
            return f"{name} is {'missing' if name in wanted else 'not in ' + _SUMS}"
        for name, digest in _sums(folder, names).items():
            if digest != wanted[name]:
                return f"the bytes of {name} are not those that were saved"
        return None

    def meta(self, step: int) -> dict[str, Any]:
        """Read the JSON saved with a checkpoint."""
        return self._restore(step, "meta", ocp.args.JsonRestore())

    def params(self, step: int, target):
        """Read parameters alone, with the shapes, dtypes and shardings of `target`."""
        return self._restore(step, "params", ocp.args.StandardRestore(target))

    def opt_state(self, step: int, target):
        """Read the optimizer state alone, with the shapes and shardings of `target`.

        Stacks of matrices are padded with zeros to a multiple of the devices, so what
        was saved on another number of them is cut short or continued with zeros.
        """
        how = ocp.args.StandardRestore(target, strict=False)
        return self._restore(step, "opt_state", how)

    def _restore(self, step: int, item: str, how: ocp.args.CheckpointArgs):
        try:
            args = ocp.args.Composite(**{item: how})
            return self._manager.restore(step, args=args)[item]
        except Exception as error:
            # Orbax and TensorStore raise many types for a damaged or foreign file.
            raise InputError(
                f"checkpoint {self._directory / str(step)} cannot be read "
                f"({type(error).__name__}: {_first_line(error)}); if it is damaged, "
                "delete that directory to fall back on the one before it"
            ) from error

    def _write_sums(self) -> None:
        """Write the sums; orbax calls this on process 0 when all other files are there.

        Orbax 0.12 calls before the rename; a later one may call after it.
        """
        name = str(self._saving)
        folder = self._directory / name
        if not folder.exists():
            (folder,) = self._directory.glob(f"{name}.*")
        sums = _sums(folder, _files(folder))
        lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
        (folder / _SUMS).write_text("".join(lines), "utf-8")

    def _set_aside(self, step: int) -> None:
        aside = self._directory / f"damaged-{step}"
        if aside.exists():
            shutil.rmtree(aside)
        try:
            (self._directory / str(step)).rename(aside)
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> InputError:
        step = "" if self._saving is None else f" of step {self._saving}"
        return InputError(
            f"the checkpoint{step} cannot be written to {self._directory} "
            f"({_first_line(error)}); make room or make it writable, and the same "
            "command goes on from the checkpoint before"
        )


def _item(name: str) -> str:
    return name.partition("/")[0]


def _files(folder: pathlib.Path) -> list[str]:
    """List the files of all items, relative; orbax marks the folder itself later."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if path.parts[0] in _ITEMS)


def _sums(folder: pathlib.Path, names: Sequence[str]) -> dict[str, str]:
    """Return each file's SHA-256, hexadecimal, or why a file cannot be read."""

    def digest(name: str) -> str:
        try:
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{error}"

    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]
