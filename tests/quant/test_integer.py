"""The integer product against int64, and against what it proves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import errors
from rfq import params as axes
from rfq.quant import grid, integer, weights

L, D, H, K = 2, 96, 4, 8


def codes(x, num_bits, axis=None, scheme="asymmetric"):
    keepdims = axis is not None
    lo = jnp.min(x, axis=axis, keepdims=keepdims)
    hi = jnp.max(x, axis=axis, keepdims=keepdims)
    return integer.store(x, grid.SCHEMES[scheme](lo, hi, num_bits), num_bits)


def exact(x, w):
    """The product in int64 for the codes and float64 for the steps; 2-D operands."""

    def parts(c):
        shift = -int(jnp.iinfo(c.values.dtype).min)
        q = np.asarray(c.values.astype(jnp.int32), np.int64) + shift
        z = np.asarray(c.grid.zero_point, np.int64)
        return q - z, np.asarray(c.grid.step, np.float64)

    (q_x, step_x), (q_w, step_w) = parts(x), parts(w)
    return q_x @ q_w, step_x * step_w


@pytest.mark.parametrize("x_bits", [2, 4, 8])
@pytest.mark.parametrize("w_bits", [3, 4, 8])
@pytest.mark.parametrize("scheme", sorted(grid.SCHEMES))
def test_the_integer_product_is_the_int64_product(x_bits, w_bits, scheme):
    x = codes(jax.random.normal(jax.random.key(0), (17, D)) + 0.7, x_bits, None, scheme)
    w = codes(jax.random.normal(jax.random.key(1), (D, 23)), w_bits, (0,), scheme)
    total, step = exact(x, w)
    found = np.asarray(integer.dot(x, w, 1))
    # The sums are exact below 2**24; one rounding each for s_x s_w and the product.
    np.testing.assert_allclose(found, total * step, rtol=3e-7, atol=0.0)
    with_unit_steps = [
        c._replace(grid=c.grid._replace(step=jnp.ones_like(c.grid.step)))
        for c in (x, w)
    ]
    np.testing.assert_array_equal(integer.dot(*with_unit_steps, 1), total)


def test_the_largest_sum_does_not_overflow():
    k = integer.MAX_CONTRACTED
    x = codes(jnp.ones((1, k)), 8)
    w = codes(jnp.ones((k, 1)), 8, (0,))
    unit = [c._replace(grid=c.grid._replace(step=jnp.float32(1.0))) for c in (x, w)]
    np.testing.assert_array_equal(integer.dot(*unit, 1), np.float32([[k * 255**2]]))
    with pytest.raises(errors.InputError, match="overflow"):
        integer.dot(codes(jnp.ones((1, k + 1)), 8), codes(jnp.ones((k + 1, 1)), 8), 1)


def test_codes_are_those_of_the_simulation():
    x = jax.random.normal(jax.random.key(2), (64, 64))
    for num_bits in range(2, 17):
        stored = codes(x, num_bits)
        np.testing.assert_array_equal(
            integer.load(stored), grid.fake_quantize(x, stored.grid)
        )


def test_a_simulated_matmul_agrees_to_float32_rounding():
    x = jax.random.normal(jax.random.key(3), (128, 768))
    w = jax.random.normal(jax.random.key(4), (768, 64))
    x, w = codes(x, 8), codes(w, 8, (0,))
    simulated = jnp.matmul(
        integer.load(x), integer.load(w), precision=jax.lax.Precision.HIGHEST
    )
    found = integer.dot(x, w, 1)
    # Relative to the whole, as cancellation within one output is not rounding: 768
    # float32 additions lose about 1e-6.
    error = jnp.linalg.norm(found - simulated) / jnp.linalg.norm(simulated)
    assert error < 5e-6
    total, step = exact(x, w)
    exact_error = np.linalg.norm(found - total * step) / np.linalg.norm(total * step)
    assert exact_error < 2e-7


def test_model_shapes_contract_heads_and_scan_over_layers():
    x = jax.random.normal(jax.random.key(5), (3, 5, H, K))
    params = {"w_o": jax.random.normal(jax.random.key(6), (L, H, K, D))}
    grids = weights.grids(params, 4, axes=axes.quantized_axes)["w_o"]
    stored = integer.store(params["w_o"], grids, 4)
    assert stored.values.dtype == jnp.int4
    x_codes = codes(x, 8)
    _, y = jax.lax.scan(
        lambda carry, layer: (carry, integer.dot(x_codes, layer, 2)), 0, stored
    )
    simulated = jnp.einsum(
        "bthk,lhkd->lbtd",
        integer.load(x_codes),
        weights.quantize(params, 4, axes=axes.quantized_axes)["w_o"],
        precision=jax.lax.Precision.HIGHEST,
    )
    np.testing.assert_allclose(y, simulated, atol=1e-4)


def test_dynamic_tokens_have_their_own_zero_points():
    x = jax.random.normal(jax.random.key(7), (3, 5, D)) + jnp.arange(5.0)[None, :, None]
    w = codes(jax.random.normal(jax.random.key(8), (D, 7)), 8, (0,))
    rows = codes(x, 8, (2,))
    found = integer.dot(rows, w, 1)
    for b, t in ((0, 0), (2, 4)):
        alone = codes(x[b, t][None], 8)
        np.testing.assert_allclose(found[b, t], integer.dot(alone, w, 1)[0], rtol=1e-6)


def test_wide_codes_are_stored_but_not_multiplied():
    x = codes(jnp.ones((2, 3)), 9)
    assert x.values.dtype == jnp.int16
    with pytest.raises(errors.InputError, match="at most 8 bits"):
        integer.dot(x, codes(jnp.ones((3, 2)), 8), 1)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (1,)])
def test_two_int4_codes_fit_a_byte(shape):
    values = jax.random.randint(jax.random.key(9), shape, -8, 8).astype(jnp.int4)
    packed = integer.pack_int4(values)
    assert packed.dtype == jnp.uint8 and packed.size == (values.size + 1) // 2
    back = integer.unpack_int4(packed, shape)
    assert back.dtype == jnp.int4
    np.testing.assert_array_equal(back.astype(jnp.int8), values.astype(jnp.int8))
