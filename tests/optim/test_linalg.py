import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq.optim import eigenbasis, linalg


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def factor(side: int, exponent: float, misalignment: float, seed: int = 0):
    """A factor with eigenvalues i^-exponent, a little off its own eigenbasis."""
    key = jax.random.key(seed)
    skew = jax.random.normal(key, (side, side)) * misalignment / np.sqrt(side)
    basis, _ = jnp.linalg.qr(jnp.eye(side) + skew - skew.T)
    spectrum = jnp.arange(1.0, side + 1) ** -exponent
    return (basis * spectrum[None, :]) @ basis.T


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
def test_cholesky_iteration_is_householders(exponent):
    """QR(S).Q is unique once the diagonal of R is positive."""
    s = factor(24, exponent, 0.1)
    z, turned, sound = linalg.cholesky_iteration(s)
    q, r = jnp.linalg.qr(s)
    q = q * jnp.sign(jnp.diagonal(r))[None, :]
    assert bool(sound)
    # 25 eps of jitter, amplified by the condition of the scaled Cholesky factor.
    chex.assert_trees_all_close(z, q, atol=1e-10)
    chex.assert_trees_all_close(turned, q.T @ s @ q, atol=1e-12)
    q, turned_q = linalg.householder_iteration(s)
    chex.assert_trees_all_close(turned_q, q.T @ s @ q, atol=1e-12)


def test_cholesky_iteration_says_when_it_fails():
    s = factor(12, 1.0, 0.1)
    indefinite = s - 0.5 * jnp.eye(12)
    assert not bool(linalg.cholesky_iteration(indefinite)[2])


def test_only_failing_matrices_fall_back_and_are_counted():
    good = factor(12, 1.0, 0.1)
    # Two eigenvectors of nearly equal weight, correlated beyond 1: rounding's doing in
    # float32, ours here.
    bad = good.at[0, 1].set(2.0).at[1, 0].set(2.0)
    stack = jnp.stack([good, bad, 0.0 * good])
    eye = jnp.broadcast_to(jnp.eye(12), stack.shape)
    f = eigenbasis.Factors(eye, None, stack, None, jnp.zeros((3,), jnp.int32))
    new, turn = eigenbasis.refresh(f, "cholesky")
    exact, _ = eigenbasis.refresh(f, "householder")
    assert new.failures.tolist() == [0, 1, 0]
    # Equal up to the signs of eigenvectors.
    chex.assert_trees_all_close(
        jnp.abs(new.basis_l[:2]), jnp.abs(exact.basis_l[:2]), atol=1e-9
    )
    # The zero matrix keeps its basis.
    chex.assert_trees_all_equal(new.basis_l[2], eye[2])
    assert turn.right is None


def test_reorthonormalizing_squares_the_error():
    q, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (16, 16)))
    near = q + 1e-4 * jax.random.normal(jax.random.key(1), (16, 16))
    before, after = (
        linalg.eye_error(near),
        linalg.eye_error(linalg.reorthonormalize(near)),
    )
    assert after < 16 * before**2


def test_inverse_root():
    s = factor(10, 2.0, 0.3)
    root = linalg.inverse_root(s, 0.25, 0.0)
    power = root @ root @ root @ root
    chex.assert_trees_all_close(power @ s, jnp.eye(10), atol=1e-9)
    # A singular matrix is lifted to eps: its root is finite and at most eps^(-1/4).
    singular = jnp.zeros((4, 4)).at[0, 0].set(1.0)
    root = linalg.inverse_root(singular, 0.25, 1e-8)
    np.testing.assert_allclose(jnp.linalg.norm(root, 2), 1e2, rtol=1e-6)


@pytest.mark.parametrize(
    ("coefficients", "low", "high"),
    [(linalg.KELLER, 0.65, 1.25), (linalg.POLAR_EXPRESS, 0.85, 1.15)],
)
def test_newton_schulz_brings_singular_values_near_one(coefficients, low, high):
    """Down to 1e-2 of the largest, in five steps; Polar Express comes closer."""
    u, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (8, 8)))
    v, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (20, 8)))
    x = (u * jnp.geomspace(1e-2, 0.98, 8)[None, :]) @ v.T
    out = linalg.newton_schulz(x, coefficients, linalg.EXACT)
    values = jnp.linalg.svd(out, compute_uv=False)
    assert low < values.min() and values.max() < high
    # The singular vectors stay what they are.
    off = u.T @ out @ v
    chex.assert_trees_all_close(off, jnp.diag(jnp.diagonal(off)), atol=1e-9)
