"""Who holds the outliers: which channels, which positions, which kind of token.

A pooled excess kurtosis of 276,398 can be one channel of one token a sequence. It is
read again without the first token of every sequence, without the first token of every
document that begins within a sequence, and without the largest channels. Models send
attention that has nothing to do to such tokens ("attention sinks", Xiao et al., arXiv
2309.17453), which makes them large.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.stats import central, channels
from rfq.types import Array

NUM_CHANNELS = 4  # Channels that are left out together.


class Holders(NamedTuple):
    """The moments of each channel by kind of token, and where the peaks are.

    Attributes:
        first: `Moments` [D] of the first token of every sequence.
        starts: `Moments` [D] of the tokens that begin a document further on.
        rest: `Moments` [D] of all other tokens.
        channel_peak: Largest magnitude of each channel, [D].
        position_peak: Largest magnitude at each position, [T].
    """

    first: central.Moments
    starts: central.Moments
    rest: central.Moments
    channel_peak: Array
    position_peak: Array


class Mark(NamedTuple):
    """How ids tell where documents begin.

    Attributes:
        token: The id that stands at each boundary.
        is_before: Whether it ends a document, so that the next token begins one; else
            it begins one itself.
    """

    token: Array | int
    is_before: Array | bool


def starts(tokens_BT: Array, mark: Mark) -> Array:
    """Find the tokens that begin a document behind the first position, bool [B, T]."""
    before_BT = jnp.roll(tokens_BT, 1, axis=1)
    begins_BT = jnp.where(mark.is_before, before_BT, tokens_BT) == mark.token
    return begins_BT & (jnp.arange(tokens_BT.shape[1]) > 0)[None, :]


def holders(x: Array, starts_BT: Array) -> Holders:
    """Reduce activations [B, T, ...], T >= 2, whose other axes are the channels.

    Args:
        x: The activations.
        starts_BT: Which tokens begin a document, but for first tokens.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq.stats.holders import holders
        >>> x = jnp.zeros((1, 3, 2)).at[0, 2, 1].set(-5.0)
        >>> h = holders(x, jnp.array([[False, False, True]]))
        >>> h.channel_peak.tolist(), h.position_peak.tolist(), h.starts.mean.tolist()
        ([0.0, 5.0], [0.0, 0.0, 5.0], [0.0, -5.0])
    """
    x_BTD = jnp.asarray(x, jnp.float32).reshape(*x.shape[:2], -1)
    size_BTD = jnp.abs(x_BTD)
    return Holders(
        first=channels.channel_moments(x_BTD[:, :1]),
        starts=channels.channel_moments(x_BTD[:, 1:], starts_BT[:, 1:]),
        rest=channels.channel_moments(x_BTD[:, 1:], ~starts_BT[:, 1:]),
        channel_peak=jnp.max(size_BTD, axis=(0, 1)),
        position_peak=jnp.max(size_BTD, axis=(0, 2)),
    )


def merge(a: Holders, b: Holders) -> Holders:
    """Return the holders of two samples together, in float64 on the host."""
    return Holders(
        central.merge(a.first, b.first),
        central.merge(a.starts, b.starts),
        central.merge(a.rest, b.rest),
        np.maximum(a.channel_peak, b.channel_peak),
        np.maximum(a.position_peak, b.position_peak),
    )


def numbers(h: Holders) -> dict[str, np.ndarray]:
    """Read what a float64 record tells, one number a layer.

    Returns:
        excess_kurtosis of all values, without_first of all but first tokens,
        without_starts of all but these and the tokens that begin documents,
        without_channels of all but the `NUM_CHANNELS` channels of the largest peaks;
        rms; peak, the largest magnitude, with its channel and position; first_share,
        the share of first tokens in the energy, start_share, that of tokens that begin
        documents further on, and channel_share, that of the channel.
    """
    later = central.merge(h.starts, h.rest)
    of_all = central.merge(h.first, later)
    order = np.argsort(h.channel_peak, axis=-1)
    kept = order[..., : max(1, order.shape[-1] - NUM_CHANNELS)]
    few: central.Moments = jax.tree.map(
        lambda leaf: np.take_along_axis(leaf, kept, axis=-1), of_all
    )
    energy, first, begun = (
        m.m2 + m.count * m.mean**2 for m in (of_all, h.first, h.starts)
    )
    channel = order[..., -1:]
    held = np.take_along_axis(energy, channel, axis=-1)[..., 0]
    whole = channels.pooled(of_all)
    read = {
        "excess_kurtosis": central.excess_kurtosis(whole),
        "without_first": central.excess_kurtosis(channels.pooled(later)),
        "without_starts": central.excess_kurtosis(channels.pooled(h.rest)),
        "without_channels": central.excess_kurtosis(channels.pooled(few)),
        "rms": central.rms(whole),
        "peak": h.channel_peak.max(-1),
        "channel": channel[..., 0],
        "position": h.position_peak.argmax(-1),
        "first_share": first.sum(-1) / energy.sum(-1),
        "start_share": begun.sum(-1) / energy.sum(-1),
        "channel_share": held / energy.sum(-1),
    }
    return {name: np.asarray(value) for name, value in read.items()}


# Who can hold outliers -> the column that leaves them out. The first that takes most of
# the kurtosis away is named.
_SUSPECTS: Mapping[str, str] = {
    "the first token of each sequence": "without_first",
    "the tokens that begin sequences and documents": "without_starts",
    f"the {NUM_CHANNELS} largest channels": "without_channels",
}


def named(numbers: Mapping[str, float]) -> str:
    """Say who holds the outliers of a layer, from its row of `numbers`.

    A suspect is named when the excess kurtosis without it is at most a tenth; what is
    below 1 is hardly a tail and is held by nobody.
    """
    gamma = numbers["excess_kurtosis"]
    if np.isnan(gamma):
        return "nobody: values are all the same, or not finite"
    if gamma < 1.0:
        return "nobody: it is near that of a Gaussian"
    for suspect, column in _SUSPECTS.items():
        if numbers[column] <= 0.1 * gamma:
            return suspect
    return "many tokens and channels"
