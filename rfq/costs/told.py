"""What `--dry-run` prints."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rfq import metrics
from rfq.costs import roofline, targets
from rfq.experiment import Experiment

if TYPE_CHECKING:
    from rfq.costs.plan import Plan

_GIB, _MIB = 2**30, 2**20


def arm(experiment: Experiment, plan: "Plan", row: Mapping[str, Any]) -> None:
    """Print all numbers of an arm's plan."""
    model, flops = experiment.model, row["flops_per_step"]
    shape = " x ".join(f"{axis}={size}" for axis, size in plan.mesh.items())
    whole = row["largest_whole"]
    lines = [
        f"{experiment.arm}: fingerprint {row['config_fingerprint']}, "
        f"{model.num_layers} layers of width {model.width}, {model.skip}, "
        f"{experiment.train.num_steps:,} steps of {row['tokens_per_step']:,} tokens",
        f"  parameters         {row['num_params']:,}",
        f"  devices            {row['num_devices']} of {plan.target.name}, "
        f"{experiment.sharding.strategy}: {shape}",
        f"  memory             {_fit(plan)}",
        "  hours of training  " + _hours(row),
    ]
    if row["largest_batch_size"] is not None:
        lines.append(
            f"  largest batch      {row['largest_batch_size']:,} sequences a step, of "
            "those compiled"
        )
    lines += [
        f"  checkpoints        {row['disk_bytes'] / _GIB:.3f} GiB of disk at most: "
        f"{experiment.log.keep_checkpoints} kept and one being written, "
        f"{row['checkpoint_bytes'] / _GIB:.3f} GiB each",
        f"  FLOPs of the run   {flops * experiment.train.num_steps:.3e}",
        f"  FLOPs per step     {flops:.3e} of the model (6 N per token and causal "
        "attention)",
        *_work(plan, row),
        f"  compiled in        {plan.compile_seconds:.1f} s",
        "  bytes per device",
        f"    parameters       {row['params_bytes'] / _GIB:.3f} GiB",
        f"    optimizer state  {row['opt_state_bytes'] / _GIB:.3f} GiB",
        f"    all arguments    {gib(row['argument_bytes'])} (of the compiled program)",
        f"    working memory   {gib(row['working_bytes'])}",
        f"    code             {gib(row['code_bytes'])}",
        f"    largest array    {plan.largest.num_bytes / _GIB:.3f} GiB, "
        f"{plan.largest.shape} of {plan.largest.op}",
        "    largest copy     "
        + (
            "nothing is whole on every device"
            if whole is None
            else f"{whole['num_bytes'] / _GIB:.6f} GiB, {whole['name']}, of "
            "what is whole on every device"
        ),
        "  placement: MiB per device, axes, mesh axes that cut them",
    ]
    lines += [
        f"    {group.name:32} {group.num_bytes / _MIB:10.3f}  {group.axes:44} "
        f"{group.spec}"
        for group in (*plan.params, *plan.opt_state)
    ]
    metrics.say("\n".join(lines))


def _work(plan: "Plan", row: Mapping[str, Any]) -> list[str]:
    """Say what a step does: products, bytes, exchanges, and the roofline's time."""
    work, chip = plan.roofline, plan.target.chip
    if work is None:
        return ["  work               not known: the compiler refused the program"]
    parts = ", ".join(f"{part} {n:.3e}" for part, n in work.flops.items() if n)
    lines = [
        f"  FLOPs executed     {sum(work.flops.values()):.3e} in matrix products a "
        f"step and device ({parts or 'none'}), "
        f"{row['executed_over_model'] or 0:.3f} times the model's",
        f"  bytes moved        {work.bytes_moved / _GIB:.2f} GiB a step and device",
    ]
    if work.unknown_loops:
        lines.append(
            f"  loops              {work.unknown_loops} of unknown length, counted once"
        )
    if not work.exchanges:
        lines.append("  exchanges          none")
    lines += [
        f"  {'exchanges' if i == 0 else '':18} {one.op} over {one.axes}: "
        f"{one.num_bytes / _MIB:.2f} MiB a step and device"
        + (f", {1e3 * one.seconds:.2f} ms" if one.seconds else "")
        for i, one in enumerate(work.exchanges)
    ]
    if chip is None:
        return lines
    crossing = sum(one.seconds for one in work.exchanges)
    lines.append(
        f"  roofline           {1e3 * work.seconds:.1f} ms a step: "
        f"{1e3 * work.product_seconds:.1f} of products, "
        f"{1e3 * work.other_seconds:.1f} of other operations, {1e3 * crossing:.1f} of "
        "exchanges"
    )
    lines.append(f"  it assumes that    {roofline.ASSUMED}")
    peaks = ", ".join(f"{unit} {rate:.3g}" for unit, rate in chip.flops.items())
    lines.append(
        f"  of a device        FLOP/s: {peaks}; bytes/s: memory {chip.bandwidth:.3g}"
        + (f", links {chip.link:.3g}" if chip.link else "")
        + (f", between hosts {chip.network:.3g}" if chip.network else "")
    )
    if work.compiler_seconds is not None:
        lines.append(
            f"  the compiler's own {1e3 * work.compiler_seconds:.1f} ms a step without "
            "exchanges: its cycles of each operation, times the trips of the loops"
        )
    return lines


def _hours(row: Mapping[str, Any]) -> str:
    if row["hours"] is None:
        return (
            "not known: these devices have no speed; plan for others with --target, "
            "for example h100:1x4, or give --device-flops"
        )
    how = (
        "from --device-flops"
        if row["device_flops"]
        else f"an estimate, {1e3 * row['step_seconds']:.1f} ms a step at the roofline"
    )
    mfu = "" if row["mfu"] is None else f", MFU {100 * row['mfu']:.1f} %"
    return f"{row['hours']:.2f}, {how}{mfu}"


def together(rows: Sequence[Mapping[str, Any]], num_seeds: int) -> None:
    """Print a line for each arm, and what all take one after the other."""
    lines = [
        (row["arm"], row["hours"], row["needed_bytes"], row["disk_bytes"])
        for row in rows
    ]
    _, hours, memory, disks = zip(*lines, strict=True)
    every = (
        f"all, {num_seeds} seed{'s' * (num_seeds > 1)}",
        None if None in hours else num_seeds * sum(hours),
        None if None in memory else max(memory),
        num_seeds * sum(disks),
    )
    metrics.say(
        f"{'arm':32} {'hours (estimate)':>16} {'memory per device':>24} "
        f"{'disk of checkpoints':>20}"
    )
    for name, took, num_bytes, disk in (*lines, every):
        known = "not known" if took is None else f"{took:.2f}"
        metrics.say(f"{name:32} {known:>16} {gib(num_bytes):>24} {gib(disk):>20}")


def _fit(plan: "Plan") -> str:
    """Say whether a device's memory is enough."""
    needed = None if plan.memory is None else plan.memory.needed
    there = targets.memory(plan.target)
    if needed is None or there is None:
        return gib(needed)
    if plan.fits:
        return f"{gib(needed)} a device, fits in its {gib(there)}"
    return (
        f"{gib(needed)} a device, does not fit in its {gib(there)}: lower "
        "train.batch_size or the model, raise sharding.microbatches, set model.remat, "
        "or divide it over more devices (sharding.strategy)"
    )


def gib(num_bytes: int | None) -> str:
    """Format bytes as a person reads them."""
    return (
        "not told by this backend"
        if num_bytes is None
        else f"{num_bytes / _GIB:.3f} GiB"
    )
