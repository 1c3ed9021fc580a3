"""The bit widths to quantize to, in WnAm notation, and the methods behind them."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from rfq.errors import InputError, lookup
from rfq.quant.grid import MAX_BITS, MIN_BITS


class Method(NamedTuple):
    """A row of `METHODS`.

    Attributes:
        does: What it does, for messages.
        needs: The widths without any of which it has nothing to do.
    """

    does: str
    needs: tuple[str, ...]


_BOTH = ("weight_bits", "act_bits")

METHODS: Mapping[str, Method] = {
    "clip": Method("chooses ranges of activations by least error", ("act_bits",)),
    "rotate": Method("turns weights and activations into another basis", _BOTH),
    "smooth": Method("moves scales from activations to weights", ("act_bits",)),
    "gptq": Method("rounds weights to mend each other's errors", ("weight_bits",)),
}
"""What a setting may add to rounding to nearest, in the order of the ladder.

A model is turned, then its channels in the new basis are scaled, then its weights are
rounded, and ranges are found last, on what the model has become. `clip` comes first
because it changes nothing of the model: it is the choice of a calibrator.
"""


@dataclasses.dataclass(frozen=True)
class QuantSpec:
    """Bit widths in the paper's WnAm notation; None keeps full precision.

    Attributes:
        methods: Rows of `METHODS`, in their order.

    Raises:
        InputError: a width is not an integer in 2..16, or a method is unknown, comes
            out of order or has nothing to do.
    """

    weight_bits: int | None
    act_bits: int | None
    methods: tuple[str, ...] = ()

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
        for name in self.methods:
            row = lookup(METHODS, name, f"the method of {self.name!r}")
            if all(getattr(self, width) is None for width in row.needs):
                raise InputError(
                    f"quantization {self.name!r} has nothing for {name!r} to do, which "
                    f"{row.does}; leave it out or write for example W4A8+{name}"
                )
        ordered = tuple(name for name in METHODS if name in self.methods)
        if self.methods != ordered:
            right = dataclasses.replace(self, methods=ordered).name
            raise InputError(
                f"quantization {self.name!r} names its methods out of their order, in "
                f"which each stands once; write {right}"
            )

    @classmethod
    def parse(cls, text: str) -> "QuantSpec":
        """Read "W8A6", "W8" (weights only), "A8" (activations only) or "FP" (neither).

        Behind the widths stand methods, as in "W4A4+rotate+gptq".

        Raises:
            InputError: the text is not in this notation, a width is not in 2..16, or
                a method cannot stand there.

        Examples:
            >>> from rfq import quant
            >>> spec = quant.parse("W8A6")
            >>> spec.weight_bits, spec.act_bits, spec.name
            (8, 6, 'W8A6')
            >>> quant.parse("W4A4+rotate+gptq").methods
            ('rotate', 'gptq')
        """
        written, *methods = text.split("+")
        match = re.fullmatch(r"(?:W([0-9]+))?(?:A([0-9]+))?", written)
        if written != "FP" and (match is None or not written):
            raise InputError(
                f"quantization {text!r} is not in WnAm notation; write for example "
                "W8A6, A8, W8, FP or W4A4+rotate+gptq"
            )
        found = (None, None) if match is None else match.groups()
        weight, act = (None if width is None else int(width) for width in found)
        return cls(weight, act, tuple(methods))

    @property
    def name(self) -> str:
        """The text that `parse` reads back to this value."""
        return "+".join((self.widths, *self.methods))

    @property
    def widths(self) -> str:
        """The name without the methods."""
        weight = "" if self.weight_bits is None else f"W{self.weight_bits}"
        act = "" if self.act_bits is None else f"A{self.act_bits}"
        return weight + act or "FP"


parse = QuantSpec.parse
