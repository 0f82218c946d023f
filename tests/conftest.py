"""Fixtures for every test; its presence also lets tests in subfolders import ``toys`` and ``small_run``."""

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
from small_run import LAST, TRAIN, stop_at
from toys import TOYS

import khop
from khop import system
from khop.cli import main
from khop.experiment import Stopped


@pytest.fixture
def registered_toys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the toy systems, which ``khop.make`` knows for the length of one test."""
    for name, cls in TOYS.items():
        monkeypatch.setitem(system._REGISTRY, name, cls)
    return list(TOYS)


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for tables to be printed in."""
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that came no further than its first checkpoint."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    sizes = {"hidden": (8,), "environments": 4, "rollout": 32, "minibatches": 2}
    platoon = khop.make("platoon-catchup", vehicles=3, horizon=50)
    with pytest.raises(Stopped):
        khop.train(platoon, "dppo", steps=LAST, episodes=2, out=folder, watchers=[stop_at(1)], **sizes)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    """Thousands of programs in one process run into the system's limit of memory maps, which XLA does not survive."""
    yield
    jax.clear_caches()
