"""GPTQ: never worse than rounding on its objective, and the published algorithm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import quant
from rfq.params import MatrixAxes
from rfq.quant import gptq, weights

L, K, N = 3, 24, 10
STACKED = MatrixAxes((1,), (2,))


def made(seed: int = 0, tokens: int = 200):
    """Weights [L, K, N], and X^T X of correlated inputs of unequal energy."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((L, K, N)).astype(np.float32)
    mixing = rng.standard_normal((L, K, K)) * np.geomspace(0.1, 3.0, K)
    x = rng.standard_normal((L, tokens, K)) @ mixing
    return w, np.einsum("ltk,ltm->lkm", x, x)


def reference(w, h, bits, *, group, damping, ordered):
    """The algorithm of the paper in float64: invert, factorize, round, compensate."""
    w, h = w.astype(np.float64), h.copy()
    size = group or len(w)
    lo = np.minimum(w.reshape(-1, size, w.shape[1]).min(1), 0.0).repeat(size, 0)
    hi = np.maximum(w.reshape(-1, size, w.shape[1]).max(1), 0.0).repeat(size, 0)
    step = (hi - lo) / (2**bits - 1)
    zero = np.round(-lo / step)

    def rounded(row, i):
        q = np.clip(np.round(row / step[i]) + zero[i], 0, 2**bits - 1)
        return (q - zero[i]) * step[i]

    plain = np.stack([rounded(w[i], i) for i in range(len(w))])
    order = list(range(len(w)))
    if ordered:
        order = list(np.argsort(-np.diag(h), kind="stable"))
    damped = h + damping * np.mean(np.diag(h)) * np.eye(len(w))
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    left, found = w[order], np.zeros_like(w)
    for place, i in enumerate(order):
        found[i] = rounded(left[place], i)
        error = (left[place] - found[i]) / upper[place, place]
        left[place:] -= np.outer(upper[place, place:], error)
    costs = [np.sum(e * (h @ e), axis=0) for e in (w - found, w - plain)]
    return np.where(costs[0] < costs[1], found, plain), plain


def cost(w, q, h):
    error = np.asarray(w, np.float64) - np.asarray(q, np.float64)
    return np.einsum("lkn,lkm,lmn->l", error, h, error)


@functools.cache
def rounding(group, ordered, axes=STACKED):
    """(w, bits, H) -> W rounded, one program for all widths and seeds."""
    how = {"axes": axes, "group_size": group, "is_ordered": ordered}
    return jax.jit(lambda w, bits, h: gptq.quantize(w, bits, h, **how))


HOW = [
    {"group_size": group, "is_ordered": ordered}
    for group in (None, 8)
    for ordered in (False, True)
]


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(gptq, "BLOCK", 9)  # 8 divides the 24 inputs.


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_the_published_algorithm(bits, how):
    w, h = made()
    found = np.asarray(rounding(*how.values())(w, bits, h))
    for layer in range(L):
        expected, _ = reference(
            w[layer], h[layer], bits,
            group=how["group_size"], damping=0.01, ordered=how["is_ordered"],
        )  # fmt: skip
        same = np.isclose(found[layer], expected, atol=1e-5)
        # A quotient at a tie may fall either way in float32, and moves what follows.
        assert same.mean() > 0.98
        theirs = cost(w[layer : layer + 1], expected[None], h[layer : layer + 1])
        ours = cost(w[layer : layer + 1], found[layer][None], h[layer : layer + 1])
        np.testing.assert_allclose(ours, theirs, rtol=0.01)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(3))
def test_it_is_never_worse_than_rounding_and_mostly_better(seed, how):
    # With few tokens H is singular, and with one token it has rank 1.
    w, h = made(seed, tokens=(200, 12, 1)[seed])
    group = how["group_size"]
    plain = weights.quantize(w, 3, axes=STACKED, group_size=group)
    found = rounding(*how.values())(w, 3, h)
    for channel in range(N):
        one = slice(channel, channel + 1)
        ours = cost(w[..., one], found[..., one], h)
        assert np.all(ours <= cost(w[..., one], plain[..., one], h) * (1 + 1e-5))
    most = 0.8 if how["is_ordered"] else 0.98
    assert np.all(cost(w, found, h) < most * cost(w, plain, h))
    # The grids are those of plain rounding.
    grids = weights.grids(w, 3, axes=STACKED, group_size=group)
    codes = np.asarray(found / grids.step + grids.zero_point)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    assert codes.min() > -0.1 and codes.max() < 7.1


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_inputs_without_correlation_are_rounded_plainly(bits):
    w, _ = made()
    eye = np.broadcast_to(np.eye(K), (L, K, K))
    found = rounding(None, True)(w, bits, 7.0 * eye)
    np.testing.assert_array_equal(found, weights.quantize(w, bits, axes=STACKED))
    # So is a site that was always 0.
    found = rounding(None, True)(w, bits, 0.0 * eye)
    np.testing.assert_array_equal(found, weights.quantize(w, bits, axes=STACKED))


def test_stacked_layers_are_rounded_as_each_alone():
    w, h = made()
    together = rounding(None, True)(w, 4, h)
    for layer in range(L):
        alone = rounding(None, True, None)(w[layer], 4, h[layer])
        np.testing.assert_allclose(together[layer], alone, atol=1e-6)


def test_heads_are_inputs_and_outputs_like_any_other():
    w, h = made()
    flat = gptq.quantize(w, 4, h, axes=STACKED)
    # [L, D, H, K] as w_q, and [L, H, K, D] as w_o.
    to_heads = w.reshape(L, K, 2, N // 2)
    of_heads = w.reshape(L, 4, K // 4, N)
    axes = {"to": MatrixAxes((1,), (2, 3)), "of": MatrixAxes((1, 2), (3,)), "not": None}
    tree = {"to": to_heads, "of": of_heads, "not": np.ones(3, np.float32)}
    grams = {"to": h, "of": h, "not": None}
    found = gptq.quantize(tree, 4, grams, axes=axes)
    np.testing.assert_array_equal(found["to"].reshape(w.shape), flat)
    np.testing.assert_array_equal(found["of"].reshape(w.shape), flat)
    assert found["not"] is tree["not"]


def test_bits_are_data():
    w, h = made()
    compiled = rounding(None, True)
    found = {bits: compiled(w, jnp.int32(bits), h) for bits in (2, 4, 8)}
    size = compiled._cache_size()
    assert len({float(cost(w, q, h).sum()) for q in found.values()}) == 3
    compiled(w, jnp.int32(5), h)
    assert compiled._cache_size() == size


def test_the_objective_is_the_error_of_the_product():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, K)).astype(np.float32)
    w = rng.standard_normal((K, N)).astype(np.float32)
    q = np.asarray(quant.quantize(w, 3))
    expected = np.sum((x @ w - x @ q) ** 2)
    found = gptq.objective(jnp.asarray(w), jnp.asarray(q), jnp.asarray(x.T @ x))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
