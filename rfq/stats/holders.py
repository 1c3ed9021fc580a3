"""Who holds the outliers: which channels, which positions, the first token or the rest.

A pooled excess kurtosis of 276,398 can be one channel of one token a sequence. It is
read again without the first token of every sequence and without the largest channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.stats import central, channels
from rfq.types import Array

NUM_CHANNELS = 4  # Channels that are left out together.


class Holders(NamedTuple):
    """The moments of each channel, apart for first tokens, and where the peaks are.

    Attributes:
        first: `Moments` [D] of the first token of every sequence.
        rest: `Moments` [D] of all other tokens.
        channel_peak: Largest magnitude of each channel, [D].
        position_peak: Largest magnitude at each position, [T].
    """

    first: central.Moments
    rest: central.Moments
    channel_peak: Array
    position_peak: Array


def holders(x: Array) -> Holders:
    """Reduce activations [B, T, ...], T >= 2, whose other axes are the channels.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq.stats.holders import holders
        >>> x = jnp.zeros((1, 3, 2)).at[0, 2, 1].set(-5.0)
        >>> holders(x).channel_peak.tolist(), holders(x).position_peak.tolist()
        ([0.0, 5.0], [0.0, 0.0, 5.0])
    """
    x_BTD = jnp.asarray(x, jnp.float32).reshape(*x.shape[:2], -1)
    size_BTD = jnp.abs(x_BTD)
    return Holders(
        first=channels.channel_moments(x_BTD[:, :1]),
        rest=channels.channel_moments(x_BTD[:, 1:]),
        channel_peak=jnp.max(size_BTD, axis=(0, 1)),
        position_peak=jnp.max(size_BTD, axis=(0, 2)),
    )


def merge(a: Holders, b: Holders) -> Holders:
    """Return the holders of two samples together, in float64 on the host."""
    return Holders(
        central.merge(a.first, b.first),
        central.merge(a.rest, b.rest),
        np.maximum(a.channel_peak, b.channel_peak),
        np.maximum(a.position_peak, b.position_peak),
    )


def numbers(h: Holders) -> dict[str, np.ndarray]:
    """Read what a float64 record tells, one number a layer.

    Returns:
        excess_kurtosis of all values, without_first of all but first tokens,
        without_channels of all but the `NUM_CHANNELS` channels of the largest peaks;
        rms; peak, the largest magnitude, with its channel and position; first_share,
        the share of first tokens in the energy, and channel_share, that of the channel.
    """
    of_all = central.merge(h.first, h.rest)
    order = np.argsort(h.channel_peak, axis=-1)
    kept = order[..., : max(1, order.shape[-1] - NUM_CHANNELS)]
    few: central.Moments = jax.tree.map(
        lambda leaf: np.take_along_axis(leaf, kept, axis=-1), of_all
    )
    energy, first = (m.m2 + m.count * m.mean**2 for m in (of_all, h.first))
    channel = order[..., -1:]
    held = np.take_along_axis(energy, channel, axis=-1)[..., 0]
    whole = channels.pooled(of_all)
    read = {
        "excess_kurtosis": central.excess_kurtosis(whole),
        "without_first": central.excess_kurtosis(channels.pooled(h.rest)),
        "without_channels": central.excess_kurtosis(channels.pooled(few)),
        "rms": central.rms(whole),
        "peak": h.channel_peak.max(-1),
        "channel": channel[..., 0],
        "position": h.position_peak.argmax(-1),
        "first_share": first.sum(-1) / energy.sum(-1),
        "channel_share": held / energy.sum(-1),
    }
    return {name: np.asarray(value) for name, value in read.items()}
