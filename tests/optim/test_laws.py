"""Symmetries of the matrix optimizers, and agreement of KL-Shampoo's two forms."""

import functools

import jax
import numpy as np
import pytest

from rfq import optim
from rfq.params import MatrixAxes
from tests.oracles.kl_reference import ReferenceConfig

# Grafting takes the norm of Adam's direction, which rotations change: without it.
EQUIVARIANT = {
    "kl_shampoo": optim.KLShampooConfig(precondition_frequency=3),
    "kl_soap": optim.KLSoapConfig(precondition_frequency=3),
    "muon": optim.MuonConfig(),
    "shampoo": optim.ShampooConfig(precondition_frequency=3, grafting="none"),
    "soap": optim.SoapConfig(precondition_frequency=3),
    "spectral_gd": optim.SpectralGDConfig(),
}


def directions(config, grads):
    """The directions of every step of a dict of stacks [N, m, n]; and the state."""
    axes = {name: MatrixAxes((1,), (2,)) for name in grads[0]}
    tx = config.directions(axes, None).matrix
    state = tx.init(grads[0])
    update, found = jax.jit(tx.update), []
    for g in grads:
        out, state = update(g, state)
        found.append(jax.device_get(out))
    return {name: np.stack([out[name] for out in found]) for name in axes}, state


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
        found, _ = directions(EQUIVARIANT[name], [{"w": g} for g in grads])
        found = found["w"]
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
    "reference": ReferenceConfig,
    "householder": functools.partial(
        optim.KLShampooConfig, decomposition="householder"
    ),
    "cholesky": functools.partial(optim.KLShampooConfig, decomposition="cholesky"),
}


def run_forms(cases, num_steps: int, dtype):
    """Directions of the three forms over the same gradients: {form: {shape: ...}}.

    Cases (m, n, exponent) of one shape are a stack, and compile once.
    """
    generators = {}
    for m, n, exponent in cases:
        generator = drifting_gradients(m, n, exponent, num_steps)
        generators.setdefault(f"{m} x {n}", []).append(generator)
    steps = {name: zip(*each, strict=True) for name, each in generators.items()}
    grads = [
        {name: np.stack(next(step)).astype(dtype) for name, step in steps.items()}
        for _ in range(num_steps)
    ]
    out = {}
    for name, form in FORMS.items():
        config = form(init_factor=1e-2, precision="highest")
        out[name], _ = directions(config, grads)
    return out


def worst(a, b):
    """Per matrix: the largest difference of any step, relative to that step's RMS."""
    return {
        name: np.max(
            np.abs(a[name] - b[name])
            / (np.sqrt(np.mean(b[name] ** 2, axis=(2, 3), keepdims=True)) + 1e-300),
            axis=(0, 2, 3),
        )
        for name in b
    }


def gaps(cases, num_steps: int):
    """By form: distance to the float64 reference in float64, and in float32."""
    with jax.enable_x64(True):
        exact = run_forms(cases, num_steps, np.float64)
    single = run_forms(cases, num_steps, np.float32)
    reference = exact["reference"]
    return (
        {form: worst(exact[form], reference) for form in FORMS},
        {form: worst(single[form], reference) for form in FORMS},
    )


def agree(cases, num_steps: int):
    in_double, in_single = gaps(cases, num_steps)
    for form in ("householder", "cholesky"):
        for shape, ours in in_double[form].items():
            assert np.all(ours < 1e-9), (form, shape, ours)
        for shape, ours in in_single[form].items():
            rounding = in_single["reference"][shape]
            assert np.all(ours < 3 * rounding), (form, shape, ours, rounding)


def test_reference_and_fast_kl_shampoo_agree():
    agree([(12, 20, 1.0), (12, 20, 2.0)], 60)


# At size, as specified: 300 steps; spectrum exponents 0.5 to 2.
@pytest.mark.slow
def test_reference_and_fast_kl_shampoo_agree_on_large_squares():
    agree([(128, 128, exponent) for exponent in (0.5, 1.0, 1.5, 2.0)], 300)


@pytest.mark.slow
def test_reference_and_fast_kl_shampoo_agree_on_large_oblongs():
    """A tall and a wide matrix, which share a stack."""
    agree([(64, 256, 2.0), (256, 64, 2.0)], 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl_shampoo", "soap"])
def test_steep_spectra_fall_back_and_are_counted(name):
    """At exponent 1 no Cholesky refresh fails, at 4 some do: all bases stay sound."""
    tame, steep = (drifting_gradients(128, 512, exponent, 61) for exponent in (1, 4))
    grads = [
        {"w": np.stack(pair).astype(np.float32)}
        for pair in zip(tame, steep, strict=True)
    ]
    config = optim.OPTIMIZERS[name](decomposition="cholesky")
    _, state = directions(config, grads)
    inner = state.stacks["128x512"].inner
    failures = getattr(inner, "kl", inner).factors.failures
    # Of six refreshes of two sides.
    assert failures[0] == 0 < failures[1] <= 12
    numbers = optim.diagnostics(state)
    assert numbers["refresh_failures"] == failures[1]
    # Rounding of a few products of orthonormal float32 matrices of side 512.
    assert numbers["basis_error"] < 1e-5
    assert np.isfinite(numbers["update_rms"])
