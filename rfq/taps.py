"""The tap: one mechanism for measuring, calibrating and quantizing activations.

The model names its sites and knows nothing else. What happens at a site is a value of
type `rfq.types.Tap`:

    (x, what calibration learnt for this site) -> (x', what this batch taught us)

A tap is static: another tap is another compiled program, and a program without taps
contains no trace of them. Bits and ranges are data in the site state, so that one
program serves a whole grid of bit widths.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rfq.quant import distortion
from rfq.quant import grid as grid_lib
from rfq.stats import bins, central, channels, entropy, extremes, holders, per_token
from rfq.types import Array, Record, SiteState, Tap


def identity(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leave x alone and learn nothing."""
    del state
    return x, None


def fake_quantize(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Round x to the site's `Grid` or `Dynamic`; float32 from here on (D9)."""
    _require_grid(state)
    return grid_lib.fake_quantize(x, state), None


def measure_holders(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leave x [B, T, ...] alone and record who holds its outliers.

    The state says which tokens begin a document, bool [B, T].
    """
    return x, holders.holders(x, state)


def measure_peaks(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leave x [B, T, ...] alone and record max |x| of each channel."""
    del state
    return x, jnp.max(jnp.abs(x.astype(jnp.float32)), axis=(0, 1))


def measure_gram(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leave x [B, T, ...] alone and record X^T X / (B T) over tokens, [K, K]."""
    del state
    rows = x.astype(jnp.float32).reshape(-1, math.prod(x.shape[2:]))
    return x, jnp.matmul(rows.T, rows, precision="highest") / len(rows)


class Probe(NamedTuple):
    """The state of a site for `measure_distortion`.

    Attributes:
        target: What the site would be rounded to.
        bulk_limit: Magnitude up to which a value belongs to the bulk.
    """

    target: grid_lib.Grid | grid_lib.Dynamic
    bulk_limit: Array


class Effect(NamedTuple):
    """The effect of a grid on a site."""

    error: distortion.Distortion
    usage: distortion.Usage
    codes: Array  # bool [65536], the codes that occur.


def measure_distortion(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leave x alone and record the error that the site's `Probe` would make.

    The input stays clean, so that the error is the site's own and not what earlier
    sites have done: appendix D compares a tensor with its own quantization.
    """
    assert isinstance(state, Probe), "a quantized site has no grid"
    grid, limit = grid_lib.grid_for(x, state.target), state.bulk_limit
    return x, Effect(
        distortion.measure(x, grid_lib.fake_quantize(x, grid)),
        distortion.usage(x, grid, limit),
        distortion.codes_used(x, grid),
    )


def merge_effects(a: Effect, b: Effect) -> Effect:
    """Return the effect on the union of two samples, in float64 on the host."""
    wide = central.to_float64
    return Effect(
        distortion.merge(wide(a.error), wide(b.error)),
        distortion.merge_usage(wide(a.usage), wide(b.usage)),
        a.codes | b.codes,
    )


def effect_numbers(effect: Effect) -> dict[str, np.ndarray]:
    """Read the numbers of each layer off a merged effect."""
    read = {
        "sqnr_db": distortion.sqnr_db_of(effect.error),
        "nmse": distortion.nmse_of(effect.error),
        "bulk_sqnr_db": distortion.sqnr_db_of(distortion.bulk(effect.usage)),
        "clip_fraction": distortion.clip_fraction(effect.usage),
        "clip_noise_fraction": distortion.clip_noise_fraction(effect.usage),
        "dead_fraction": distortion.dead_fraction(effect.usage),
        "levels_used": effect.codes.sum(-1),
    }
    return {name: np.asarray(value) for name, value in read.items()}


PAIR = "clean and quantized"


def measure_divergence(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Round the quantized of two models, and record how far it is from the clean one.

    The two run side by side as a `jax.vmap` of size 2 over the axis PAIR, the clean one
    first, so that no activation of a layer needs to be kept for the other model's.
    It records the error that comes in, before the site's own rounding.
    """
    _require_grid(state)
    clean, quantized = jax.lax.all_gather(x, PAIR)
    rounded = grid_lib.fake_quantize(x, state)
    x_out = jnp.where(jax.lax.axis_index(PAIR) == 0, x.astype(jnp.float32), rounded)
    return x_out, distortion.measure(clean, quantized)


def perturb(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Add the site's error, if it has one, and record what came in."""
    return (x if state is None else x + state), x


def _require_grid(state: SiteState) -> None:
    # `grid.fake_quantize` takes None for full precision. Here None can only be a site
    # that was forgotten, which would look like one that quantization does not hurt.
    known = isinstance(state, grid_lib.Grid | grid_lib.Dynamic)
    assert known, "a quantized site has no grid"


@dataclasses.dataclass(frozen=True)
class Excess:
    """Leave x alone and record how far it reaches beyond a threshold t.

    The record is mean((|x| / t)^4), the term that TWEO (arXiv 2511.23225) adds to the
    loss for the output of each block, with its power of 4.
    """

    threshold: float

    def __call__(self, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Record a scalar, differentiable in x."""
        del state
        return x, jnp.mean((x.astype(jnp.float32) / self.threshold) ** 4)


class Statistic(NamedTuple):
    """A row of `STATISTICS`.

    Attributes:
        record: (rows [num_tokens, D], site state) -> what one batch knows.
        merge: Two float64 records on the host -> their record together.
        numbers: name -> merged record -> one number a layer.
        sampled: It is expensive, so it sees `Measure.sample` tokens.
        binned: It needs the site's `Binning`, which a first pass must find.
    """

    record: Callable[[Array, SiteState], Record]
    merge: Callable[[Record, Record], Record]
    numbers: Mapping[str, Callable[[Record], Array]]
    sampled: bool = False
    binned: bool = False


def _binning(x: Array, state: SiteState) -> Record:
    del state
    return bins.robust_binning(x)


def _sample(x: Array, state: SiteState) -> Record:
    return entropy.sample(x, _binning(x, None) if state is None else state)


# `histogram` reads the site's `Binning` from the state, which batches must share to be
# merged; without one it takes the batch's own. `binning` is for a first pass.
STATISTICS: Mapping[str, Statistic] = {
    "moments": Statistic(
        lambda x, state: central.moments(x),
        central.merge,
        {
            "excess_kurtosis": central.excess_kurtosis,
            "rms": central.rms,
            "mean": lambda m: m.mean,
        },
    ),
    "range": Statistic(
        lambda x, state: extremes.value_range(x),
        extremes.merge,
        {"range_lo": lambda r: r.lo, "range_hi": lambda r: r.hi},
    ),
    "channels": Statistic(
        lambda x, state: channels.channel_moments(x),
        central.merge,
        {
            "channel_excess_kurtosis": channels.mean_excess_kurtosis,
            "he_kurtosis": channels.he_kurtosis,
            "mean_share": channels.mean_share,
        },
    ),
    "tokens": Statistic(
        lambda x, state: per_token.tokens(x),
        per_token.merge,
        {
            "token_excess_kurtosis": per_token.mean_excess_kurtosis,
            "max_over_median": per_token.max_over_median,
            "token_cosine": per_token.token_cosine,
            "sampled_tokens": lambda t: t.num_tokens,
        },
        sampled=True,
    ),
    "histogram": Statistic(
        _sample,
        entropy.merge,
        {
            "negentropy": entropy.negentropy,
            "hyvarinen_a": lambda s: entropy.hyvarinen_a(entropy.contrasts_of(s)),
            "hyvarinen_b": lambda s: entropy.hyvarinen_b(entropy.contrasts_of(s)),
            "sampled_values": lambda s: s.moments.count,
        },
        sampled=True,
        binned=True,
    ),
    "binning": Statistic(_binning, lambda first, later: first, {}, sampled=True),
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """Leave x alone and record the named statistics.

    Attributes:
        statistics: Rows of `STATISTICS`.
        sample: Tokens of a batch that the `sampled` statistics see; None for all. Every
            sequence gives as many, at positions of its own, the same in every call.
    """

    statistics: tuple[str, ...] = ("moments",)
    sample: int | None = None

    def __call__(self, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Record {statistic: record} of x [B, T, ...], each mergeable over batches."""
        few = self._sampled(x)
        rows, few = (each.reshape(-1, math.prod(x.shape[2:])) for each in (x, few))
        return x, {
            name: STATISTICS[name].record(
                few if STATISTICS[name].sampled else rows, state
            )
            for name in self.statistics
        }

    def _sampled(self, x: Array) -> Array:
        B, T = x.shape[:2]
        if self.sample is None or self.sample >= B * T:
            return x
        each = -(-self.sample // B)
        positions = np.random.default_rng(0).permuted(
            np.tile(np.arange(T), (B, 1)), axis=1
        )
        index = np.sort(positions[:, :each]).reshape(B, each, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)


def merged(records: Iterable[Mapping[str, Record]]) -> dict[str, Record]:
    """Merge the {statistic: record} of one site over batches, in float64."""

    def both(a: dict[str, Record], b: dict[str, Record]) -> dict[str, Record]:
        return {name: STATISTICS[name].merge(a[name], b[name]) for name in a}

    return functools.reduce(both, (dict(central.to_float64(r)) for r in records))


def by_site(records: Iterable[Mapping[str, Record]]) -> dict[str, list[Record]]:
    """Turn the {site: record} of each batch into each site's records, on the host.

    All batches are dispatched before the first record is read.
    """
    fetched = jax.device_get(list(records))
    return {site: [batch[site] for batch in fetched] for site in fetched[0]}


def numbers(record: Mapping[str, Record]) -> dict[str, np.ndarray]:
    """Read every number off the merged statistics of one site, one a layer."""
    return {
        name: np.asarray(read(record[statistic]))
        for statistic in record
        for name, read in STATISTICS[statistic].numbers.items()
    }


@dataclasses.dataclass(frozen=True)
class Taps:
    """One tap at the named sites, `identity` at all others."""

    tap: Tap = identity
    sites: tuple[str, ...] = ()

    def at(self, site: str, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Apply the tap if `site` is one of ours."""
        return self.tap(x, state) if site in self.sites else (x, None)


@dataclasses.dataclass(frozen=True)
class Both:
    """Two taps, each at its own sites; only the first records."""

    first: Taps
    then: Taps

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites of either."""
        return (*self.first.sites, *self.then.sites)

    def at(self, site: str, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Apply one tap and then the other."""
        x, record = self.first.at(site, x, state)
        return self.then.at(site, x, state)[0], record


NO_TAPS = Taps()
