"""What does it take to train the 432 lights of a whole city, and where does the time go?

Trains mdpo on `traffic-city` for a few episodes of an hour, with less imagination than by default (OPTIONS), then plays
one more with the greedy agents and with classical controllers, all from the same seed. Every episode adds a row to
docs/results/traffic_city.csv as it ends, with delay and arrivals and the seconds of three parts:

* simulation: CPU time of the worker, i.e. SUMO and the reading of it;
* learner: fitting the models and practising in them;
* exchange: the rest of collecting an episode, i.e. choosing actions and passing them and what is seen to and fro.

A run is short enough not to be resumable.

    .venv/bin/python benchmarks/traffic_city.py [--quick] [--episodes 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from results import append, recorded
from traffic_speed import cpu_seconds

import khop
from khop.evaluation import controller, episode_keys, measure
from khop.experiment import Learned, configured
from khop.methods import communication, method
from khop.systems.traffic.system import Traffic
from khop.training import Training

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "traffic_city.csv"
METRICS = ("return", "delay", "arrived", "pending", "running", "queue")
FIELDS = ("seed", "controller", "episode", "simulation_s", "learner_s", "exchange_s", "model_error_1", *METRICS)
OPTIONS = {
    "rollout": 360,  # steps: one episode
    "ensemble": 2,
    "branches": 20,
    "branch_length": 50,
    "rounds": 8,
    "minibatches": 16,
    "model_batch": 32,
    "fit_rounds": 2,
    "memory": 3600,  # steps, of 432 lights: no more than are played
}
CLASSICAL = ("own-programme", "actuated", "max-pressure", "longest-queue")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="30 lights, three episodes, nothing recorded")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    episodes = 3 if arguments.quick else arguments.episodes
    system = khop.make("traffic-city", **({"lights": 30, "vehicles": 600} if arguments.quick else {}))
    assert isinstance(system, Traffic)

    def record(controller: str, values: dict[str, object]) -> None:
        row = {"seed": arguments.seed, "controller": controller} | {
            name: f"{value:.5g}" if isinstance(value, float) else value for name, value in values.items()
        }
        print(row, flush=True)
        if not arguments.quick:
            append(RESULTS, FIELDS, [row])

    keys = episode_keys(1, 1)

    def play(name: str, chosen: khop.system.Controller) -> None:
        values = measure(system, chosen, keys)
        record(name, {metric: float(values[metric][0]) for metric in METRICS})

    if not any(row["controller"] == CLASSICAL[-1] for row in recorded(RESULTS)):
        for name in CLASSICAL:
            play(name, controller(system, name))

    training = Training(system, configured(method("mdpo"), **OPTIONS), episodes * system.spec.horizon)
    cost = communication(training.method, system)
    print(f"{system.spec.n} lights; a light receives {cost.acting.per_agent:.0f} scalars a step to act, ", end="")
    print(f"{cost.acting.share:.1%} of a centralised controller's; {cost.training.share:.1%} to train", flush=True)
    improve = eqx.filter_jit(training.improve)
    state = training.init(jax.random.PRNGKey(arguments.seed))
    for episode in range(1, episodes + 1):
        worker = system.pool(1).process_ids
        simulated, begun = cpu_seconds(worker) - time.process_time(), time.perf_counter()
        collected = jax.block_until_ready(training.collect(state))
        simulation = cpu_seconds(worker) - time.process_time() - simulated
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        state, metrics = jax.block_until_ready(improve(state, *collected))
        learner = time.perf_counter() - begun
        split = {"episode": episode, "simulation_s": simulation, "learner_s": learner}
        split |= {"exchange_s": seconds - simulation}
        record("mdpo", split | {name: float(metrics[name]) for name in ("model_error_1", *METRICS)})
    play("mdpo, greedy", Learned(state.learner.actors, jnp.asarray(True)))
    print(f"load average when done: {os.getloadavg()[0]:.1f}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
