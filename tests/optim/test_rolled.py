"""The programs that a TPU gets are the factorizations that the others have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import factorize, rolled
from rfq.optim import eigenbasis
from tests.oracles import optimizer_adapter as adapter
from tests.oracles import test_optimizers as oracles

inputs = oracles.inputs


@pytest.fixture
def doubled():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def narrow(monkeypatch):
    """Panels of four columns, so that small matrices have many and a last short one."""
    monkeypatch.setattr(rolled, "PANEL", 4)


def semidefinite(size: int, seed: int = 0, num: int = 3) -> jax.Array:
    x = jax.random.normal(jax.random.key(seed), (num, size, size))
    return x @ x.mT + 0.1 * jnp.eye(size)[None]


@pytest.mark.parametrize("size", [1, 3, 4, 11])
def test_cholesky_and_the_qr_by_it_are_lapacks(size, doubled, narrow):
    a = semidefinite(size)
    lower = jax.vmap(rolled.cholesky)(a)
    np.testing.assert_allclose(lower, jnp.linalg.cholesky(a), atol=1e-12)
    x = jax.random.normal(jax.random.key(1), (3, 13, size))
    q, lower = jax.vmap(rolled.cholesky_qr)(x)
    np.testing.assert_allclose(q @ lower.mT, x, atol=1e-11)
    np.testing.assert_allclose(q.mT @ q, jnp.stack([jnp.eye(size)] * 3), atol=1e-11)
    np.testing.assert_array_equal(lower, jnp.tril(lower))


def test_an_indefinite_matrix_is_not_finite_and_spoils_no_other(doubled, narrow):
    a = semidefinite(9)
    a = a.at[1, 6, 6].set(-1.0)
    lower = jax.vmap(rolled.cholesky)(a)
    finite = jnp.isfinite(lower).all(axis=(1, 2))
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (11, 6), (6, 11), (12, 12)])
def test_qr_is_lapacks_signs_included(shape, doubled, narrow):
    a = jax.random.normal(jax.random.key(2), (2, *shape))
    a = a.at[1, :, -1].set(a[1, :, 0])  # Of lower rank, where columns are left over.
    for one in a:
        q, r = rolled.qr(one)
        ours = jnp.linalg.qr(one)
        np.testing.assert_allclose(q @ r, one, atol=1e-12)
        np.testing.assert_allclose(q.T @ q, jnp.eye(q.shape[1]), atol=1e-12)
        if one is a[0]:
            np.testing.assert_allclose(q, ours[0], atol=1e-11)
            np.testing.assert_allclose(r, ours[1], atol=1e-11)


def test_qr_of_zero_is_the_identity(narrow):
    q, r = rolled.qr(jnp.zeros((6, 6)))
    np.testing.assert_array_equal(q, jnp.eye(6))
    np.testing.assert_array_equal(r, jnp.zeros((6, 6)))


def test_single_precision_is_kept_over_panels():
    """With the true width and several panels; the error is a few roundings."""
    a = semidefinite(300, num=1)[0]
    lower = rolled.cholesky(a)
    error = jnp.max(jnp.abs(lower @ lower.T - a)) / jnp.max(jnp.abs(a))
    assert lower.dtype == jnp.float32 and error < 1e-5
    q, r = rolled.qr(a)
    assert jnp.max(jnp.abs(q.T @ q - jnp.eye(300))) < 1e-5
    assert jnp.max(jnp.abs(q @ r - a)) / jnp.max(jnp.abs(a)) < 1e-5


@pytest.fixture
def as_on_tpu(monkeypatch, narrow):
    """All but eigenvectors as a TPU computes them."""
    for name in ("qr", "cholesky", "cholesky_qr"):
        monkeypatch.setattr(factorize, name, getattr(rolled, name))


@pytest.mark.parametrize("form", ["cholesky", "householder"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name, key in oracles.TRAJECTORIES
        if name.split("_")[0] in ("soap", "klshampoo") and key == "square"
    ],
)
def test_the_references_are_met(
    name, key, form, inputs, doubled, as_on_tpu, monkeypatch
):
    monkeypatch.setattr(adapter, "FORM", form)
    oracles.test_trajectory_is_the_references(name, key, inputs)


def test_a_refresh_falls_back_as_on_other_devices(doubled, as_on_tpu):
    bad = semidefinite(12).at[1, 0, 1].set(40.0).at[1, 1, 0].set(40.0)
    eye = jnp.broadcast_to(jnp.eye(12), bad.shape)
    f = eigenbasis.Factors(eye, None, bad, None, jnp.zeros((3,), jnp.int32))
    new, _ = eigenbasis.refresh(f, "cholesky")
    assert new.failures.tolist() == [0, 1, 0]
    assert jnp.isfinite(new.basis_l).all()
