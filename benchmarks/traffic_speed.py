"""What does khop cost beside SUMO itself, and beside sumo-rl?

Plays the same episodes in turns: by a bare libsumo loop that sets the same lights and reads the same values, by khop
with one worker and with two, and, where it is installed, by sumo-rl with its defaults, over TraCI and over libsumo. The
first three see the same vehicles, which is checked; sumo-rl shows the same phases at the same times to the same demand,
and its reset is not counted. Prints control steps per second, of wall-clock time and of CPU time of all processes
together; the latter is what remains meaningful on a machine that does something else as well. The RESCO scenario needs
a copy, e.g. that of an installed sumo-rl.

    .venv/bin/python benchmarks/traffic_speed.py [--duration 3600] [--repetitions 5] [--resco-path DIR]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pickle
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

import khop
from khop.errors import InputError
from khop.evaluation import controller, episode_keys
from khop.hosts.episodes import Driven, _engine_seeds, play
from khop.systems.traffic.grid import TrafficGrid
from khop.systems.traffic.simulator import between
from khop.systems.traffic.system import Traffic

CONTROLLER = "fixed-cycle"


def bare() -> None:
    """The bare loop, in a process of its own: commands, lights and lanes come in by its standard input."""
    import libsumo

    task = pickle.load(sys.stdin.buffer)
    lane, vehicle, simulation = libsumo.lane, libsumo.vehicle, libsumo.simulation
    libsumo.start(task["command"])
    libsumo.load(task["command"][1:])  # the first start pays for what a process does once
    cpu, wall = time.process_time(), time.perf_counter()
    libsumo.load(task["command"][1:])
    running = []
    for shown in task["programme"]:
        for first, seconds in shown:
            for name, state in first:
                libsumo.trafficlight.setRedYellowGreenState(name, state)
            for _ in range(seconds):
                libsumo.simulationStep()
        everyone = vehicle.getIDList()
        for name in everyone:
            vehicle.getSpeed(name)
            vehicle.getWaitingTime(name)
        for name, length in task["lanes"]:
            present = lane.getLastStepVehicleIDs(name)
            for one in reversed(present) if length is not None else ():
                if length > 50 and vehicle.getLanePosition(one) < length - 50:
                    break
        for one in simulation.getPendingVehicles():
            vehicle.getRoute(one)
        for key in ("device.tripinfo.count", "stats.teleports.total"):
            simulation.getParameter("", key)
        running.append(len(everyone))
    print(time.perf_counter() - wall, time.process_time() - cpu, *running)


def sumo_rl() -> None:
    """The same episode by sumo-rl, in a process of its own."""
    import resource

    from sumo_rl import SumoEnvironment

    task = pickle.load(sys.stdin.buffer)
    environment = SumoEnvironment(**task["environment"], sumo_warnings=False)
    environment.reset()
    cpu, wall = time.process_time(), time.perf_counter()
    running = []
    for actions in task["actions"]:
        environment.step(actions)
        running.append(environment.sumo.vehicle.getIDCount())
    seconds, own = time.perf_counter() - wall, time.process_time() - cpu
    environment.close()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # SUMO's, reset included
    print(seconds, own + children.ru_utime + children.ru_stime, *running)


def sumo_rl_task(system: Traffic, seed: int, actions: np.ndarray) -> dict:
    """What sumo-rl has to do to play an episode of these actions (T, n)."""
    scenario, names = system.plan, system.network.lights
    environment = {
        "net_file": str(scenario.net),
        "route_file": ",".join(map(str, scenario.routes)),
        "begin_time": scenario.begin,
        "num_seconds": scenario.duration,
        "time_to_teleport": system.teleport,
        "delta_time": system.interval,
        "yellow_time": system.yellow,
        "min_green": 0,
        "sumo_seed": seed,
    }
    return {"environment": environment, "actions": [dict(zip(names, row, strict=True)) for row in actions.tolist()]}


def task(system: Traffic, seed: int, actions: np.ndarray) -> dict:
    """What the bare loop has to do to play an episode of these actions (T, n)."""
    network, programme = system.network, []
    states = [[lights[a] for lights, a in zip(network.states, row, strict=True)] for row in actions]
    before = None
    for new in states:
        pairs = list(zip(network.lights, new, strict=True))
        if before is None:
            programme.append([(pairs, system.interval)])
        else:
            changes = [(name, b, between(a, b)[0]) for (name, b), a in zip(pairs, before, strict=True) if a != b]
            late = [(name, b) for name, b, yellow in changes if yellow]
            seconds = system.yellow if late else 0
            first = [(name, yellow or b) for name, b, yellow in changes]
            programme.append([(first, seconds), (late, system.interval - seconds)])
        before = new
    lengths = [length if k < network.observed else None for k, length in enumerate(network.lengths.tolist())]
    command = [*system.engine.options["command"], "--seed", str(seed)]
    return {"command": command, "programme": programme, "lanes": list(zip(network.lanes, lengths, strict=True))}


def cpu_seconds(process_ids: list[int]) -> float:
    """CPU time of this process and of workers that still run."""
    ticks = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()[11:13] for one in process_ids]
    return time.process_time() + sum(int(part) for pair in ticks for part in pair) / os.sysconf("SC_CLK_TCK")


def measured(system: Traffic, repetitions: int) -> dict[str, tuple[float, float]]:
    """Way → control steps per second, of wall-clock and of CPU time: medians of repetitions."""
    chosen, keys = controller(system, CONTROLLER), episode_keys(0, 2)
    act, start = Driven(chosen), chosen.initial()
    play(system, act, start, keys, 2)  # starts the workers, compiles
    play(system, act, start, keys[:1], 1)
    rates: dict[str, list[tuple[float, float]]] = {"bare libsumo": [], "khop, 1 worker": [], "khop, 2 workers": []}
    for _ in range(repetitions):
        for way, workers in (("khop, 1 worker", 1), ("khop, 2 workers", 2)):
            process_ids = system.pool(2).process_ids
            wall, cpu = time.perf_counter(), cpu_seconds(process_ids)
            played = jax.block_until_ready(play(system, act, start, keys[:workers], workers))
            steps = workers * system.spec.horizon
            rates[way].append((steps / (time.perf_counter() - wall), steps / (cpu_seconds(process_ids) - cpu)))
        seed = int(_engine_seeds(keys[:1], np.zeros(1, int))[0])
        work = pickle.dumps(task(system, seed, np.asarray(played.episode.action[:, 0])))
        done = subprocess.run([sys.executable, __file__, "--bare"], input=work, capture_output=True, check=True)
        seconds, cpu_s, *running = map(float, done.stdout.split())
        np.testing.assert_array_equal(running, played.episode.info["network"][:, 0, 0])
        rates["bare libsumo"].append((system.spec.horizon / seconds, system.spec.horizon / cpu_s))
        if importlib.util.find_spec("sumo_rl") and not isinstance(
            system, TrafficGrid
        ):  # of the grid it knows three phases
            work = pickle.dumps(sumo_rl_task(system, seed, np.asarray(played.episode.action[:, 0])))
            for way, environment in (("sumo-rl, TraCI", {}), ("sumo-rl, libsumo", {"LIBSUMO_AS_TRACI": "1"})):
                command = [sys.executable, __file__, "--sumo-rl"]
                done = subprocess.run(
                    command, input=work, capture_output=True, check=True, env=os.environ | environment
                )
                seconds, cpu_s, *theirs = map(float, done.stdout.splitlines()[-1].split())
                print(f"{way}: {np.mean(theirs):.1f} vehicles on the road, khop: {np.mean(running):.1f}")
                rates.setdefault(way, []).append((system.spec.horizon / seconds, system.spec.horizon / cpu_s))
    return {way: tuple(map(statistics.median, zip(*found, strict=True))) for way, found in rates.items()}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=int, default=3600)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--resco-path", default="")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sumo-rl", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        return bare()
    if options.sumo_rl:
        return sumo_rl()
    table = Table("system", "", "steps/s", "of bare", "steps per CPU s", "of bare")
    for name, parameters in (("traffic-grid", {}), ("traffic-resco", {"resco_path": options.resco_path})):
        system = khop.make(name, duration=options.duration, **parameters)
        assert isinstance(system, Traffic)
        try:
            found = measured(system, options.repetitions)
        except InputError as error:
            print(error)
            continue
        wall, cpu = found["bare libsumo"]
        for way, (rate, cpu_rate) in found.items():
            table.add_row(name, way, f"{rate:.1f}", f"{rate / wall:.2f}", f"{cpu_rate:.1f}", f"{cpu_rate / cpu:.2f}")
    Console(width=110).print(table)
    print(f"load average when done: {os.getloadavg()[0]:.1f}; {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
