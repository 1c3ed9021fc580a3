import numpy as np
import pytest

from rfq.errors import InputError
from rfq.optim import schedule


@pytest.mark.parametrize("kind", schedule.KINDS)
def test_rate_rises_from_zero_to_peak_and_ends_at_its_final_fraction(kind):
    config = schedule.ScheduleConfig(kind=kind, warmup_steps=10, final_fraction=0.25)
    rate = schedule.make(config, 2.0, 110)
    assert float(rate(0)) == 0.0
    np.testing.assert_allclose(float(rate(5)), 1.0, rtol=1e-6)
    np.testing.assert_allclose(float(rate(10)), 2.0, rtol=1e-6)
    end = 2.0 if kind == "constant" else 0.5
    np.testing.assert_allclose(float(rate(110)), end, rtol=1e-6)


def test_cosine_and_linear_cross_their_middle_half_way():
    for kind in ("cosine", "linear"):
        config = schedule.ScheduleConfig(kind=kind, warmup_steps=0, final_fraction=0.0)
        rate = schedule.make(config, 1.0, 100)
        np.testing.assert_allclose(float(rate(0)), 1.0)
        np.testing.assert_allclose(float(rate(50)), 0.5, rtol=1e-6)


def test_wsd_stays_at_its_peak_and_falls_over_its_last_share():
    config = schedule.ScheduleConfig(
        kind="wsd", warmup_steps=10, final_fraction=0.0, decay_share=0.25
    )
    rate = schedule.make(config, 2.0, 80)
    found = [float(rate(step)) for step in (5, 10, 40, 60, 70, 80)]
    np.testing.assert_allclose(found, [1.0, 2.0, 2.0, 2.0, 1.0, 0.0], rtol=1e-6)
    # A decay that is longer than what the warm-up leaves is as long as that.
    config = schedule.ScheduleConfig(kind="wsd", warmup_steps=10, decay_share=1.0)
    line = schedule.ScheduleConfig(kind="linear", warmup_steps=10)
    for step in (5, 10, 47, 80):
        expected = float(schedule.make(line, 2.0, 80)(step))
        assert float(schedule.make(config, 2.0, 80)(step)) == pytest.approx(expected)


def test_impossible_schedules_are_named():
    with pytest.raises(InputError, match=r"schedule\.decay_share=0"):
        schedule.ScheduleConfig(decay_share=0.0)
    with pytest.raises(InputError, match=r"schedule\.kind='step'"):
        schedule.ScheduleConfig(kind="step")
    with pytest.raises(InputError, match="warmup_steps=100 must be smaller"):
        schedule.make(schedule.ScheduleConfig(warmup_steps=100), 1.0, 100)
