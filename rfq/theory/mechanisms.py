"""The paper's figure 2 as data: what mixing, adding and updating do, step by step."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from rfq.theory import activations, mixing, residual, stack, updates
from rfq.theory.check import Estimate, exact


class Curve(NamedTuple):
    """One line of a panel; its standard errors are 0 where nothing was drawn."""

    name: str
    is_predicted: bool
    x: Sequence[float]
    y: Sequence[Estimate]


def _curve(name: str, x: Sequence[int], of: Callable[[int], float | Estimate]) -> Curve:
    values = [of(value) for value in x]
    predicted = not isinstance(values[0], Estimate)
    y = [value if isinstance(value, Estimate) else exact(value) for value in values]
    return Curve(name, predicted, x, y)


def kurtosis_by_layer() -> list[Curve]:
    """Trace gamma of the stream after l layers, from a Laplace input (lemmas 2, 11)."""
    depths = range(stack.DEPTH + 1)
    added, mixed = (
        stack.heavy_tailed(skip, 1.0) for skip in ("residual", "residual_free")
    )
    c = activations.raw_moment("gelu", 2)
    gamma = activations.kurtosis("gelu") * mixing.ROWS["haar"].fourth(stack.WIDTH)
    return [
        _curve(
            "residual", depths, lambda layer: residual.unrolled_kurtosis(3.0, c, layer)
        ),
        _curve("residual_free", depths[1:], lambda _: gamma),
        _curve("residual", depths, added.kurtosis),
        _curve("residual_free", depths, mixed.kurtosis),
    ]


def kurtosis_by_width() -> list[Curve]:
    """Trace gamma after a layer of width d: 1/d against a limit (lemmas 2, 7, 11)."""
    widths, drawn = (8, 16, 32, 64, 128, 256, 512), (16, 64, 256)
    phi = activations.kurtosis("gelu")

    def mixed(d: int) -> Estimate:
        return mixing.mean_kurtosis(mixing.mixed("gelu", d))

    def added(d: int) -> Estimate:
        return residual.sampled_added("laplace", "gelu", d, seed=d, num_batches=16)

    return [
        _curve(
            "residual", widths, lambda d: residual.added_kurtosis("laplace", "gelu", d)
        ),
        _curve("residual_free", widths, lambda d: phi * mixing.ROWS["haar"].fourth(d)),
        _curve("residual", drawn, added),
        _curve("residual_free", drawn, mixed),
    ]


def drift_by_steps() -> list[Curve]:
    """Trace ||W W^T - I|| over T random steps from a Haar matrix (lemmas 4, 8, 10)."""
    d, steps = 128, (1, 3, 10, 30, 100)

    def walk(kind: str, rate: float) -> Callable[[int], Estimate]:
        return lambda num_steps: exact(
            updates.walked_drift(kind, d=d, rate=rate, num_steps=num_steps, seed=10)
        )

    return [
        _curve("spectral", steps, walk("spectral", updates.RATE)),
        _curve("spectral_matched", steps, walk("spectral", updates.RATE * d**0.5)),
        _curve("sign", steps, walk("sign", updates.RATE)),
    ]


def mean_share_by_layer() -> list[Curve]:
    """Trace the energy's share in channel means: collapse that gamma cannot see."""
    depths = range(stack.DEPTH + 1)
    added, mixed = (
        stack.heavy_tailed(skip, 1.0) for skip in ("residual", "residual_free")
    )
    return [
        _curve(
            "residual_free", depths, lambda layer: stack.cosine_after("gelu", layer)
        ),
        _curve("residual", depths, added.mean_share),
        _curve("residual_free", depths, mixed.mean_share),
    ]


PANELS: Mapping[str, Callable[[], list[Curve]]] = {
    "kurtosis_by_layer": kurtosis_by_layer,
    "kurtosis_by_width": kurtosis_by_width,
    "drift_by_steps": drift_by_steps,
    "mean_share_by_layer": mean_share_by_layer,
}
