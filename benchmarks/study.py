"""What the studies have in common: one run per variant and seed, results in a CSV file, resumable at any time.

A finished run is in the CSV file and never done again; a begun one is continued from its folder under runs/.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from results import Row, append, recorded

import khop
from khop.methods import communication
from khop.run import EVALUATION, METRICS

ROOT = Path(__file__).resolve().parent.parent
EPISODES = 50  # of an evaluation; there are 20 over a run
FIELDS = (
    "system",
    "variant",
    "seed",
    "controller",
    "env_steps",
    "wall_s",
    "return",
    "collision_rate",
    "model_error_1",
    "model_error_25",
    "model_error_200",
    "acting_scalars",
    "training_scalars",
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    method: str
    steps: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is as it is for all variants on a system, whose budget may be its own."""

    steps: int | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


SETTINGS = {
    # Vehicles that are alike, on three rings at a time: two minutes of driving on each are enough.
    "ring": Setting(
        3_600, {"share": True, "environments": 3, "rollout": 200, "fit_rounds": 10, "shortest_branch": 0.6}
    ),
}


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants on systems, and where their results are."""

    name: str
    variants: Sequence[Variant]

    @property
    def results(self) -> Path:
        """The table; the figure beside it has the same name."""
        return ROOT / "docs" / "results" / f"{self.name}.csv"

    def rows(self) -> list[Row]:
        """All results so far."""
        return recorded(self.results)

    def run(self, systems: Sequence[str], seeds: Sequence[int], only: Sequence[str] = ()) -> list[Row]:
        """Train what is not yet in the results, seed by seed, so that all variants grow alike."""
        for seed in seeds:
            for system in systems:
                for variant in self.variants:
                    done = {(row["system"], row["variant"], row["seed"]) for row in self.rows()}
                    if (not only or variant.name in only) and (system, variant.name, str(seed)) not in done:
                        append(self.results, FIELDS, measured(self.name, system, variant, seed))
                        jax.clear_caches()  # every run's programs are its own, and a process has room for some thousand
        return self.rows()

    def quick(self, systems: Sequence[str], only: Sequence[str] = ()) -> list[Row]:
        """One seed at a fifth of the budget; nothing is recorded."""
        chosen = [variant for variant in self.variants if not only or variant.name in only]
        return [row for system in systems for variant in chosen for row in measured(self.name, system, variant, 0, 5)]


def measured(study: str, system: str, variant: Variant, seed: int, part: int = 1) -> list[Row]:
    """The evaluations of one run over a part of the budget, begun, continued or finished: of the greedy policies and of
    those that sample.
    """
    setting = SETTINGS.get(system, Setting())
    steps = (setting.steps or variant.steps) // part
    folder = ROOT / "runs" / study / f"{system}-{variant.name}-{steps}-{seed}"
    if folder.exists():
        run = khop.resume(folder)
    else:
        run = khop.train(
            system,
            variant.method,
            steps=steps,
            seeds=[seed],
            episodes=EPISODES,
            out=folder,
            **setting.options | variant.options,
        )
    messages = communication(run.training.method, run.system)
    log = {row["env_steps"]: row for row in run.folder.read(METRICS)}
    found: dict[tuple[str, str], Row] = {}
    for row in run.folder.read(EVALUATION):
        if row["seed"] and row["metric"] in ("return", "collision_rate"):
            at = log[row["env_steps"]]
            entry = found.setdefault(
                (row["controller"], row["env_steps"]),
                {
                    "system": system,
                    "variant": variant.name,
                    "seed": str(seed),
                    "controller": row["controller"],
                    "env_steps": row["env_steps"],
                    "wall_s": f"{float(at['wall_s']):.1f}",
                    "acting_scalars": f"{messages.acting.per_agent:.5g}",
                    "training_scalars": f"{messages.training.per_agent:.5g}",
                }
                | {name: f"{float(at[name]):.4g}" for name in FIELDS if name.startswith("model_error") and name in at},
            )
            entry[row["metric"]] = f"{float(row['mean']):.5g}"
    return list(found.values())


def by_seed(rows: Sequence[Row], system: str, variant: str, column: str = "return") -> np.ndarray:
    """(seeds, points, 3): real steps, wall time and one column of the sampled policies' evaluations."""
    courses: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        if (row["system"], row["variant"], row["controller"]) == (system, variant, "learned-sampled"):
            point = (float(row["env_steps"]), float(row["wall_s"]), float(row[column]))
            courses.setdefault(row["seed"], []).append(point)
    return np.array(list(courses.values()))


def median_and_range(axes: Axes, x: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """A line through the median over seeds (the first axis), and the range of all seeds as a band."""
    (line,) = axes.plot(x, np.median(values, axis=0), **style)
    axes.fill_between(x, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)


def arguments(description: str | None, systems: Sequence[str], variants: Sequence[str]) -> argparse.Namespace:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the budget, nothing recorded")
    parser.add_argument("--systems", nargs="+", default=list(systems), choices=list(systems))
    parser.add_argument("--variants", nargs="+", default=list(variants), choices=list(variants))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    return parser.parse_args()
