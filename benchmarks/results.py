"""Tables of results, as CSV files that grow run by run; and how trained agents are measured for them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from khop.evaluation import Summary, episode_keys, evaluate_baselines, measure
from khop.experiment import Run

Row = dict[str, str]


def recorded(file: Path) -> list[Row]:
    """All rows so far."""
    return list(csv.DictReader(file.open())) if file.exists() else []


def append(file: Path, fields: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Add rows, and the header before the first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = not file.exists()
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, fields, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def replace(file: Path, rows: Sequence[Mapping[str, object]], keys: Sequence[str]) -> None:
    """Put rows in the place of those with the same keys."""
    fresh = {tuple(str(row[key]) for key in keys) for row in rows}
    kept = [row for row in recorded(file) if tuple(row[key] for key in keys) not in fresh]
    part = file.with_suffix(".part")
    part.unlink(missing_ok=True)
    append(part, list(rows[0]), [*kept, *rows])
    part.replace(file)  # at once: an interruption loses nothing


def played(
    run: Run, metrics: Sequence[str], baselines: Sequence[str], episodes: int
) -> list[tuple[int | str, str, dict[str, Summary]]]:
    """Every seed's agents, greedy and sampled, and the classical controllers (seed ""), all over the same episodes.

    Returns:
        (seed, controller, metrics) of each.
    """
    keys = episode_keys(1, episodes)
    found: list[tuple[int | str, str, dict[str, Summary]]] = []
    for seed in run.seeds:
        for name, greedy in (("greedy", True), ("sampled", False)):
            values = measure(run.system, run.controller(greedy, seed), keys)
            found.append((seed, name, {metric: Summary.of(values[metric]) for metric in metrics}))
    classical = evaluate_baselines(run.system, baselines, episodes, seed=1)
    return found + [("", name, table) for name, table in classical.items()]
