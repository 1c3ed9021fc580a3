"""Every program compiles for every kind of device, with the devices' own compilers."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from tests.costs import lowering_worker

ROOT = pathlib.Path(__file__).parents[2]
# Target -> the module of its compiler, and the extra that brings it.
COMPILERS = {
    "v5p:1x1x1": ("libtpu", "plan-tpu"),
    "v5p:2x2x1": ("libtpu", "plan-tpu"),
    "v6e:1x1": ("libtpu", "plan-tpu"),
    "v6e:2x2": ("libtpu", "plan-tpu"),
    "h100:1x1": ("jax_plugins.xla_cuda12", "plan-cuda"),
    "h100:1x4": ("jax_plugins.xla_cuda12", "plan-cuda"),
}
PROGRAMS = (
    "measure", "calibrate", "quantized", "answer", "quantize", "export", "decode",
    *(f"train {name}" for name in lowering_worker.OPTIMIZERS),
)  # fmt: skip


def is_there(module: str) -> bool:
    package = module.partition(".")[0]
    return bool(importlib.util.find_spec(package) and importlib.util.find_spec(module))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("target", COMPILERS)
def test_a_program_compiles(target, program):
    module, extra = COMPILERS[target]
    if not is_there(module):
        pytest.skip(
            f"not run: the compiler is not installed; pip install 'rfq[{extra}]'"
        )
    done = subprocess.run(
        [sys.executable, "-m", "tests.costs.lowering_worker", target, program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = map(json.loads, done.stdout.splitlines())
    assert found["program"] == program
    # A program that a compiler unrolls has hundreds of megabytes.
    assert found["code_bytes"] <= 100 * 2**20
