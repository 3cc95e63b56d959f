"""What the tests of the command line share."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Write a user's file and return its path."""

    def write(text, name="mine.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write
