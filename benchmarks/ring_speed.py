"""How fast does the ring run, and how fast do its agents train?

Prints a table: vehicle-steps per second of simulation alone, all human and under the largest acceleration, and
agent-steps per second of training with the defaults; medians of several repetitions after compilation.

    .venv/bin/python benchmarks/ring_speed.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import khop
from khop.methods import METHODS
from khop.system import System
from khop.training import Training

ENVIRONMENTS, STEPS = 512, 300


def rate(run: Callable[[], object], steps: int, repetitions: int = 7) -> float:
    """Steps per second, the median of several runs after a first one that compiles."""
    jax.block_until_ready(run())
    rates = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(run())
        rates.append(steps / (time.perf_counter() - started))
    return statistics.median(rates)


def simulation(system: System, action: jax.Array) -> float:
    """Vehicle-steps per second of many rings side by side, noise and observations included."""
    keys = jax.random.split(jax.random.key(0), ENVIRONMENTS)

    @eqx.filter_jit
    def simulate(system: System, keys: jax.Array) -> jax.Array:
        def advance(states: eqx.Module, key: jax.Array) -> tuple[eqx.Module, jax.Array]:
            step = jax.vmap(system.step, in_axes=(0, 0, None))(jax.random.split(key, ENVIRONMENTS), states, action)
            return step.state, step.reward.mean() + step.obs.mean()

        states = jax.vmap(system.reset)(keys)[0]
        return jax.lax.scan(advance, states, jax.random.split(keys[0], STEPS))[1]

    vehicles = system.vehicles  # type: ignore[attr-defined]
    return rate(lambda: simulate(system, keys), ENVIRONMENTS * STEPS * vehicles)


def training(method: str, iterations: int = 4) -> float:
    """Agent-steps per second of one seed."""
    process = Training(khop.make("ring"), METHODS[method], steps=10**9)
    state = process.init_seeds([0])
    iterate = process.compiled()

    def run() -> object:
        moment = state
        for _ in range(iterations):
            moment, metrics = iterate(moment)
        return metrics

    return rate(run, iterations * process.steps_per_iteration * process.system.spec.n, repetitions=3)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    load = os.getloadavg()[0]
    table = Table("what", "per second", title=f"{os.cpu_count()} cores, load before {load:.1f}")
    for controlled in (22, 1):
        found = simulation(khop.make("ring", controlled=controlled), jnp.full((controlled, 1), 3.0))
        table.add_row(f"vehicle-steps, simulation alone, {controlled} of 22 controlled", f"{found:,.0f}")
    table.add_row("agent-steps, training with dppo, 22 of 22 controlled", f"{training('dppo'):,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
