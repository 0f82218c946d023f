"""Does decentralised PPO keep the voltages of microgrids in band?

Trains ``dppo`` with its defaults, then plays 200 disturbed test episodes, greedy and sampled, beside the classical
controllers. The target: all inverters in band at the end of at least 95 % of them. Interrupted, it goes on where it
stopped. Results go to docs/results/microgrid_learning.csv, one row per system, budget, seed and controller; the figure
shows one episode with and without disturbances.

    .venv/bin/python benchmarks/microgrid_learning.py [--quick] [--systems microgrid-6 microgrid-20 microgrid-40]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from results import played, recorded, replace

import khop
from khop.evaluation import episode_keys, play
from khop.experiment import Run
from khop.report.style import save, styled
from khop.system import Controller, System

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
METRICS = ("return", "in_band", "all_in_band", "time_to_band", "survival")
STEPS = {"microgrid-6": 40_000, "microgrid-20": 200_000, "microgrid-40": 400_000}
SEEDS = {"microgrid-6": (0,), "microgrid-20": (0, 1, 2), "microgrid-40": (0,)}
EPISODES = 200
TARGET = 0.95


def trained(system: str, steps: int, seed: int) -> Run:
    """The system's run: finished, continued or begun."""
    folder = ROOT / "runs" / "microgrid_learning" / f"{system}-{steps}-{seed}"
    if folder.exists():
        return khop.resume(folder)
    return khop.train(system, "dppo", steps=steps, seeds=[seed], out=folder)


def rows(run: Run) -> list[dict[str, object]]:
    """The agents and the classical controllers over the same disturbed episodes."""
    names = [*run.system.spec.baselines, "random"]
    return [
        {"system": run.system_name, "steps": run.env_steps, "seed": seed, "controller": name}
        | {metric: f"{table[metric].mean:.4g}" for metric in METRICS}
        for seed, name, table in played(run, METRICS, names, EPISODES)
    ]


def traces(run: Run, out: Path) -> Path:
    """One episode of learned and classical control, with and without disturbances."""
    key = episode_keys(2, 1)[0]
    player = eqx.filter_jit(play)

    def episode(system: System, controller: Controller) -> object:
        return jax.tree.map(np.asarray, player(system, controller, key))

    calm = khop.make(run.system_name, disturbances=False)
    learned, averaging = run.controller(), run.system.baseline("averaging")
    with styled():
        figure = run.system.render(
            {
                "learned, disturbed": episode(run.system, learned),
                "learned": episode(calm, learned),
                "averaging, disturbed": episode(run.system, averaging),
                "averaging": episode(calm, averaging),
            }
        )
        return save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the budget, to see that it runs")
    parser.add_argument("--systems", nargs="+", default=list(STEPS), choices=list(STEPS))
    arguments = parser.parse_args()
    results = RESULTS / "microgrid_learning.csv"
    for system in arguments.systems:
        for seed in SEEDS[system][: 1 if arguments.quick else None]:
            if not arguments.quick and (system, str(seed)) in {
                (row["system"], row["seed"]) for row in recorded(results)
            }:
                continue
            run = trained(system, STEPS[system] // (20 if arguments.quick else 1), seed)
            table = rows(run)
            if not arguments.quick:
                replace(results, table, ("system", "steps", "seed", "controller"))
                print(traces(run, RESULTS / f"{system}.png"))
            for row in table:
                share = float(str(row["all_in_band"]))
                verdict = "reached" if share >= TARGET else "missed"
                print(f"{system} {row['controller']} {row['seed']}: {share:.1%} of episodes end in band: {verdict}")


if __name__ == "__main__":
    main()
