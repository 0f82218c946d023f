"""How far does influence travel in a platoon, and how many hops make its vehicles independent?

On both tasks, 8 vehicles: the response to 1 % more of one vehicle's initial state by distance, with its exponential
fit, under constant controllers; and, under random gains, how often what lies beyond κ hops changes a vehicle's next
observation by more than a tolerance. The estimators are those of khop/influence.py. Under a minute on 2 cores.

    .venv/bin/python benchmarks/platoon_influence.py [--quick]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import khop
from khop.evaluation import controller
from khop.influence import Decay, decay, dependence, influence, outside_effect
from khop.report.style import COLOURS, save, styled

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "platoon_influence.csv"
SYSTEMS = ("platoon-catchup", "platoon-slowdown")
# The best constant pair of Slow-down is (½, ½) for all.
DRIVEN = (
    ("platoon-catchup", "best-constant-pair"),
    ("platoon-catchup", "constant-0.5-0.5"),
    ("platoon-slowdown", "best-constant-pair"),
)
KAPPAS = (0, 1, 2, 3)
TOLERANCES = (0.001, 0.01, 0.1)  # of observations, whose unit suits them: 0.01 is 0.2 m or 0.05 to 0.15 m/s
FIELDS = ("quantity", "system", "controller", "hops", "tolerance", "mean", "largest", "fitted", "rate")
Row = dict[str, object]


def fading(episodes: int) -> dict[tuple[str, str], Decay]:
    """Influence by distance."""
    found = {}
    for name, driver in DRIVEN:
        system = khop.make(name)
        response = influence(system, controller(system, driver), episodes)
        found[name, driver] = decay(response, system.feedback)
    return found


def missed(episodes: int) -> list[Row]:
    """ξ̂ by κ and tolerance: mean over vehicles, and of the vehicle where it is largest."""
    rows: list[Row] = []
    for name in SYSTEMS:
        system = khop.make(name)
        for kappa in KAPPAS:
            effect = outside_effect(system, controller(system, "random"), kappa, episodes)
            for tolerance in (0.0, *TOLERANCES):
                xi = dependence(effect, tolerance)
                row: Row = {"quantity": "xi", "system": name, "controller": "random", "hops": kappa}
                rows.append(row | {"tolerance": tolerance, "mean": f"{xi.mean():.4g}", "largest": f"{xi.max():.4g}"})
    return rows


def table(decays: dict[tuple[str, str], Decay]) -> list[Row]:
    """Influence as rows."""
    return [
        {"quantity": "influence", "system": name, "controller": driver, "hops": hops, "mean": f"{mean:.4g}"}
        | {"fitted": f"{fitted:.4g}", "rate": f"{found.rate:.4g}"}
        for (name, driver), found in decays.items()
        for hops, mean, fitted in zip(found.distance, found.response, found.fitted, strict=True)
    ]


def draw_fading(axes: Axes, decays: dict[tuple[str, str], Decay]) -> None:
    for colour, ((name, driver), found) in zip(COLOURS, decays.items(), strict=False):
        label = f"{name}, {driver}: ρ = {found.rate:.2f}"
        axes.semilogy(found.distance, found.response, "o", color=colour, label=label, markersize=5)
        axes.semilogy(found.distance, found.fitted, color=colour, linewidth=1)
    low, high = axes.get_ylim()
    axes.set(title="influence of 1 % more at one vehicle", xlabel="hops behind it", ylim=(low, high * 6))
    axes.set_ylabel("largest change of an observation")
    axes.legend(loc="upper left")


def draw_missed(axes: Axes, rows: list[Row]) -> None:
    for colour, name in zip((COLOURS[0], COLOURS[2]), SYSTEMS, strict=True):
        for style, tolerance in zip(("-", "--", ":"), TOLERANCES, strict=True):
            own = [row for row in rows if row["system"] == name and row["tolerance"] == tolerance]
            shares = [float(str(row["largest"])) for row in own]
            label = f"{name}, by more than {tolerance:g}"
            axes.plot(KAPPAS, shares, style, marker="o", markersize=4, color=colour, label=label)
    axes.set(title="observations that depend on others beyond κ", xlabel="κ [hops]", ylim=(-0.03, 1.03), xticks=KAPPAS)
    axes.set_ylabel("share of steps, most dependent vehicle")
    axes.legend(loc="upper right", handlelength=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few episodes and no files, to see that it runs")
    arguments = parser.parse_args()
    episodes = 2 if arguments.quick else 256
    decays, dependences = fading(episodes), missed(episodes)
    rows = table(decays) + dependences
    for row in rows:
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if arguments.quick:
        return
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with styled():
        figure = Figure(figsize=(9.5, 3.8))
        left, right = figure.subplots(1, 2)
        draw_fading(left, decays)
        draw_missed(right, dependences)
        print(save(figure, RESULTS.with_suffix(".png")))


if __name__ == "__main__":
    main()
