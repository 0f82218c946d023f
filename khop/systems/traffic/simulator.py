"""The engine of traffic systems: one SUMO simulation in a worker process.

The worker runs this file by its path, so nothing of khop is imported here. libsumo's getters are called for what the
observation needs and nothing else; they are faster than subscriptions, which SUMO renews at every simulated second.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np

OWN_PROGRAMME, ACTUATED = -1, -2  # actions by which a light is left to SUMO
NEAR = 50.0  # m before the stop line
HALTING = 0.1  # m/s, below which a vehicle queues
ACTUATED_GREEN = (5.0, 45.0)  # s, shortest and longest green of SUMO's own actuated control
ACTUATED_TYPE = 3  # libsumo's number for it
COUNT, QUEUE, WAIT, AGE = 7.0, 10.0, 60.0, 60.0  # units of the observation: vehicles, vehicles, s, s
CLIP = 3.0  # observations go no further
NETWORK = (  # numbers about the whole network, in the order of the shared array ``network``
    "running",
    "pending",
    "arrived",
    "teleports",
    "speed",
    "waiting",
    "max_waiting",
    "delay",
    "travel_time",
)


@dataclasses.dataclass
class Simulator:
    """A SUMO simulation whose lights are set every ``interval`` seconds; n lights, m lanes."""

    arrays: dict[str, np.ndarray]  # shared with the pool: obs, action, reward, vehicles, halting, network
    command: list[str]  # that starts SUMO
    gui: bool
    begin: int  # s
    horizon: int  # steps
    interval: int  # s, as are the next three
    yellow: int
    all_red: int
    min_green: int
    reward: str
    lights: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]  # green phases of each light
    lanes: tuple[str, ...]
    observed: int  # so many lanes, the first ones, lead to a light
    limits: np.ndarray  # (m) m/s
    lengths: np.ndarray  # (m) m
    incoming: np.ndarray  # (n, L) lane numbers, −1 where there is none
    outgoing: np.ndarray
    entries: dict[str, int]  # edge → the light that it leads to
    reference: np.ndarray | None  # (n, links) lanes to observe as Chu et al. (2020) do

    def __post_init__(self) -> None:
        self.sumo: Any = importlib.import_module("traci" if self.gui else "libsumo")  # libsumo has no window
        self.running = False
        self.one_hot = np.eye(max(map(len, self.states)))
        self.changes = [[[between(old, new) for new in greens] for old in greens] for greens in self.states]
        # The last entry stays 0: it is what a missing lane, of number −1, reads.
        self.near, self.near_halting, self.halting, self.vehicles, self.first_waiting, self.lost = np.zeros(
            (6, len(self.lanes) + 1)
        )

    # Episodes ---------------------------------------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Start over; the seed drives everything random in SUMO."""
        command = [*self.command, "--seed", str(seed)]
        if self.running:
            self.sumo.load(command[1:])
        else:
            self.sumo.start(command)
            self.running = True
        self.time, self.steps = self.begin, 0
        self.phase = np.zeros(len(self.lights), int)
        self.age = np.zeros(len(self.lights))
        self.mode = np.zeros(len(self.lights), int)  # 0: under control, else the action that left it to SUMO
        self.shown = [""] * len(self.lights)
        self.programmes = [self.sumo.trafficlight.getProgram(name) for name in self.lights]
        self.origin: dict[str, int] = {}
        self.arrays["reward"][...] = 0
        self.observe()

    def step(self) -> None:
        """One control interval under the actions in ``arrays``."""
        target = self.arrays["action"]
        changing = []
        for light, action in enumerate(target.tolist()):
            if action < 0:
                self.leave(light, action)
            elif self.mode[light] or not self.shown[light]:  # comes under control: no phase of ours to change from
                self.mode[light], self.phase[light], self.age[light] = 0, action, 0.0
                self.show(light, self.states[light][action])
            elif action != self.phase[light] and self.age[light] >= self.min_green:
                yellow, red = self.changes[light][self.phase[light]][action]
                self.phase[light], self.age[light] = action, 0.0
                if yellow:
                    self.show(light, yellow)
                    changing.append((light, red))
                else:
                    self.show(light, self.states[light][action])
        spent = 0
        if changing:
            spent += self.run(self.yellow)
            if self.all_red:
                for light, red in changing:
                    self.show(light, red)
                spent += self.run(self.all_red)
            for light, _ in changing:
                self.show(light, self.states[light][self.phase[light]])
                self.age[light] = -spent  # so that at the interval's end it counts the seconds of green
        self.run(self.interval - spent)
        self.age += self.interval
        self.steps += 1
        self.observe()

    def run(self, seconds: int) -> int:
        """Simulate some seconds."""
        for _ in range(seconds):
            self.sumo.simulationStep()
        self.time += seconds
        return seconds

    # Lights -----------------------------------------------------------------------------------------------------------

    def show(self, light: int, state: str) -> None:
        if state != self.shown[light]:
            self.sumo.trafficlight.setRedYellowGreenState(self.lights[light], state)
            self.shown[light] = state

    def leave(self, light: int, action: int) -> None:
        """Leave a light to its own programme, or to SUMO's actuated control over the same phases."""
        if self.mode[light] == action:
            return
        lights, name = self.sumo.trafficlight, self.lights[light]
        if action == ACTUATED:
            shortest, longest = ACTUATED_GREEN
            (own,) = (one for one in lights.getAllProgramLogics(name) if one.programID == self.programmes[light])
            phases = [
                lights.Phase(phase.duration, phase.state, shortest, longest)
                if set(phase.state) & set("Gg") and not set(phase.state) & set("yY")
                else lights.Phase(phase.duration, phase.state, phase.duration, phase.duration)
                for phase in own.phases
            ]
            lights.setProgramLogic(name, lights.Logic("actuated", ACTUATED_TYPE, 0, phases))
            lights.setProgram(name, "actuated")
        else:
            lights.setProgram(name, self.programmes[light])
        self.mode[light], self.shown[light] = action, ""

    # Reading ----------------------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """Read the simulation into the shared arrays."""
        pending = self.read()
        arrays, obs = self.arrays, self.arrays["obs"]
        arrays["vehicles"][...], arrays["halting"][...] = self.vehicles[:-1], self.halting[: self.observed]
        if self.reference is not None:
            wave = self.near[self.reference]
            obs[...] = np.minimum(wave / 5.0, 2.0)
            arrays["reward"][...] = -self.near_halting[self.reference].sum(1)
            return
        phases, lanes = self.one_hot.shape[0], self.incoming.shape[1]
        obs[:, 0] = np.minimum(self.age / AGE, CLIP)
        obs[:, 1 : 1 + phases] = np.where((self.mode == 0)[:, None], self.one_hot[self.phase], 0.0)
        per_lane = obs[:, 1 + phases :].reshape(len(obs), lanes, 3)
        per_lane[..., 0] = self.near[self.incoming] / COUNT
        per_lane[..., 1] = np.minimum(self.halting[self.incoming] / QUEUE, CLIP)
        per_lane[..., 2] = np.minimum(self.first_waiting[self.incoming] / WAIT, CLIP)
        if self.reward == "queue":
            cost = self.halting[self.incoming].sum(1)
        elif self.reward == "pressure":
            cost = abs(self.vehicles[self.incoming].sum(1) - self.vehicles[self.outgoing].sum(1))
        else:
            cost = self.lost[self.incoming].sum(1) + pending
        arrays["reward"][...] = -cost

    def read(self) -> np.ndarray:
        """Every vehicle and lane once; returns the vehicles that wait to enter the network before each light."""
        vehicle, lane, simulation = self.sumo.vehicle, self.sumo.lane, self.sumo.simulation
        everyone = vehicle.getIDList()
        speed = {name: vehicle.getSpeed(name) for name in everyone}
        waiting = {name: vehicle.getWaitingTime(name) for name in everyone}
        for array in (self.near, self.near_halting, self.halting, self.vehicles, self.first_waiting, self.lost):
            array[:] = 0.0
        for number, name in enumerate(self.lanes):
            present = lane.getLastStepVehicleIDs(name)
            if not present:
                continue
            self.vehicles[number] = len(present)
            if number >= self.observed:
                continue
            speeds = [speed[one] for one in present]
            limit, near_from = self.limits[number], self.lengths[number] - NEAR
            self.halting[number] = sum(v < HALTING for v in speeds)
            self.lost[number] = sum(1 - v / limit for v in speeds if v < limit)
            self.first_waiting[number] = waiting[present[-1]]
            near = 0
            for one in reversed(present):
                if near_from > 0 and vehicle.getLanePosition(one) < near_from:
                    break
                near += 1
            self.near[number] = near
            if self.reference is not None:
                self.near_halting[number] = sum(v < HALTING for v in speeds[len(speeds) - near :])
        outside = simulation.getPendingVehicles()
        pending = np.zeros(len(self.lights))
        for one in outside:
            if one not in self.origin:
                self.origin[one] = self.entries.get(vehicle.getRoute(one)[0], -1)
            if self.origin[one] >= 0:
                pending[self.origin[one]] += 1
        self.measure(everyone, outside, speed, waiting)
        return pending

    def measure(self, everyone: tuple, outside: tuple, speed: dict, waiting: dict) -> None:
        """Numbers about the whole network, in the order of ``NETWORK``."""
        vehicle, simulation = self.sumo.vehicle, self.sumo.simulation

        def trips(key: str) -> float:
            return float(simulation.getParameter("", f"device.tripinfo.{key}"))

        arrived, inside = trips("count"), max(len(everyone), 1)
        delay = travel_time = 0.0
        if self.steps == self.horizon:
            total = arrived * (trips("timeLoss") + trips("departDelay"))
            total += sum(vehicle.getTimeLoss(one) + vehicle.getDepartDelay(one) for one in everyone)
            total += sum(vehicle.getDepartDelay(one) for one in outside)
            delay = total / max(arrived + len(everyone) + len(outside), 1)
            travel_time = trips("duration")
        self.arrays["network"][...] = (
            len(everyone),
            len(outside),
            arrived,
            float(simulation.getParameter("", "stats.teleports.total")),
            sum(speed.values()) / inside,
            sum(waiting.values()) / inside,
            max(waiting.values(), default=0.0),
            delay,
            travel_time,
        )


def between(old: str, new: str) -> tuple[str, str]:
    """What a light shows while it changes, first with yellow, then with red; empty if no link loses its green.

    Links that keep their green go on; those that get it wait.
    """
    losing = [a in "Gg" and b not in "Gg" for a, b in zip(old, new, strict=True)]
    gaining = [a not in "Gg" and b in "Gg" for a, b in zip(old, new, strict=True)]
    if not any(losing):
        return "", ""
    waiting = ["r" if gains else b for gains, b in zip(gaining, new, strict=True)]
    yellow, red = ("".join(colour if loses else b for loses, b in zip(losing, waiting, strict=True)) for colour in "yr")
    return yellow, red
