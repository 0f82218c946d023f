"""Does practising in local simulators beat practising in the whole system, when both are done properly?

Trains recurrent agents on the warehouse in the whole system (``ippo-memory``: networks and memories of their own for
all agents; ``ippo-shared``: one network for all, but memories of their own; ``ippo-passed-memory``: one network and one
memory for all, as the published baseline has by accident) and in local simulators with learned, with untrained and with
marginal influence predictors. Records episode returns of the sampling policies on the whole system against steps and
against wall time. Interrupted, it goes on where it stopped: finished runs are in docs/results/dials_vs_global.csv, from
which the figure is drawn again after every run.

    .venv/bin/python benchmarks/dials_vs_global.py [--quick] [--sides …] [--methods …] [--seeds …]
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from results import Row, append, recorded

import khop
from khop.evaluation import evaluate_baselines
from khop.methods import METHODS, Method
from khop.report.style import COLOURS, MUTED, save, styled
from khop.run import EVALUATION, METRICS
from khop.worlds.influence import Influence

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "dials_vs_global.csv"
ROWS: dict[str, Method] = {
    "ippo-memory": METHODS["ippo-memory"],
    "ippo-shared": dataclasses.replace(METHODS["ippo-memory"], share=True),
    "ippo-passed-memory": dataclasses.replace(METHODS["ippo-memory"], share=True, pass_memory=True),
    "dials": METHODS["dials"],
    "dials-untrained": METHODS["dials-untrained"],
    "dials-marginal": dataclasses.replace(METHODS["dials"], influence=Influence(predictor="marginal")),
}
STEPS = {2: 4_000_000, 5: 1_000_000}
PUBLISHED = {2: (8.10, 13.27, 4.30), 5: (11.39, 13.22, 3.75)}  # whole system, dials, untrained, after 4M steps
FIELDS = ("side", "method", "seed", "env_steps", "wall_s", "episode_return", "items", "influence_loss", "real_steps")
EPISODES = 50


def measured(side: int, name: str, seed: int, steps: int, **small: int) -> list[Row]:
    """The evaluations of one run, begun, continued or finished."""
    folder = ROOT / "runs" / "dials_vs_global" / f"{side}-{name}-{steps}-{seed}"
    if folder.exists():
        run = khop.resume(folder)
    else:
        warehouse = khop.make("warehouse", side=side)
        run = khop.train(warehouse, ROWS[name], steps=steps, seeds=[seed], episodes=EPISODES, out=folder, **small)
    log = {row["env_steps"]: row for row in run.folder.read(METRICS)}
    found: dict[str, dict[str, str]] = {}
    for row in run.folder.read(EVALUATION):
        if row["controller"] == "learned-sampled" and row["metric"] in ("episode_return", "items"):
            at = log[row["env_steps"]]
            entry = found.setdefault(row["env_steps"], {"side": str(side), "method": name, "seed": str(seed)})
            entry |= {"env_steps": row["env_steps"], "wall_s": f"{float(at['wall_s']):.1f}"}
            entry |= {column: at.get(column, "") for column in ("influence_loss", "real_steps")}
            entry[row["metric"]] = f"{float(row['mean']):.5g}"
    return list(found.values())


def draw(rows: list[Row]) -> Path:
    """Mean and range over seeds, against steps and against wall time, beside the hand-coded controllers."""
    sides = sorted({int(row["side"]) for row in rows})
    with styled():
        figure = Figure(figsize=(10, 3.6 * len(sides)))
        grid = figure.subplots(len(sides), 2, squeeze=False)
        for line, side in zip(grid, sides, strict=True):
            system = khop.make("warehouse", side=side)
            table = evaluate_baselines(system, list(system.spec.baselines), 200)
            for axes, column in zip(line, ("env_steps", "wall_s"), strict=True):
                for colour, method in zip(COLOURS, ROWS, strict=False):
                    by_seed: dict[str, list[tuple[float, float]]] = defaultdict(list)
                    for row in rows:
                        if int(row["side"]) == side and row["method"] == method:
                            by_seed[row["seed"]].append((float(row[column]), float(row["episode_return"])))
                    if by_seed:
                        points = np.array([seed[: min(map(len, by_seed.values()))] for seed in by_seed.values()])
                        x, y = points[..., 0].mean(0), points[..., 1]
                        label = f"{method}, {len(y)} seed{'s' if len(y) > 1 else ''}"
                        axes.plot(x, y.mean(0), color=colour, label=label)
                        axes.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)
                for style, (name, summary) in zip(("--", ":"), table.items(), strict=True):
                    axes.axhline(summary["episode_return"].mean, color=MUTED, linestyle=style, label=f"{name} item")
            line[0].set(xlabel="steps per agent", ylabel="reward per robot and episode", title=f"{side**2} agents")
            line[1].set(xlabel="wall time [s]")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return save(figure, RESULTS.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """The last evaluation of every run, beside the published figures."""
    last: dict[tuple[int, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        last[int(row["side"]), row["method"]][row["seed"]] = row
    for (side, method), by_seed in sorted(last.items()):
        values = [float(row["episode_return"]) for row in by_seed.values()]
        steps, wall = ({row[name] for row in by_seed.values()} for name in ("env_steps", "wall_s"))
        print(f"{side**2} agents, {method}: {values} after {steps} steps, {wall} s; mean {np.mean(values):.2f}")
    for side, figures in PUBLISHED.items():
        print(f"{side**2} agents, published: whole system {figures[0]}, dials {figures[1]}, untrained {figures[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, small networks, nothing recorded")
    parser.add_argument("--sides", nargs="+", type=int, default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--methods", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.quick:
        rows = [row for name in arguments.methods for row in measured(2, name, 0, 200_000, recurrent=64)]
        report(rows)
        return
    for seed in arguments.seeds:
        for side in arguments.sides:
            for name in arguments.methods:
                if (str(side), name, str(seed)) not in {
                    (row["side"], row["method"], row["seed"]) for row in recorded(RESULTS)
                }:
                    append(RESULTS, FIELDS, measured(side, name, seed, STEPS[side]))
                    draw(recorded(RESULTS))
    report(recorded(RESULTS))
    print(draw(recorded(RESULTS)))


if __name__ == "__main__":
    main()
