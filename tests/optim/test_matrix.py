from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfq import optim
from rfq.errors import InputError
from rfq.optim import matrix
from rfq.params import MatrixAxes
from tests.oracles.basis import Basis, get_basis, set_basis
from tests.oracles.kl_reference import ReferenceConfig


class Echo(NamedTuple):
    """State of a rule that returns its gradients and keeps the last stack."""

    last: jax.Array

    def diagnostics(self):
        return {}


def echo_rule() -> matrix.Rule:
    return matrix.Rule(
        init=lambda num, m, n, dtype: Echo(jnp.zeros((num, m, n), dtype)),
        step=lambda g, stack, t: (g, Echo(g)),
    )


def echo(axes, rule=None):
    return matrix.scale_by_rule(rule or echo_rule(), axes=axes)


@st.composite
def leaves(draw):
    """A shape and a split of its axes into batch, in and out."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    axes = draw(st.permutations(range(len(sizes))))
    num_in = draw(st.integers(1, len(sizes) - 1))
    num_out = draw(st.integers(1, len(sizes) - num_in))
    row = MatrixAxes(tuple(axes[:num_in]), tuple(axes[num_in : num_in + num_out]))
    return tuple(sizes), row


@pytest.mark.slow
# Every example compiles its own shapes.
@settings(max_examples=8)
@given(st.lists(leaves(), min_size=1, max_size=3))
def test_collecting_and_distributing_is_the_identity(drawn):
    params = {
        f"p{i}": jnp.arange(float(np.prod(shape))).reshape(shape) + 100 * i
        for i, (shape, _) in enumerate(drawn)
    }
    tx = echo({f"p{i}": row for i, (_, row) in enumerate(drawn)})
    out, state = tx.update(params, tx.init(params))
    chex.assert_trees_all_equal(out, params)
    for stack in state.stacks.values():
        _, m, n = stack.inner.last.shape
        assert m <= n
    total = sum(stack.inner.last.size for stack in state.stacks.values())
    assert total == sum(p.size for p in params.values())


def test_matrices_of_one_shape_share_a_stack_whatever_their_leaf():
    """Our six leaves make two stacks: 4 L of D x D and 2 L of D x F."""
    params = {
        "w_q": jnp.ones((2, 8, 2, 4)),
        "w_o": jnp.ones((2, 2, 4, 8)),
        "w_up": jnp.ones((2, 8, 32)),
        "w_down": jnp.ones((2, 32, 8)),
    }
    axes = {
        "w_q": MatrixAxes((1,), (2, 3)),
        "w_o": MatrixAxes((1, 2), (3,)),
        "w_up": MatrixAxes((1,), (2,)),
        "w_down": MatrixAxes((1,), (2,)),
    }
    stacks = echo(axes).init(params).stacks
    shapes = {name: stack.inner.last.shape for name, stack in stacks.items()}
    assert shapes == {"8x8": (4, 8, 8), "8x32": (4, 8, 32)}


def test_tall_matrices_enter_transposed():
    w = jnp.arange(12.0).reshape(4, 3)
    tx = echo(None)
    _, state = tx.update({"w": w}, tx.init({"w": w}))
    chex.assert_trees_all_equal(state.stacks["3x4"].inner.last[0], w.T)


def test_a_leaf_without_axes_is_an_error_that_names_it():
    with pytest.raises(InputError, match="'blocks/gain'"):
        echo(None).init({"blocks": {"gain": jnp.ones((3,)), "w": jnp.ones((2, 2))}})
    with pytest.raises(InputError, match="names one axis twice"):
        echo({"w": MatrixAxes((0,), (0, 1))}).init({"w": jnp.ones((2, 2))})


def counting_rule(period: int, stagger: bool) -> matrix.Rule:
    """Counts refreshes of each matrix in its state."""
    return matrix.Rule(
        init=lambda num, m, n, dtype: Echo(jnp.zeros((num, m, n), dtype)),
        step=lambda g, stack, t: (g, stack),
        first=lambda g: Echo(jnp.zeros_like(g)),
        refresh=lambda stack: Echo(stack.last + 1.0),
        period=period,
        stagger=stagger,
    )


@pytest.mark.parametrize(("num", "period"), [(7, 3), (2, 5), (6, 3), (4, 1)])
def test_stagger_refreshes_every_matrix_once_a_period(num, period):
    params = {"w": jnp.ones((num, 2, 2))}
    axes = {"w": MatrixAxes((1,), (2,))}
    counts = {}
    for stagger in (False, True):
        tx = echo(axes, counting_rule(period, stagger))
        state, update, history = tx.init(params), jax.jit(tx.update), []
        for _ in range(1 + 3 * period):
            _, state = update(params, state)
            history.append(np.asarray(state.stacks["2x2"].inner.last[:, 0, 0]))
        counts[stagger] = np.stack(history)
    # Call 0 is no step; after three periods both have refreshed everything thrice.
    np.testing.assert_array_equal(counts[False][-1], 3)
    np.testing.assert_array_equal(counts[True][-1], 3)
    # At most ceil(num / period) matrices in any one step, against all of them at once.
    steps = np.diff(counts[True], axis=0).sum(axis=1)
    assert steps.max() == -(-num // period)
    assert np.diff(counts[False], axis=0).sum(axis=1).max() == num


def test_stored_types_are_what_the_state_keeps():
    params = {"w": jnp.ones((4, 4))}
    tx = optim.scale_by_kl_shampoo(mu_dtype=jnp.bfloat16, basis_dtype="bfloat16")
    state = tx.init(params)
    inner = state.stacks["4x4"].inner
    assert inner.momentum.dtype == jnp.bfloat16
    assert inner.kl.factors.basis_l.dtype == jnp.bfloat16
    assert inner.kl.factors.factor_l.dtype == jnp.float32
    _, new = jax.eval_shape(tx.update, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


BASIS_MAKERS = {
    "kl_reference": ReferenceConfig(precondition_frequency=2),
    "kl_shampoo": optim.KLShampooConfig(precondition_frequency=2),
}


@pytest.mark.parametrize("name", BASIS_MAKERS)
def test_setting_the_stored_basis_back_changes_nothing(name):
    """get_basis, then set_basis with rotated signs: the same optimizer state."""
    tx = BASIS_MAKERS[name].directions(None, None).matrix
    params = {"tall": jnp.ones((6, 3))}
    grads = [jax.random.normal(jax.random.key(i), (6, 3)) for i in range(5)]

    def run(after_first):
        state, update = tx.init(params), jax.jit(tx.update)
        for index, g in enumerate(grads):
            out, state = update({"tall": g}, state)
            if index == 2:
                state = after_first(state)
        return out["tall"]

    def flip(state):
        basis = get_basis(state, params, "tall", axes=None)
        assert basis.rows.shape == (6, 6) and basis.cols.shape == (3, 3)
        flipped = Basis(basis.rows * -1.0, basis.cols)
        state = set_basis(state, params, "tall", flipped, axes=None)
        again = get_basis(state, params, "tall", axes=None)
        chex.assert_trees_all_equal(again, flipped)
        return state

    # Eigenvectors have no sign: two steps of float32 rounding.
    chex.assert_trees_all_close(run(flip), run(lambda state: state), atol=1e-5)


def test_a_matrix_that_starts_late_still_starts():
    """A bad first gradient postpones the first call of its matrix alone."""
    tx = optim.scale_by_kl_shampoo(axes={"w": MatrixAxes((1,), (2,))})
    params = {"w": jnp.ones((2, 3, 3))}
    g = jax.random.normal(jax.random.key(0), (2, 3, 3))
    state, update = tx.init(params), jax.jit(tx.update)
    _, state = update({"w": g.at[0, 0, 0].set(jnp.nan)}, state)
    assert state.active["w"].ravel().tolist() == [False, False]
    _, state = update({"w": g}, state)
    assert state.active["w"].ravel().tolist() == [False, True]
    _, state = update({"w": g}, state)
    assert state.active["w"].ravel().tolist() == [True, True]
    assert state.stacks["3x3"].age.tolist() == [3, 4]
