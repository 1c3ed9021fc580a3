"""Keys and values that decoding keeps, and where the next tokens stand behind them.

Shapes in names: B batch, T position of a new token, S slot, H head, K head width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rfq.types import Array


class Cache(NamedTuple):
    """Keys and values of the tokens before: a block's state and record in decoding.

    Attributes:
        k_BSHK: after their rotation; S slots, of which a row's first `length` count.
        v_BSHK: see k_BSHK.
        length_B: int32, tokens seen by each row.
    """

    k_BSHK: Array
    v_BSHK: Array
    length_B: Array


def positions(num_tokens: int, cache: Cache | None) -> Array:
    """Say where the tokens of a call stand, float32 [1, T]; [B, T] behind a cache."""
    new_1T = jnp.arange(num_tokens, dtype=jnp.float32)[None, :]
    if cache is None:
        return new_1T
    return cache.length_B[:, None].astype(jnp.float32) + new_1T


def extended(cache: Cache, k_BTHK: Array, v_BTHK: Array) -> Cache:
    """Return the cache with the keys and values of new tokens in it."""

    def put(slots_SHK: Array, new_THK: Array, start: Array) -> Array:
        zero = jnp.int32(0)
        return jax.lax.dynamic_update_slice(slots_SHK, new_THK, (start, zero, zero))

    k_BSHK = jax.vmap(put)(cache.k_BSHK, k_BTHK, cache.length_B)
    v_BSHK = jax.vmap(put)(cache.v_BSHK, v_BTHK, cache.length_B)
    return Cache(k_BSHK, v_BSHK, cache.length_B + k_BTHK.shape[1])
