"""Laws of the block's equations.

Inputs are numpy and every computation is one compiled program: operation by operation
jax would compile a hundred of them.
"""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.model import cache as cache_lib
from rfq.model import layers
from tests.oracles import decoder

# One float32 rounding is 6e-8; sums of tens of products lose a few.
FLOAT32 = 2e-6

NORMS = {name: jax.jit(norm.apply) for name, norm in layers.NORMS.items()}
rope = jax.jit(layers.rope)
positions = cache_lib.positions
attention = jax.jit(layers.causal_attention, static_argnums=4)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- Norms and connections ---------------------------------------------------------


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_norms_have_unit_mean_square_and_forget_the_scale(norm):
    x, gain = 3.0 + normal(35, 64), np.ones(64, np.float32)
    y = np.asarray(NORMS[norm](x, gain))
    # 1e-6 under the root costs 1e-6 relative at variance 1.
    np.testing.assert_allclose(np.square(y).mean(-1), 1.0, atol=3e-6)
    # Powers of two scale exactly; only the 1e-6 under the root is left.
    np.testing.assert_allclose(NORMS[norm](1024.0 * x, gain), y, atol=6e-6)
    if norm == "layer_norm":
        np.testing.assert_allclose(y.mean(-1), 0.0, atol=FLOAT32)


@pytest.mark.parametrize("norm", decoder.NORMS)
def test_norms_are_those_of_the_oracle(norm):
    x, gain = 1.0 + normal(35, 64), normal(64, seed=1)
    expected = decoder.normalize(x.astype(np.float64), gain, norm)
    np.testing.assert_allclose(NORMS[norm](x, gain), expected, atol=1e-5)


@pytest.mark.parametrize("norm", sorted(NORMS))
def test_norms_reduce_in_float32_under_a_bfloat16_carrier(norm):
    x = (100.0 + normal(35, 64)).astype(jnp.bfloat16)
    gain = normal(64, seed=1)
    wide = NORMS[norm](x.astype(np.float32), gain)
    narrow = NORMS[norm](x, gain)
    # The only loss is the last cast: the two agree to the bit after it.
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, np.asarray(wide).astype(jnp.bfloat16))


def test_connections_are_equations_1_and_2():
    x, update = normal(3), normal(3, seed=1)
    np.testing.assert_array_equal(layers.SKIPS["residual"].join(x, update), x + update)
    np.testing.assert_array_equal(layers.SKIPS["residual_free"].join(x, update), update)


def test_streams_choose_what_the_skip_path_carries():
    clean, tapped = normal(3), normal(3, seed=1)
    np.testing.assert_array_equal(layers.STREAMS["branch"](clean, tapped), clean)
    np.testing.assert_array_equal(layers.STREAMS["in_place"](clean, tapped), tapped)


# --- Rotary embedding --------------------------------------------------------------

B, T, H, K = 2, 12, 3, 8


def test_rope_is_the_identity_at_position_0():
    x = normal(B, T, H, K)
    np.testing.assert_array_equal(
        rope(x, 10_000.0, positions(x.shape[1], None))[:, 0], x[:, 0]
    )


@hypothesis.given(base=st.floats(2.0, 1e6), seed=st.integers(0, 100))
@hypothesis.settings(max_examples=10)
def test_rope_turns_and_does_not_stretch(base, seed):
    x = normal(B, T, H, K, seed=seed)
    turned = np.asarray(rope(x, base, positions(x.shape[1], None)))
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=FLOAT32
    )


@hypothesis.given(base=st.floats(2.0, 1e6), seed=st.integers(0, 100))
@hypothesis.settings(max_examples=10)
def test_products_after_rope_depend_on_the_distance_alone(base, seed):
    one = normal(B, 1, H, K, seed=seed)
    turned = np.asarray(
        rope(np.broadcast_to(one, (B, T, H, K)).copy(), base, positions(T, None))
    )
    # Two vectors that every position shares, as query and as key.
    products_TT = turned[0, :, 0] @ turned[1, :, 1].T
    for distance in range(-T + 1, T):
        diagonal = np.diagonal(products_TT, distance)
        # Angles up to 12 rad are good to 1e-6; eight products of size about 1.
        np.testing.assert_allclose(diagonal, diagonal[0], atol=3e-5)
    assert np.ptp(products_TT[0]) > 1e-2


def test_rope_is_complex_multiplication():
    x = normal(B, T, H, K)
    expected = np.empty(x.shape)
    for b, h in np.ndindex(B, H):
        expected[b, :, h] = decoder.rotate(x[b, :, h].astype(np.float64), 50.0)
    np.testing.assert_allclose(
        rope(x, 50.0, positions(x.shape[1], None)), expected, atol=2e-5
    )


# --- Attention ---------------------------------------------------------------------


def test_attention_weights_sum_to_one():
    q, k = normal(B, T, H, K), normal(B, T, H, K, seed=1)
    ones = np.ones_like(q)
    np.testing.assert_allclose(attention(q, k, ones, 0.7, "xla"), ones, atol=FLOAT32)


def test_attention_without_logits_is_the_running_mean():
    k, v = normal(B, T, H, K), normal(B, T, H, K, seed=1)
    counts = np.arange(1.0, T + 1)[None, :, None, None]
    np.testing.assert_allclose(
        attention(np.zeros_like(k), k, v, 1.0, "xla"),
        np.cumsum(v, axis=1) / counts,
        atol=FLOAT32,
    )


def test_attention_is_that_of_the_oracle():
    q, k, v = (normal(B, T, H, K, seed=seed) for seed in range(3))
    expected = np.empty(v.shape)
    for b, h in np.ndindex(B, H):
        one = (x[b, :, h].astype(np.float64) for x in (q, k, v))
        expected[b, :, h] = decoder.attend(*one, 1.7)
    # Logits up to about 30 in float32.
    np.testing.assert_allclose(attention(q, k, v, 1.7, "xla"), expected, atol=1e-5)


# --- Loss --------------------------------------------------------------------------

D, V = 8, 37
FEATURES, EMBEDDING = normal(B, T, D), normal(V, D, seed=1)
TARGETS = np.random.default_rng(2).integers(0, V, (B, T)).astype(np.int32)


def losses(h, embedding, num_chunks):
    return layers.token_cross_entropy(
        h, TARGETS, num_chunks, lambda h: h @ embedding.T.astype(h.dtype)
    )


def test_cross_entropy_is_minus_the_log_probability_of_the_target():
    logits = FEATURES.astype(np.float64) @ EMBEDDING.T
    picked = np.take_along_axis(logits, TARGETS[..., None], axis=-1)[..., 0]
    expected = np.log(np.exp(logits).sum(-1)) - picked
    found = jax.jit(losses, static_argnums=2)(FEATURES, EMBEDDING, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    found = jax.jit(losses, static_argnums=2)(0.0 * FEATURES, EMBEDDING, 3)
    np.testing.assert_allclose(found, math.log(V), atol=FLOAT32)


@pytest.mark.parametrize("num_chunks", [3, T])
def test_slicing_the_sequence_changes_neither_loss_nor_gradient(num_chunks):
    weights = normal(B, T, seed=3)  # Each position counts differently.

    def weighted(num_chunks):
        def total(h, embedding):
            found = losses(h, embedding, num_chunks)
            return jnp.sum(weights * found), found

        grad = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
        return grad(FEATURES, EMBEDDING)

    # Only the order of the sum over positions differs, in the embedding's gradient.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        weighted(num_chunks),
        weighted(1),
    )


def test_the_loss_is_float32_under_a_bfloat16_carrier():
    h = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
    found = jax.eval_shape(lambda h: losses(h, EMBEDDING, 3), h)
    assert found.dtype == jnp.float32
