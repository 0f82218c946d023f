"""Do agents learn to dissolve waves on the ring, and to share the crossing of the figure eight?

Trains every task with every method, one run per seed, with the defaults of `khop train` but for what TASKS says, then
plays 100 episodes on the real system beside the system's own controllers. Also records after how many real steps
evaluations first pass the target. Interrupted, it goes on where it stopped: finished runs are in
docs/results/ring_learning.csv.

    .venv/bin/python benchmarks/ring_learning.py [--quick] [--tasks …] [--methods …] [--seeds …]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from results import append, recorded

import khop
from khop.evaluation import Summary, evaluate_baselines
from khop.experiment import Run
from khop.run import EVALUATION

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "ring_learning.csv"
METRICS = ("return", "mean_speed", "speed_share", "speed_std", "late_speed_std", "energy", "collision_rate")
FIELDS = ("task", "method", "seed", "controller", "steps", "steps_to_target", *METRICS, "damping_time", "waiting")
EPISODES = 100


@dataclasses.dataclass(frozen=True)
class Task:
    """A system, the share of the speed of uniform flow that is wanted, and by method real steps and options."""

    system: str
    parameters: dict[str, Any]
    share: float
    budgets: dict[str, int]
    options: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


SHARED: dict[str, Any] = {"share": True}
FAR: dict[str, Any] = {"discount": 0.99}
FOUR: dict[str, Any] = {"environments": 4}
# Models that learn for longer, and are trusted for more than half a horizon: over a few steps braking looks free, and
# what agents make of that is a wave.
PATIENT = FOUR | {"fit_rounds": 10, "shortest_branch": 0.6}
OWN, SEVERAL = PATIENT | {"rollout": 300}, SHARED | PATIENT | {"rollout": 150}
SOON = SHARED | FOUR | {"rollout": 150}  # no waves are there to be learned on the figure eight
FAR_OWN, FAR_SEVERAL = FAR | FOUR | {"gate": 0.2}, FAR | SOON | {"gate": 0.2}
TASKS = {
    # Alone with its own experience, a vehicle needs four times as much before it trusts its models.
    "ring-22": Task("ring", {}, 0.97, {"dppo": 100_000, "mdpo": 14_400}, {"mdpo": OWN}),
    # Models that all vehicles learn together are good ones after a minute of driving, and policies soon after.
    "ring-22-shared": Task("ring", {}, 0.97, {"dppo": 40_000, "mdpo": 3_600}, {"dppo": SHARED, "mdpo": SEVERAL}),
    # Three times as far ahead as the system suggests.
    "ring-22-far": Task("ring", {}, 0.97, {"dppo": 200_000, "mdpo": 48_000}, {"dppo": FAR, "mdpo": FAR_OWN}),
    "ring-22-shared-far": Task(
        "ring", {}, 0.97, {"dppo": 200_000, "mdpo": 4_800}, {"dppo": FAR | SHARED, "mdpo": FAR_SEVERAL}
    ),
    "eight-far": Task("figure-eight", {}, 0.29, {"dppo": 200_000}, {"dppo": FAR}),
    "eight-shared-far": Task("figure-eight", {}, 0.29, {"dppo": 200_000}, {"dppo": FAR | SHARED}),
    # Flow's reward and discount: one vehicle's braking reaches the last one behind it after half a minute, and only a
    # price on accelerating tells it soon what to do. 0.73 is FollowerStopper's share.
    "ring-1": Task("ring", {"controlled": 1, "reward": "flow"}, 0.73, {"dppo": 600_000}, {"dppo": {"discount": 0.999}}),
    # 1.2 times the speed of humans
    "eight": Task("figure-eight", {}, 0.29, {"dppo": 100_000, "mdpo": 14_400}, {"mdpo": OWN}),
    "eight-shared": Task("figure-eight", {}, 0.29, {"dppo": 80_000, "mdpo": 3_600}, {"dppo": SHARED, "mdpo": SOON}),
}


def trained(name: str, method: str, seed: int, steps: int) -> Run:
    """A finished run: begun, continued or already there."""
    folder = ROOT / "runs" / "ring_learning" / f"{name}-{method}-{steps}-{seed}"
    if folder.exists():
        return khop.resume(folder)
    task = TASKS[name]
    system = khop.make(task.system, **task.parameters)
    return khop.train(
        system, method, steps=steps, seeds=[seed], episodes=20, out=folder, **task.options.get(method, {})
    )


def steps_to_target(run: Run, share: float) -> str:
    """Real steps at the first evaluation of the greedy agents that reaches the share; empty if none does."""
    rows = [
        row for row in run.folder.read(EVALUATION) if (row["controller"], row["metric"]) == ("learned", "speed_share")
    ]
    return next((row["env_steps"] for row in rows if float(row["mean"]) >= share), "")


def row(key: dict[str, object], table: dict[str, Summary]) -> dict[str, object]:
    """A line of the results."""
    return key | {name: f"{table[name].mean:.4g}" for name in FIELDS if name in table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, a fifth of the budget, nothing recorded")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=["dppo", "mdpo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    for seed in arguments.seeds[:1] if arguments.quick else arguments.seeds:
        for name in arguments.tasks:
            task = TASKS[name]
            if not arguments.quick and (name, "baseline") not in {(r["task"], r["method"]) for r in recorded(RESULTS)}:
                system = khop.make(task.system, **task.parameters)
                tables = evaluate_baselines(system, ["random", *system.spec.baselines], EPISODES)
                append(
                    RESULTS,
                    FIELDS,
                    [row({"task": name, "method": "baseline", "controller": c}, t) for c, t in tables.items()],
                )
            for method in (method for method in arguments.methods if method in task.budgets):
                if (name, method, str(seed)) in {(r["task"], r["method"], r["seed"]) for r in recorded(RESULTS)}:
                    continue
                steps = task.budgets[method] // (5 if arguments.quick else 1)
                run = trained(name, method, seed, steps)
                key = {"task": name, "method": method, "seed": seed, "steps": run.env_steps}
                key |= {"steps_to_target": steps_to_target(run, task.share)}
                tables = run.evaluate(EPISODES, ["learned", "learned-sampled"])
                rows = [row(key | {"controller": c}, table) for c, table in tables.items()]
                for found in rows:
                    print(*(f"{field} {found[field]}" for field in FIELDS if field in found), sep=", ", flush=True)
                if not arguments.quick:
                    append(RESULTS, FIELDS, rows)


if __name__ == "__main__":
    main()
