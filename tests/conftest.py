"""Fixtures for every test; its presence also lets tests in subfolders import ``toys``."""

import os
from collections.abc import Iterator
from pathlib import Path

# Most of the tests' time is compilation: with few optimisations it takes a third. Tests run side by side already, and a
# program for one device compiles faster, too.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
)
# Each program is compiled once for all tests, processes and runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "programs"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest
from toys import TOYS

from khop import system


@pytest.fixture
def registered_toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the toy systems, which ``khop.make`` knows for the length of one test."""
    for name, cls in TOYS.items():
        monkeypatch.setitem(system._REGISTRY, name, cls)
    return list(TOYS)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Thousands of programs in one process run into the system's limit of memory maps, which XLA does not survive."""
    yield
    jax.clear_caches()
