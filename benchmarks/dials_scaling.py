"""What do agents cost, in the whole system and in local simulators?

Simulates and trains warehouses of 4 to 400 learning robots: agent-steps per second of the simulators alone, and seconds
and bytes of training per million agent-steps, beside the published run times. Prints a table and writes
docs/results/dials_scaling.csv, one row at a time; rows that are there are not measured again.

    .venv/bin/python benchmarks/dials_scaling.py [--quick] [--sides …]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
from results import Row, append, recorded

import khop
from khop.experiment import configured
from khop.methods import METHODS
from khop.report.style import COLOURS, MUTED, save, styled
from khop.system import System, step_and_reset
from khop.training import Training

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "dials_scaling.csv"
SIDES = (2, 5, 7, 10, 20)
METHODS_SHOWN = ("ippo-memory", "dials")
# Hours for 4M steps per agent on 128 cores (Suau et al. 2022, Table 1): the whole system, and local simulators.
PUBLISHED_HOURS = {4: (14.8, 2.17), 25: (97.0, 2.74), 49: (208.0, 3.57), 100: (468.0, 6.69)}
FLOP = 5.6e6  # of the networks per agent-step: acting 0.56, learning 4.65, valuing and Adam the rest
SIMULATED_STEPS, ENVIRONMENTS = 200, 16


def timed(program: Callable, argument: object, repetitions: int) -> float:
    """Median seconds of a call, the first one, which compiles, aside."""
    jax.block_until_ready(program(argument))
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(program(argument))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def whole(system: System) -> Callable:
    """Random actions in the whole system."""

    def act(state: object, key: jax.Array) -> tuple:
        action_key, step_key = jax.random.split(key)
        action = jax.random.randint(action_key, (ENVIRONMENTS, system.spec.n), 0, 4)
        keys = jax.random.split(step_key, ENVIRONMENTS)
        state, obs, step = jax.vmap(step_and_reset, in_axes=(None, 0, 0, 0))(system, keys, state, action)
        return state, (obs.sum(), step.reward.sum())

    def run(key: jax.Array) -> tuple:
        state, _ = jax.vmap(system.reset)(jax.random.split(key, ENVIRONMENTS))
        return jax.lax.scan(act, state, jax.random.split(key, SIMULATED_STEPS))[1]

    return jax.jit(run)


def local(system: System) -> Callable:
    """Random actions and random influence in every agent's region."""
    shape = (ENVIRONMENTS, system.spec.n)
    regions, agents = system.regions, jnp.broadcast_to(jnp.arange(shape[1]), shape)

    def act(state: object, key: jax.Array) -> tuple:
        draw_key, step_key = jax.random.split(key)
        word = jax.random.bits(draw_key, shape)
        sources = jnp.stack([word >> shift & 3 for shift in (2, 4, 6, 8)], -1).astype(int)
        keys = jax.random.split(step_key, shape)
        step = jax.vmap(jax.vmap(regions.step))(keys, agents, state, sources, (word & 3).astype(int))
        return step.state, (step.obs.sum(), step.reward.sum())

    def run(key: jax.Array) -> tuple:
        state, _ = jax.vmap(jax.vmap(regions.reset))(jax.random.split(key, shape), agents)
        return jax.lax.scan(act, state, jax.random.split(key, SIMULATED_STEPS))[1]

    return jax.jit(run)


def measured(side: int, method: str, repetitions: int, **small: int) -> dict[str, str]:
    """One row: the simulator alone, and training in it."""
    system = khop.make("warehouse", side=side)
    simulator = local(system) if method == "dials" else whole(system)
    simulated = SIMULATED_STEPS * ENVIRONMENTS * side**2 / timed(simulator, jax.random.key(0), repetitions)
    training = Training(system, configured(METHODS[method], **small), 10**9)
    state = training.init_seeds([0])
    started = time.perf_counter()
    program = training.compiled().lower(state).compile()
    compile_s = time.perf_counter() - started
    state, _ = jax.block_until_ready(program(state))  # fits the predictors; from now on they are there
    trained = training.steps_per_iteration * side**2 / timed(program, state, repetitions)
    memory = program.compiled.memory_analysis()
    used = memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
    row = {
        "agents": side**2,
        "method": method,
        "simulator_agent_steps_per_s": f"{simulated:.4g}",
        "training_agent_steps_per_s": f"{trained:.4g}",
        "seconds_per_million_agent_steps": f"{1e6 / trained:.4g}",
        "gflop_per_s": f"{FLOP * trained / 1e9:.4g}",
        "bytes": used,
        "compile_s": f"{compile_s:.3g}",
        "device": jax.devices()[0].device_kind,
    }
    return {name: str(value) for name, value in row.items()}


def draw(rows: list[Row]) -> Path:
    """Seconds per million agent-steps and bytes against the number of agents, beside the published times."""
    with styled():
        figure = Figure(figsize=(9, 3.4))
        left, right = figure.subplots(1, 2)
        for colour, method in zip(COLOURS, METHODS_SHOWN, strict=False):
            points = sorted((row for row in rows if row["method"] == method), key=lambda row: int(row["agents"]))
            agents = [int(row["agents"]) for row in points]
            cost = [float(row["seconds_per_million_agent_steps"]) for row in points]
            left.plot(agents, cost, "o-", color=colour, label=method)
            right.plot(agents, [float(row["bytes"]) / 2**30 for row in points], "o-", color=colour)
        for column, name in enumerate(("published, whole system", "published, local, 128 cores")):
            cost = [hours[column] * 3600 / (4 * agents) for agents, hours in PUBLISHED_HOURS.items()]
            left.plot(list(PUBLISHED_HOURS), cost, "s:" if column else "^:", color=MUTED, label=name)
        left.set(xscale="log", yscale="log", xlabel="agents", ylabel="seconds per million agent-steps")
        right.set(xscale="log", yscale="log", xlabel="agents", ylabel="memory [GiB]")
        left.legend()
        return save(figure, RESULTS.with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="4 agents, small networks, nothing recorded")
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES))
    arguments = parser.parse_args()
    if arguments.quick:
        for method in METHODS_SHOWN:
            print(measured(2, method, 2, recurrent=32))
        return
    for side in arguments.sides:
        for method in METHODS_SHOWN:
            if (str(side**2), method) not in {(row["agents"], row["method"]) for row in recorded(RESULTS)}:
                row = measured(side, method, 3)
                append(RESULTS, list(row), [row])
                print(row, flush=True)
    for agents, (whole_h, local_h) in PUBLISHED_HOURS.items():
        print(f"published, {agents} agents: whole system {whole_h} h, local simulators {local_h} h for 4M steps each")
    print(draw(recorded(RESULTS)))


if __name__ == "__main__":
    main()
