"""The bit widths to quantize to, in the paper's WnAm notation."""

import dataclasses
import re

from rfq.errors import InputError
from rfq.quant.grid import MAX_BITS, MIN_BITS


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """Bit widths in the paper's WnAm notation; None keeps full precision.

    Raises:
        InputError: a width is not an integer in 2..16.
    """

    weight_bits: int | None
    act_bits: int | None

    def __post_init__(self):
        for field in ("weight_bits", "act_bits"):
            bits = getattr(self, field)
            if bits is None:
                continue
            if type(bits) is not int or not MIN_BITS <= bits <= MAX_BITS:
                raise InputError(
                    f"{field}={bits!r} must be an integer from {MIN_BITS} to "
                    f"{MAX_BITS}, or absent for full precision; write for example "
                    "W8A6, A8 or FP"
                )

    @classmethod
    def parse(cls, text: str) -> "QuantSpec":
        """Read "W8A6", "W8" (weights only), "A8" (activations only) or "FP" (neither).

        Raises:
            InputError: the text is not in this notation, or a width is not in 2..16.

        Examples:
            >>> from rfq import quant
            >>> spec = quant.parse("W8A6")
            >>> spec.weight_bits, spec.act_bits, spec.name
            (8, 6, 'W8A6')
        """
        match = re.fullmatch(r"(?:W([0-9]+))?(?:A([0-9]+))?", text)
        if text != "FP" and (match is None or not text):
            raise InputError(
                f"quantization {text!r} is not in WnAm notation; write for example "
                "W8A6, A8, W8 or FP"
            )
        widths = (None, None) if match is None else match.groups()
        return cls(*(None if width is None else int(width) for width in widths))

    @property
    def name(self) -> str:
        """The text that `parse` reads back to this value."""
        weight = "" if self.weight_bits is None else f"W{self.weight_bits}"
        act = "" if self.act_bits is None else f"A{self.act_bits}"
        return weight + act or "FP"


parse = QuantSpec.parse
