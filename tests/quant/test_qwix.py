"""Agreement with qwix where the conventions coincide; skipped where it is absent.

They differ on purpose in two places: qwix adds the zero point before it rounds and
divides as the compiler likes. qwix 0.1.8 quantizes nothing to int16: sixteen bits are
held to the numpy specification alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.quant import grid

qwix = pytest.importorskip("qwix")


@pytest.mark.parametrize(
    ("dtype", "num_bits", "method", "scheme"),
    [
        (jnp.int4, 4, "minmax", grid.grid_from_range),
        (jnp.int8, 8, "minmax", grid.grid_from_range),
        (jnp.int4, 4, "absmax", grid.symmetric_half),
        (jnp.int8, 8, "absmax", grid.symmetric_half),
    ],
)
def test_per_channel_values_agree(dtype, num_bits, method, scheme):
    x = jax.random.normal(jax.random.key(0), (512, 64)) + 0.3
    theirs = qwix.quantize(x, dtype, channelwise_axes=(1,), calibration_method=method)
    made = scheme(*grid.per_channel(x), num_bits)
    np.testing.assert_allclose(theirs.scale, made.step, rtol=2e-7)
    steps = (qwix.dequantize(theirs) - grid.fake_quantize(x, made)) / made.step
    # Ties may fall on the other side, never further than the next code. The largest
    # magnitude of a channel is a tie in `symmetric_half`: one value in 512.
    assert jnp.max(jnp.abs(steps)) < 1.01
    assert jnp.mean(jnp.abs(steps) > 0.01) <= 1 / 512
