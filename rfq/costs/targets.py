"""The machines that a run can be planned for, with or without having them.

The compilers of TPUs and of NVIDIA GPUs run on a machine that has neither: a
description of the devices stands for them, and nothing is executed.

Sources of the numbers. TPU: cloud.google.com/tpu/docs (v5e, v5p, v6e), for peak,
memory and bandwidth; Austin et al., "How to Scale Your Model" (jax-ml.github.io/
scaling-book, 2025), for the speed of a link both ways and for the passes over bfloat16
by which a TPU multiplies float32 (three for "high" and six for "highest"). H100:
NVIDIA's data sheet of the H100 SXM5 (dense products, NVLink 4 one way) and of the DGX
H100 (one 400 Gb/s adapter a GPU).
"""

import dataclasses
import importlib.util
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from rfq.costs.work import Unit
from rfq.errors import InputError

Platform = Literal["tpu", "gpu", "cpu"]


class Chip(NamedTuple):
    """One kind of device.

    Attributes:
        platform: as jax names it.
        memory: bytes of main memory.
        flops: FLOP/s of its products, by unit.
        bandwidth: bytes/s of main memory.
        link: bytes/s between neighbors along one axis: of a ring both ways on a TPU,
            one way through NVLink on a GPU.
        network: bytes/s one way between hosts, a device; None where the links go on.
        clock: Hz of the cycles in which a TPU's compiler estimates; None elsewhere.
        kinds: `device_kind` of such devices.
    """

    platform: Platform
    memory: int
    flops: Mapping[Unit, float]
    bandwidth: float
    link: float
    network: float | None
    clock: float | None
    kinds: tuple[str, ...]


def _tpu(memory: int, peak: float, bandwidth: float, link: float, *kinds: str) -> Chip:
    rates: Mapping[Unit, float] = {
        "bfloat16": peak,
        "int8": 2 * peak,
        "float32": peak,
        "float32_high": peak / 3,
        "float32_highest": peak / 6,
    }
    clock = 1.5e9 if peak < 4e14 else 1.75e9
    return Chip("tpu", memory, rates, bandwidth, link, None, clock, kinds)


_GIB = 2**30
CHIPS: Mapping[str, Chip] = {
    "v5e": _tpu(16 * _GIB, 1.97e14, 8.19e11, 9e10, "TPU v5 lite", "TPU v5e"),
    "v5p": _tpu(95 * _GIB, 4.59e14, 2.765e12, 1.8e11, "TPU v5", "TPU v5p"),
    "v6e": _tpu(32 * _GIB, 9.18e14, 1.64e12, 1.8e11, "TPU v6 lite", "TPU v6e"),
    "h100": Chip(
        "gpu",
        84_929_347_584,
        {
            "bfloat16": 9.894e14,
            "int8": 1.979e15,
            "float32": 4.947e14,  # TF32, which XLA takes unless told "highest".
            "float32_high": 4.947e14,
            "float32_highest": 6.69e13,
        },
        3.352e12,
        4.5e11,
        5e10,
        None,
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 SXM5", "NVIDIA H100 80GB HBM"),
    ),
}

# XLA's `GpuTargetConfigProto` of the H100 SXM, as openxla/xla keeps it beside others in
# xla/backends/gpu/target_config/specs.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 7 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for.

    Attributes:
        name: as it was given, for example "v5p:2x2x1".
        devices: jax's devices, or descriptions of them.
        chip: what one of them can do; None where that is not known.
    """

    name: str
    devices: Sequence[Any]
    chip: Chip | None

    @property
    def hosts(self) -> int:
        """Count the machines that they are in."""
        return len({device.process_index for device in self.devices})

    @property
    def is_here(self) -> bool:
        """Whether the devices are those of this machine."""
        return self.name == HERE


HERE = "this machine"
_ACCEPTED = (
    "v5e:2x2, v5p:2x2x1 or v6e:2x2 (a TPU slice by its sides), h100:1x8 (hosts x GPUs "
    "a host) or cpu:256 (that many pretended devices)"
)


def find(name: str | None) -> Target:
    """Return the devices of a target; None takes those of this machine.

    Must come before anything else asks jax for devices.

    Raises:
        InputError: there is no such target, or the package of its compiler is missing.
    """
    if name is None:
        devices = jax.devices()
        chip = _known(devices[0].device_kind)
        if len(devices) == 1 and devices[0].platform == "cpu":
            chip = measured()
        return Target(HERE, devices, chip)
    kind, _, shape = name.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or not (
        kind == "cpu" or kind in CHIPS
    ):
        raise InputError(f"--target={name!r} is unknown; give {_ACCEPTED}")
    sides = [int(side) for side in shape.split("x")]
    if kind == "cpu":
        if len(sides) > 1:
            raise InputError(f"--target={name!r} has one number, as in cpu:256")
        pretend(sides[0])
        return Target(name, jax.devices(), None)
    chip = CHIPS[kind]
    described = _tpu_devices if chip.platform == "tpu" else _gpu_devices
    return Target(name, described(name, kind, sides), chip)


def pretend(num_devices: int) -> None:
    """Make this process believe in that many devices, all of them on the CPU."""
    flags = os.environ.get("XLA_FLAGS", "")
    forced = r"--xla_force_host_platform_device_count=\d+"
    os.environ["XLA_FLAGS"] = re.sub(forced, "", flags)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def memory(target: Target) -> int | None:
    """Return the bytes of one device's memory, None of pretended devices."""
    if target.is_here:
        return device_bytes()
    return None if target.chip is None else target.chip.memory


def device_bytes() -> int | None:
    """Return the memory of one device of this machine.

    Devices of the CPU share the memory of the machine; None of several of them.
    """
    device, *others = jax.local_devices()
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    if others:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def measured() -> Chip:
    """Measure this machine's CPU: float32 products and a copy, each the best of five.

    All threads work on both, as they do in a step.
    """
    side, length = 1536, 2**25
    a = jnp.ones((side, side), jnp.float32)
    long = jnp.ones((length,), jnp.float32)

    def best(call: Callable[[], jax.Array]) -> float:
        took = []
        for _ in range(6):
            start = time.perf_counter()
            call().block_until_ready()
            took.append(time.perf_counter() - start)
        return min(took[1:])  # The first one compiles.

    rate = 2 * side**3 / best(lambda: a @ a)
    bandwidth = 2 * 4 * length / best(lambda: long + 1.0)
    flops: dict[Unit, float] = dict.fromkeys(get_args(Unit), rate)
    there = device_bytes() or 0
    return Chip("cpu", there, flops, bandwidth, bandwidth, None, None, ())


def _tpu_devices(name: str, kind: str, sides: list[int]) -> Sequence[Any]:
    _need(name, "plan-tpu", "libtpu")
    # The library would ask a metadata server which TPU it runs on.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    shape = "x".join(map(str, sides))
    return _topology(name, platform="tpu", topology_name=f"{kind}:{shape}")


def _gpu_devices(name: str, kind: str, sides: list[int]) -> Sequence[Any]:
    if len(sides) != 2:
        raise InputError(f"--target={name!r} has two numbers, as in h100:1x8")
    _need(name, "plan-cuda", "jax_plugins.xla_cuda12")
    # Autotuning would run kernels.
    flags = os.environ.get("XLA_FLAGS", "")
    if "--xla_gpu_autotune_level" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()
    hosts, each = sides
    return _topology(
        name,
        platform="cuda",
        topology_name=kind,
        topology=f"1x{hosts}x{each}",
        target_config=_H100,
    )


def _topology(name: str, **described: str) -> Sequence[Any]:
    from jax.experimental import topologies

    # Finds the compilers' plug-ins; that there is no such device is no news.
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.CRITICAL)
    jax.local_devices()
    try:
        return topologies.get_topology_desc(**described).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"--target={name!r}: the compiler knows no such devices ({reason}); give "
            f"{_ACCEPTED}"
        ) from error


def _need(name: str, extra: str, module: str) -> None:
    package = module.partition(".")[0]
    found = importlib.util.find_spec(package) and importlib.util.find_spec(module)
    if not found:
        raise InputError(
            f"--target={name!r} needs its compiler, which is not installed; run: "
            f"pip install 'rfq[{extra}]'"
        )


def _known(kind: str) -> Chip | None:
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)
