"""What the tests of the command line start from."""

import pytest

from tests import tiny


@pytest.fixture
def data(tmp_path_factory):
    return tiny.data(tmp_path_factory)


@pytest.fixture
def config(tmp_path, data):
    """A config file outside the repository."""
    path = tmp_path / "tiny.py"
    path.write_text(
        "from tests import tiny\n\n\n"
        f"def config():\n    return tiny.experiment({str(data)!r})\n"
    )
    return str(path)
