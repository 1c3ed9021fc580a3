"""Greedy and sampled decoding with a cache of keys and values.

A cache is a state and a record of every block, so that the model's one forward pass
also decodes, with any taps and so under quantization too.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.errors import InputError
from rfq.model import cache as cache_lib
from rfq.model import config as model_config
from rfq.model import transformer
from rfq.model.config import ModelConfig
from rfq.types import Array, Params, SiteState

# Tokens that one call draws before `is_done` is asked.
_STRIDE = 16

# Prompts are padded to a multiple of it.
_PROMPT_UNIT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """The settings by which the next token is drawn."""

    temperature: float = 0.0  # The softmax's; 0 takes the likeliest token.
    top_p: float = 1.0  # Draw among the likeliest tokens with this total probability.
    seed: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise InputError(f"temperature={self.temperature} must be >= 0")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} must be in (0, 1]")


class Model(NamedTuple):
    """A model under one quantization setting.

    Attributes:
        params: rounded or not.
        config: as trained; decoding computes in float32.
        seams: taps of the setting, or `transformer.PLAIN`.
        states: {site: grid} for the taps.
    """

    params: Params
    config: ModelConfig
    seams: transformer.Seams
    states: Mapping[str, SiteState]


def generate(
    model: Model,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    is_done: Callable[[int, np.ndarray], bool],
) -> list[np.ndarray]:
    """Continue prompts, all at once.

    Args:
        model: the model that continues.
        prompts: token ids, bos in front; if a prompt leaves no room in the model's
            sequence, its end is kept.
        max_new_tokens: the most new tokens of each prompt.
        sampling: how tokens are drawn.
        is_done: (number of the prompt, its new tokens) -> whether that is enough; asked
            every few tokens.

    Returns:
        The new token ids of each.

    Raises:
        InputError: max_new_tokens leaves no room for a prompt.
    """
    seq_len = model.config.seq_len
    if not 1 <= max_new_tokens < seq_len:
        raise InputError(
            f"max_new_tokens={max_new_tokens} must be from 1 to {seq_len - 1}: prompt "
            f"and continuation share model.seq_len={seq_len}"
        )
    kept = [prompt[-(seq_len - max_new_tokens) :] for prompt in prompts]
    lengths = np.array([len(prompt) for prompt in kept], np.int32)
    padded = min(-(-lengths.max() // _PROMPT_UNIT) * _PROMPT_UNIT, seq_len)
    tokens = np.zeros((len(kept), padded), np.int32)
    for row, prompt in zip(tokens, kept, strict=True):
        row[: len(prompt)] = prompt
    prefill, extend = _compiled(model.config, model.seams)
    how = (jnp.float32(sampling.temperature), jnp.float32(sampling.top_p))
    key = jax.random.key(sampling.seed)
    states = dict(model.states)
    cache, last = prefill(model.params, states, tokens, lengths, key, *how)
    drawn = [np.asarray(last)[:, None]]
    for start in range(1, max_new_tokens, _STRIDE):
        said = np.concatenate(drawn, axis=1)
        if all(is_done(number, row) for number, row in enumerate(said)):
            break
        cache, last, new = extend(
            model.params, states, cache, last, jnp.int32(start), key, *how
        )
        drawn.append(np.asarray(new))
    return list(np.concatenate(drawn, axis=1)[:, :max_new_tokens])


def until(ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Return the tokens before the first that ends a text."""
    stops = np.flatnonzero(np.isin(ids, ends))
    return ids[: stops[0]] if stops.size else ids


@functools.lru_cache(maxsize=8)
def _compiled(trained: ModelConfig, seams: transformer.Seams):
    """Compile the two programs of a model: bits and ranges are data."""
    c = config = model_config.in_float32(model_config.rolled(trained))

    def step(params, states, cache, tokens_BT, places_B, key, temperature, top_p):
        """Feed tokens and draw what follows the one at `places`."""
        with jax.default_matmul_precision("highest"):
            h_BTD, records = transformer.features(
                params, tokens_BT, config, seams, {**states, transformer.CACHE: cache}
            )
            h_B1D = jnp.take_along_axis(h_BTD, places_B[:, None, None], axis=1)
            logits_B1V = transformer.head(params, config, seams, states)(h_B1D)
        drawn = _draw(logits_B1V[:, 0].astype(jnp.float32), key, temperature, top_p)
        return records[transformer.CACHE], drawn

    def prefill(params, states, tokens_BT, lengths_B, key, *how):
        B = tokens_BT.shape[0]
        slots = jnp.zeros(
            (c.num_layers, B, c.seq_len, c.kv_heads, c.head_width), jnp.float32
        )
        empty = cache_lib.Cache(slots, slots, jnp.zeros((c.num_layers, B), jnp.int32))
        first = jax.random.fold_in(key, 0)
        cache, drawn = step(
            params, states, empty, tokens_BT, lengths_B - 1, first, *how
        )
        # The slots of the padding are overwritten before they are read.
        seen = jnp.broadcast_to(lengths_B[None, :], (c.num_layers, B))
        return cache._replace(length_B=seen), drawn

    def extend(params, states, cache, last_B, start, key, *how):
        def one(carry, number: Array):
            cache, last_B = carry
            place = jnp.zeros_like(last_B)
            fresh = jax.random.fold_in(key, start + number)
            cache, drawn = step(
                params, states, cache, last_B[:, None], place, fresh, *how
            )
            return (cache, drawn), drawn

        numbers = jnp.arange(_STRIDE, dtype=jnp.int32)
        (cache, last_B), new_NB = jax.lax.scan(one, (cache, last_B), numbers)
        return cache, last_B, new_NB.T

    return jax.jit(prefill), jax.jit(extend, donate_argnums=2)


def _draw(logits_BV: Array, key: Array, temperature: Array, top_p: Array) -> Array:
    """Draw the likeliest token or one of the nucleus (Holtzman et al. 2020), [B]."""
    scaled_BV = logits_BV / jnp.maximum(temperature, 1e-6)
    order_BV = jnp.sort(scaled_BV, axis=-1, descending=True)
    share_BV = jax.nn.softmax(order_BV, axis=-1)
    # A token is in the nucleus if those before it do not fill it yet.
    inside_BV = jnp.cumsum(share_BV, axis=-1) - share_BV < top_p
    least_B1 = jnp.min(jnp.where(inside_BV, order_BV, jnp.inf), axis=-1, keepdims=True)
    nucleus_BV = jnp.where(scaled_BV >= least_B1, scaled_BV, -jnp.inf)
    sampled_B = jax.random.categorical(key, nucleus_BV)
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    return jnp.where(temperature > 0, sampled_B, likeliest_B).astype(jnp.int32)
