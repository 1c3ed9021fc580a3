"""The kill matrix, small: the whole of it is `python -m tests.smoke.kill_matrix`."""

import pytest

from tests.smoke import kill_matrix


@pytest.mark.slow
def test_training_that_is_killed_or_told_to_end_goes_on_to_the_same_bits(tmp_path):
    rows = kill_matrix.run(
        tmp_path / "matrix", num_steps=40, kills=2, host_kills=0, terms=1, seed=1
    )
    # Two kills, one order to end, and the run that nothing stops.
    assert len(rows) == 4
    assert all(row[-1] for row in rows), rows
