"""Format results for a terminal."""

from collections.abc import Mapping
from typing import Any

from rfq import metrics


def plain(value: float | None, sign: str = "") -> str:
    """Format four decimals; a row that was read back has None for a NaN or inf."""
    return "not finite" if value is None else f"{value:{sign}.4f}"


def percent(share: float, error: float | None = None) -> str:
    """Format a share in per cent, with its standard error where there is one."""
    text = f"{100 * share:.1f}"
    return f"{text} %" if error is None else f"{text} ± {100 * error:.1f} %"


def say_quantized(row: Mapping[str, Any]) -> None:
    """Print the loss and the size of a quantized checkpoint."""
    sizes = [
        f"{100 * row['num_bytes'] / row[f'{name}_bytes']:.1f} % of {name}"
        for name in ("float32", "bfloat16")
    ]
    metrics.say(
        f"{row['spec']:8} {row['stream']:9} held-out loss {plain(row['loss'])} nats "
        f"per token, {plain(row['bits_per_byte'])} bits per byte, over "
        f"{row['eval_tokens']:,} tokens; {row['num_bytes']:,} bytes, "
        f"{' and '.join(sizes)}"
    )
