"""Corrections of rounded sites: what they restore, alone and in a whole model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import taps
from rfq.errors import InputError
from rfq.model import transformer
from rfq.model.config import TAP_SETS
from rfq.quant import correct, grid
from tests.model import examples

SITES = TAP_SETS["paper"]


@pytest.mark.parametrize("name", sorted(correct.FITS))
def test_a_channel_that_rounds_to_nothing_gets_its_mean(name):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 16, 4)), jnp.float32)
    x_hat = x.at[..., 1].set(0.0)
    found = correct.apply(x_hat, correct.FITS[name](x, x_hat))
    np.testing.assert_allclose(found[..., 1], x[..., 1].mean(), rtol=1e-4)
    np.testing.assert_allclose(found[..., 0], x[..., 0], atol=1e-6)
    shifted = correct.apply(x + 2.0, correct.FITS[name](x, x + 2.0))
    np.testing.assert_allclose(shifted, x, atol=1e-5)


def test_channels_of_a_corrected_model_have_the_clean_moments_at_every_site():
    model = examples.config(skip="residual_free")
    params = examples.params(model)
    tokens_BT = np.random.default_rng(0).integers(0, model.vocab_size, (4, 16))
    bits = jnp.full(model.num_layers, 5, jnp.int32)
    targets = {site: grid.Dynamic(bits) for site in SITES}

    def run(tap, states):
        seams = transformer.Seams(taps.Taps(tap, SITES))
        forward = functools.partial(
            transformer.features, params, tokens_BT, model, seams, states
        )
        return jax.jit(lambda: forward()[1])()

    def fitted():
        seams = transformer.Seams(taps.Taps(correct.Fit(), SITES))
        one = lambda p: transformer.features(p, tokens_BT, model, seams, targets)[1]  # noqa: E731
        pair = jax.tree.map(lambda w: jnp.stack([w, w]), params)
        return jax.jit(jax.vmap(one, axis_name=taps.PAIR))(pair)

    corrections = jax.tree.map(lambda leaf: leaf[0], fitted())

    def seen(x, state):
        """Round, correct, and record what comes out."""
        x_out, _ = correct.round_and_correct(x, state)
        return x_out, x_out

    states = {
        site: correct.Corrected(targets[site], corrections[site]) for site in SITES
    }
    found, clean = run(seen, states), run(examples.keep, {})
    for site in SITES:
        ours, theirs = (np.asarray(x, np.float64) for x in (found[site], clean[site]))
        assert np.abs(ours - theirs).max() > 0.01  # They are rounded.
        scale = theirs.std()
        for moment in (np.mean, np.std):
            a, b = (moment(x, axis=(1, 2)) for x in (ours, theirs))
            np.testing.assert_allclose(a / scale, b / scale, atol=1e-4)


def test_an_unknown_correction_is_refused_by_name():
    with pytest.raises(InputError, match=r"'scale' is unknown.*bias_and_scale"):
        correct.Fit("scale")
