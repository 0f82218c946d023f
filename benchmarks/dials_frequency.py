"""How often do influence predictors have to be refreshed?

Trains ``dials`` on the warehouse with 2 × 2 learning robots for 4M steps per agent, refreshing its predictors every F =
100K, 500K or 1M steps, and records episode returns on the whole system and the predictors' held-out cross-entropy. F =
4M, once, is the default: those runs are in docs/results/dials_vs_global.csv. Interrupted, it goes on where it stopped:
finished runs are in docs/results/dials_frequency.csv.

    .venv/bin/python benchmarks/dials_frequency.py [--quick] [--every …] [--seeds …]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from results import Row, append, recorded

import khop
from khop.report.style import COLOURS, save, styled
from khop.run import EVALUATION, METRICS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "dials_frequency.csv"
ONCE = ROOT / "docs" / "results" / "dials_vs_global.csv"
PUBLISHED = {100_000: 12.88, 500_000: 13.57, 1_000_000: 12.92, 4_000_000: 13.27}  # return after 4M steps
LOSSES = ("influence_loss_before", "influence_loss", "influence_loss_marginal")
FIELDS = ("refresh", "seed", "env_steps", "wall_s", "episode_return", *LOSSES, "real_steps")
STEPS, EPISODES = 4_000_000, 50


def measured(refresh: int, seed: int, steps: int, **small: int) -> list[Row]:
    """The evaluations of one run, begun, continued or finished."""
    folder = ROOT / "runs" / "dials_frequency" / f"{refresh}-{steps}-{seed}"
    if folder.exists():
        run = khop.resume(folder)
    else:
        options = {"refresh": refresh, "steps": steps, "episodes": EPISODES, **small}
        run = khop.train("warehouse", "dials", seeds=[seed], out=folder, **options)
    log = {row["env_steps"]: row for row in run.folder.read(METRICS)}
    rows = []
    for row in run.folder.read(EVALUATION):
        if row["controller"] == "learned-sampled" and row["metric"] == "episode_return":
            at = log[row["env_steps"]]
            known = {name: at[name] for name in ("env_steps", "wall_s", *LOSSES, "real_steps")}
            rows.append({"refresh": str(refresh), "seed": str(seed), **known, "episode_return": row["mean"]})
    return rows


def found() -> list[Row]:
    """All rows so far, with those of predictors that learned once."""
    once = [row for row in recorded(ONCE) if (row["side"], row["method"]) == ("2", "dials")]
    return [*recorded(RESULTS), *({"refresh": str(STEPS)} | row for row in once)]


def curves(rows: list[Row], quantity: str) -> dict[int, np.ndarray]:
    """By F: (seeds, points, 2) of steps and a quantity."""
    courses: dict[int, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        courses[int(row["refresh"])][row["seed"]].append((float(row["env_steps"]), float(row[quantity])))
    return {
        refresh: np.array([points[: min(map(len, seeds.values()))] for points in seeds.values()])
        for refresh, seeds in sorted(courses.items())
    }


def draw(rows: list[Row]) -> Path:
    """Return and cross-entropy over training, mean over seeds."""
    with styled():
        figure = Figure(figsize=(10, 3.6))
        panels = figure.subplots(1, 2)
        for axes, quantity in zip(panels, ("episode_return", "influence_loss"), strict=True):
            for colour, (refresh, points) in zip(COLOURS, curves(rows, quantity).items(), strict=False):
                axes.plot(*points.mean(0).T, color=colour, label=f"F = {refresh:,}")
        panels[0].set(xlabel="steps per agent", ylabel="reward per robot and episode")
        panels[1].set(xlabel="steps per agent", ylabel="held-out cross-entropy [nats]", ylim=(0, None))
        panels[0].legend()
        return save(figure, RESULTS.with_suffix(".png"))


def report(rows: list[Row]) -> None:
    """What the documentation quotes."""
    for refresh, points in curves(rows, "episode_return").items():
        loss = curves(rows, "influence_loss")[refresh][:, [0, -1], 1].tolist()
        values = points[:, -1, 1].round(2).tolist()
        print(f"F = {refresh:,}: return {values}, published {PUBLISHED.get(refresh)}; cross-entropy first, last {loss}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, small networks, 100K steps, nothing recorded")
    parser.add_argument("--every", nargs="+", type=int, default=[100_000, 500_000, 1_000_000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.quick:
        report([row for refresh in (25_000, 100_000) for row in measured(refresh, 0, 100_000, recurrent=64)])
        return
    for seed in arguments.seeds:
        for refresh in arguments.every:
            if (str(refresh), str(seed)) not in {(row["refresh"], row["seed"]) for row in recorded(RESULTS)}:
                append(RESULTS, FIELDS, measured(refresh, seed, STEPS))
                draw(found())
    report(found())
    print(draw(found()))


if __name__ == "__main__":
    main()
