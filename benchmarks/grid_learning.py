"""Do agents learn to hold voltages, on days they have never seen?

Trains ``dppo`` and ``mdpo`` on ``grid-33`` and ``grid-141`` with three seeds each, and on ``grid-322`` and ``grid-421``
with one, then plays 100 (20 on the large ones) episodes of held-out days, greedy and sampled, beside no control, droop
and optimal power flow. Interrupted, it goes on where it stopped. Results go to docs/results/grid_learning.csv, one row
per grid, method, seed and controller; a figure of the curves is drawn from the runs.

    .venv/bin/python benchmarks/grid_learning.py [--quick] [--grids grid-33 …] [--methods dppo mdpo]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from results import played, replace

import khop
from khop.experiment import Run
from khop.methods import communication
from khop.report.curves import learning_curves

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "grid_learning.csv"
METRICS = ("return", "controllable_ratio", "out_of_band", "q_loss", "line_loss", "total_loss")


@dataclasses.dataclass(frozen=True)
class Task:
    """One grid and method with its budget of real steps."""

    grid: str
    method: str
    steps: int
    seeds: tuple[int, ...]
    episodes: int = 100  # of held-out days; optimal power flow on large grids takes its time


THREE = (0, 1, 2)
TASKS = (
    Task("grid-33", "dppo", 300_000, THREE),
    Task("grid-33", "mdpo", 10_000, THREE),
    Task("grid-141", "dppo", 300_000, THREE),
    Task("grid-141", "mdpo", 10_000, THREE),
    Task("grid-322", "dppo", 200_000, (0,), 20),
    Task("grid-322", "mdpo", 6_000, (0,), 20),
    Task("grid-421", "dppo", 100_000, (0,), 20),
)


def trained(task: Task, quick: bool) -> Run:
    """The task's run: finished, continued or begun."""
    steps = task.steps // (20 if quick else 1)
    folder = ROOT / "runs" / "grid_learning" / f"{task.grid}-{task.method}-{steps}"
    if folder.exists():
        return khop.resume(folder)
    return khop.train(task.grid, task.method, steps=steps, seeds=task.seeds, out=folder)


def rows(run: Run, task: Task, episodes: int) -> list[dict[str, object]]:
    """Evaluation of every seed's agents, and of the classical controllers, over the same episodes."""
    names = ["random", *run.system.spec.baselines]
    return [
        {
            "grid": task.grid,
            "steps": run.env_steps,
            "method": task.method if seed != "" else "",
            "seed": seed,
            "controller": name,
        }
        | {metric: f"{table[metric].mean:.4g}" for metric in METRICS}
        for seed, name, table in played(run, METRICS, names, episodes)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the budget, to see that it runs")
    parser.add_argument("--grids", nargs="+", default=sorted({task.grid for task in TASKS}))
    parser.add_argument("--methods", nargs="+", default=["dppo", "mdpo"])
    arguments = parser.parse_args()
    runs = []
    for task in TASKS:
        if task.grid not in arguments.grids or task.method not in arguments.methods:
            continue
        run = trained(task, arguments.quick)
        table = rows(run, task, task.episodes // (20 if arguments.quick else 1))
        if not arguments.quick:
            replace(RESULTS, table, ("grid", "method", "seed", "controller"))
        cost = communication(run.method, run.system)
        print(f"{task.grid} {task.method}, {run.env_steps:,} steps; messages to act {cost.acting.share:.1%} of central")
        for row in table:
            print("  ", *(f"{row[key]!s:>10}" for key in ("seed", "controller", *METRICS)))
        runs.append(run.path)
    if runs and not arguments.quick:
        print(learning_curves(runs, ROOT / "docs" / "results" / "grid_learning.png"))


if __name__ == "__main__":
    main()
