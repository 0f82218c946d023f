"""Fixtures for every test; its presence also lets tests in subfolders import ``toys``."""

import pytest
from toys import TOYS

from khop import system


@pytest.fixture
def registered_toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the toy systems, which ``khop.make`` knows for the length of one test."""
    for name, cls in TOYS.items():
        monkeypatch.setitem(system._REGISTRY, name, cls)
    return list(TOYS)
