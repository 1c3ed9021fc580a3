"""Lemmas 1 and 5 over many layers, and theorem 1 at its start: T1 and T8 of the notes.

T16, theorem 1 trained, is configs/ablation/theorem1.py.
"""

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


@pytest.mark.parametrize("skip", stack.CONNECTIONS)
def test_lemma_5_variance_of_gelu_by_its_closed_form(skip):
    q = 1.0
    for _ in range(24):
        q = layers.SKIPS[skip].join(q, q * activations.gelu_gain(q))
    np.testing.assert_allclose(
        stack.variance_after("gelu", skip, 24, 1.0), q, rtol=1e-9
    )


def test_lemma_5_has_a_constant_for_homogeneous_functions_alone():
    # .4252^24 = 1.2e-9 is five orders off; the rate tends to 1/4.
    assert stack.constant_gain("gelu", "residual_free") ** 24 == pytest.approx(
        1.2e-9, rel=0.05
    )
    deep = [stack.variance_after("gelu", "residual_free", n, 1.0) for n in (24, 25)]
    assert deep[1] / deep[0] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("phi", ["relu", "gelu"])
@pytest.mark.parametrize("skip", stack.CONNECTIONS)
def test_lemma_5_and_11_variance_of_one_layer_measured(skip, phi):
    one = stack.unnormalized(skip, phi)._replace(
        num_layers=1, width=1024, num_tokens=256
    )
    log2 = stack.simulate(one, seed=0, num_seeds=2).log2_gain(1)
    # E phi^2, and 1 + E phi^2 (1.5 for relu); the notes' 3 %.
    assert 2**log2.value == pytest.approx(stack.constant_gain(phi, skip), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("norm", sorted(stack.NORMS))
@pytest.mark.parametrize("skip", stack.CONNECTIONS)
def test_lemma_1_a_norm_controls_the_variance(skip, norm):
    given = stack.unnormalized(skip, "gelu")._replace(norm=norm, width=64)
    power = stack.simulate(given, seed=0, num_seeds=2).norm_power
    # The norm's epsilon is 1e-6 of a variance of at least .01.
    assert np.allclose(power, 1.0, atol=1e-4) == (norm != "none")


@pytest.mark.slow
@pytest.mark.parametrize("weights", sorted(stack.WEIGHTS))
def test_t_8_residual_streams_lose_kurtosis_with_every_layer(weights):
    # The notes' stream has variance 2, a Laplace variable of scale 1.
    given = stack.Stack(
        "residual", "rms_norm", "gelu", weights, 256, 24, "laplace", 2.0, 1024
    )
    trace = stack.simulate(given, seed=24, num_seeds=8)
    gamma = [trace.kurtosis(layer).value for layer in range(25)]
    assert np.all(np.diff(gamma) < 0.0)
    c = activations.raw_moment("gelu", 2) / 2.0
    # The means of eight draws. The notes' draw is within two deviations of one of
    # them, which are .05 in the first layers and .04 from layer 8 on.
    for layer, noted, allowed in (
        (1, 2.05, 0.05),
        (2, 1.50, 0.05),
        (4, 0.90, 0.04),
        (8, 0.47, 0.04),
        (16, 0.20, 0.035),
        (24, 0.09, 0.02),
    ):
        assert gamma[layer] == pytest.approx(noted, abs=allowed)
        # The additions' own O(1/d) adds up to .02.
        predicted = residual.unrolled_kurtosis(3.0, c, layer)
        assert gamma[layer] == pytest.approx(predicted, abs=0.03)


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
    # Most of the energy is in the channel means, and gamma sees nothing.
    given = stack.Stack(
        "residual_free", "rms_norm", "gelu", weights, 256, 24, "gaussian", 1.0, 256
    )
    trace = stack.simulate(given, seed=0, num_seeds=16)
    share, gamma = trace.mean_share(24), trace.kurtosis(24)
    # Both initializations tend to .721; a draw deviates by .04 (orthogonal) and .06,
    # as many as the noted .71 and .79 are apart (D77).
    wide = stack.cosine_after("gelu", 24)
    assert wide == pytest.approx(0.7215, abs=5e-5)
    assert abs(share.value - wide) < 4 * share.standard_error < 0.08
    assert abs(noted - wide) < 1.5 * share.standard_error * np.sqrt(16)
    # gamma of 256 means deviates by .17 about 0, and the noted -.12 is such a draw.
    assert abs(gamma.value) < 4 * gamma.standard_error < 0.25
    assert abs(-0.12) < 1.5 * gamma.standard_error * np.sqrt(16)
    assert abs(gamma.value) < laws.PAPERS_LARGEST_GAMMA
    assert trace.mean_share(0).value < 0.01


@pytest.mark.slow
def test_theorem_1_every_cell_starts_near_gaussian():
    found = stack.after_one_update(width=256, num_layers=8, rate=1e-3)
    assert len(found) == 8
    assert all(gamma < laws.PAPERS_LARGEST_GAMMA for gamma in found.values())
    # Every cell is another: the updates and the draws were made.
    assert len(set(found.values())) == 8
