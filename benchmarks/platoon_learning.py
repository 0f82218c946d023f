"""Does decentralised PPO learn what it should on platoons?

Trains on Catch-up (600k real steps) and Slow-down (1.2M) with five seeds each, then plays 10,000 episodes on the real
system, greedy and sampled, beside the best constant controllers. Interrupted, it goes on where it stopped. Results go
to docs/results/platoon_learning.csv, one row per task, method, seed and controller; the figure is drawn from the runs.

    .venv/bin/python benchmarks/platoon_learning.py [--quick] [--methods dppo ippo cppo]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from results import played, replace

import khop
from khop.experiment import Run
from khop.report.curves import learning_curves

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "platoon_learning.csv"
METRICS = ("return", "collision_rate", "headway_rmse", "speed_rmse", "settling_time")


@dataclasses.dataclass(frozen=True)
class Task:
    """One system with its budget and the return it has to reach."""

    system: str
    steps: int
    target: float


TASKS = (Task("platoon-catchup", 600_000, -33.0), Task("platoon-slowdown", 1_200_000, -275.0))
SEEDS = (0, 1, 2, 3, 4)
EPISODES = 10_000  # the drawn initial gaps alone move a mean of 100 by ± 2, one of 1000 by 0.7


def trained(task: Task, method: str, steps: int) -> Run:
    """The task's run: finished, continued or begun."""
    folder = ROOT / "runs" / "platoon_learning" / f"{task.system}-{method}-{steps}"
    if folder.exists():
        return khop.resume(folder)
    return khop.train(task.system, method, steps=steps, seeds=SEEDS, out=folder)


def rows(run: Run, task: Task, method: str) -> list[dict[str, object]]:
    """Evaluation of every seed's agents, and of the constants, over the same episodes."""
    return [
        {
            "system": task.system,
            "steps": run.env_steps,
            "method": method if seed != "" else "",
            "seed": seed,
            "controller": name,
        }
        | {metric: f"{table[metric].mean:.4g}" for metric in METRICS}
        for seed, name, table in played(run, METRICS, ["best-constant-pair", "best-constant", "random"], EPISODES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the budget, to see that it runs")
    parser.add_argument("--methods", nargs="+", default=["dppo"])
    arguments = parser.parse_args()
    runs = []
    for task in TASKS:
        for method in arguments.methods:
            run = trained(task, method, task.steps // (20 if arguments.quick else 1))
            table = rows(run, task, method)
            if not arguments.quick:
                replace(RESULTS, table, ("system", "steps", "method", "controller"))
            for policy in ("sampled", "greedy"):
                returns = [float(row["return"]) for row in table if row["controller"] == policy]
                passed = sum(value >= task.target for value in returns)
                print(f"{task.system} {method} {policy}: {returns}; {passed} of {len(returns)} reach {task.target}")
            runs.append(run.path)
    print(learning_curves(runs, ROOT / "docs" / "results" / "platoon_learning.png"))


if __name__ == "__main__":
    main()
