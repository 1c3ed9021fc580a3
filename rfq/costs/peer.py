"""A PyTorch decoder of the same sizes, in a process of its own, to measure against."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from rfq.errors import InputError
from rfq.experiment import Experiment

# It is no part of the package, which does not know PyTorch.
PROGRAM = pathlib.Path(__file__).parents[2] / "tests" / "peers" / "decoder.py"
CALLS = ("forward", "gradients", "step")
# What the peer's decoder is; another one would be compared with something else.
_PLAIN = {
    "skip": "residual",
    "attention_kind": "softmax",
    "attention_gate": "none",
    "norm": "rms_norm",
    "mlp": "gelu",
    "head": "tied",
    "embedding": "plain",
    "biases": "none",
    "compute_dtype": "float32",
}


class Peer:
    """One PyTorch process, eager or compiled, which makes a call when it is told to.

    Attributes:
        told: what the peer says of itself: PyTorch's version, the rate of its matrix
            products and the number of its parameters.
    """

    def __init__(self, experiment: Experiment, *, compiled: bool):
        """Start the process and wait until it is warm.

        Raises:
            InputError: the experiment is no plain decoder, or PyTorch is not there.
        """
        sizes = _sizes(experiment, compiled)
        if not PROGRAM.exists():
            raise InputError(
                f"--peer needs {PROGRAM.name} of a checkout, which no installed "
                "package has; clone the repository, or leave --peer out"
            )
        python = os.environ.get("RFQ_PEER_PYTHON", sys.executable)
        self._process = subprocess.Popen(
            [python, str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.told: dict[str, Any] = json.loads(self._ask(json.dumps(sizes)))

    def calls(self, name: str) -> Iterator[None]:
        """Make one call at each `next`, and wait for it."""
        while True:
            self._ask(name)
            yield

    def end(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, line: str) -> str:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended, and says why below.
        answer = process.stdout.readline()
        if not answer:
            _, error = process.communicate()
            why = (error.strip().splitlines() or ["without a word"])[-1]
            raise InputError(
                f"the peer's process ended ({why}); install PyTorch for "
                f"{process.args[0]}, or name a Python that has it in RFQ_PEER_PYTHON"  # pyright: ignore
            )
        return answer


def _sizes(experiment: Experiment, compiled: bool) -> dict[str, Any]:
    model = experiment.model
    for field, value in _PLAIN.items():
        if getattr(model, field) != value:
            raise InputError(
                f"the peer has model.{field}={value!r}, and this config has "
                f"{getattr(model, field)!r}; give --model.{field.replace('_', '-')} "
                f"{value}, or leave --peer out"
            )
    if model.kv_heads != model.num_heads or experiment.train.clip_norm is None:
        raise InputError(
            "the peer has as many key heads as query heads and clips gradients; leave "
            "out model.num_kv_heads and set train.clip_norm, or leave --peer out"
        )
    names = ("vocab_size", "width", "num_layers", "num_heads", "seq_len", "rope_base")
    return {
        **{name: getattr(model, name) for name in names},
        "mlp_width": model.mlp_width,
        "batch_size": experiment.train.batch_size,
        "clip_norm": experiment.train.clip_norm,
        "num_threads": len(os.sched_getaffinity(0)),
        "compiled": compiled,
    }
