"""The first hour of new users, in a fresh clone with a fresh environment."""

import pytest

from tests.smoke import first_hour


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("user", first_hour.USERS)
def test_the_first_hour_has_no_dead_end(user, capsys):
    status = first_hour.main(["--users", user])
    assert status == 0, capsys.readouterr().out
