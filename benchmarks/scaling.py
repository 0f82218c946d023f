"""Does cost per agent stay flat as the network grows?

The same training on platoons of 8 to 4096 vehicles: compile time, seconds and memory per agent-step. Prints a table,
writes docs/results/scaling.csv and draws docs/results/scaling.png from it.

    .venv/bin/python benchmarks/scaling.py
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import time
from pathlib import Path

import equinox as eqx
import jax
from matplotlib.figure import Figure

import khop
from khop.methods import METHODS
from khop.training import Training

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "scaling.csv"
SIZES = (8, 64, 512, 4096)
METHOD = dataclasses.replace(METHODS["dppo"], environments=4, rollout=64)  # small batches, so that 4096 fit


def measured(vehicles: int, repetitions: int = 3) -> dict[str, float]:
    """Compile seconds, and time and memory per agent-step, for one platoon."""
    training = Training(khop.make("platoon-catchup", vehicles=vehicles), METHOD, steps=10**9)
    state = training.init_seeds([0])
    started = time.perf_counter()
    program = eqx.filter_jit(eqx.filter_vmap(training.iterate)).lower(state).compile()
    compile_s = time.perf_counter() - started
    state, _ = jax.block_until_ready(program(state))
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        state, _ = jax.block_until_ready(program(state))
        times.append(time.perf_counter() - started)
    memory = program.compiled.memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    agent_steps = training.steps_per_iteration * vehicles
    return {
        "vehicles": vehicles,
        "compile_s": round(compile_s, 2),
        "microseconds_per_agent_step": round(statistics.median(times) / agent_steps * 1e6, 3),
        "bytes_per_agent_step": round(used / agent_steps, 1),
    }


def draw(file: Path) -> None:
    """Two panels from the CSV: cost per agent-step, and compile time."""
    rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(RESULTS.open())]
    vehicles = [row["vehicles"] for row in rows]
    figure = Figure(figsize=(8, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    names = ("microseconds_per_agent_step", "bytes_per_agent_step", "compile_s")
    titles = ("time per agent-step [µs]", "memory per agent-step [B]", "compile time [s]")
    for panel, name, title in zip(panels, names, titles, strict=True):
        panel.plot(vehicles, [row[name] for row in rows], "o-", color="#0072B2")
        panel.set(xscale="log", xlabel="vehicles", title=title, ylim=(0, 1.15 * max(row[name] for row in rows)))
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = []
    for vehicles in SIZES:
        rows.append(measured(vehicles))
        print(rows[-1], flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(RESULTS.with_suffix(".png"))
    print(RESULTS.with_suffix(".png"))


if __name__ == "__main__":
    main()
