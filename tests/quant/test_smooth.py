"""SmoothQuant's scales keep the function and move reach from activations to weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import taps
from rfq.model import transformer
from rfq.model.config import SITES
from rfq.quant import smooth
from tests.model import examples


def test_the_scales_are_those_of_the_paper():
    rng = np.random.default_rng(0)
    x, w = rng.uniform(0.1, 9.0, (2, 7))
    s = smooth.scales(jnp.asarray(x), jnp.asarray(w), 0.3)
    np.testing.assert_allclose(s, x**0.3 / w**0.7, rtol=1e-6)
    # alpha = 1/2 leaves both sides with one reach, sqrt(max |x| max |W|).
    s = np.asarray(smooth.scales(jnp.asarray(x), jnp.asarray(w), 0.5))
    np.testing.assert_allclose(x / s, w * s, rtol=1e-5)


def test_a_channel_without_values_keeps_its_scale():
    peaks, reach = jnp.array([0.0, 2.0, 2.0]), jnp.array([1.0, 0.0, 2.0])
    assert smooth.scales(peaks, reach, 0.7)[:2].tolist() == [1.0, 1.0]


MODELS = {
    "residual": {"skip": "residual"},
    "gate": {"attention_gate": "head", "skip": "residual_free"},
    "llama": examples.LLAMA,
    "shared keys": {**examples.LLAMA, "num_heads": 6, "num_kv_heads": 3},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_smoothed_model_is_the_same_function_of_other_activations(name):
    model = examples.config(**MODELS[name])
    params, batch = examples.params(model), examples.batch(model)
    gated = model.mlp != "gelu"
    sites = smooth.foldable(SITES, is_gated=gated, is_rotated=False)
    assert sites == ["attn_in", "mlp_in", *(["mlp_hidden"] if gated else [])]
    kept = transformer.Seams(taps.Taps(examples.keep, SITES))
    with jax.default_matmul_precision("highest"):
        before, old = transformer.apply(params, batch[:, :-1], model, kept)
        peaks = {site: jnp.max(jnp.abs(old[site]), axis=(1, 2)) for site in sites}
        alphas = dict(zip(sites, (0.5, 0.8, 0.3), strict=False))
        changed = smooth.smoothed(params, peaks, alphas)
        after, new = transformer.apply(changed, batch[:, :-1], model, kept)
    assert np.linalg.norm(after - before) < 1e-5 * np.linalg.norm(before)
    # Reach levels out: the ratio of the farthest to the nearest channel shrinks.
    for site in sites:
        now = jnp.max(jnp.abs(new[site]), axis=(1, 2))
        spread = [jnp.max(p, -1) / jnp.min(p, -1) for p in (peaks[site], now)]
        assert jnp.all(now != peaks[site])
        assert site != "mlp_in" or jnp.all(spread[1] < spread[0])


def test_a_rotated_hidden_activation_has_no_scales():
    assert smooth.foldable(("mlp_hidden",), is_gated=True, is_rotated=True) == []
    assert smooth.foldable(("mlp_hidden",), is_gated=False, is_rotated=False) == []
