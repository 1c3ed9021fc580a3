"""What the paper's initialization does to a fresh model (section 4 i, lemma 14)."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from rfq import taps
from rfq.model import init, transformer
from rfq.model.init import InitConfig
from tests.model import examples
from tests.oracles import decoder

MODEL = examples.INITIALIZED
D, H, K, F = MODEL.width, MODEL.num_heads, MODEL.head_width, MODEL.mlp_width


def unit_tokens(count):
    """Normalized inputs of a sublayer: [count, D] with mean square 1."""
    x = np.random.default_rng(0).standard_normal((count, D))
    return x / np.sqrt((x**2).mean(-1, keepdims=True))


@pytest.mark.parametrize(
    ("attention_scale", "divisor"), [("head_width", K), ("width", D)]
)
def test_a_token_starts_by_attending_to_itself(attention_scale, divisor):
    # Lemma 14 per head: the diagonal logit is alpha_qk sqrt(K) = 7.2 at alpha .9 and
    # K 64, and alpha_qk K / sqrt(D) if q.k is divided by sqrt(D); others are .9 wide.
    model = dataclasses.replace(MODEL, attention_scale=attention_scale)
    w = examples.initialized(InitConfig())["blocks"]
    h_TD = unit_tokens(64)
    q, k = (np.einsum("td,ldhk->lhtk", h_TD, w[name]) for name in ("w_q", "w_k"))
    turned = [
        np.stack([[decoder.rotate(head, model.rope_base) for head in x] for x in y])
        for y in (q, k)
    ]
    logits = np.einsum("lhtk,lhsk->lhts", *turned) / math.sqrt(divisor)
    diagonal = np.einsum("lhtt->lht", logits)
    others = logits[:, :, ~np.eye(64, dtype=bool)]
    expected = 0.9 * K / math.sqrt(divisor)
    # The 10 % of the theory notes; RoPE turns q and k alike, so it does not matter.
    np.testing.assert_allclose(diagonal.mean(axis=(1, 2)), expected, rtol=0.1)
    np.testing.assert_allclose(others.std(), expected / math.sqrt(K), rtol=0.2)
    if attention_scale == "head_width":
        assert expected == pytest.approx(7.2)
        assert init.alpha_qk_for(7.2, K) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("mlp_scale", "variance"), [("gram", 0.375), ("suo_sqrt", 1.5), ("suo", 2.25)]
)
def test_the_mlp_starts_with_the_variance_of_its_reading(mlp_scale, variance):
    # Lemma 12's table: alpha_u = 1.5 and F = 4 D under the three readings (D15).
    config = InitConfig(mlp_scale=mlp_scale)
    gram, _ = init.mlp_gram(config, MODEL)
    w_up = examples.initialized(InitConfig())["blocks"]["w_up"]
    pre = unit_tokens(256) @ (math.sqrt(gram / 1.5) * w_up)
    # Orthonormal rows keep each token's energy, so the mean is exact.
    np.testing.assert_allclose((pre**2).mean(axis=(1, 2)), variance, rtol=1e-5)


@functools.cache
def cosines(w_down, diagonal_logit, beta):
    """Mean cosine between the tokens of a sequence after each of the 12 blocks."""
    model = dataclasses.replace(MODEL, beta=beta)
    params = examples.initialized(InitConfig(w_down=w_down))
    rescale = math.sqrt(init.alpha_qk_for(diagonal_logit, K) / 0.9)
    blocks = {
        n: w * rescale if n in ("w_q", "w_k") else w
        for n, w in params["blocks"].items()
    }
    seams = transformer.Seams(
        taps.Taps(examples.keep, ("attn_norm_in", "final_norm_in"))
    )
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.permutation(MODEL.vocab_size)[:32] for _ in range(4)])
    forward = functools.partial(transformer.features, config=model, seams=seams)
    _, sites = jax.jit(forward)({**params, "blocks": blocks}, tokens)
    x = np.stack([*sites["attn_norm_in"][1:], sites["final_norm_in"]])
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    return np.einsum("lbtd,lbsd->lbts", x, x)[..., ~np.eye(32, dtype=bool)].mean((1, 2))


def test_the_mlp_collapses_tokens_unless_w_down_is_centered():
    # E[GELU] != 0, so a plain W_D adds one vector to every token. Attention is out of
    # the way: with a diagonal logit of 100 it is the identity.
    plain, centered = (cosines(w_down, 100.0, 1.0) for w_down in ("plain", "centered"))
    # Two prototypes of width 64 gave .13, .25, .39, .53 at blocks 1, 3, 6, 12.
    assert np.all(np.diff(plain[[0, 2, 5, 11]]) > 0.03)
    assert 0.35 < plain[11] < 0.65
    assert np.all(np.abs(centered) < 0.04)  # .01 to .03 at every depth.


def test_attention_must_start_sharp_enough_and_stay_so():
    # With centered W_D: g >= log T + 3 keeps tokens apart, here 6.5 for 32 tokens.
    assert np.all(cosines("centered", 9.0, 1.0) < 0.05)
    assert cosines("centered", 3.0, 1.0)[11] > 0.3
    # tau_l = 1.1^-l takes the sharpness away again with depth.
    assert cosines("centered", 9.0, 1.1)[11] > 0.4
