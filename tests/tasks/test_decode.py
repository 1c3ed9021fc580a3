"""Decoding with a cache says what the whole forward pass says, token for token."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rfq import params as params_lib
from rfq import taps
from rfq.errors import InputError
from rfq.model import transformer
from rfq.model.config import TAP_SETS, ModelConfig
from rfq.quant import grid, weights
from rfq.tasks import decode
from tests.model import examples

BASE = ModelConfig(
    num_layers=2,
    width=32,
    num_heads=2,
    vocab_size=64,
    seq_len=256,
    skip="residual",
    beta=1.0,
    compute_dtype="float32",
    remat="none",
    loss_chunks=1,
)
VARIANTS = {
    "residual": {},
    "residual_free": {"skip": "residual_free"},
    "gated, projected": {"beta": 1.1, **examples.RIVALS},
    "weighted, decaying": {"skip": "weighted", "attention_kind": "decaying"},
    "shaped": {"attention_kind": "shaped"},
    "llama": {**examples.LLAMA, "mlp_ratio": 2, "norm_eps": 1e-5},
}
PROMPTS = [
    np.array(ids, np.int32) for ids in ([1, 5, 9, 13], [1, 7], [1, *range(30, 50)])
]
NEVER = lambda number, ids: False  # noqa: E731


@functools.cache
def model(variant: str, spec: str) -> decode.Model:
    """A random model of sharp attention, whose words do not soon repeat."""
    config = dataclasses.replace(BASE, **VARIANTS[variant])
    rng = np.random.default_rng(5)
    shapes = transformer.shapes(config)
    scales = {"embedding": 0.04, "w_q": 2.0, "w_k": 2.0}

    def drawn(path, leaf) -> jax.Array:
        scale = scales.get(params_lib.leaf_name(path), 0.4)
        return jnp.asarray(rng.normal(0.0, scale, leaf.shape), jnp.float32)

    params = jax.tree_util.tree_map_with_path(drawn, shapes)
    if spec == "FP":
        return decode.Model(params, config, transformer.PLAIN, {})
    params = weights.quantize(params, jnp.int32(8), axes=params_lib.quantized_axes)
    sites = TAP_SETS["full"]
    find = transformer.Seams(taps.Taps(taps.Measure(("range",)), sites))
    tokens = jax.random.randint(jax.random.key(1), (4, 64), 0, 64)
    _, found = transformer.apply(params, tokens, config, find)
    ranges = {site: found[site]["range"] for site in sites}
    states = {
        site: grid.grid_from_range(seen.lo, seen.hi, 8) for site, seen in ranges.items()
    }
    seams = transformer.Seams(taps.Taps(taps.fake_quantize, sites))
    return decode.Model(params, config, seams, states)


@functools.cache
def likeliest(config: ModelConfig, seams: transformer.Seams):
    @jax.jit
    def next_token(params, tokens_BT, last, states):
        with jax.default_matmul_precision("highest"):
            logits, _ = transformer.apply(params, tokens_BT, config, seams, states)
        return jnp.argmax(logits[0, last])

    return next_token


def uncached(given: decode.Model, prompt: np.ndarray, num_new: int) -> np.ndarray:
    """The likeliest token of the whole sequence, again and again."""
    next_token = likeliest(given.config, given.seams)
    tokens = np.zeros((1, given.config.seq_len), np.int32)
    tokens[0, : len(prompt)] = prompt
    for at in range(len(prompt), len(prompt) + num_new):
        tokens[0, at] = next_token(given.params, tokens, at - 1, given.states)
    return tokens[0, len(prompt) : len(prompt) + num_new]


def said(given: decode.Model, num_new: int, **sampling) -> list[np.ndarray]:
    return decode.generate(
        given,
        PROMPTS,
        max_new_tokens=num_new,
        sampling=decode.Sampling(**sampling),
        is_done=NEVER,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "spec"),
    [
        *itertools.product(("residual", "residual_free"), ("FP", "W8A8")),
        ("gated, projected", "W8A8"),
        ("llama", "FP"),
    ],
)
def test_cached_decoding_is_uncached_decoding(variant, spec):
    given = model(variant, spec)
    found = said(given, 200)
    # A text of few words would let any cache pass.
    assert max(len(np.unique(new)) for new in found) > 8
    for prompt, new in zip(PROMPTS, found, strict=True):
        np.testing.assert_array_equal(new, uncached(given, prompt, 200))


def test_a_cache_holds_every_prompt_of_a_batch_apart():
    given = model("residual", "FP")
    for prompt, new in zip(PROMPTS, said(given, 24), strict=True):
        np.testing.assert_array_equal(new, uncached(given, prompt, 24))


def test_sampling_follows_seed_temperature_and_nucleus():
    given = model("residual", "FP")
    greedy, drawn = said(given, 20), said(given, 20, temperature=1.0)
    np.testing.assert_equal(said(given, 20, temperature=1.0), drawn)
    assert any((a != b).any() for a, b in zip(drawn, greedy, strict=True))
    other = said(given, 20, temperature=1.0, seed=1)
    assert any((a != b).any() for a, b in zip(drawn, other, strict=True))
    # A nucleus of one token, or almost no temperature: the likeliest again.
    np.testing.assert_equal(said(given, 20, temperature=1.0, top_p=1e-6), greedy)
    np.testing.assert_equal(said(given, 20, temperature=1e-5), greedy)


def test_it_stops_when_every_text_is_done():
    found = decode.generate(
        model("residual", "FP"),
        PROMPTS,
        max_new_tokens=100,
        sampling=decode.Sampling(),
        is_done=lambda number, ids: len(ids) > 3,
    )
    assert {len(new) for new in found} == {17}  # One, and a call's sixteen.


def test_of_a_long_prompt_the_end_is_kept():
    given, long = model("residual", "FP"), np.arange(300, dtype=np.int32) % 64
    how = {"max_new_tokens": 6, "sampling": decode.Sampling(), "is_done": NEVER}
    whole = decode.generate(given, [long], **how)
    np.testing.assert_equal(decode.generate(given, [long[-250:]], **how), whole)


def test_a_text_ends_before_its_first_end():
    ids = np.array([5, 6, 2, 7])
    np.testing.assert_array_equal(decode.until(ids, (1, 2)), [5, 6])
    np.testing.assert_array_equal(decode.until(ids, (1,)), ids)


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"temperature": -1.0}, "temperature=-1.0"), ({"top_p": 0.0}, "top_p=0.0")],
)
def test_impossible_sampling_is_refused(fields, said):
    with pytest.raises(InputError, match=said):
        decode.Sampling(**fields)


def test_no_room_for_the_prompt_is_refused():
    with pytest.raises(InputError, match="max_new_tokens=256 must be from 1 to 255"):
        said(model("residual", "FP"), 256)
