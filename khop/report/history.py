"""What run folders say about the course of training, as arrays; runs that differ in nothing but seeds are one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from khop.errors import InputError
from khop.run import EVALUATION, METRICS, RunFolder

LEARNED, SAMPLED = "learned", "learned-sampled"
MODEL_ERROR = "model_error_"  # and how many steps ahead
RESAMPLES = 5000
Row = dict[str, str]


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """One quantity at P points ``x``, usually real environment steps, for S seeds."""

    x: Int[np.ndarray, " P"]
    values: Float[np.ndarray, "S P"]

    @classmethod
    def of(cls, rows: Iterable[Row], column: str) -> Series:
        """A column of a table, at the steps that all its seeds have come to."""
        by_seed: dict[int, dict[int, float]] = {}
        for row in rows:
            by_seed.setdefault(int(row["seed"]), {})[int(row["env_steps"])] = float(row[column])
        shared = sorted(set.intersection(*map(set, by_seed.values())))
        return cls(np.array(shared, int), np.array([[course[step] for step in shared] for course in by_seed.values()]))

    @property
    def mean(self) -> Float[np.ndarray, " P"]:
        """Over seeds."""
        return self.values.mean(axis=0)

    def thinned(self, most: int) -> Series:
        """Averages of neighbouring points, so that at most ``most`` are left."""
        start = np.arange(0, len(self.x), -(-len(self.x) // most))
        count = np.diff(np.append(start, len(self.x)))
        last = start + count - 1
        return Series(self.x[last], np.add.reduceat(self.values, start, axis=1) / count)


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """Runs of the same system by the same method, each with seeds of its own.

    Attributes:
        config: of the first run.
        folders: of all of them.
        evaluations: their rows of evaluation.csv that hold the ``return``.
        metrics: their rows of metrics.csv.
    """

    config: dict[str, Any]
    folders: tuple[Path, ...]
    evaluations: list[Row]
    metrics: list[Row]

    @property
    def seeds(self) -> set[str]:
        """The seeds that have been evaluated."""
        return {row["seed"] for row in self.evaluations if row["controller"] == LEARNED}

    @property
    def env_steps(self) -> set[int]:
        """The steps at which all seeds have been evaluated."""
        return set(self.returns(LEARNED).x.tolist())

    def returns(self, controller: str) -> Series:
        """Evaluated returns of the learned policies, greedy (``LEARNED``) or ``SAMPLED``."""
        return Series.of((row for row in self.evaluations if row["controller"] == controller), "mean")

    def has(self, controller: str) -> bool:
        """Whether a controller was ever evaluated."""
        return any(row["controller"] == controller for row in self.evaluations)

    def diagnostic(self, name: str) -> Series | None:
        """A column of metrics.csv, if there is one."""
        return Series.of(self.metrics, name) if self.metrics and name in self.metrics[0] else None

    @property
    def sampled(self) -> Series | None:
        """Returns of the policies that sample: as evaluated or, where they are trained on whole episodes of a simulator
        outside, in these, of which there are more.
        """
        if self.metrics and "dropped" in self.metrics[0]:
            return self.diagnostic("return")
        return self.returns(SAMPLED) if self.has(SAMPLED) else None

    @property
    def model_errors(self) -> dict[int, Series]:
        """By steps ahead, the held-out error of the learned models; empty where none were learned."""
        columns = self.metrics[0] if self.metrics else {}
        horizons = [name.removeprefix(MODEL_ERROR) for name in columns if name.startswith(MODEL_ERROR)]
        return {
            int(horizon): Series.of(self.metrics, MODEL_ERROR + horizon) for horizon in horizons if horizon.isdigit()
        }

    @property
    def baselines(self) -> dict[str, float]:
        """Returns of the controllers that learn nothing, as last evaluated; empty before a run's end."""
        return {row["controller"]: float(row["mean"]) for row in self.evaluations if not row["seed"]}

    @property
    def settings(self) -> dict[str, Any]:
        """What the method was set to, its learner's options beside its own."""
        options = dict(self.config["method"]["options"])
        return options | options.pop("learner", {})

    def joined(self, other: Line) -> Line | None:
        """Both as one line, if they differ in nothing but seeds and have been evaluated at the same steps."""
        alike = all(self.config[part] == other.config[part] for part in ("system", "method"))
        if not alike or self.seeds & other.seeds or not self.env_steps & other.env_steps:
            return None
        return Line(
            self.config,
            self.folders + other.folders,
            self.evaluations + other.evaluations,
            self.metrics + other.metrics,
        )


def interval(
    values: Float[np.ndarray, "S P"], level: float = 0.95
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Percentile bootstrap interval of the mean over S seeds, at each of P points; always from the same resamples."""
    seeds = len(values)
    times_drawn = np.random.default_rng(0).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    low, high = np.quantile(times_drawn @ values / seeds, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def read_lines(runs: Sequence[str | Path]) -> list[Line]:
    """The lines to draw, in the order in which their first runs were given.

    A run whose configuration and one of whose seeds are already there is a line of its own.

    Raises:
        InputError: for no run at all, a folder that holds none, or a run without an evaluation.
    """
    if not runs:
        raise InputError("There is nothing to plot: give at least one run's folder.")
    lines: list[Line] = []
    for path in dict.fromkeys(Path(run).resolve() for run in runs):
        line = _read(path)
        for place, other in enumerate(lines):
            if both := other.joined(line):
                lines[place] = both
                break
        else:
            lines.append(line)
    return lines


def distinct(names: Sequence[str], settings: Sequence[dict[str, Any]], otherwise: Sequence[str]) -> list[str]:
    """A label for each of several things: its name, with the settings in which it differs from others of that name.

    Args:
        names: may repeat.
        settings: of each.
        otherwise: what to add where neither name nor settings tell two apart.
    """
    labels = []
    for name, own in zip(names, settings, strict=True):
        namesakes = [other for other_name, other in zip(names, settings, strict=True) if other_name == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in namesakes)]
        labels.append(", ".join([name, *(f"{key} {own[key]}" for key in differing)]))
    return [
        f"{label} ({addition})" if labels.count(label) > 1 else label
        for label, addition in zip(labels, otherwise, strict=True)
    ]


def _read(path: Path) -> Line:
    folder = RunFolder.open(path)
    config = folder.config()
    try:
        returns = [row for row in folder.read(EVALUATION) if row["metric"] == "return"]
        line = Line(config, (path,), returns, folder.read(METRICS))
        if not line.has(LEARNED):
            first = config["evaluate_every"]
            raise InputError(f"{path} has no evaluation yet: the first one comes at about step {first}, plot it then.")
        _ = line.env_steps, line.baselines, line.settings, config["system"]["parameters"]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The tables in {path} cannot be read ({error}): restore them from a copy.") from error
    return line
