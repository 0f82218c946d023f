"""A small run, as it is trained in many tests, and what to look at in its folder."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path

from khop.experiment import Progress, Stopped

SIZES = ["--vehicles", "3", "--horizon", "50", "--hidden", "8", "--environments", "4", "--rollout", "32"]
TRAIN = ["train", "platoon-catchup", "dppo", *SIZES, "--minibatches", "2", "--episodes", "2", "--steps", "2560"]
ITERATION, LAST = 128, 2560  # environment steps; each iteration ends in an evaluation and a checkpoint
METRIC_NAMES = {"return", "collision_rate", "headway_rmse", "speed_rmse", "settling_time"}


def stop_at(env_steps: int, how: Callable[[], None] | None = None) -> Callable[[Progress], None]:
    """A watcher that does something, or else stops, once a run has come that far."""

    def watch(progress: Progress) -> None:
        if progress.env_steps >= env_steps:
            if how is None:
                raise Stopped("enough", signal.SIGTERM)
            how()

    return watch


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    """A table of a run, without what time it took."""
    with (folder / table).open(newline="") as stream:
        return [{name: value for name, value in row.items() if name != "wall_s"} for row in csv.DictReader(stream)]


def assert_is_a_table(file: Path, controllers: set[str], n: int) -> None:
    table = json.loads(file.read_text())
    assert table.keys() == controllers
    for metrics in table.values():
        assert metrics.keys() == METRIC_NAMES
        for summary in metrics.values():
            assert summary.keys() == {"mean", "std", "n"}
            assert summary["n"] == n
