"""What errors at the sites of a model add up to, against models that can be solved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.quant import propagation

L, T, D = 5, 64, 32


def rotations():
    return jnp.stack(
        [
            jax.nn.initializers.orthogonal()(jax.random.key(i), (D, D), jnp.float32)
            for i in range(L)
        ]
    )


def chain(carry):
    """A model of L layers with one site: x' = carry(x, x + error, W)."""
    x0 = jax.random.normal(jax.random.key(9), (T, D))
    weights = rotations()

    def enter(errors):
        x, entered = x0, []
        for layer in range(L):
            entered.append(x)
            x = carry(x, x + errors["site"][layer], weights[layer])
        return {"site": jnp.stack(entered), "end": x[None]}

    unmoved = {"site": jnp.zeros((L, T, D))}
    return enter, jax.tree.map(
        np.asarray, propagation.gains(enter, unmoved, key=jax.random.key(1))
    )


def test_an_isometric_trunk_passes_every_error_on():
    _, gains = chain(lambda x, tapped, w: tapped @ w)
    below = np.triu(np.ones((L, L)), 1)
    np.testing.assert_allclose(gains["site"]["site"], below, atol=0.1)
    # Every path to the end is a rotation, so that only the length of u is drawn.
    np.testing.assert_allclose(gains["site"]["end"], np.ones((L, 1)), atol=0.1)
    total = propagation.predict(gains, {"site": np.full(L, 0.01)})
    np.testing.assert_allclose(total["end"], [0.01 * L], rtol=0.1)


def test_a_skip_with_the_clean_stream_passes_only_the_branch_on():
    # Each layer adds a branch of a quarter of the stream's energy.
    _, branch = chain(lambda x, tapped, w: x + 0.5 * tapped @ w)
    _, in_place = chain(lambda x, tapped, w: tapped + 0.5 * tapped @ w)
    # The last layer's error alone: .25 of the energy, over a stream of 1.25.
    assert branch["site"]["end"][-1, 0] == pytest.approx(0.25 / 1.25, rel=0.15)
    assert in_place["site"]["end"][-1, 0] == pytest.approx(1.0, rel=0.15)


def test_the_prediction_is_what_small_errors_do():
    enter, gains = chain(lambda x, tapped, w: jnp.tanh(tapped @ w) * 1.5)
    clean = enter({"site": jnp.zeros((L, T, D))})
    nmse = np.linspace(1e-4, 4e-4, L)
    u = jax.random.normal(jax.random.key(3), (L, T, D))
    energy = jnp.mean(clean["site"] ** 2, axis=(1, 2), keepdims=True)
    moved = enter({"site": u * jnp.sqrt(energy * nmse[:, None, None])})
    measured = jnp.sum((moved["end"] - clean["end"]) ** 2) / jnp.sum(clean["end"] ** 2)
    predicted = propagation.predict(gains, {"site": nmse})["end"][0]
    assert predicted == pytest.approx(float(measured), rel=0.15)


def test_behind_a_norm_the_sum_is_bounded_as_its_cosine_says():
    x, u = jax.random.normal(jax.random.key(0), (2, 64, 4096))
    unit = lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
    for added in (1e-3, 0.3, 3.0):
        moved = unit(unit(x) + np.sqrt(added) * unit(u)) - unit(x)
        measured = jnp.mean(jnp.sum(moved**2, axis=-1))
        assert propagation.normalized(added) == pytest.approx(float(measured), rel=0.02)


def test_the_cost_of_an_error_is_what_small_errors_cost():
    # Targets are drawn from the model's own probabilities, as the equation assumes.
    h_key, w_key, u_key, key = jax.random.split(jax.random.key(5), 4)
    h = jax.random.normal(h_key, (4096, D))
    w = jax.random.normal(w_key, (D, 50)) / np.sqrt(D)
    cost = propagation.loss_per_error(lambda x: x @ w, h, key=key)
    error = 1e-2
    norms = jnp.linalg.norm(h, axis=-1, keepdims=True)
    u = jax.random.normal(u_key, h.shape) * norms / np.sqrt(D)
    clean = jax.nn.log_softmax(h @ w)
    noisy = jax.nn.log_softmax((h + np.sqrt(error) * u) @ w)
    measured = jnp.mean(jnp.sum(jnp.exp(clean) * (clean - noisy), axis=-1))
    assert float(cost) * error == pytest.approx(float(measured), rel=0.05)
