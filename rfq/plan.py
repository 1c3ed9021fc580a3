"""DRIVER of `--dry-run`: what a run would cost, without allocating an array."""

import jax

from rfq import metrics, sharding, steps
from rfq import params as params_lib
from rfq.experiment import Experiment, fingerprint
from rfq.model import transformer
from rfq.model.config import flops_per_token, num_params

_GIB = 2**30


def run(experiment: Experiment) -> None:
    """Compiles one training step of abstract arrays and prints what it needs.

    Raises:
        InputError: the batch or a parameter does not divide over the devices.
    """
    mesh = sharding.make_mesh()
    sharding.check(experiment.train.batch_size, "train.batch_size", mesh)
    compiled = steps.compile_train(experiment, mesh)
    model, tokens = experiment.model, experiment.tokens_per_step
    flops = tokens * flops_per_token(model)
    batch = jax.ShapeDtypeStruct(
        (experiment.train.batch_size, model.seq_len + 1),
        "int32",
        sharding=sharding.batch_sharding(mesh),
    )
    program = compiled.train.lower(compiled.state, batch).compile()
    params = sharding.bytes_per_device(compiled.state.params)
    opt_state = sharding.bytes_per_device(compiled.state.opt_state)
    metrics.say(
        f"{experiment.arm}: fingerprint {fingerprint(experiment)}, "
        f"{model.num_layers} layers of width {model.width}, {model.skip}, "
        f"{experiment.train.num_steps:,} steps of {tokens:,} tokens\n"
        f"  parameters         {num_params(model):,}\n"
        f"  FLOPs per step     {flops:.3e} (6 N per token and causal attention; the "
        "optimizer comes on top)\n"
        f"  FLOPs of the run   {flops * experiment.train.num_steps:.3e}\n"
        f"  bytes per device, {experiment.sharding.strategy} on {mesh.size} device(s)\n"
        f"    parameters       {params / _GIB:.3f} GiB\n"
        f"    optimizer state  {opt_state / _GIB:.3f} GiB\n"
        f"    working memory   {_working_memory(program)} (compiled for "
        f"{mesh.devices.flat[0].platform})\n"
        "  placement"
    )
    shapes = transformer.shapes(model)
    rows = jax.tree.leaves(
        params_lib.axes(shapes),
        is_leaf=lambda row: isinstance(row, params_lib.ParamAxes),
    )
    for (path, leaf), row in zip(
        jax.tree_util.tree_leaves_with_path(compiled.state.params), rows, strict=True
    ):
        name = "/".join(str(key.key) for key in path)
        logical = " x ".join(
            f"{axis}={size}" for axis, size in zip(row.logical, leaf.shape, strict=True)
        )
        metrics.say(f"    {name:18} {logical:48} {leaf.sharding.spec}")


def _working_memory(program: jax.stages.Compiled) -> str:
    analysis = program.memory_analysis()
    if analysis is None:
        return "not told by this backend"
    return f"{analysis.temp_size_in_bytes / _GIB:.3f} GiB"
