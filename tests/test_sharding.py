"""Where arrays live: the table, its errors, and what one device holds."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rfq import optim, sharding
from rfq import params as params_lib
from rfq.errors import InputError
from rfq.model import transformer
from rfq.optim import build
from rfq.optim.schedule import ScheduleConfig
from rfq.sharding import ShardingConfig
from tests.model import examples

MODEL = examples.config(width=48, num_heads=3, vocab_size=40)
SHAPES = transformer.shapes(MODEL)
STRATEGIES = sorted(sharding.STRATEGIES)


def mesh_for(strategy, num_devices=8, **sizes):
    return sharding.make_mesh(num_devices, ShardingConfig(strategy=strategy, **sizes))


def placed(mesh, shapes=SHAPES):
    """{path: (shape, sharding)} of the parameters."""
    shardings = sharding.params_shardings(mesh, shapes)
    return {
        jax.tree_util.keystr(path): (leaf.shape, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(shapes),
            jax.tree.leaves(shardings),
            strict=True,
        )
    }


def test_every_logical_axis_of_the_table_has_a_rule_of_mesh_axes():
    axes = {axis for row in params_lib.TABLE.values() for axis in row.logical}
    assert axes <= set(sharding.RULES)
    for mesh_axes in sharding.RULES.values():
        assert set(mesh_axes) <= set(sharding.AXES)


def test_logical_axes_become_mesh_axes():
    spec = sharding.spec_for(("batch", "embed", "position", "heads"))
    assert spec == P(("data", "fsdp"), "fsdp", None, "tensor")


def test_a_logical_axis_without_a_rule_is_named():
    with pytest.raises(InputError, match=r"\['depth'\].*embed"):
        sharding.spec_for(("embed", "depth"))


@pytest.mark.parametrize(
    ("strategy", "num_devices", "num_hosts", "shape"),
    [
        ("ddp", 8, 2, (8, 1, 1)),
        ("fsdp", 8, 2, (1, 8, 1)),
        ("fsdp_tp", 8, 2, (1, 4, 2)),
        ("fsdp_tp", 3, 1, (1, 3, 1)),  # Nothing to pair.
        ("hybrid", 8, 2, (2, 4, 1)),
    ],
)
def test_a_strategy_takes_all_devices(strategy, num_devices, num_hosts, shape):
    config = ShardingConfig(strategy=strategy)
    assert sharding.mesh_shape(config, num_devices, num_hosts) == shape


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_devices", [1, 2, 3, 6, 8, 256])
def test_defaults_work_for_any_number_of_devices(strategy, num_devices):
    shape = sharding.mesh_shape(ShardingConfig(strategy=strategy), num_devices, 1)
    assert math.prod(shape) == num_devices


def test_given_sizes_are_taken_and_the_rest_is_the_strategys():
    config = ShardingConfig(strategy="fsdp", data=2, tensor=4)
    assert sharding.mesh_shape(config, 16, 1) == (2, 2, 4)


@pytest.mark.parametrize("sizes", [{"tensor": 3}, {"data": 16}, {"fsdp": 4, "data": 4}])
def test_a_mesh_that_is_not_the_devices_is_spelled_out(sizes):
    config = ShardingConfig(strategy="fsdp", **sizes)
    with pytest.raises(InputError, match=r"the mesh data=.* not the 8 devices"):
        sharding.mesh_shape(config, 8, 1)


@pytest.mark.parametrize("field", ["data", "fsdp", "tensor", "microbatches"])
def test_sizes_are_positive(field):
    with pytest.raises(InputError, match=rf"sharding\.{field}=0 must be >= 1"):
        ShardingConfig(**{field: 0})


@pytest.mark.mesh
def test_a_batch_must_divide_over_the_devices_that_share_it():
    sharding.check(7, "train.batch_size", sharding.make_mesh(1))
    mesh = mesh_for("fsdp_tp")
    sharding.check(12, "train.batch_size", mesh)
    with pytest.raises(InputError, match=r"train\.batch_size=6 .*4 devices"):
        sharding.check(6, "train.batch_size", mesh)
    with pytest.raises(InputError, match=r"=12 .*4 devices .* times 2 microbatches"):
        sharding.check(12, "train.batch_size", mesh, 2)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("strategy", "shares"),
    [
        ("ddp", {1}),
        ("fsdp", {8}),
        # Gains have nothing that "tensor" would cut.
        ("fsdp_tp", {4, 8}),
        ("hybrid", {8}),
    ],
)
def test_each_device_has_its_share_of_every_parameter(strategy, shares):
    model = examples.config(width=48, num_heads=2, vocab_size=40)
    found = {
        math.prod(shape) // math.prod(where.shard_shape(shape))
        for shape, where in placed(
            mesh_for(strategy), transformer.shapes(model)
        ).values()
    }
    assert found == shares


@pytest.mark.mesh
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_part_of_llama_is_cut(strategy):
    model = examples.config(
        **{**examples.LLAMA, "mlp_ratio": 2, "num_kv_heads": 2},
        **{"width": 48, "num_heads": 4, "vocab_size": 40},
    )
    mesh = mesh_for(strategy)
    found = placed(mesh, transformer.shapes(model))
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    for name, cut in (
        ("['unembedding']", (tensor, fsdp)),
        ("['blocks']['w_mlp_gate']", (1, fsdp, tensor)),
        ("['blocks']['w_k']", (1, fsdp, tensor, 1)),
        ("['blocks']['b_k']", (1, tensor, 1)),
    ):
        shape, where = found[name]
        shard = where.shard_shape(shape)
        assert tuple(n // m for n, m in zip(shape, shard, strict=True)) == cut, name


@pytest.mark.mesh
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gates_and_projections_are_cut_and_a_single_gain_is_not(strategy):
    model = examples.config(width=48, num_heads=2, vocab_size=40, **examples.RIVALS)
    mesh = mesh_for(strategy)
    found = placed(mesh, transformer.shapes(model))
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    for name, cut in (
        ("['w_embed']", (fsdp, 1)),
        ("['w_unembed']", (fsdp, 1)),
        ("['blocks']['w_gate']", (1, fsdp, tensor)),
        ("['blocks']['attn_norm']", (1, 1)),
        ("['final_norm']", (1,)),
    ):
        shape, where = found[name]
        shard = where.shard_shape(shape)
        assert tuple(n // m for n, m in zip(shape, shard, strict=True)) == cut, name


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("strategy", "sizes", "message"),
    [
        ("fsdp", {}, r"parameter \['.*'embed' of size 12 .*8 dev.*sharding\.fsdp"),
        ("fsdp_tp", {}, r"parameter \['.*heads' of size 3 .*2 dev.*'tensor'"),
        ("ddp", {"tensor": 4}, r"parameter \['.*heads' of size 3 .*4 dev.*'tensor'"),
    ],
)  # fmt: skip
def test_a_parameter_that_does_not_divide_is_named_with_its_axis(
    strategy, sizes, message
):
    shapes = transformer.shapes(examples.config(width=12, num_heads=3))
    with pytest.raises(InputError, match=message):
        placed(mesh_for(strategy, **sizes), shapes)
    placed(mesh_for("ddp"), shapes)


@pytest.mark.mesh
def test_moments_live_where_their_parameters_do():
    mesh = mesh_for("fsdp")
    optimizer = build.build(
        optim.AdamWConfig(),
        ScheduleConfig(warmup_steps=1),
        10,
        axes=params_lib.matrix_axes(SHAPES),
        decay_mask=params_lib.decayed(SHAPES),
        clip_norm=1.0,
    )
    state = jax.eval_shape(optimizer.init, SHAPES)
    where = sharding.state_shardings(mesh, state, SHAPES)
    params = placed(mesh)
    found = {path: 0 for path in params}
    for (path, leaf), sharded in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(where), strict=True
    ):
        name = jax.tree_util.keystr(path)
        owner = next(
            (p for p, (shape, _) in params.items()
             if name.endswith(p) and shape == leaf.shape),
            None,
        )  # fmt: skip
        if owner is None:
            assert sharded.is_fully_replicated, name
        else:
            assert sharded == params[owner][1]
            found[owner] += 1
    # Adam keeps two moments of every parameter.
    assert set(found.values()) == {2}


@pytest.mark.mesh
def test_rows_of_a_batch_are_dealt_in_order():
    mesh = sharding.make_mesh(8)
    local = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
    batch = sharding.to_global(local, mesh)
    np.testing.assert_array_equal(batch, local)
    for shard in batch.addressable_shards:
        np.testing.assert_array_equal(shard.data, local[shard.index])
        assert shard.data.shape == (2, 3)


@pytest.mark.mesh
def test_a_mesh_takes_the_first_devices():
    assert sharding.make_mesh().size == jax.device_count()
    assert sharding.make_mesh(2).devices.ravel().tolist() == jax.devices()[:2]
