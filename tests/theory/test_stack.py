"""Lemmas 1, 5 and theorem 1 over many layers: T1, T8 and T16 of the notes."""

import numpy as np
import pytest

from rfq.model import layers
from rfq.theory import activations, laws, residual, stack


@pytest.mark.parametrize(
    ("phi", "skip", "noted", "rtol"),
    [
        ("relu", "residual_free", 2.0**-24, 1e-9),
        ("relu", "residual", 1.5**24, 1e-9),
        # Three digits were noted.
        ("gelu", "residual_free", 1.23e-14, 5e-3),
        ("gelu", "residual", 1.44e4, 5e-3),
    ],
)
def test_lemma_5_variance_after_24_sublayers(phi, skip, noted, rtol):
    found = stack.variance_after(phi, skip, 24, 1.0)
    np.testing.assert_allclose(found, noted, rtol=rtol)


def test_lemma_5_has_a_constant_for_homogeneous_functions_alone():
    # F10: .4252^24 = 1.2e-9 is five orders off; the rate tends to 1/4.
    assert stack.constant_gain("gelu", "residual_free") ** 24 == pytest.approx(
        1.2e-9, rel=0.05
    )
    deep = [stack.variance_after("gelu", "residual_free", n, 1.0) for n in (24, 25)]
    assert deep[1] / deep[0] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("phi", ["relu", "gelu"])
@pytest.mark.parametrize("skip", sorted(layers.SKIPS))
def test_lemma_5_and_11_variance_of_one_layer_measured(skip, phi):
    one = stack.unnormalized(skip, phi)._replace(
        num_layers=1, width=1024, num_tokens=256
    )
    log2 = stack.simulate(one, seed=0, num_seeds=2).log2_gain(1)
    # E phi^2, and 1 + E phi^2 (1.5 for relu); the notes' 3 %.
    assert 2**log2.value == pytest.approx(stack.constant_gain(phi, skip), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("norm", sorted(stack.NORMS))
@pytest.mark.parametrize("skip", sorted(layers.SKIPS))
def test_lemma_1_a_norm_controls_the_variance(skip, norm):
    given = stack.unnormalized(skip, "gelu")._replace(norm=norm, width=64)
    power = stack.simulate(given, seed=0, num_seeds=2).norm_power
    # The norm's epsilon is 1e-6 of a variance of at least .01.
    assert np.allclose(power, 1.0, atol=1e-4) == (norm != "none")


@pytest.mark.slow
def test_residual_streams_lose_their_kurtosis():
    # F1. The notes' stream has variance 2, a Laplace variable of scale 1.
    trace = stack.heavy_tailed("residual", 2.0)
    c = activations.raw_moment("gelu", 2) / 2.0
    noted = {1: 2.05, 2: 1.50, 4: 0.90, 8: 0.47, 16: 0.20, 24: 0.09}
    for layer, gamma in noted.items():
        found = trace.kurtosis(layer).value
        # Two decimals and another draw; and the closed form, up to O(1/d) a layer.
        assert found == pytest.approx(gamma, abs=0.06)
        assert found == pytest.approx(
            residual.unrolled_kurtosis(3.0, c, layer), abs=0.06
        )


@pytest.mark.slow
@pytest.mark.parametrize("weights", sorted(stack.WEIGHTS))
def test_residual_kurtosis_falls_with_every_layer(weights):
    given = stack.Stack(
        "residual", "rms_norm", "gelu", weights, 256, 24, "laplace", 1.0, 1024
    )
    trace = stack.simulate(given, seed=3, num_seeds=4)
    gamma = [trace.kurtosis(layer).value for layer in range(25)]
    # Where it has nearly gone, the draw decides.
    steps = np.diff(gamma)[:16]
    assert np.all(steps < 0.0)
    assert gamma[24] < 0.1 * gamma[0]


def test_cosine_of_tokens_grows_with_depth():
    one = stack.cosine_after("gelu", 1)
    mean, second = (activations.raw_moment("gelu", k) for k in (1, 2))
    assert one == pytest.approx(mean**2 / second, rel=1e-6)
    # An odd function keeps independent tokens apart.
    found = [stack.cosine_after("gelu", depth) for depth in (4, 8, 12, 24)]
    assert found == sorted(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "noted"), [("orthogonal", 0.71), ("gaussian", 0.79)]
)
def test_near_gaussian_streams_can_be_collapsed(weights, noted):
    # F8: most of the energy is in the channel means, and gamma sees nothing.
    given = stack.Stack(
        "residual_free", "rms_norm", "gelu", weights, 256, 24, "gaussian", 1.0, 1024
    )
    trace = stack.simulate(given, seed=0, num_seeds=8)
    share = trace.mean_share(24)
    # Finite width spreads it by .02 from seed to seed.
    assert share.value == pytest.approx(noted, abs=0.05)
    assert abs(trace.kurtosis(24).value) < laws.NEAR_GAUSSIAN
    assert trace.mean_share(0).value < 0.01


@pytest.mark.slow
def test_theorem_1_every_cell_starts_near_gaussian():
    found = stack.after_one_update(width=256, num_layers=8, rate=1e-3)
    assert len(found) == 8
    assert all(gamma < laws.NEAR_GAUSSIAN for gamma in found.values())
    # Every cell is another: the updates and the draws were made.
    assert len(set(found.values())) == 8
