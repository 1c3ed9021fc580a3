"""Whole matrices on each device: same numbers, no talk, a share of work and state."""

import functools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rfq import optim
from rfq.errors import InputError
from rfq.optim import matrix
from rfq.params import MatrixAxes

COLLECTIVES = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
)
SCALE_BY = {
    "kl_shampoo": functools.partial(
        optim.scale_by_kl_shampoo, decomposition="cholesky"
    ),
    "soap": functools.partial(optim.scale_by_soap, decomposition="cholesky"),
    "muon": optim.scale_by_muon,
}
AXES = {
    "attention": MatrixAxes((1,), (2,)),
    "up": MatrixAxes((1,), (2,)),
    "down": MatrixAxes((1,), (2,)),
}


def shapes(num_layers: int, width: int):
    """Stacks of 4 L square and 2 L oblong matrices, as our model makes."""
    return {
        "attention": (4 * num_layers, width, width),
        "up": (num_layers, width, 4 * width),
        "down": (num_layers, 4 * width, width),
    }


def make_mesh(num_devices: int):
    return jax.make_mesh(
        (num_devices,),
        ("data",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:num_devices],
    )


def replicated(mesh):
    return None if mesh is None else NamedSharding(mesh, P())


def compiled(name: str, num_layers: int, width: int, mesh):
    """The compiled update, and the state's shapes with their shardings."""
    scale_by = SCALE_BY[name]
    tx = scale_by(axes=AXES, placement=replicated(mesh))
    grads = {
        key: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated(mesh))
        for key, shape in shapes(num_layers, width).items()
    }
    init = jax.jit(tx.init).lower(grads).compile()
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(tx.init, grads),
        init.output_shardings,
    )
    return jax.jit(tx.update).lower(grads, state).compile(), state


@pytest.mark.mesh
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kl_shampoo", marks=pytest.mark.slow),
        pytest.param("soap", marks=pytest.mark.slow),
        "muon",
    ],
)
@pytest.mark.parametrize("num_layers", [pytest.param(4, marks=pytest.mark.slow), 3])
def test_eight_devices_do_what_one_does(name, num_layers):
    """Fed the same gradients for 50 steps; 3 layers leave padding in both stacks.

    Compared are parameters after steps of rate 1e-2. Long sides have no bases here: of
    16 eigenvectors of one gradient 4 x 16 twelve are arbitrary, and which ones they are
    depends on the last bit of a product, so on the processor. Dealt stacks with both
    bases are compared where a state goes on.
    """
    short = {} if name == "muon" else {"max_precondition_dim": 8}
    scale_by = functools.partial(SCALE_BY[name], **short)
    rng = np.random.default_rng(0)
    sizes = shapes(num_layers, 4)
    found = {}
    grads = [
        {key: rng.normal(size=size).astype(np.float32) for key, size in sizes.items()}
        for _ in range(50)
    ]
    for mesh in (None, make_mesh(8)):
        tx = scale_by(axes=AXES, placement=replicated(mesh))
        state = jax.jit(tx.init)(grads[0])
        update = jax.jit(tx.update)
        params = {key: np.zeros(size, np.float32) for key, size in sizes.items()}
        for g in grads:
            out, state = update(g, state)
            params = {key: params[key] - 1e-2 * np.asarray(out[key]) for key in sizes}
        found[mesh is None] = params
        numbers = optim.diagnostics(state)
        assert numbers["nonfinite_skips"] == 0
        if mesh is not None:
            stack = state.stacks["4x4"].inner.momentum
            assert stack.shape[0] % 8 == 0
            assert stack.addressable_shards[0].data.shape[0] == stack.shape[0] // 8
    for key in sizes:
        # The same operations on the same matrices, vectorized for other batches.
        np.testing.assert_allclose(
            found[True][key], found[False][key], rtol=0, atol=1e-6
        )


def computations(text: str) -> dict[str, str]:
    """The computations of a compiled program, by name."""
    found, name = {}, None
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line)
        if start and not line.startswith(" "):
            name = start.group(1)
            found[name] = ""
        elif name is not None:
            found[name] += line + "\n"
    return found


def reachable(text: str, roots: set[str]) -> set[str]:
    bodies, seen, queue = computations(text), set(), list(roots)
    while queue:
        name = queue.pop()
        if name in seen or name not in bodies:
            continue
        seen.add(name)
        queue += re.findall(r"%([\w.\-]+)", bodies[name])
    return seen


@pytest.mark.mesh
@pytest.mark.parametrize("name", ["kl_shampoo", "soap"])
def test_the_refresh_does_not_communicate(name):
    """Gradients in and directions out are the only collectives of the program."""
    update, _ = compiled(name, 2, 8, make_mesh(8))
    text = update.as_text()
    branches = set()
    for operands in re.findall(
        r"(?:branch|true|false)_computations?=\{?([^}\s]*)", text
    ):
        branches |= set(re.findall(r"%?([\w.\-]+)", operands))
    inside = reachable(text, branches)
    bodies = computations(text)
    assert any("custom-call" in bodies[name] for name in inside), "no refresh found"
    for computation in inside:
        assert not COLLECTIVES.search(bodies[computation]), computation
    # Directions and flags of two stacks, each gathered once; the incoming gradients are
    # on every device here.
    assert len(re.findall(r" all-gather(?:-start)?\(", text)) <= 4
    assert not re.search(r" (all-reduce|all-to-all|collective-permute)", text)


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        pytest.param("kl_shampoo", (8,), marks=pytest.mark.slow),
        pytest.param("kl_shampoo", (2, 4), marks=pytest.mark.slow),
        pytest.param("soap", (2, 4, 8), marks=pytest.mark.slow),
    ],
)
def test_work_and_state_of_a_device_are_a_share(name, counts):
    """On the paper's 24 layers: 96 and 48 matrices."""
    flops, state_bytes = {}, {}
    for num_devices in (1, *counts):
        update, state = compiled(name, 24, 64, make_mesh(num_devices))
        flops[num_devices] = update.cost_analysis()["flops"]
        state_bytes[num_devices] = sum(
            np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
            for x in jax.tree.leaves(state)
        )
    for num_devices in counts:
        share = flops[num_devices] * num_devices / flops[1]
        assert 0.9 < share < 1.1, share
        share = state_bytes[num_devices] * num_devices / state_bytes[1]
        assert 0.9 < share < 1.1, share


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("kl_shampoo", marks=pytest.mark.slow),
        pytest.param("soap", marks=pytest.mark.slow),
        "muon",
    ],
)
def test_the_program_does_not_grow_with_layers(name):
    """Instructions, not seconds: equal programs compile in equal time, to the noise."""
    instructions = {
        num_layers: compiled(name, num_layers, 32, None)[0].as_text().count(" = ")
        for num_layers in (6, 24)
    }
    assert instructions[24] < 1.05 * instructions[6]


MESHES = {
    "fsdp": ((1, 8, 1), P(None, "fsdp", None), P(None, None, "fsdp")),
    "all_axes": ((2, 2, 2), P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")),
    "copies": ((8, 1, 1), P(), P()),
}


def spread(name: str):
    """Leaves cut as our model's are: what leads to the stream along "fsdp"."""
    sizes, into, out = MESHES[name]
    mesh = jax.sharding.Mesh(
        np.asarray(jax.devices()[:8]).reshape(sizes),
        ("data", "fsdp", "tensor"),
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )
    leaf = {"q": into, "o": out, "up": into, "down": out}
    return {key: NamedSharding(mesh, spec) for key, spec in leaf.items()}


@pytest.mark.mesh
@pytest.mark.parametrize(
    "name",
    [
        "all_axes",
        pytest.param("fsdp", marks=pytest.mark.slow),
        pytest.param("copies", marks=pytest.mark.slow),
    ],
)
def test_parts_of_leaves_become_whole_matrices_and_parts_again(name):
    """A rule that answers each matrix with itself times a matrix of its own place."""

    class Nothing(NamedTuple):
        def diagnostics(self):
            return {}

    def step(g, stack, t):
        weight = 1.0 + np.arange(g[0].size, dtype=np.float32).reshape(g[:1].shape)
        return g * weight, stack

    rule = matrix.Rule(init=lambda *sizes: Nothing(), step=step)
    axes = dict.fromkeys(("q", "o", "up", "down"), MatrixAxes((1,), (2,)))
    rng = np.random.default_rng(0)
    grads = {
        key: rng.normal(size=(3, *size)).astype(np.float32)
        for key, size in
        {"q": (8, 8), "o": (8, 8), "up": (8, 16), "down": (16, 8)}.items()
    }  # fmt: skip
    found = {}
    for placement in (None, spread(name)):
        tx = matrix.scale_by_rule(rule, axes=axes, placement=placement)
        state = jax.jit(tx.init)(grads)
        out, state = jax.jit(tx.update)(grads, state)
        found[placement is None] = jax.device_get((out, state.active))
        if placement is not None:
            assert state.stacks["8x8"].age.tolist() == [2] * 6 + [0] * 2
    jax.tree.map(np.testing.assert_array_equal, found[True], found[False])


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("where", "message"),
    [
        (P("fsdp"), "'w' with sharding .* cannot be dealt"),  # Layers.
        (
            P(None, "data", None),
            "'w' with sharding .* cannot be dealt",
        ),  # Not the last.
    ],
)
def test_a_leaf_that_cannot_be_dealt_is_named(where, message):
    mesh = spread("all_axes")["q"].mesh
    tx = matrix.scale_by_rule(
        matrix.Rule(init=lambda *sizes: (), step=lambda g, stack, t: (g, stack)),
        axes={"w": MatrixAxes((1,), (2,))},
        placement={"w": NamedSharding(mesh, where)},
    )
    with pytest.raises(InputError, match=message):
        jax.eval_shape(tx.init, {"w": jax.ShapeDtypeStruct((2, 8, 8), np.float32)})


@pytest.mark.slow
@pytest.mark.mesh
@pytest.mark.parametrize("name", sorted(SCALE_BY))
def test_a_state_goes_on_with_padding_of_zeros(name):
    """From one device to eight between two refreshes, as a restored checkpoint does."""
    scale_by = SCALE_BY[name]
    rng = np.random.default_rng(0)
    sizes = shapes(3, 4)
    grads = [
        {key: rng.normal(size=size).astype(np.float32) for key, size in sizes.items()}
        for _ in range(62)
    ]

    def made(mesh):
        tx = scale_by(axes=AXES, placement=replicated(mesh))
        return jax.jit(tx.update), tx.init

    (update, init), (update_on_8, init_on_8) = made(None), made(make_mesh(8))
    state = init(grads[0])
    for g in grads[:12]:
        _, state = update(g, state)
    longer = jax.tree.map(
        lambda x, like: np.resize(
            np.append(x, np.zeros(like.size, x.dtype)), like.shape
        ),
        state,
        jax.eval_shape(init_on_8, grads[0]),
    )
    for g in grads[12:]:
        expected, state = update(g, state)
        found, longer = update_on_8(g, longer)
    for key in sizes:
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(longer))
    ours, theirs = optim.diagnostics(longer), optim.diagnostics(state)
    assert ours["nonfinite_skips"] == theirs["nonfinite_skips"] == 0
    np.testing.assert_allclose(ours["update_rms"], theirs["update_rms"], rtol=1e-4)
