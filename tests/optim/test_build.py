import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rfq import optim
from rfq.optim import build, decay, schedule


def params():
    return {"w": jnp.full((2, 3), 2.0), "b": jnp.full((3,), 3.0)}


def tail(order, mask):
    factors, decays = {"w": 1.0, "b": 1.0}, {"w": 0.1, "b": 0.1}
    return decay.apply_rate_and_decay(0.5, decays, order, mask, factors)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_decay_before_and_after_the_update(order):
    """pre: W (1 - a wd) - a U; post: (W - a U)(1 - a wd)."""
    w, u, a, wd = 2.0, 4.0, 0.5, 0.1
    expected = {
        "pre": w * (1 - a * wd) - a * u,
        "post": (w - a * u) * (1 - a * wd),
    }[order]
    tx = tail(order, {"w": True, "b": False})
    direction = jax.tree.map(lambda p: jnp.full_like(p, u), params())
    active = {"w": jnp.array(True), "b": jnp.array(True)}
    updates, _ = tx.update(direction, tx.init(params()), params(), active=active)
    new = optax.apply_updates(params(), updates)
    np.testing.assert_allclose(new["w"], expected, rtol=1e-6)
    np.testing.assert_allclose(new["b"], 3.0 - a * u, rtol=1e-6)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_an_anchored_leaf_decays_towards_where_it_started(order):
    """pre: W - a b (W - W_0) - a U; post: W_0 + (W - a U - W_0)(1 - a b)."""
    a, b, wd, u = 0.5, 0.4, 0.1, 4.0
    tx = optim.sign_gd(
        a, weight_decay=wd, decay=order, anchors={"w": b}, mask={"w": False, "b": True}
    )
    p = start = params()
    state = tx.init(start)
    assert [leaf.shape for leaf in jax.tree.leaves(state)].count((2, 3)) == 1
    w, bias = 2.0, 3.0
    for sign in (1.0, 1.0, -1.0):
        grads = jax.tree.map(lambda leaf, s=sign: jnp.full_like(leaf, s * u), start)
        updates, state = tx.update(grads, state, p)
        p = optax.apply_updates(p, updates)
        step = a * sign
        if order == "pre":
            w, bias = w - a * b * (w - 2.0) - step, bias * (1 - a * wd) - step
        else:
            w = 2.0 + (w - step - 2.0) * (1 - a * b)
            bias = (bias - step) * (1 - a * wd)
        np.testing.assert_allclose(p["w"], w, rtol=1e-6)
        np.testing.assert_allclose(p["b"], bias, rtol=1e-6)


def test_where_a_direction_is_not_active_nothing_changes():
    tx = tail("pre", {"w": True, "b": True})
    active = {"w": jnp.array([[True], [False]]), "b": jnp.array(False)}
    updates, state = tx.update(params(), tx.init(params()), params(), active=active)
    assert (updates["w"][0] != 0).all() and (updates["w"][1] == 0).all()
    assert (updates["b"] == 0).all()
    assert state.count == 1


def test_the_first_call_of_kl_shampoo_moves_only_the_other_leaves():
    tx = optim.kl_shampoo(0.1, weight_decay=0.1)
    state = jax.jit(tx.init)(params())
    updates, _ = jax.jit(tx.update)(params(), state, params())
    assert (updates["w"] == 0).all() and (updates["b"] != 0).all()


def test_adamw_is_optaxs():
    ours = optim.adamw(0.1, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.05)
    theirs = optax.adamw(0.1, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.05)
    p = q = params()
    s, t = ours.init(p), theirs.init(q)
    for index in range(5):
        g = jax.tree.map(lambda x, i=index: jnp.sin(x + i), p)
        u, s = ours.update(g, s, p)
        v, t = theirs.update(g, t, q)
        p, q = optax.apply_updates(p, u), optax.apply_updates(q, v)
    # The same formula in another order of operations.
    chex.assert_trees_all_close(p, q, rtol=1e-6)


def test_clipping_is_optaxs_and_ignores_a_leaf_that_is_not_finite():
    g = {"w": jnp.full((2, 3), 3.0), "b": jnp.full((3,), -4.0)}
    clip = build.clip_finite_norm(1.0)
    expected, _ = optax.clip_by_global_norm(1.0).update(g, optax.EmptyState())
    clipped, _ = clip.update(g, clip.init(g))
    chex.assert_trees_all_close(clipped, expected, rtol=1e-6)
    small = jax.tree.map(lambda x: 0.01 * x, g)
    chex.assert_trees_all_equal(clip.update(small, clip.init(g))[0], small)
    spoiled = {**g, "b": g["b"].at[0].set(jnp.inf)}
    kept, _ = clip.update(spoiled, clip.init(g))
    np.testing.assert_allclose(jnp.linalg.norm(kept["w"]), 1.0, rtol=1e-6)


def test_the_other_leaves_have_their_own_rate_and_the_schedule_counts_calls():
    config = optim.MuonConfig(
        learning_rate=1.0, other_learning_rate=4.0, weight_decay=0.0
    )
    rates = schedule.ScheduleConfig(kind="constant", warmup_steps=4)
    tx = build.build(config, rates, 10, axes=None, decay_mask=None, clip_norm=None)
    p = params()
    state, g = tx.init(p), jax.tree.map(jnp.ones_like, p)
    for call in range(6):
        updates, state = tx.update(g, state, p)
        # Adam's direction on constant gradients is 1; Muon's RMS is constant.
        np.testing.assert_allclose(updates["b"], -min(call, 4.0), rtol=1e-5)
        size = float(jnp.abs(updates["w"]).max())
        if call == 4:
            peak = size
    np.testing.assert_allclose(size, peak, rtol=1e-5)


def test_a_mask_may_be_a_tree_or_a_function():
    g = jax.tree.map(jnp.zeros_like, params())
    mask = {"w": True, "b": False}
    for given in (mask, lambda tree: {k: k == "w" for k in tree}):
        tx = optim.adamw(1.0, weight_decay=0.5, mask=given)
        updates, _ = tx.update(g, tx.init(params()), params())
        np.testing.assert_allclose(updates["w"], -1.0)
        np.testing.assert_allclose(updates["b"], 0.0)


def test_update_without_params_says_so():
    tx = optim.adamw(0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(params(), tx.init(params()))
