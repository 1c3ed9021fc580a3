"""Equations 1 and 2, and the temperature of section 4 (iii), as laws of the model."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rfq import taps
from rfq.model import transformer
from rfq.model.config import SITES
from tests.model import examples
from tests.oracles import decoder


def activations(model, params):
    """{site: activation}, compiled."""
    seams = transformer.Seams(taps.Taps(examples.keep, SITES))
    forward = functools.partial(transformer.features, config=model, seams=seams)
    return jax.jit(forward)(params, examples.batch(model)[:, :-1])[1]


def changed(params, **blocks):
    return {**params, "blocks": {**params["blocks"], **blocks}}


@pytest.mark.parametrize("skip", ["residual", "residual_free"])
def test_sublayers_that_write_nothing_leave_the_stream_or_erase_it(skip):
    model = examples.config(skip=skip)
    params = examples.params(model)
    silent = {name: 0.0 * params["blocks"][name] for name in ("w_o", "w_down")}
    found = activations(model, changed(params, **silent))
    embedded = params["embedding"][examples.batch(model)[:, :-1]]
    # Equation 1 is the identity, to the bit; equation 2 has nothing left.
    kept = embedded if skip == "residual" else 0.0 * embedded
    np.testing.assert_array_equal(found["attn_norm_in"][0], embedded)
    for stream in (*found["mlp_norm_in"], *found["attn_norm_in"][1:]):
        np.testing.assert_array_equal(stream, kept)
    np.testing.assert_array_equal(found["final_norm_in"], kept)


def test_without_skips_a_sublayer_forgets_its_inputs_scale():
    # Only normalized values enter a residual-free stream, so doubling the embedding
    # changes nothing after the first norm; a residual stream carries it to the end.
    for skip, forgets in (("residual_free", True), ("residual", False)):
        model = examples.config(skip=skip, num_layers=1)
        params = examples.params(model)
        # Large enough that the norm's 1e-6 does not count.
        one, two = (
            decoder.forward(
                {**params, "embedding": scale * params["embedding"]},
                examples.batch(model)[:, :-1],
                model,
            )[1]["mlp_norm_in"]
            for scale in (100.0, 200.0)
        )
        assert np.allclose(one, two, rtol=1e-6, atol=1e-6) == forgets


def test_the_temperature_is_beta_to_the_minus_layer_counted_from_1():
    # tau_l multiplies q.k, so it is the same as a W_Q that is smaller by tau_l.
    model = examples.config(skip="residual", beta=1.1)
    params = examples.params(model)
    tau = np.float32([0.909091, 0.826446, 0.751315])  # 1.1^-1, 1.1^-2, 1.1^-3.
    cooled = changed(params, w_q=params["blocks"]["w_q"] * tau[:, None, None, None])
    found = activations(model, params)
    expected = activations(dataclasses.replace(model, beta=1.0), cooled)
    for site in ("attn_out", "attn_norm_in", "final_norm_in"):
        # tau is written with six digits; three layers amplify that a little.
        np.testing.assert_allclose(found[site], expected[site], atol=2e-4)
