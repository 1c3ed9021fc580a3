"""The tap: one mechanism for measuring, calibrating and quantizing activations.

The model names its sites and knows nothing else. What happens at a site is a value of
type `rfq.types.Tap`:

    (x, what calibration learnt for this site) -> (x', what this batch taught us)

A tap is static: another tap is another compiled program, and a program without taps
contains no trace of them. Bits and ranges are data in the site state, so that one
program serves a whole grid of bit widths.
"""

import dataclasses
from collections.abc import Callable, Mapping

from rfq.quant import calibrate, distortion, grid
from rfq.stats import histogram as histogram_lib
from rfq.stats import moments as moments_lib
from rfq.types import Array, Record, SiteState, Tap


def identity(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leaves x alone and learns nothing."""
    del state
    return x, None


def observe_range(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leaves x alone and records its extremes, for static calibration."""
    del state
    return x, calibrate.observe(x)


def fake_quantize(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Rounds x to the site's `Grid`; float32 from here on (D9)."""
    _require_grid(state)
    return grid.fake_quantize(x, state), None


def measure_distortion(x: Array, state: SiteState) -> tuple[Array, Record]:
    """Leaves x alone and records the error that the site's `Grid` would make.

    The input stays clean, so that the error is the site's own and not what earlier
    sites have done: appendix D compares a tensor with its own quantization.
    """
    _require_grid(state)
    return x, distortion.measure(x, grid.fake_quantize(x, state))


def _require_grid(state: SiteState) -> None:
    # `grid.fake_quantize` takes None for full precision; here it can only be a site
    # that was forgotten, and would pass for one that quantization does not hurt.
    assert isinstance(state, grid.Grid), "a quantized site has no grid"


def _moments(x: Array, state: SiteState) -> Record:
    del state
    return moments_lib.moments(x)


def _histogram(x: Array, state: SiteState) -> Record:
    return histogram_lib.histogram(x, state)


# What `Measure` can record. A statistic takes (x, site state); `histogram` reads the
# site's scale from the state, `moments` needs nothing.
STATISTICS: Mapping[str, Callable[[Array, SiteState], Record]] = {
    "moments": _moments,
    "histogram": _histogram,
}


@dataclasses.dataclass(frozen=True)
class Measure:
    """Leaves x alone and records the named statistics."""

    statistics: tuple[str, ...] = ("moments",)

    def __call__(self, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Records {statistic: record}, each mergeable over batches."""
        return x, {name: STATISTICS[name](x, state) for name in self.statistics}


@dataclasses.dataclass(frozen=True)
class Both:
    """Applies `second` to what `first` made; both read the same site state."""

    first: Tap
    second: Tap

    def __call__(self, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Records the pair of records."""
        x, first_record = self.first(x, state)
        x, second_record = self.second(x, state)
        return x, (first_record, second_record)


@dataclasses.dataclass(frozen=True)
class Taps:
    """One tap at the named sites, `identity` at all others."""

    tap: Tap = identity
    sites: tuple[str, ...] = ()

    def at(self, site: str, x: Array, state: SiteState) -> tuple[Array, Record]:
        """Applies the tap if `site` is one of ours."""
        return self.tap(x, state) if site in self.sites else (x, None)


NO_TAPS = Taps()
