"""`rfq.optim` in projects of other people: their trees, wrappers and habits.

Most cases run jitted steps with donated arrays, as a training loop does, and ask
that parameters move, keep their types and stay finite.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training import train_state

from rfq import optim
from rfq.errors import InputError
from rfq.optim import build

NAMES = sorted(optim.OPTIMIZERS)
# Each case is a program to compile: Muon's is the smallest.
every = pytest.mark.parametrize(
    "name",
    [n if n == "muon" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
MATRIX = tuple(name for name in NAMES if name not in ("adamw", "sign_gd"))


def make(name: str, **options) -> optax.GradientTransformation:
    """An optimizer of the matrix `axes` where it has that argument."""
    if name not in MATRIX:
        options.pop("axes", None)
    return getattr(optim, name)(options.pop("learning_rate", 1e-2), **options)


def plain(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "w": jax.random.normal(keys[0], (4, 3), dtype),
        "b": jnp.ones((3,), dtype),
        "deep": {"w": jax.random.normal(keys[1], (3, 4), dtype), "none": None},
    }


def loss(params) -> jax.Array:
    return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in jax.tree.leaves(params))


def train(tx, params, num_steps: int = 4, init: Callable | None = None):
    """Steps as a training loop takes them: one program, old arrays donated."""

    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    params = jax.tree.map(jnp.array, params)
    state = (init or tx.init)(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def moved(before, after) -> dict[str, bool]:
    """Which leaves changed, all of them being finite and of the types of before."""
    flat, treedef = jax.tree.flatten(after)
    assert treedef == jax.tree.structure(before)
    names = build.axes_lib.paths(before)
    for old, new in zip(jax.tree.leaves(before), flat, strict=True):
        assert old.dtype == new.dtype and np.isfinite(np.asarray(new, float)).all()
    return {
        name: bool((np.asarray(old) != np.asarray(new)).any())
        for name, old, new in zip(names, jax.tree.leaves(before), flat, strict=True)
    }


# What people put around an optimizer of a plain tree.
WRAPPERS: dict[str, Callable[[str], Any]] = {
    "chain": lambda name: optax.chain(optax.clip_by_global_norm(1.0), make(name)),
    "masked": lambda name: optax.masked(
        make(name), {"w": True, "b": True, "deep": {"w": True, "none": None}}
    ),
    "multi_transform": lambda name: optax.multi_transform(
        {"a": make(name), "b": optax.sgd(1e-2)},
        lambda params: jax.tree.map(lambda p: "a" if p.ndim == 2 else "b", params),
    ),
    "multi_transform_axes": lambda name: optax.multi_transform(
        {
            "a": make(
                name,
                axes={
                    "w": optim.MatrixAxes((1,), (0,)),
                    "b": None,
                    "deep": {"w": optim.MatrixAxes((0,), (1,)), "none": None},
                },
                mask={"w": True, "b": False, "deep": {"w": True, "none": None}},
                rates={"deep/w": 0.5},
            ),
            "b": optax.sgd(1e-2),
        },
        {"w": "b", "b": "b", "deep": {"w": "a", "none": None}},
    ),
    "multi_steps": lambda name: optax.MultiSteps(make(name), 2),
    "apply_if_finite": lambda name: optax.apply_if_finite(make(name), 2),
    "schedule_free": lambda name: optax.contrib.schedule_free(make(name), 1e-2, b1=0.9),
    "inject_hyperparams": lambda name: optax.inject_hyperparams(getattr(optim, name))(
        learning_rate=1e-2
    ),
    "inject_schedule": lambda name: optax.inject_hyperparams(getattr(optim, name))(
        learning_rate=optax.linear_schedule(1e-2, 1e-3, 10), weight_decay=0.1
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@every
def test_what_optax_wraps_around_it(name, wrapper):
    params = plain()
    after, state = train(WRAPPERS[wrapper](name), params)
    assert all(moved(params, after).values()), (name, wrapper)
    assert optim.diagnostics(state).keys() == (
        optim.diagnostics(make(name).init(plain())).keys()
    )


@every
def test_holes_and_numbers_that_are_not_trained_stay(name):
    """None, as Equinox leaves it, integers, and None for a gradient of an array."""
    params = {"w": jnp.ones((4, 3)), "static": None, "table": jnp.arange(6)}
    tx = make(name)
    state = jax.jit(tx.init)(params)
    grads = {"w": jnp.ones((4, 3)), "static": None, "table": None}
    for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
    assert updates["static"] is updates["table"] is None and updates["w"].any()


@every
def test_bfloat16_parameters_and_seeds_side_by_side(name):
    """Parameters of two seeds under vmap do what they do alone; types stay."""
    params = plain(jnp.bfloat16)
    pair = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    tx = make(name)

    def run(params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return params, state

    after, state = jax.jit(jax.vmap(run))(pair)
    assert all(moved(pair, after).values())
    assert not any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state))
    alone, _ = jax.jit(run)(params)
    # bfloat16 has eight bits; batched products may round otherwise.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a[0], np.float32), np.asarray(b, np.float32), rtol=0.02
        ),
        after,
        alone,
    )


@every
def test_a_checkpoint_of_orbax_goes_on_to_the_bit(name, tmp_path):
    tx = optax.chain(make(name), optax.ema(0.9))
    params, state = train(tx, plain(), 2)
    kept = {"params": params, "state": state}
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "saved", kept)
        saver.wait_until_finished()
        found = saver.restore(tmp_path / "saved", jax.tree.map(jnp.zeros_like, kept))
    jax.tree.map(np.testing.assert_array_equal, found, kept)


# --- Trees of other libraries ---------------------------------------------------------


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4)(x)), None


class Linen(nn.Module):
    """A convolution, two stacked layers and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (2, 2), name="conv")(x).mean((1, 2))
        stack = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(2, name="head")(x)


LINEN_AXES = optim.axes_by_path(
    {
        "conv/kernel": optim.MatrixAxes((0, 1, 2), (3,)),
        "layers/*/kernel": optim.MatrixAxes((1,), (2,)),
        "head/kernel": optim.MatrixAxes((0,), (1,)),
    }
)


@every
def test_a_linen_train_state_with_a_convolution_and_a_scanned_stack(name):
    model, x = Linen(), jnp.ones((2, 4, 4, 1))
    tx = make(name, axes=LINEN_AXES, rates={"layers/*": 0.5})
    state = train_state.TrainState.create(
        apply_fn=model.apply, params=model.init(jax.random.key(0), x)["params"], tx=tx
    )
    before = state.params

    @jax.jit
    def step(state):
        def value(params):
            return jnp.mean((state.apply_fn({"params": params}, x) - 1.0) ** 2)

        return state.apply_gradients(grads=jax.grad(value)(state.params))

    for _ in range(3):
        state = step(state)
    assert all(moved(before, state.params).values())
    if name in MATRIX:
        stacks = state.opt_state[1].inner_states["matrix"][0].direction.stacks
        sizes = {size: len(stack.age) for size, stack in stacks.items()}
        assert sizes == {"4x4": 1 + 2, "2x4": 1}


@every
def test_an_nnx_optimizer_and_its_diagnostics(name):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(3, 4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(jnp.tanh(self.hidden(x)))

    net = Net(nnx.Rngs(0))
    axes = optim.axes_by_path({"hidden/kernel": optim.MatrixAxes((0,), (1,))})
    optimizer = nnx.Optimizer(net, make(name, axes=axes), wrt=nnx.Param)

    @nnx.jit
    def step(net, optimizer):
        grads = nnx.grad(lambda net: jnp.mean((net(jnp.ones((2, 3))) - 1.0) ** 2))(net)
        optimizer.update(net, grads)

    before = jax.tree.map(np.asarray, nnx.state(net, nnx.Param))
    for _ in range(3):
        step(net, optimizer)
    after = nnx.state(net, nnx.Param)
    assert all(moved(before, after).values())
    numbers = optim.diagnostics(optimizer.opt_state)
    assert ("update_rms" in numbers) == (name in MATRIX)
    assert all(np.isfinite(value) for value in numbers.values())


@every
def test_an_equinox_model(name):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(3, 2, 4, 2, key=jax.random.key(0))
    tx = make(name)
    state = tx.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def step(model, state):
        def value(model):
            return jnp.mean((jax.vmap(model)(jnp.ones((5, 3))) - 1.0) ** 2)

        grads = eqx.filter_grad(value)(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state

    before = eqx.filter(model, eqx.is_array)
    for _ in range(3):
        model, state = step(model, state)
    assert all(moved(before, eqx.filter(model, eqx.is_array)).values())


# --- What a person can get wrong ------------------------------------------------------


W = {"w": jnp.ones((4, 3))}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"w": optim.MatrixAxes((0,), (-1,))}, r"'w' of shape \(4, 3\) has no axis -1"),
        ({"w": optim.MatrixAxes((0,), (2,))}, "has no axis 2, .*count its axes from 0"),
        ({"w": optim.MatrixAxes(0, 1)}, "must hold two tuples of axis numbers"),
        ({"w": optim.MatrixAxes((0,), (0, 1))}, "names one axis twice"),
        ({"w": ((0,), (1,))}, r"at parameter 'w'; give an optim.MatrixAxes or None"),
        ({"v": None}, "`axes` must have the structure of the parameters"),
        (optim.axes_by_path({"v": None}), "the pattern 'v', which fits no parameter"),
        (optim.scanned_axes("w", axis=2), r"'w' of shape \(4, 3\) is said to be stack"),
    ],
)
def test_impossible_axes_are_named_in_a_sentence(axes, message):
    for tx in (optim.muon(1e-3, axes=axes), optim.scale_by_muon(axes=axes)):
        with pytest.raises(InputError, match=message):
            jax.eval_shape(tx.init, W)


def test_a_rate_of_no_parameter_and_traced_integers_are_named():
    with pytest.raises(InputError, match="`rates` has the pattern 'w_p', which fits"):
        optim.adamw(1e-3, rates={"w_p": 2.0}).init(W)
    with pytest.raises(InputError, match=r"optimizer.rates=.* must be a mapping"):
        optim.adamw(1e-3, rates={"w": -1.0})
    with pytest.raises(InputError, match=r"`anchors` has the pattern 'w_p', which"):
        optim.adamw(1e-3, anchors={"w_p": 2.0}).init(W)
    with pytest.raises(InputError, match=r"optimizer.anchors=.* must be a mapping"):
        optim.adamw(1e-3, anchors=2.0)
    tx = optax.inject_hyperparams(optim.soap)(1e-3, precondition_frequency=5)
    with pytest.raises(InputError, match=r"precondition_frequency .* static_args"):
        tx.init(W)
    with pytest.raises(TypeError, match=r"muon\(\) got an unexpected .*'b2'"):
        optim.muon(1e-3, b2=0.9)
    with pytest.raises(InputError, match=r"optimizer.learning_rate=-1.0 must be >= 0"):
        optim.muon(-1.0)


# --- Long sides -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_shampoo", "kl_soap", "shampoo", "soap"])
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (9, 9)])
def test_a_side_beyond_the_cap_has_no_factor(name, shape):
    """And the direction keeps its scale: the RMS of Adam's, near 1."""
    options = {"init_factor": 1e-3} if name.startswith("kl_") else {}
    make = getattr(optim, f"scale_by_{name}")
    tx = make(max_precondition_dim=8, **options)
    state, update = tx.init({"w": jnp.ones(shape)}), jax.jit(tx.update)
    assert not any(9 in x.shape[-2:-1] and x.shape[-1] == 9 for x in _factors(state))
    assert len(_factors(state)) == (2 if 4 in shape else 0)
    for index in range(300):
        g = 0.03 * jax.random.normal(jax.random.key(index), shape)
        out, state = update({"w": g}, state)
    # Momentum averages 2 / (1 - b1) - 1 = 19 to 39 independent gradients.
    assert 0.05 < float(jnp.sqrt(jnp.mean(out["w"] ** 2))) < 1.0


def _factors(state) -> list[jax.Array]:
    """The square arrays of a state that are no momentum."""
    (stack,) = state.stacks.values()
    inner = stack.inner._replace(momentum=None)
    inner = inner._replace(second=None) if hasattr(inner, "second") else inner
    found = [x for x in jax.tree.leaves(inner) if x.ndim == 3]
    assert all(x.shape[1] == x.shape[2] for x in found)
    return found


def test_the_readme_example_is_harmless_with_the_embedding_of_gpt2():
    params = {"embedding": jax.ShapeDtypeStruct((50_257, 768), jnp.float32)}
    size = math.prod(params["embedding"].shape) * 4
    for name in ("kl_shampoo", "kl_soap", "shampoo", "soap"):
        state = jax.eval_shape(make(name).init, params)
        used = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        assert used < 2.2 * size, name


# --- What is said of it ---------------------------------------------------------------

SCANNED = {
    "layers": {"kernel": jnp.ones((5, 4, 6)), "bias": jnp.ones((5, 6))},
    "head": jnp.ones((6, 4)),
    "step": jnp.int32(0),
}


@pytest.mark.parametrize("name", MATRIX)
def test_a_scanned_stack_without_axes_is_warned_of_where_it_is_made(name):
    with pytest.warns(UserWarning, match="look like stacked vectors, such as") as said:
        jax.eval_shape(getattr(optim, name)(1e-3).init, SCANNED)
    (message,) = {str(one.message) for one in said}
    assert "'layers/kernel' (5, 4, 6), get no matrix optimizer" in message
    assert "'layers/bias' (5, 6), are taken for matrices" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = optim.scanned_axes("layers/*")
        jax.eval_shape(getattr(optim, name)(1e-3, axes=axes).init, SCANNED)
        jax.eval_shape(getattr(optim, name)(1e-3).init, plain())


@pytest.mark.parametrize("name", NAMES)
def test_describe_says_what_becomes_of_each_leaf(name, capsys):
    """And its bytes are those of the state, but for counts that all leaves share."""
    axes = optim.scanned_axes("layers/*")
    config = optim.OPTIMIZERS[name]()
    found = {one.path: one for one in optim.describe(SCANNED, axes, config)}
    table = capsys.readouterr().out
    assert "layers/kernel  5x4x6  matrix     5 of 4x6" in table
    assert found["layers/kernel"][1:5] == ((5, 4, 6), "matrix", 5, (4, 6))
    assert found["layers/bias"][1:5] == ((5, 6), "other", 0, None)
    assert found["head"].num_matrices == 1 and "step" not in found
    state = jax.eval_shape(make(name, axes=axes).init, SCANNED)
    used = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert abs(sum(one.state_bytes for one in found.values()) - used) <= 32
    optim.describe(SCANNED)
    assert "note: without `axes` only leaves with two axes" in capsys.readouterr().out
