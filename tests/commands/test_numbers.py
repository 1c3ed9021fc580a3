"""What the terminal shows of rows tells them apart."""

import pytest

from rfq import rows
from rfq.commands import numbers

USUAL = rows.Setting(
    "W8A8", "float32", "paper", "branch", "min_max", 0, "per_tensor", "asymmetric"
)


@pytest.mark.parametrize("field", rows.Setting._fields)
def test_rows_that_differ_in_one_field_have_two_names(field):
    other = USUAL._replace(**{field: "another"})
    one, two = numbers.settings([USUAL._asdict(), other._asdict()])
    assert one != two
    assert "another" in two


def test_what_all_rows_share_is_left_out():
    (name,) = numbers.settings([USUAL._asdict()])
    assert name.split() == ["W8A8", "paper", "branch"]
