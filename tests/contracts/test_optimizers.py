"""What every row of OPTIMIZERS promises, tested the day the row is added."""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rfq import optim
from rfq.errors import InputError
from rfq.optim import build, public, schedule
from rfq.params import MatrixAxes

AXES = {
    "blocks": {"w": MatrixAxes((1,), (2,)), "heads": MatrixAxes((1,), (2, 3))},
    "gain": None,
    "embedding": None,
}
NUM_STEPS = 45


def make_params(seed: int = 0):
    shapes = {
        "blocks": {"w": (3, 6, 4), "heads": (2, 4, 2, 3)},
        "gain": (3, 4),
        "embedding": (5, 4),
    }
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    return jax.tree.map(
        lambda shape: jax.random.normal(next(keys), shape),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def fields(name: str) -> set[str]:
    """The fields of a row's config."""
    return {field.name for field in dataclasses.fields(optim.OPTIMIZERS[name])}


def make(name: str) -> optax.GradientTransformation:
    given = {"learning_rate": 0.05, "weight_decay": 0.01}
    if "init_factor" in fields(name):
        # Near the RMS of the gradients, so that 45 steps are not all slow start.
        given["init_factor"] = 1.0
    return build.build(
        optim.OPTIMIZERS[name](**given),
        schedule.ScheduleConfig(kind="constant", warmup_steps=0),
        1_000,
        axes=AXES,
        decay_mask=lambda params: jax.tree.map(lambda p: p.ndim > 2, params),
        clip_norm=None,
    )


@functools.cache
def compiled(name: str):
    return jax.jit(make(name).update)


rows = pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))


def run(name: str, grad, num_steps: int, params=None, state=None, start: int = 0):
    """Steps on `grad(index, params)`; returns parameters and state."""
    params = make_params() if params is None else params
    state = make(name).init(params) if state is None else state
    for index in range(start, start + num_steps):
        updates, state = compiled(name)(grad(index, params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def quadratic(index, params):
    """The gradient of |W - W*|^2 / 2, W* another draw."""
    del index
    return jax.tree.map(jnp.subtract, params, make_params(seed=1))


def distance(params) -> float:
    return float(optax.tree.norm(quadratic(0, params)))


@rows
def test_it_decreases_a_quadratic(name):
    params, _ = run(name, quadratic, NUM_STEPS)
    assert distance(params) < 0.7 * distance(make_params())


@rows
def test_types_and_shapes_are_stable_and_resuming_is_exact(name):
    params, state = run(name, quadratic, 12)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, make(name).init(params))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, make_params())
    saved = jax.tree.map(np.asarray, (params, state))
    whole = run(name, quadratic, 12, params, state)
    resumed = run(name, quadratic, 12, *jax.tree.map(jnp.asarray, saved))
    chex.assert_trees_all_equal(whole, resumed)


@rows
def test_stacked_leaves_are_treated_matrix_by_matrix(name):
    """Changing the gradients of one layer changes the updates of that layer alone."""

    def other_layer(index, params):
        grads = quadratic(index, params)
        # The last matrix of a stack; the sign flip and scale change its every quantity.
        w = grads["blocks"]["w"].at[2].multiply(-3.0)
        return {**grads, "blocks": {**grads["blocks"], "w": w}}

    plain, _ = run(name, quadratic, 12)
    changed, _ = run(name, other_layer, 12)
    same = ("gain", "embedding")
    chex.assert_trees_all_equal(
        {k: plain[k] for k in same}, {k: changed[k] for k in same}
    )
    chex.assert_trees_all_equal(plain["blocks"]["heads"], changed["blocks"]["heads"])
    w, w_changed = plain["blocks"]["w"], changed["blocks"]["w"]
    chex.assert_trees_all_equal(w[:2], w_changed[:2])
    assert float(jnp.abs(w[2] - w_changed[2]).max()) > 1e-3


@rows
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_bad_gradient_never_poisons_the_state(name, bad):
    """1e30 is finite, but its square is not."""

    def spoiled(index, params):
        grads = quadratic(index, params)
        if index in (0, 5):
            w = grads["blocks"]["w"].at[1, 2, 3].set(bad)
            gain = grads["gain"].at[0, 0].set(bad)
            grads = {**grads, "blocks": {**grads["blocks"], "w": w}, "gain": gain}
        return grads

    params, state = run(name, spoiled, 5)
    before = params
    params, state = run(name, spoiled, 1, params, state, start=5)
    chex.assert_trees_all_equal(params["gain"], before["gain"])
    moved = jnp.abs(params["blocks"]["w"] - before["blocks"]["w"]).max(axis=(1, 2))
    # Where matrices are told apart one of them sits out, elsewhere the whole leaf.
    by_matrix = issubclass(optim.OPTIMIZERS[name], build.MatrixConfig)
    np.testing.assert_array_equal(moved > 0, [by_matrix, False, by_matrix])
    if by_matrix:
        assert optim.diagnostics(state)["nonfinite_skips"] == 2
    params, state = run(name, spoiled, 20, params, state, start=6)
    chex.assert_tree_all_finite((params, state))
    after, _ = run(name, quadratic, 26)
    assert distance(params) < 0.5 * (distance(make_params()) + distance(after))


@rows
def test_zero_and_rank_one_gradients_stay_finite(name):
    def grad(index, params):
        if index < 11:
            return jax.tree.map(jnp.zeros_like, params)
        return jax.tree.map(jnp.ones_like, params)

    params, state = run(name, grad, 11)
    chex.assert_tree_all_finite((params, state))
    params, state = run(name, grad, 24, params, state, start=11)
    chex.assert_tree_all_finite((params, state))


@rows
def test_bfloat16_gradients_keep_a_float32_state(name):
    params = make_params()
    state = make(name).init(params)
    grads = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    updates, new = jax.eval_shape(make(name).update, grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    assert not any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(new))


@rows
def test_diagnostics_are_finite_scalars(name):
    _, state = run(name, quadratic, 12)
    numbers = optim.diagnostics(state)
    assert set(numbers) <= set(optim.matrix.AGGREGATES)
    for value in numbers.values():
        assert value.shape == () and value.dtype == jnp.float32
        assert np.isfinite(value)
    assert numbers.get("basis_error", 0.0) < 1e-5
    if "eigenvalue_max" in numbers:
        assert 0 <= numbers["eigenvalue_min"] < numbers["eigenvalue_max"]


@rows
def test_every_row_is_an_optax_function_that_makes_what_the_config_makes(name):
    """`transform` of the row takes the config's fields and has its defaults."""
    config, function = (
        optim.OPTIMIZERS[name],
        public.transform(optim.OPTIMIZERS[name], name),
    )
    parameters = inspect.signature(function).parameters
    rates = {"learning_rate", "other_learning_rate"}
    for field in dataclasses.fields(config):
        assert field.name in parameters
        if field.name not in rates:
            default = getattr(config(), field.name)
            assert repr(parameters[field.name].default) == repr(default)
        assert f"{field.name}: " in function.__doc__
    grads = make_params(seed=1)
    options = {"axes": AXES} if "axes" in parameters else {}
    tx = function(0.05, weight_decay=0.1, rates={"w": 3.0}, **options)
    ours, _ = tx.update(grads, tx.init(grads), grads)
    config = config(learning_rate=0.05, weight_decay=0.1, rates={"w": 3.0})
    constant = schedule.ScheduleConfig(kind="constant", warmup_steps=0)
    tx = build.build(config, constant, 10, axes=AXES, decay_mask=None, clip_norm=None)
    theirs, _ = tx.update(grads, tx.init(grads), grads)
    chex.assert_trees_all_equal(ours, theirs)


@rows
def test_rates_multiply_the_rate_of_the_leaves_that_they_fit(name):
    """In the update and in the decay; a factor of 1 changes no bit."""
    function = public.transform(optim.OPTIMIZERS[name], name)
    options = {"axes": AXES} if "axes" in inspect.signature(function).parameters else {}
    params, updates = make_params(), {}
    for label, rates in {
        "none": {},
        "one": {"blocks/*": 1.0},
        "ten": {"w": 10.0, "*": 1.0},
        "frozen": {"gain": 0.0},
    }.items():
        tx = function(0.05, weight_decay=0.1, rates=rates, **options)
        state = tx.init(params)
        for index in range(2):
            updates[label], state = tx.update(quadratic(index, params), state, params)
    chex.assert_trees_all_equal(updates["one"], updates["none"])
    w = updates["none"]["blocks"]["w"]
    np.testing.assert_allclose(updates["ten"]["blocks"]["w"], 10 * w, rtol=1e-5)
    updates["ten"]["blocks"]["w"] = w
    chex.assert_trees_all_equal(updates["ten"], updates["none"])
    assert not updates["frozen"]["gain"].any() and updates["none"]["gain"].any()


@rows
def test_anchors_pull_the_leaves_that_they_fit_to_their_first_values(name):
    """Other leaves keep every bit, and without a gradient nothing leaves its place."""
    function = public.transform(optim.OPTIMIZERS[name], name)
    options = {"axes": AXES} if "axes" in inspect.signature(function).parameters else {}
    start, ends = make_params(), {}
    for label, anchors in {"free": {}, "held": {"blocks/w": 5.0}}.items():
        tx = function(0.05, weight_decay=0.1, anchors=anchors, **options)
        params, state = start, tx.init(start)
        for index in range(4):
            grads = quadratic(index, start)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        ends[label] = params
        still, _ = tx.update(jax.tree.map(jnp.zeros_like, start), tx.init(start), start)
        assert label == "free" or not still["blocks"]["w"].any()
    held, free = (
        jnp.linalg.norm(ends[label]["blocks"]["w"] - start["blocks"]["w"])
        for label in ("held", "free")
    )
    assert held < 0.8 * free
    ends["held"]["blocks"]["w"] = ends["free"]["blocks"]["w"]
    chex.assert_trees_all_equal(ends["held"], ends["free"])


IMPOSSIBLE = {"learning_rate": -1.0, "weight_decay": -1.0, "decay": "after", "b1": 1.0}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (name, field)
        for name in sorted(optim.OPTIMIZERS)
        for field in IMPOSSIBLE
        if field in fields(name)
    ],
)
def test_impossible_fields_are_refused_by_name(name, field):
    with pytest.raises(InputError, match=f"optimizer.{field}="):
        optim.OPTIMIZERS[name](**{field: IMPOSSIBLE[field]})
