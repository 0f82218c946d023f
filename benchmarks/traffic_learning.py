"""Do agents learn to control traffic, in how many episodes, and what should they be paid for?

Trains dppo and mdpo on a scenario, one run per seed, with the budgets and options that TASKS gives, then plays the same
episodes with the learned and the classical controllers. Interrupted, it goes on where it stopped. Results go to
docs/results/traffic_learning.csv, one row per scenario, reward, method, seed and controller, with delay, arrivals and
pending vehicles beside the return, whatever the agents were paid for; --rewards compares what to pay them for. Courses
of training go to docs/results/traffic_learning_courses.csv, from which the figure is drawn.

    .venv/bin/python benchmarks/traffic_learning.py [--scenarios cologne8 traffic-grid] [--methods mdpo dppo]
        [--rewards delay queue pressure] [--seeds 0 1 2] [--resco-path DIR]
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from results import Row, recorded, replace
from study import median_and_range

import khop
from khop.evaluation import Summary, episode_keys, evaluate_baselines, measure
from khop.experiment import Run
from khop.report.style import COLOURS, MUTED, save, styled
from khop.run import METRICS as LOG
from khop.system import System

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "traffic_learning.csv"
COURSES = ROOT / "docs" / "results" / "traffic_learning_courses.csv"
METRICS = ("return", "delay", "arrived", "pending", "queue", "waiting", "travel_time", "teleports")
KEYS = ("scenario", "reward", "method", "controller", "seed")
EPISODES = 10
EVALUATION_SEED = 1


@dataclasses.dataclass(frozen=True)
class Task:
    """Real episodes to train for by method, and options of all methods."""

    episodes: dict[str, int]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


TASKS = {
    "cologne8": Task({"mdpo": 28, "dppo": 420}),
    "traffic-grid": Task({"mdpo": 24, "dppo": 36}, {"share": True}),  # its lights are all alike
}


def system_of(scenario: str, reward: str, resco_path: str) -> System:
    """A registered system, or a scenario of RESCO."""
    if scenario.startswith("traffic-"):
        return khop.make(scenario, reward=reward)
    return khop.make("traffic-resco", scenario=scenario, reward=reward, resco_path=resco_path)


def trained(system: System, scenario: str, method: str, seed: int) -> Run:
    """The run of a scenario, method and seed: finished, continued or begun."""
    task = TASKS[scenario]
    folder = ROOT / "runs" / "traffic_learning" / f"{scenario}-{system.reward}-{method}-{task.episodes[method]}-{seed}"
    if folder.exists():
        return khop.resume(folder)
    steps = task.episodes[method] * system.spec.horizon
    return khop.train(system, method, steps=steps, seeds=[seed], episodes=1, out=folder, **task.options)


def course(run: Run, key: Row) -> list[Row]:
    """Delay and arrivals over the episodes of training, in which agents sample their actions."""
    horizon = run.system.spec.horizon
    return [
        key
        | {"episodes": str(int(row["env_steps"]) // horizon)}
        | {name: f"{float(row[name]):.5g}" for name in ("return", "delay", "arrived")}
        for row in run.folder.read(LOG)
    ]


def result(key: Row, table: dict[str, Summary]) -> Row:
    """A line of the results."""
    return key | {name: f"{table[name].mean:.5g}" for name in METRICS}


def draw(rows: list[Row]) -> Path:
    """Delay against real episodes, median and range over seeds, beside the classical controllers."""
    scenarios = sorted({row["scenario"] for row in rows})
    classical = [row for row in recorded(RESULTS) if not row["method"]]
    with styled():
        figure = Figure(figsize=(5.6 * len(scenarios), 3.4))
        for axes, scenario in zip(figure.subplots(1, len(scenarios), squeeze=False)[0], scenarios, strict=True):
            for colour, method in zip(COLOURS, ("dppo", "mdpo"), strict=False):
                key = (scenario, "delay", method)
                mine = [row for row in rows if (row["scenario"], row["reward"], row["method"]) == key]
                if mine:
                    seeds = sorted({row["seed"] for row in mine})
                    episodes = [int(row["episodes"]) for row in mine if row["seed"] == seeds[0]]
                    delay = np.array([[float(row["delay"]) for row in mine if row["seed"] == s] for s in seeds])
                    label = f"{method}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
                    median_and_range(axes, np.array(episodes), delay, color=colour, label=label)
            for style, name in zip((":", "-.", "--", "-"), LINES, strict=True):
                key = (scenario, "delay", name)
                delays = [r["delay"] for r in classical if (r["scenario"], r["reward"], r["controller"]) == key]
                for value in map(float, delays):
                    axes.axhline(value, color=MUTED, linestyle=style, linewidth=1, label=f"{name} {value:.0f}")
            axes.set(title=scenario, xscale="log", yscale="log", xlabel="real episodes", ylabel="delay [s/veh]")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_locator(NullLocator())
            axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return save(figure, RESULTS.with_suffix(".png"))


LINES = ("fixed-cycle", "actuated", "max-pressure", "longest-queue")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="*", default=["mdpo", "dppo"], choices=["mdpo", "dppo"])
    parser.add_argument("--rewards", nargs="+", default=["delay"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resco-path", default="")
    options = parser.parse_args()
    keys = episode_keys(EVALUATION_SEED, EPISODES)
    for scenario in options.scenarios:
        for reward in options.rewards:
            system = system_of(scenario, reward, options.resco_path)
            known = {tuple(row[name] for name in KEYS) for row in recorded(RESULTS)}
            for name in ("random", *system.spec.baselines):
                key = dict(zip(KEYS, (scenario, reward, "", name, ""), strict=True))
                if tuple(key.values()) not in known:
                    table = evaluate_baselines(system, [name], EPISODES, EVALUATION_SEED)[name]
                    replace(RESULTS, [result(key, table)], KEYS)
            for seed in options.seeds:
                for method in options.methods:
                    key = dict(zip(KEYS, (scenario, reward, method, "greedy", str(seed)), strict=True))
                    if tuple(key.values()) in known:
                        continue
                    run = trained(system, scenario, method, seed)
                    of_training = key | {"controller": "sampled"}
                    replace(COURSES, course(run, of_training), (*KEYS, "episodes"))
                    for name, greedy in (("sampled", False), ("greedy", True)):
                        values = measure(run.system, run.controller(greedy, seed), keys)
                        found = result(key | {"controller": name}, {m: Summary.of(values[m]) for m in METRICS})
                        replace(RESULTS, [found], KEYS)
                        print(found, flush=True)
                    print(draw(recorded(COURSES)))


if __name__ == "__main__":
    main()
