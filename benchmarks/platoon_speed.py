"""How fast does it train, and how long until the first iteration?

Prints steps per second after compilation, the median of several repetitions, at the network sizes and gradient work of
the published implementation and at khop's defaults; the time from an empty process to the first finished iteration; and
where the time of an iteration with learned models goes.

    .venv/bin/python benchmarks/platoon_speed.py
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import khop
from khop.methods import METHODS, Method
from khop.training import Training

REFERENCE_STEPS_PER_S = 536  # DPPO on Catch-up, published implementation, 2 idle cores: 600-step episodes, 10 passes
SETTINGS: dict[str, Method] = {
    "as the reference: 64-64, 10 full passes": dataclasses.replace(
        METHODS["dppo"], hidden=(64, 64), learner=dataclasses.replace(METHODS["dppo"].learner, epochs=10, minibatches=1)
    ),
    "defaults": METHODS["dppo"],
    "defaults, shared weights": dataclasses.replace(METHODS["dppo"], share=True),
}


def steps_per_second(method: Method, repetitions: int = 7, iterations: int = 8) -> float:
    """Real environment steps per second of one seed, after compilation."""
    training = Training(khop.make("platoon-catchup"), method, steps=10**9)
    state = training.init_seeds([0])
    iterate = training.compiled()
    jax.block_until_ready(iterate(state))
    rates = []
    for _ in range(repetitions):
        started = time.perf_counter()
        for _ in range(iterations):
            state, metrics = iterate(state)
        jax.block_until_ready(metrics)
        rates.append(iterations * training.steps_per_iteration / (time.perf_counter() - started))
    return statistics.median(rates)


def seconds_to_first_iteration(repetitions: int = 3) -> tuple[float, float]:
    """From starting ``khop train`` to the first row of its metrics: with nothing compiled yet, and the next time."""
    found = []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as cache:
            found.append([_first_iteration(cache), _first_iteration(cache)])
    first, again = zip(*found, strict=True)
    return statistics.median(first), statistics.median(again)


def _first_iteration(cache: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "run" / "metrics.csv"
        command = [sys.executable, "-m", "khop.cli", "train", "platoon-catchup", "dppo", "--out", str(metrics.parent)]
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        )
        while not metrics.exists():
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        process.kill()
        process.wait()
    return seconds


def seconds_of(program: Callable, *arguments: object, repetitions: int = 5) -> float:
    """Median of a call once compiled."""
    jax.block_until_ready(program(*arguments))
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def seconds_with_models() -> dict[str, float]:
    """Parts of an iteration of mdpo whose models are trusted; the rounds of imagining and learning together."""
    training = Training(khop.make("platoon-catchup"), METHODS["mdpo"], steps=10**9)
    state = eqx.filter_jit(training.init)(jax.random.PRNGKey(0))
    world, options, learner = training.learned, training.method.imagination, training.method.learner
    assert world is not None
    assert options is not None
    key = jax.random.key(1)
    collect, fit = eqx.filter_jit(training.collect), eqx.filter_jit(world.fit)
    imagine, learn = eqx.filter_jit(world.rollout), eqx.filter_jit(learner.update)
    _, fresh = collect(state)
    learned, _ = fit(key, state.learned, fresh)
    learned = eqx.tree_at(lambda s: s.error, learned, jnp.zeros_like(learned.error))  # trusted for whole branches
    imagined = imagine(key, learned, state.learner.actors)
    return {
        "collect": seconds_of(collect, state),
        "fit": seconds_of(fit, key, learned, fresh),
        "imagine": options.rounds * seconds_of(imagine, key, learned, state.learner.actors),
        "learn": options.rounds * seconds_of(learn, key, state.learner, imagined, jnp.ones(())),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    table = Table("setting", "env-steps/s", "agent-steps/s", "÷ published", title=f"{os.cpu_count()} cores")
    for name, method in SETTINGS.items():
        rate = steps_per_second(method)
        table.add_row(name, f"{rate:,.0f}", f"{8 * rate:,.0f}", f"{rate / REFERENCE_STEPS_PER_S:.1f}")
    console = Console()
    console.print(table)
    first, again = seconds_to_first_iteration()
    console.print(f"khop train to first finished iteration: {first:.1f} s, then {again:.1f} s")
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in seconds_with_models().items())
    console.print(f"an iteration of mdpo, {METHODS['mdpo'].rollout} real steps: {parts}")


if __name__ == "__main__":
    main()
