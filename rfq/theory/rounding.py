"""Our law of what rounding costs: how errors of layers add up, and what tails do to it.

A chain of L layers rounds its stream once a layer, behind the norm's input, with the
relative error e (the NMSE of the site). Its matrices are isometries, and a branch has
the norm's unit variance, as at the start of training. S_L is the energy of the error
over that of the signal at the end, to first order in e:

    residual-free                x' = W n(Q x)          S_L = L e
    in place                     x' = Q x + W n(Q x)    S_L = L e
    branch                       x' = x + W n(Q x)      S_L = e sum_{l <= L} 1 / (l + 1)

For the second line, with v_l = 1 + l the variance of the stream, the error obeys
S_{l+1} v_{l+1} = (S_l + e) v_l + (S_l + e), so that S_{l+1} = S_l + e. For the third
S_{l+1} v_{l+1} = S_l v_l + S_l + e, so that S_{l+1} = S_l + e / v_{l+1}: a clean skip
turns the depth into its logarithm. Behind the last norm R = 2 - 2 / sqrt(1 + S).

Under min-max calibration e = w^2 / (12 (2^b - 1)^2) with w the width of the range over
the root mean square. The largest of n values, M times the rms, obeys

    sqrt(3 + gamma) <= M <= ((3 + gamma) n)^(1/4),

since E x^4 <= M^2 E x^2 and M^4 <= n E x^4. A residual model with the quantizer in the
branch therefore loses more than a residual-free one of equal depth from a range that is
sqrt(L / sum 1 / (l + 1)) times as wide, whatever the bits.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.model import init, layers
from rfq.quant import distortion, grid, propagation
from rfq.theory import laws
from rfq.theory.check import Check, exact
from rfq.theory.laws import LAWS
from rfq.types import Array

WIDTH, TOKENS = 128, 512
DEPTHS = (6, 24, 48)
NUM_CHAINS = 3


class Found(NamedTuple):
    """R behind the last norm, one for each chain: measured, and by the law."""

    measured: np.ndarray
    predicted: np.ndarray


def crossing(num_layers: int) -> float:
    """Return how much wider the range of a branch may be before it loses more."""
    free, branch = (_shares(w, num_layers).sum() for w in ("residual_free", "branch"))
    return math.sqrt(free / branch)


def _shares(where: str, num_layers: int) -> np.ndarray:
    return propagation.shares(*_LINES[where], num_layers)


# Line of the law -> the connection and the placement of the model that it speaks of.
_LINES: Mapping[str, tuple[str, str]] = {
    "residual_free": ("residual_free", "branch"),
    "in_place": ("residual", "in_place"),
    "branch": ("residual", "branch"),
}


@functools.partial(jax.jit, static_argnums=2)
def chains(
    x_NTD: Array, w_NLDD: Array, where: str, num_bits: Array, widen: Array
) -> tuple[Array, Array]:
    """Round N chains of L layers.

    Args:
        x_NTD: What enters.
        w_NLDD: The isometries.
        where: A row of `_LINES`.
        num_bits: Of the grid, whose range is that of the clean stream.
        widen: Makes the range of every layer so many times as wide, as outliers do.

    Returns:
        e [N, L] and R behind the last norm [N].
    """
    one, (skip, stream) = jnp.ones(WIDTH), _LINES[where]

    def step(x_TD: Array, tapped_TD: Array, w_DD: Array) -> Array:
        update_TD = layers.rms_norm(tapped_TD, one) @ w_DD
        carried = layers.STREAMS[stream](x_TD, tapped_TD)
        return layers.SKIPS[skip].join(carried, update_TD)

    def layer(streams: tuple[Array, Array], w_DD: Array):
        clean, noisy = streams
        lo, hi = widen * jnp.min(clean), widen * jnp.max(clean)
        target = grid.grid_from_range(lo, hi, num_bits)
        own, seen = (grid.fake_quantize(x, target) for x in streams)
        after = step(clean, clean, w_DD), step(noisy, seen, w_DD)
        return after, distortion.nmse(clean, own)

    def chain(x_TD: Array, w_LDD: Array) -> tuple[Array, Array]:
        (clean, noisy), e_L = jax.lax.scan(layer, (x_TD, x_TD), w_LDD)
        clean, noisy = (layers.rms_norm(s, one) for s in (clean, noisy))
        return e_L, distortion.nmse(clean, noisy)

    return jax.vmap(chain)(x_NTD, w_NLDD)


@functools.cache
def _drawn() -> tuple[Array, Array]:
    """Draw what enters the chains, and the isometries of the longest."""
    x_key, w_key = jax.random.split(jax.random.key(7))
    x_NTD = jax.random.normal(x_key, (NUM_CHAINS, TOKENS, WIDTH))
    keys_NL = jax.random.split(w_key, (NUM_CHAINS, max(DEPTHS)))
    draw = functools.partial(init.orthonormal_columns, WIDTH, WIDTH)
    w_NLDD = jax.vmap(jax.vmap(lambda key: draw(key=key)))(keys_NL)
    return x_NTD, w_NLDD


@functools.cache
def rounded(where: str, num_layers: int, num_bits: int, widen: float = 1.0) -> Found:
    """Measure R of some chains, and what the law makes of their e."""
    x_NTD, w_NLDD = _drawn()
    bits, widen_by = jnp.int32(num_bits), jnp.float32(widen)
    e_NL, r_N = chains(x_NTD, w_NLDD[:, :num_layers], where, bits, widen_by)
    added_N = np.asarray(e_NL, np.float64) @ _shares(where, num_layers)
    return Found(np.asarray(r_N, np.float64), propagation.normalized(added_N))


def error_of(values: np.ndarray, num_bits: int) -> float:
    """Return e = w^2 / (12 (2^b - 1)^2) for the range of these values."""
    width = np.ptp(values) / math.sqrt(np.mean(values**2))
    return float(width**2 / (12.0 * (2**num_bits - 1) ** 2))


# --- Claims ---------------------------------------------------------------------------


def errors_add_up() -> list[Check]:
    """Errors of all layers add up, but for a clean skip, which takes the logarithm."""
    return [
        Check(
            where="ours",
            statement=f"R over the law's: {where}, {num_layers} layers, "
            f"{num_bits} bits",
            predicted=1.0,
            measured=laws.over_batches(found.measured / found.predicted),
            # At this width the tokens differ in energy, which the law leaves out.
            tolerance=0.05,
        )
        for where in _LINES
        for num_layers in DEPTHS
        for num_bits in (8, 6)
        for found in (rounded(where, num_layers, num_bits),)
    ]


def ranges_of_tails() -> list[Check]:
    """The range lies between two powers of the kurtosis; its square is the error."""
    checks = []
    for law in ("gaussian", "laplace", "student_5"):
        x = np.asarray(
            LAWS[law].draw(jax.random.key(3), (TOKENS, WIDTH)), np.float64
        ).ravel()
        power = np.mean(x**4) / np.mean(x**2) ** 2
        largest = np.max(np.abs(x)) / math.sqrt(np.mean(x**2))
        target = grid.grid_from_range(jnp.min(x), jnp.max(x), 6)
        moved = np.asarray(grid.fake_quantize(jnp.asarray(x), target), np.float64) - x
        checks += [
            Check(
                where="ours",
                statement=f"M over sqrt(3 + gamma) is at least 1: {law}, n {x.size}",
                predicted=1.0,
                measured=exact(largest / math.sqrt(power)),
                tolerance=0.0,
                relation=">=",
            ),
            Check(
                where="ours",
                statement=f"M over ((3 + gamma) n)^(1/4) is at most 1: {law}",
                predicted=1.0,
                measured=exact(largest / (power * x.size) ** 0.25),
                tolerance=0.0,
                relation="<=",
            ),
            Check(
                where="ours",
                statement=f"NMSE at 6 bits over w^2 / (12 63^2): {law}",
                predicted=1.0,
                measured=exact(np.mean(moved**2) / np.mean(x**2) / error_of(x, 6)),
                tolerance=0.03,
            ),
        ]
    return checks


def crossing_of_connections() -> list[Check]:
    """At one width of the range both connections lose the same, whatever the bits."""
    return [
        Check(
            where="ours",
            statement="R in the branch over R without skips, with a range "
            f"{crossing(num_layers):.2f} times as wide in the branch: "
            f"{num_layers} layers, {num_bits} bits",
            predicted=1.0,
            measured=laws.over_batches(branch.measured / free.measured),
            # The range of a Gaussian differs from layer to layer, and a branch weighs
            # the first layers most.
            tolerance=0.15,
        )
        for num_layers in DEPTHS
        for num_bits in (10, 8)
        for free, branch in (
            (
                rounded("residual_free", num_layers, num_bits),
                rounded("branch", num_layers, num_bits, crossing(num_layers)),
            ),
        )
    ]
