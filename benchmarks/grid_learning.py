"""Do agents learn to hold voltages, on days they have never seen?

Trains ``dppo`` and ``mdpo`` on ``grid-33`` and ``grid-141`` with three seeds each, and on ``grid-322`` and ``grid-421``
with one, then plays 100 (20 on the large ones) episodes of held-out days, greedy and sampled, beside no control, droop
and optimal power flow. Interrupted, it goes on where it stopped. Results go to docs/results/grid_learning.csv, one row
per grid, method, seed and controller; courses of training to docs/results/grid_learning_courses.csv, from which the
figure is drawn.

    .venv/bin/python benchmarks/grid_learning.py [--quick] [--grids grid-33 …] [--methods dppo mdpo]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from results import Row, played, recorded, replace

import khop
from khop.experiment import Run
from khop.methods import communication
from khop.report.style import COLOURS, MUTED, save, styled
from khop.run import EVALUATION

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "grid_learning.csv"
COURSES = ROOT / "docs" / "results" / "grid_learning_courses.csv"
COURSE = ("controllable_ratio", "return")
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


def courses(run: Run, task: Task) -> list[dict[str, object]]:
    """The greedy agents' evaluations over training, and the classical controllers' on the same episodes (step 0)."""
    found: dict[tuple[str, str, str], dict[str, object]] = {}
    for row in run.folder.read(EVALUATION):
        learned = row["controller"] == "learned" and row["seed"] != ""
        if (learned or row["controller"] in ("no-control", "droop", "opf")) and row["metric"] in COURSE:
            name, steps = (task.method, row["env_steps"]) if learned else (row["controller"], "0")
            key = {"grid": task.grid, "controller": name, "seed": row["seed"], "env_steps": steps}
            found.setdefault((name, row["seed"], steps), key)[row["metric"]] = f"{float(row['mean']):.5g}"
    return list(found.values())


def draw(rows: list[Row]) -> Path:
    """Share of steps in band against real steps, median and range over seeds, beside droop and no control."""
    grids = sorted({row["grid"] for row in rows}, key=lambda grid: int(grid.split("-")[1]))
    with styled():
        figure = Figure(figsize=(3.4 * len(grids), 3.2))
        panels = figure.subplots(1, len(grids), squeeze=False)[0]
        for axes, grid in zip(panels, grids, strict=True):
            here = [row for row in rows if row["grid"] == grid]
            for colour, method in zip(COLOURS, ("dppo", "mdpo"), strict=False):
                mine = [row for row in here if row["controller"] == method]
                if mine:
                    seeds = sorted({row["seed"] for row in mine})
                    steps = [int(row["env_steps"]) for row in mine if row["seed"] == seeds[0]]
                    ratio = np.array([[float(r["controllable_ratio"]) for r in mine if r["seed"] == s] for s in seeds])
                    label = f"{method}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
                    axes.plot(steps, np.median(ratio, 0), color=colour, label=label)
                    axes.fill_between(steps, ratio.min(0), ratio.max(0), color=colour, alpha=0.15, linewidth=0)
            for style, name in (("--", "droop"), (":", "no-control")):
                value = next(float(row["controllable_ratio"]) for row in here if row["controller"] == name)
                axes.axhline(value, color=MUTED, linestyle=style, label=f"{name} {value:.3f}")
            axes.set(title=grid, xscale="log", xlabel="real steps", ylim=(0.3, 1.02))
            axes.legend(loc="lower right", fontsize="small")
        panels[0].set_ylabel("share of steps with all buses in band")
        return save(figure, RESULTS.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the budget, to see that it runs")
    parser.add_argument("--grids", nargs="+", default=sorted({task.grid for task in TASKS}))
    parser.add_argument("--methods", nargs="+", default=["dppo", "mdpo"])
    arguments = parser.parse_args()
    for task in TASKS:
        if task.grid not in arguments.grids or task.method not in arguments.methods:
            continue
        run = trained(task, arguments.quick)
        table = rows(run, task, task.episodes // (20 if arguments.quick else 1))
        if not arguments.quick:
            replace(RESULTS, table, ("grid", "method", "seed", "controller"))
            replace(COURSES, courses(run, task), ("grid", "controller", "seed", "env_steps"))
            print(draw(recorded(COURSES)))
        cost = communication(run.method, run.system)
        print(f"{task.grid} {task.method}, {run.env_steps:,} steps; messages to act {cost.acting.share:.1%} of central")
        for row in table:
            print("  ", *(f"{row[key]!s:>10}" for key in ("seed", "controller", *METRICS)))


if __name__ == "__main__":
    main()
