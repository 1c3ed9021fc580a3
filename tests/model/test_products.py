"""Laws of the products with weights; tests/test_export.py has those of integers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import params as params_lib
from rfq.model import products

matmul = jax.jit(products.matmul, static_argnums=2)


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


_WEIGHTS = {
    "w_q": ((6,), (2, 3)),
    "w_o": ((2, 3), (6,)),
    "w_up": ((6,), (24,)),
    "w_down": ((24,), (6,)),
    "embedding": ((6,), (29,)),
}


@pytest.mark.parametrize("name", sorted(_WEIGHTS))
def test_matmul_contracts_the_input_axes_of_the_table(name):
    in_shape, out_shape = _WEIGHTS[name]
    x, w = _normal(0, 2, 5, *in_shape), _normal(1, *in_shape, *out_shape)
    expected = np.tensordot(x, w, axes=len(in_shape))
    # 24 products of size 1, summed in another order.
    np.testing.assert_allclose(matmul(x, w, name, None), expected, atol=1e-5)


def test_matmul_keeps_the_carrier():
    x, w = jnp.zeros((5, 6), jnp.bfloat16), jnp.zeros((6, 24))
    found = jax.eval_shape(lambda: products.matmul(x, w, "w_up", None))
    assert found.dtype == jnp.bfloat16


def test_every_matrix_of_the_table_is_among_them():
    matrices = {name for name, row in params_lib.TABLE.items() if row.matrix}
    assert matrices == {
        *(*_WEIGHTS, "w_k", "w_v", "w_gate", "w_mlp_gate"),
        *("w_embed", "w_unembed", "unembedding"),
    }
