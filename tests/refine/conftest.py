"""Fixtures of the refiner's tests: a tiny refiner with the true architecture, and drawn scenes."""

import pytest

# diffusers 0.39 hands a torch tensor to numpy.array, which NumPy 2.4 announces to forbid.
NUMPY_COPY = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings(NUMPY_COPY))
