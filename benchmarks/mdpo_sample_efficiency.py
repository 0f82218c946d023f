"""How much real interaction do learned models save?

Trains every method on both platoons, one run per seed, and records the sampled and the greedy policies' returns on the
real system (20 points over the budget, 50 episodes each) against real environment steps, warm-up included, and against
wall time. Interrupted, it goes on where it stopped: finished runs are in docs/results/mdpo_sample_efficiency.csv, from
which the figure is drawn again at the end.

    .venv/bin/python benchmarks/mdpo_sample_efficiency.py [--quick] [--systems …] [--variants …] [--seeds …]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study import Row, Study, Variant, arguments, by_seed, median_and_range

from khop.report.style import COLOURS, MUTED, save, styled

WARM_UP = 1200  # real steps before the first imagined batch: two batches, one to learn from and one to judge by
SYSTEMS = {"platoon-catchup": -41.0, "platoon-slowdown": -325.9}  # the best constant pair over 1000 episodes
STUDY = Study(
    "mdpo_sample_efficiency",
    [Variant(name, name, 30_000) for name in ("mdpo", "impo", "mpo-na", "mdpo-linear")]
    + [Variant(name, name, 600_000) for name in ("dppo", "ippo", "cppo")],
)
METHODS = [variant.name for variant in STUDY.variants]


def steps_to_pass(runs: np.ndarray, bar: float) -> list[float]:
    """Per seed, real steps at the first evaluation that passes the bar; infinite if none does."""
    return [float(run[run[:, 2] >= bar, 0].min(initial=np.inf)) for run in runs]


def draw(rows: Sequence[Row]) -> Path:
    """Median over seeds and the range of the seeds, against real steps and against wall time."""
    begun = {system: bar for system, bar in SYSTEMS.items() if any(row["system"] == system for row in rows)}
    with styled():
        figure = Figure(figsize=(11, 3.6 * len(begun)))
        grid = figure.subplots(len(begun), 2, squeeze=False)
        for line, (system, bar) in zip(grid, begun.items(), strict=True):
            for axes, column, label in zip(line, (0, 1), ("real environment steps", "wall time [s]"), strict=True):
                for colour, method in zip(COLOURS, METHODS, strict=True):
                    runs = by_seed(rows, system, method)
                    if len(runs):
                        x, name = np.median(runs[..., column], axis=0), f"{method}, {len(runs)} seeds"
                        median_and_range(axes, x, -runs[..., 2], color=colour, label=name)
                axes.axhline(-bar, color=MUTED, linestyle=":", label="best constant pair")
                if column == 0:
                    axes.axvspan(600, WARM_UP, color=MUTED, alpha=0.2, linewidth=0, label="warm-up of mdpo")
                axes.set(xscale="log", yscale="log", xlabel=label, ylabel="cost, −return [1/step]", title=system)
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        return save(figure, STUDY.results.with_suffix(".png"))


def report(rows: Sequence[Row]) -> None:
    """The table that the documentation quotes."""
    for system, bar in SYSTEMS.items():
        for method in METHODS:
            runs = by_seed(rows, system, method)
            if len(runs):
                passed, last, wall = steps_to_pass(runs, bar), runs[:, -1, 2], np.median(runs[:, -1, 1])
                print(f"{system} {method}, {len(runs)} seeds: passes {bar} after {passed} real steps, ", end="")
                print(f"median {np.median(passed):g}; at the end {last.tolist()} after {wall:.0f} s")


if __name__ == "__main__":
    chosen = arguments(__doc__, list(SYSTEMS), METHODS)
    if chosen.quick:
        report(STUDY.quick(chosen.systems, chosen.variants))
    else:
        results = STUDY.run(chosen.systems, chosen.seeds, chosen.variants)
        report(results)
        print(draw(results))
