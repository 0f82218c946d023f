"""One option of MDPO at a time: what remains of it in the final return, the model's error and the messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from study import Row, Study, arguments, by_seed

from khop.report.style import COLOURS, save, styled

Families = dict[str, dict[int, str]]
LAST = 3  # evaluations that a final return averages


def main(
    description: str | None,
    study: Study,
    systems: Sequence[str],
    families: Callable[[str], Families],
    label: str,
    columns: dict[str, str],
) -> None:
    """Run a study whose variants are families of one option's values, print its table and draw its figure.

    Args:
        description: for ``--help``.
        study: all variants.
        systems: to choose from.
        families: of a system: by what is varied, the variant that has each value of it.
        label: of the x axis.
        columns: of the results, to draw below the return, with their labels.
    """
    chosen = arguments(description, systems, [variant.name for variant in study.variants])
    variants = {system: [v for v in chosen.variants if v in names(families(system))] for system in chosen.systems}
    for system, some in variants.items():
        if not some:
            raise SystemExit(f"On {system} choose among the variants {', '.join(names(families(system)))}.")
    if chosen.quick:
        for system, some in variants.items():
            report(study.quick([system], some), study, [system], columns)
        return
    for system, some in variants.items():
        study.run([system], chosen.seeds, some)
    rows = study.rows()
    report(rows, study, systems, columns)
    print(draw(study, rows, systems, families, label, columns))


def names(families: Families) -> list[str]:
    """All variants of the families, once each."""
    return list(dict.fromkeys(variant for family in families.values() for variant in family.values()))


def final(rows: Sequence[Row], system: str, variant: str, column: str) -> np.ndarray:
    """(seeds,) the mean of the last few evaluations."""
    runs = by_seed([row for row in rows if row[column]], system, variant, column)
    return runs[:, -LAST:, 2].mean(1) if len(runs) else np.empty(0)


def report(rows: Sequence[Row], study: Study, systems: Sequence[str], columns: dict[str, str]) -> None:
    """The table that the documentation quotes: medians over seeds, and the range of the returns."""
    for system in systems:
        for variant in (variant.name for variant in study.variants):
            returns = final(rows, system, variant, "return")
            if len(returns):
                others = ", ".join(f"{name} {np.median(final(rows, system, variant, name)):.4g}" for name in columns)
                print(
                    f"{system} {variant}, {len(returns)} seeds: return {np.median(returns):.1f} "
                    f"({returns.min():.1f} to {returns.max():.1f}), {others}"
                )


def draw(
    study: Study,
    rows: Sequence[Row],
    systems: Sequence[str],
    families: Callable[[str], Families],
    label: str,
    columns: dict[str, str],
) -> Path:
    """Median and range over seeds of the cost and of the other columns, one column of axes per system."""
    begun = [system for system in systems if any(row["system"] == system for row in rows)]
    shown = {"return": "cost, −return [1/step]"} | columns
    with styled():
        figure = Figure(figsize=(5.5 * len(begun), 2.6 * len(shown)))
        grid = figure.subplots(len(shown), len(begun), squeeze=False, sharex="col")
        for axes_column, system in zip(grid.T, begun, strict=True):
            for axes, (column, ylabel) in zip(axes_column, shown.items(), strict=True):
                sign = -1 if column == "return" else 1
                for colour, (family, variants) in zip(COLOURS, families(system).items(), strict=False):
                    each = {str(x): sign * final(rows, system, variant, column) for x, variant in variants.items()}
                    found = {x: values for x, values in each.items() if len(values)}
                    if found:
                        middle = np.array([np.median(values) for values in found.values()])
                        below = middle - [values.min() for values in found.values()]
                        above = np.array([values.max() for values in found.values()]) - middle
                        axes.errorbar(
                            list(found),
                            middle,
                            [below, above],
                            color=colour,
                            marker="o",
                            markersize=4,
                            capsize=2,
                            label=family,
                        )
                below_zero = axes.dataLim.y0 <= 0
                axes.set(ylabel=ylabel, yscale="linear" if column.endswith("scalars") or below_zero else "log")
            axes_column[0].set_title(system)
            axes_column[-1].set_xlabel(label)
        grid[0, 0].legend()
        return save(figure, study.results.with_suffix(".png"))
