"""The WnAm notation."""

import itertools

import pytest

from rfq import errors
from rfq.quant import spec


@pytest.mark.parametrize(
    ("text", "weight_bits", "act_bits"),
    [
        ("FP", None, None),
        ("A8", None, 8),
        ("W8", 8, None),
        ("W8A6", 8, 6),
        ("W16A16", 16, 16),
    ],
)
def test_the_notation_reads_as_the_paper_writes_it(text, weight_bits, act_bits):
    parsed = spec.parse(text)
    assert parsed == spec.QuantSpec(weight_bits, act_bits)
    assert parsed.name == text
    assert spec.QuantSpec.parse(text) == parsed


def test_parse_inverts_name():
    widths = [None, 2, 3, 9, 16]
    for weight_bits, act_bits in itertools.product(widths, widths):
        value = spec.QuantSpec(weight_bits, act_bits)
        assert spec.parse(value.name) == value


@pytest.mark.parametrize(
    "text", ["", "w8a6", "W8 A6", "A8W8", "WA", "8", "FPA8", "W-8"]
)
def test_a_malformed_string_is_answered_with_an_example(text):
    with pytest.raises(errors.InputError, match="W8A6"):
        spec.parse(text)


@pytest.mark.parametrize("text", ["W1A8", "A17", "W8A0", "W32A32"])
def test_widths_outside_2_to_16_are_refused(text):
    with pytest.raises(errors.InputError, match="from 2 to 16"):
        spec.parse(text)


@pytest.mark.parametrize("bits", [8.0, True, "8"])
def test_a_width_is_an_integer(bits):
    with pytest.raises(errors.InputError, match="act_bits"):
        spec.QuantSpec(None, bits)


METHODS = tuple(spec.METHODS)


def test_methods_stand_behind_the_widths_in_the_order_of_the_ladder():
    parsed = spec.parse("W4A4+rotate+gptq")
    assert parsed == spec.QuantSpec(4, 4, ("rotate", "gptq"))
    assert (parsed.name, parsed.widths) == ("W4A4+rotate+gptq", "W4A4")
    for number in range(len(METHODS) + 1):
        for methods in itertools.combinations(METHODS, number):
            value = spec.QuantSpec(4, 8, methods)
            assert spec.parse(value.name) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("W4A4+gptq+rotate", r"out of their order.*write W4A4\+rotate\+gptq"),
        ("W4A4+clip+clip", r"each stands once; write W4A4\+clip"),
        ("W4A4+rotato", "'rotato' is unknown.*rotate"),
        ("W4A4+", "method of.*unknown"),
        ("FP+rotate", r"nothing for 'rotate' to do.*W4A8\+rotate"),
        ("W4+clip", "nothing for 'clip' to do, which chooses ranges"),
        ("W4+smooth", "nothing for 'smooth' to do"),
        ("A8+gptq", "nothing for 'gptq' to do"),
        ("+rotate", "not in WnAm notation"),
    ],
)
def test_a_method_that_cannot_stand_there_is_refused(text, said):
    with pytest.raises(errors.InputError, match=said):
        spec.parse(text)
