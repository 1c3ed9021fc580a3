"""Format results for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rfq import metrics
from rfq.rows import Setting


def plain(value: float | None, sign: str = "") -> str:
    """Format four decimals; a row that was read back has None for a NaN or inf."""
    return "not finite" if value is None else f"{value:{sign}.4f}"


def percent(share: float, error: float | None = None) -> str:
    """Format a share in per cent, with its standard error where there is one."""
    text = f"{100 * share:.1f}"
    return f"{text} %" if error is None else f"{text} ± {100 * error:.1f} %"


def settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the setting of each row in columns: usual fields, and those that vary."""
    columns = []
    for field in Setting._fields:
        words = [str(row[field]) for row in rows]
        if field in ("spec", "taps", "stream") or len(set(words)) > 1:
            width = max(map(len, words))
            columns.append([word.ljust(width) for word in words])
    return ["  ".join(words) for words in zip(*columns, strict=True)]


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
