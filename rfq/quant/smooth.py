"""SmoothQuant: scales of channels that move from an activation into its weights.

For y = x W and any scales s > 0, y = (x / s) (diag(s) W). Xiao et al. (arXiv
2211.10438) take

    s_j = max |x_j|^alpha / max |W_j|^(1 - alpha)

so that channels that reach far in the activation are drawn in, at the price of larger
rows in W. 1 / s costs nothing where what comes before is a gain or a matrix.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from rfq.types import Array, Params


class Fold(NamedTuple):
    """A row of `FOLDS`: where the scales of a site go.

    Attributes:
        before: {parameter: its axis} that is divided by s; some may be absent.
        after: The same for what is multiplied by s: all that reads the site.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]


_READ_ATTENTION = {"w_q": 1, "w_k": 1, "w_v": 1, "w_gate": 1}
_READ_MLP = {"w_up": 1, "w_mlp_gate": 1}

FOLDS: Mapping[str, Fold] = {
    "attn_in": Fold({"attn_norm": 1}, _READ_ATTENTION),
    "mlp_in": Fold({"mlp_norm": 1}, _READ_MLP),
    "mlp_hidden": Fold({"w_up": 2}, {"w_down": 1}),
}
"""The sites that can be scaled without any work at run time.

`mlp_hidden` is one where the MLP is gated and the hidden activation is not rotated,
because h = (x W_up) * gate(x) is linear in W_up.
"""


def scales(peaks: Array, weight_peaks: Array, alpha: float) -> Array:
    """Compute s = peaks^alpha / weight_peaks^(1 - alpha); 1 where either is 0.

    Args:
        peaks: max |x_j| of each channel over the calibration tokens, any shape.
        weight_peaks: max |W_j| over all weights that read the channel, same shape.
        alpha: How much moves: 0 levels the weights, 1 the activation.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rfq.quant import smooth
        >>> peaks, of_weights = jnp.array([16.0, 1.0, 0.0]), jnp.array([1.0, 4.0, 1.0])
        >>> smooth.scales(peaks, of_weights, 0.5).tolist()
        [4.0, 0.5, 1.0]
    """
    is_silent = (peaks == 0.0) | (weight_peaks == 0.0)
    x, w = (jnp.where(is_silent, 1.0, value) for value in (peaks, weight_peaks))
    return x**alpha / w ** (1.0 - alpha)


def smoothed(
    params: Params, peaks: Mapping[str, Array], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """Scale the channels of sites and fold the scales into a decoder's parameters.

    Args:
        params: A decoder's, whose norms have a gain for each channel.
        peaks: {site: max |x_j| [L, channels]} from calibration.
        alphas: {row of `FOLDS`: alpha}, the sites to scale.

    Returns:
        The parameters of the same function of the tokens.
    """
    blocks = dict(params["blocks"])
    for site, alpha in alphas.items():
        before, after = FOLDS[site]
        readers = {name: axis for name, axis in after.items() if name in blocks}
        reach = [_peaks(blocks[name], axis) for name, axis in readers.items()]
        s = scales(peaks[site], jnp.max(jnp.stack(reach), axis=0), alpha)
        for name, axis in readers.items():
            blocks[name] = blocks[name] * _beside(s, blocks[name], axis)
        for name, axis in before.items():
            blocks[name] = blocks[name] / _beside(s, blocks[name], axis)
    return {**params, "blocks": blocks}


def foldable(sites: Iterable[str], *, is_gated: bool, is_rotated: bool) -> list[str]:
    """List those of some sites whose scales fold into this decoder."""
    hidden = is_gated and not is_rotated
    return [s for s in sites if s in FOLDS and (s != "mlp_hidden" or hidden)]


def _peaks(w: Array, axis: int) -> Array:
    others = tuple(a for a in range(1, w.ndim) if a != axis)
    return jnp.max(jnp.abs(w), axis=others)


def _beside(s: Array, w: Array, axis: int) -> Array:
    """Reshape s [L, channels] so that it broadcasts against w along the axis."""
    shape = [1] * w.ndim
    shape[0], shape[axis] = s.shape
    return s.reshape(shape)
