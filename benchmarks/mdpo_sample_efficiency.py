"""How much real interaction do learned models save?

Trains every method on both platoons, one run per seed, and records the sampled and the greedy policies' returns on the
real system (20 points over the budget, 50 episodes each) against real environment steps, warm-up included, and against
wall time. Interrupted, it goes on where it stopped: finished runs are in docs/results/mdpo_sample_efficiency.csv, from
which the figure is drawn again after every run.

    .venv/bin/python benchmarks/mdpo_sample_efficiency.py [--quick] [--systems …] [--methods …] [--seeds …]
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import khop
from khop.report.style import COLOURS, MUTED, save, styled
from khop.run import EVALUATION, METRICS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "mdpo_sample_efficiency.csv"
SYSTEMS = {"platoon-catchup": -41.0, "platoon-slowdown": -325.9}  # the best constant pair over 1000 episodes
BUDGETS = {
    "mdpo": 30_000,
    "impo": 30_000,
    "mpo-na": 30_000,
    "mdpo-linear": 30_000,
    "dppo": 600_000,
    "ippo": 600_000,
    "cppo": 600_000,
}
FIELDS = ("system", "method", "seed", "controller", "env_steps", "wall_s", "return", "collision_rate", "model_error_1")
EPISODES = 50
Curve = dict[int, list[tuple[float, float, float]]]  # seed → (env_steps, wall_s, return)


def measured(system: str, method: str, seed: int, steps: int) -> list[dict[str, str]]:
    """The evaluations of one run, begun, continued or finished."""
    folder = ROOT / "runs" / "mdpo_sample_efficiency" / f"{system}-{method}-{steps}-{seed}"
    if folder.exists():
        run = khop.resume(folder)
    else:
        run = khop.train(system, method, steps=steps, seeds=[seed], episodes=EPISODES, out=folder)
    log = {row["env_steps"]: row for row in run.folder.read(METRICS)}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in run.folder.read(EVALUATION):
        if row["controller"] in ("learned", "learned-sampled") and row["metric"] in ("return", "collision_rate"):
            at = log[row["env_steps"]]
            entry = found.setdefault(
                (row["controller"], row["env_steps"]),
                {
                    "system": system,
                    "method": method,
                    "seed": str(seed),
                    "controller": row["controller"],
                    "env_steps": row["env_steps"],
                    "wall_s": f"{float(at['wall_s']):.1f}",
                    "model_error_1": at.get("model_error_1", ""),
                },
            )
            entry[row["metric"]] = f"{float(row['mean']):.5g}"
    return list(found.values())


def append(rows: list[dict[str, str]]) -> None:
    """Add rows to the results."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def recorded() -> list[dict[str, str]]:
    """All results so far."""
    return list(csv.DictReader(RESULTS.open())) if RESULTS.exists() else []


def curves(rows: list[dict[str, str]], system: str, controller: str = "learned-sampled") -> dict[str, Curve]:
    """By method and seed."""
    found: dict[str, Curve] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["system"] == system and row["controller"] == controller:
            point = (float(row["env_steps"]), float(row["wall_s"]), float(row["return"]))
            found[row["method"]][int(row["seed"])].append(point)
    return found


def steps_to_pass(curve: Curve, bar: float) -> list[float]:
    """Per seed, real steps at the first evaluation that passes the bar; infinite if none does."""
    return [min((steps for steps, _, value in points if value >= bar), default=np.inf) for points in curve.values()]


def draw(rows: list[dict[str, str]]) -> Path:
    """Median over seeds and the range of the seeds, against real steps and against wall time."""
    begun = {system: bar for system, bar in SYSTEMS.items() if curves(rows, system)}
    with styled():
        figure = Figure(figsize=(11, 3.6 * len(begun)))
        grid = figure.subplots(len(begun), 2, squeeze=False)
        for line, (system, bar) in zip(grid, begun.items(), strict=True):
            for axes, column, label in zip(line, (0, 1), ("real environment steps", "wall time [s]"), strict=True):
                draw_curves(axes, curves(rows, system), column)
                axes.axhline(-bar, color=MUTED, linestyle=":", label="best constant pair")
                axes.set(xscale="log", yscale="log", xlabel=label, ylabel="cost, −return [1/step]", title=system)
        grid[0, 0].legend()
        return save(figure, RESULTS.with_suffix(".png"))


def draw_curves(axes: Axes, by_method: dict[str, Curve], column: int) -> None:
    for colour, method in zip(COLOURS, BUDGETS, strict=True):
        runs = [np.array(points) for points in by_method.get(method, {}).values()]
        if runs:
            length = min(map(len, runs))
            x = np.median([run[:length, column] for run in runs], axis=0)
            y = -np.array([run[:length, 2] for run in runs])
            axes.plot(
                x, np.median(y, axis=0), color=colour, label=f"{method}, {len(runs)} seed{'s' if len(runs) > 1 else ''}"
            )
            axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)


def report(rows: list[dict[str, str]]) -> None:
    """The table that the documentation quotes."""
    for system, bar in SYSTEMS.items():
        for method, curve in curves(rows, system).items():
            passed = steps_to_pass(curve, bar)
            last = [points[-1][2] for points in curve.values()]
            wall = statistics.median(points[-1][1] for points in curve.values())
            print(f"{system} {method}, {len(curve)} seeds: passes {bar} after {passed} real steps, ", end="")
            print(f"median {statistics.median(passed):g}; at the end {last} after {wall:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the budget, nothing recorded")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--methods", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    if arguments.quick:
        rows = [
            row
            for system in arguments.systems
            for method in arguments.methods
            for row in measured(system, method, 0, BUDGETS[method] // 5)
        ]
        report(rows)
        return
    for seed in arguments.seeds:
        for system in arguments.systems:
            for method in arguments.methods:
                done = {(row["system"], row["method"], row["seed"]) for row in recorded()}
                if (system, method, str(seed)) not in done:
                    append(measured(system, method, seed, BUDGETS[method]))
                    draw(recorded())
    report(recorded())
    print(draw(recorded()))


if __name__ == "__main__":
    main()
