"""Symmetries of the matrix optimizers, and agreement of KL-Shampoo's two forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import optim
from rfq.params import MatrixAxes

# Compiling is most of the time here.
QUICK = {"xla_backend_optimization_level": 0}

# Grafting takes the norm of Adam's direction, which rotations change: without it.
EQUIVARIANT = {
    "kl_shampoo": (
        optim.scale_by_kl_shampoo,
        optim.KLShampooConfig(precondition_frequency=3),
    ),
    "kl_soap": (optim.scale_by_kl_soap, optim.KLSoapConfig(precondition_frequency=3)),
    "muon": (optim.scale_by_muon, optim.MuonConfig()),
    "shampoo": (
        optim.scale_by_shampoo,
        optim.ShampooConfig(precondition_frequency=3, grafting="none"),
    ),
    "soap": (optim.scale_by_soap, optim.SoapConfig(precondition_frequency=3)),
    "spectral_gd": (optim.scale_by_polar, optim.SpectralGDConfig()),
}


def directions(scale_by, config, grads, **arguments):
    """The directions of a stack of matrices, [steps, N, m, n]."""
    tx = scale_by(config, axes={"w": MatrixAxes((1,), (2,))}, **arguments)
    state = tx.init({"w": grads[0]})
    update, found = jax.jit(tx.update, compiler_options=QUICK), []
    for g in grads:
        out, state = update({"w": g}, state)
        found.append(out["w"])
    return np.stack(found), state


@pytest.mark.parametrize("name", EQUIVARIANT)
def test_rotating_or_transposing_gradients_does_the_same_to_directions(name):
    """U(P G R^T) = P U(G) R^T and U(G^T) = U(G)^T: three matrices of one stack."""
    with jax.enable_x64(True):
        side = 5
        rng = np.random.default_rng(0)
        p = np.linalg.qr(rng.normal(size=(side, side)))[0]
        r = np.linalg.qr(rng.normal(size=(side, side)))[0]
        plain = rng.normal(size=(11, side, side))
        grads = np.stack([plain, p @ plain @ r.T, plain.mT], axis=1)
        found, _ = directions(*EQUIVARIANT[name], jnp.asarray(grads))
        assert np.abs(found[-1]).max() > 1e-3
        # Rounding of 11 steps; roots of small second moments amplify it.
        np.testing.assert_allclose(found[:, 1], p @ found[:, 0] @ r.T, atol=1e-8)
        np.testing.assert_allclose(found[:, 2], found[:, 0].mT, atol=1e-8)


def drifting_gradients(m: int, n: int, exponent: float, num_steps: int):
    """Gaussian gradients whose Kronecker spectrum i^-exponent slowly turns."""
    rng = np.random.default_rng(int(10 * exponent) + m + 7 * n)

    def turning(side: int):
        basis = np.linalg.qr(rng.normal(size=(side, side)))[0]
        skew = rng.normal(size=(side, side)) * 0.02 / np.sqrt(side)
        return basis, np.linalg.qr(np.eye(side) + skew - skew.T)[0]

    (p, turn_p), (r, turn_r) = turning(m), turning(n)
    left = np.arange(1.0, m + 1) ** (-exponent / 2)
    right = np.arange(1.0, n + 1) ** (-exponent / 2)
    for _ in range(num_steps):
        p, r = p @ turn_p, r @ turn_r
        z = rng.normal(size=(m, n))
        yield 1e-2 * (p * left) @ z @ (r * right).T


FORMS = {
    "reference": {"mode": "reference"},
    "householder": {"decomposition": "householder"},
    "cholesky": {"decomposition": "cholesky"},
}


def compare_forms(m: int, n: int, exponent: float, num_steps: int, dtype):
    """Directions of the three forms over the same gradients; and the state."""
    grads = list(drifting_gradients(m, n, exponent, num_steps))
    out = {}
    for name, form in FORMS.items():
        config = optim.KLShampooConfig(**form, init_factor=1e-2, precision="highest")
        stack = [jnp.asarray(g[None], dtype) for g in grads]
        out[name], state = directions(optim.scale_by_kl_shampoo, config, stack)
    return out, state


def worst(a, b) -> float:
    """Largest difference of any step, relative to that step's RMS."""
    rms = np.sqrt(np.mean(b**2, axis=(1, 2, 3), keepdims=True)) + 1e-300
    return float(np.abs((a - b) / rms).max())


CASES = [(16, 16, 1.0, 60), (12, 40, 2.0, 60)]


@pytest.mark.parametrize(("m", "n", "exponent", "num_steps"), CASES)
def test_reference_and_fast_kl_shampoo_agree(m, n, exponent, num_steps):
    _agree(m, n, exponent, num_steps)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n"), [(128, 128), (128, 512), (512, 128)])
def test_reference_and_fast_kl_shampoo_agree_at_size(m, n):
    _agree(m, n, 2.0, 300)


def _agree(m: int, n: int, exponent: float, num_steps: int):
    with jax.enable_x64(True):
        exact, _ = compare_forms(m, n, exponent, num_steps, jnp.float64)
        for name in ("householder", "cholesky"):
            assert worst(exact[name], exact["reference"]) < 1e-9
    single, _ = compare_forms(m, n, exponent, num_steps, jnp.float32)
    gap = worst(single["reference"], exact["reference"])
    for name in ("householder", "cholesky"):
        assert worst(single[name], exact["reference"]) < 3 * gap
