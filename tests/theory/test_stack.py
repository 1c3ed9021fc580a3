"""Lemmas 1 and 5 over many layers, and theorem 1 at its start: T1 and T8 of the notes.

T16, theorem 1 trained, is configs/ablation/theorem1.py.
"""

import numpy as np
import pytest

from rfq.model import layers
from rfq.theory import activations, stack


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


def test_cosine_of_tokens_grows_with_depth():
    one = stack.cosine_after("gelu", 1)
    mean, second = (activations.raw_moment("gelu", k) for k in (1, 2))
    assert one == pytest.approx(mean**2 / second, rel=1e-6)
    # An odd function keeps independent tokens apart.
    found = [stack.cosine_after("gelu", depth) for depth in (4, 8, 12, 24)]
    assert found == sorted(found) and found[-1] == pytest.approx(0.7215, abs=5e-5)
