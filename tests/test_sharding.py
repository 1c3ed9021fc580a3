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
STRATEGIES = sorted(sharding.RULES)


def placed(strategy, mesh, shapes=SHAPES):
    """{path: (shape, sharding)} of the parameters."""
    shardings = sharding.params_shardings(
        ShardingConfig(strategy=strategy), mesh, shapes
    )
    return {
        jax.tree_util.keystr(path): (leaf.shape, where)
        for (path, leaf), where in zip(
            jax.tree_util.tree_leaves_with_path(shapes),
            jax.tree.leaves(shardings),
            strict=True,
        )
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_logical_axis_of_the_table_has_a_rule(strategy):
    rules = sharding.RULES[strategy]
    axes = {axis for row in params_lib.TABLE.values() for axis in row.logical}
    assert axes | {"batch"} == set(rules)
    assert rules["batch"] == "data"


def test_logical_axes_become_mesh_axes():
    rules = {"embed": "data", "heads": None}
    assert sharding.spec_for(("embed", None, "heads"), rules) == P("data", None, None)


def test_a_logical_axis_without_a_rule_is_named():
    with pytest.raises(InputError, match=r"\['depth'\].*embed"):
        sharding.spec_for(("embed", "depth"), {"embed": "data"})


@pytest.mark.mesh
def test_a_batch_must_divide_over_the_devices():
    sharding.check(7, "train.batch_size", sharding.make_mesh(1))
    mesh = sharding.make_mesh(8)
    sharding.check(16, "train.batch_size", mesh)
    with pytest.raises(InputError, match=r"train\.batch_size=12 .*8 devices"):
        sharding.check(12, "train.batch_size", mesh)


@pytest.mark.mesh
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ddp_copies_and_fsdp_cuts_every_parameter_along_the_width(strategy):
    mesh = sharding.make_mesh(8)
    for path, (shape, where) in placed(strategy, mesh).items():
        share = math.prod(shape) // math.prod(where.shard_shape(shape))
        assert share == {"ddp": 1, "fsdp": 8}[strategy], path


@pytest.mark.mesh
def test_a_parameter_that_does_not_divide_is_named_with_its_axis():
    mesh = sharding.make_mesh(8)
    shapes = transformer.shapes(examples.config(width=12, num_heads=3))
    with pytest.raises(InputError, match=r"parameter \['.*'embed' of size 12 .*8 dev"):
        placed("fsdp", mesh, shapes)
    placed("ddp", mesh, shapes)


@pytest.mark.mesh
def test_moments_live_where_their_parameters_do():
    mesh = sharding.make_mesh(8)
    optimizer = build.build(
        optim.AdamWConfig(),
        ScheduleConfig(warmup_steps=1),
        10,
        axes=params_lib.matrix_axes(SHAPES),
        decay_mask=params_lib.decayed(SHAPES),
        clip_norm=1.0,
    )
    state = jax.eval_shape(optimizer.init, SHAPES)
    config = ShardingConfig(strategy="fsdp")
    where = sharding.state_shardings(config, mesh, state, SHAPES)
    params = placed("fsdp", mesh)
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
    assert sharding.make_mesh(2).devices.tolist() == jax.devices()[:2]
