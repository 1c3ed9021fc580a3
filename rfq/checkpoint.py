"""Checkpoints: parameters, optimizer state and position, saved whole or not at all.

Orbax writes into a temporary directory and renames it when every array has landed, so
a kill at any moment leaves the previous checkpoint the newest. Parameters are an item
of their own, so that quantization and evaluation read nothing else.
"""

import pathlib
from typing import Any

import orbax.checkpoint as ocp

from rfq.errors import InputError

_ITEMS = ("params", "opt_state", "meta")


class Checkpoints:
    """The checkpoints of one run directory; use as a context manager."""

    def __init__(self, run_dir: pathlib.Path, *, keep: int = 2):
        self._directory = run_dir.absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=_ITEMS,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, enable_async_checkpointing=True
            ),
        )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, params, opt_state, meta: dict[str, Any]) -> None:
        """Saves asynchronously; `meta` is JSON."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                opt_state=ocp.args.StandardSave(opt_state),
                meta=ocp.args.JsonSave(meta),
            ),
        )

    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, if there is one."""
        return self._manager.latest_step()

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON saved with a checkpoint."""
        return self._restore(step, "meta", ocp.args.JsonRestore())

    def params(self, step: int, target):
        """Parameters alone, with the shapes, dtypes and shardings of `target`."""
        return self._restore(step, "params", ocp.args.StandardRestore(target))

    def opt_state(self, step: int, target):
        """Optimizer state alone, with the shapes, dtypes and shardings of `target`.

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
            first_line = str(error).splitlines()[0] if str(error) else ""
            raise InputError(
                f"checkpoint {self._directory / str(step)} cannot be read "
                f"({type(error).__name__}: {first_line[:200]}); if it is damaged, "
                "delete that directory to fall back on the one before it"
            ) from error
