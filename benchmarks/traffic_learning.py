"""Do agents learn to control traffic, and in how many episodes?

Trains dppo and mdpo on a scenario, three seeds each, then plays the same episodes with the learned and the classical
controllers. Interrupted, it goes on where it stopped. Results go to docs/results/traffic_learning.csv, one row per
scenario, reward, method, seed and controller, with delay, arrivals and pending vehicles beside the return, whatever the
agents were paid for; --rewards compares what to pay them for. The courses of delay over episodes are in each run's
metrics.csv.

    .venv/bin/python benchmarks/traffic_learning.py [--scenarios traffic-grid cologne8] [--methods dppo mdpo]
        [--rewards delay queue pressure] [--steps N] [--seeds 0 1 2] [--episodes 10] [--resco-path DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import Row, replace

import khop
from khop.evaluation import Summary, episode_keys, evaluate_baselines, measure
from khop.experiment import Run
from khop.system import System

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "traffic_learning.csv"
METRICS = ("return", "delay", "arrived", "pending", "queue", "waiting", "travel_time", "teleports")
KEYS = ("scenario", "reward", "method", "steps", "controller", "seed")
EVALUATION_SEED = 1


def system_of(scenario: str, reward: str, resco_path: str) -> System:
    """A registered system, or a scenario of RESCO."""
    if scenario.startswith("traffic-"):
        return khop.make(scenario, reward=reward)
    return khop.make("traffic-resco", scenario=scenario, reward=reward, resco_path=resco_path)


def trained(system: System, name: str, method: str, options: argparse.Namespace) -> Run:
    """The run of a scenario and method: finished, continued or begun."""
    folder = ROOT / "runs" / "traffic_learning" / name
    if folder.exists():
        return khop.resume(folder, steps=options.steps)
    return khop.train(system, method, steps=options.steps, seeds=options.seeds, episodes=2, out=folder)


def row(keys: tuple[str, ...], table: dict[str, Summary]) -> Row:
    """A line of the results."""
    return dict(zip(KEYS, keys, strict=True)) | {name: f"{table[name].mean:.5g}" for name in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", default=["cologne8", "traffic-grid"])
    parser.add_argument("--methods", nargs="*", default=["mdpo", "dppo"])
    parser.add_argument("--rewards", nargs="+", default=["delay"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--resco-path", default="")
    options = parser.parse_args()
    for scenario in options.scenarios:
        for reward in options.rewards:
            system = system_of(scenario, reward, options.resco_path)
            names = ["random", *system.spec.baselines]
            for name, table in evaluate_baselines(system, names, options.episodes, EVALUATION_SEED).items():
                replace(RESULTS, [row((scenario, reward, "", "", name, ""), table)], KEYS)
                print(scenario, reward, name, {metric: f"{table[metric].mean:.4g}" for metric in METRICS}, flush=True)
            for method in options.methods:
                run = trained(system, f"{scenario}-{reward}-{method}", method, options)
                keys = episode_keys(EVALUATION_SEED, options.episodes)
                for seed in run.seeds:
                    for name, greedy in (("greedy", True), ("sampled", False)):
                        values = measure(run.system, run.controller(greedy, seed), keys)
                        table = {metric: Summary.of(values[metric]) for metric in METRICS}
                        found = row((scenario, reward, method, str(run.env_steps), name, str(seed)), table)
                        replace(RESULTS, [found], KEYS)
                        print(found, flush=True)


if __name__ == "__main__":
    main()
