"""The engine, in this process, against SUMO's own answers to other questions."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libsumo
import numpy as np
import pytest
import sumo

import khop
from khop.systems.traffic.simulator import ACTUATED, NETWORK, OWN_PROGRAMME, Simulator, between

ROADS = Path(__file__).parents[2] / "data" / "roads"
TWO = {"net": f"{ROADS}/two.net.xml", "routes": f"{ROADS}/two.rou.xml", "duration": 300}


def simulator(**parameters: Any) -> Simulator:
    engine = khop.make("traffic-net", **TWO | parameters).engine
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in engine.layout.items()}
    return Simulator(arrays, **engine.options)


@pytest.fixture
def started() -> Iterator[list[Simulator]]:
    """Simulators of this test; libsumo holds one simulation at a time."""
    yield []
    libsumo.close()


def drive(engine: Simulator, steps: int, seed: int = 1, action: tuple[int, int] | None = None) -> Iterator[int]:
    """Random actions, or always the same; yields before each step's arrays are overwritten by the next."""
    random = np.random.default_rng(seed)
    engine.reset(seed)
    for step in range(steps):
        engine.arrays["action"][...] = random.integers(0, 2, size=2) if action is None else action
        engine.step()
        yield step


# Signals


@pytest.mark.parametrize(
    ("old", "new", "yellow", "red"),
    [
        ("GGgrrr", "rrrGGg", "yyyrrr", "rrrrrr"),
        ("rrrGGrrrrGGr", "rrrGrGrrrGrG", "rrrGyrrrrGyr", "rrrGrrrrrGrr"),  # the right turns go on, the lefts wait
        ("GrrG", "GGrG", "", ""),  # nobody loses green
        ("GGrr", "gGrr", "", ""),
        ("Gr", "rG", "yr", "rr"),
    ],
)
def test_what_a_light_shows_while_it_changes(old: str, new: str, yellow: str, red: str) -> None:
    assert between(old, new) == (yellow, red)


class Film:
    """What the lights show in each second, asked of SUMO."""

    def __init__(self, engine: Simulator, monkeypatch: pytest.MonkeyPatch):
        self.shown: list[list[str]] = []
        self.engine = engine
        advance = libsumo.simulationStep

        def simulation_step() -> None:
            advance()
            self.shown.append([libsumo.trafficlight.getRedYellowGreenState(name) for name in engine.lights])

        monkeypatch.setattr(libsumo, "simulationStep", simulation_step)

    def after(self, *actions: int) -> list[str]:
        """Light A through these actions, B left at its first phase."""
        first = len(self.shown)
        for action in actions:
            self.engine.arrays["action"][...] = (action, 0)
            self.engine.step()
        return [state for state, _ in self.shown[first:]]


EW, NS = "rrrGGgrrrGGGg", "GGgrrrGGgrrrr"
EW_YELLOW, NS_YELLOW = "rrryyyrrryyyy", "yyyrrryyyrrrr"
RED = 13 * "r"


@pytest.mark.parametrize(
    ("parameters", "actions", "expected"),
    [
        ({}, (0, 0, 1, 1), 20 * [EW] + 3 * [EW_YELLOW] + 17 * [NS]),
        ({"yellow": 2, "all_red": 1}, (1, 0), 10 * [NS] + 2 * [NS_YELLOW] + [RED] + 7 * [EW]),
        ({"yellow": 0}, (1, 0), 10 * [NS] + 10 * [EW]),
        # 7 s of green after the yellow are fewer than 12: the next change waits one interval
        ({"min_green": 12}, (0, 0, 1, 0, 0), 20 * [EW] + 3 * [EW_YELLOW] + 17 * [NS] + 3 * [NS_YELLOW] + 7 * [EW]),
    ],
)
def test_lights_second_by_second(
    started: list, monkeypatch: pytest.MonkeyPatch, parameters: dict, actions: tuple, expected: list[str]
) -> None:
    engine = simulator(**parameters)
    engine.reset(1)
    film = Film(engine, monkeypatch)
    assert film.after(*actions) == expected


def test_age_and_phase_are_observed(started: list) -> None:
    engine = simulator()
    engine.reset(1)
    ages, phases = [], []
    for action in (0, 0, 1, 1):
        engine.arrays["action"][...] = action
        engine.step()
        ages.append(round(float(60 * engine.arrays["obs"][0, 0])))
        phases.append(int(np.argmax(engine.arrays["obs"][0, 1:3])))
    assert ages == [10, 20, 7, 17]
    assert phases == [0, 0, 1, 1]


def test_lights_can_be_left_to_sumo(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = simulator()
    engine.reset(1)
    film = Film(engine, monkeypatch)
    assert film.after(*6 * [OWN_PROGRAMME])[:55] == 42 * [EW] + 3 * [EW_YELLOW] + 10 * [NS]
    engine.reset(1)
    for _ in range(30):
        film.after(ACTUATED)
    assert libsumo.trafficlight.getProgram("A") == "actuated"
    own = {state for state, _ in film.shown[60:]}
    assert own <= {EW, NS, EW_YELLOW, NS_YELLOW}
    greens = "".join("e" if state == EW else "n" if state == NS else " " for state, _ in film.shown[60:]).split()
    assert len(greens) > 4
    assert {len(green) for green in greens[:-1]} != {42}
    assert all(5 <= len(green) <= 46 for green in greens[:-1])


# Reading


def test_readings_are_those_of_other_getters(started: list) -> None:
    engine = simulator(reward="queue")
    lanes, vehicles = libsumo.lane, libsumo.vehicle
    standing = 0
    for _ in drive(engine, 30):
        for number, lane in enumerate(engine.lanes):
            assert engine.arrays["vehicles"][number] == lanes.getLastStepVehicleNumber(lane)
        for light, incoming in enumerate(engine.incoming):
            own = [engine.lanes[number] for number in incoming if number >= 0]
            per_lane = engine.arrays["obs"][light, 3 : 3 + 3 * len(own)].reshape(-1, 3)
            for lane, (near, queue, waiting) in zip(own, per_lane, strict=True):
                present = [name for name in vehicles.getIDList() if vehicles.getLaneID(name) == lane]
                away = {name: lanes.getLength(lane) - vehicles.getLanePosition(name) for name in present}
                assert round(7 * near, 3) == sum(distance <= 50 for distance in away.values())
                assert round(10 * queue, 3) == lanes.getLastStepHaltingNumber(lane)
                first = min(present, key=away.__getitem__, default=None)
                assert round(60 * waiting, 3) == (vehicles.getWaitingTime(first) if first else 0)
            queued = sum(map(lanes.getLastStepHaltingNumber, own))
            assert engine.arrays["reward"][light] == -queued
            standing += queued
        found = dict(zip(NETWORK, engine.arrays["network"], strict=True))
        everyone = vehicles.getIDList()
        assert found["running"] == len(everyone) == libsumo.vehicle.getIDCount()
        assert found["speed"] == pytest.approx(np.mean([vehicles.getSpeed(name) for name in everyone]), rel=1e-5)
        assert found["max_waiting"] == max(map(vehicles.getWaitingTime, everyone))
    assert standing > 50


def test_rewards_of_pressure_and_delay(started: list) -> None:
    lanes, vehicles = libsumo.lane, libsumo.vehicle
    engine = simulator(reward="pressure")
    for _ in drive(engine, 10):
        inward, outward = ("anA_0", "BA_0", "asA_0", "wA_0", "wA_1"), ("Aw_0", "Aas_0", "Aan_0", "AB_0", "AB_1")
        count = [sum(map(lanes.getLastStepVehicleNumber, side)) for side in (inward, outward)]
        assert engine.arrays["reward"][0] == -abs(count[0] - count[1])
    engine = simulator(reward="delay")
    outside = 0
    for _ in drive(engine, 30, action=(1, 0)):  # the western road fills up
        lost = 0.0
        for name in vehicles.getIDList():
            if vehicles.getRoadID(name) in ("anA", "BA", "asA", "wA"):
                lost += max(1 - vehicles.getSpeed(name) / lanes.getMaxSpeed(vehicles.getLaneID(name)), 0)
        origins = [vehicles.getRoute(name)[0] for name in libsumo.simulation.getPendingVehicles()]
        waiting = sum(origin in ("wA", "anA", "asA") for origin in origins)
        assert engine.arrays["reward"][0] == pytest.approx(-lost - waiting, rel=1e-4, abs=1e-4)
        outside += waiting
    assert outside > 0


def test_delay_counts_every_vehicle_as_sumo_does(started: list, tmp_path: Path) -> None:
    """Against the trip file that SUMO's own program writes of the same simulation, with unfinished and undeparted."""
    engine = simulator()
    engine.reset(5)
    for _ in range(30):
        engine.arrays["action"][...] = OWN_PROGRAMME
        engine.step()
    trips = tmp_path / "trips.xml"
    command = [f"{sumo.SUMO_HOME}/bin/sumo", *engine.command[1:], "--seed", "5", "--end", "300"]
    unfinished = ["--tripinfo-output.write-unfinished", "true", "--tripinfo-output.write-undeparted", "true"]
    subprocess.run([*command, "--tripinfo-output", trips, *unfinished], check=True, capture_output=True)
    found = [trip.attrib for trip in ElementTree.parse(trips).getroot()]
    assert len(found) > 100
    expected = np.mean([float(trip["timeLoss"]) + max(float(trip["departDelay"]), 0) for trip in found])
    measured = dict(zip(NETWORK, engine.arrays["network"], strict=True))
    assert measured["delay"] == pytest.approx(expected, rel=0.02)
    arrived = [trip for trip in found if float(trip["arrival"]) >= 0]
    assert measured["arrived"] == len(arrived)
    assert measured["travel_time"] == pytest.approx(np.mean([float(trip["duration"]) for trip in arrived]), rel=1e-3)
    assert measured["running"] + measured["pending"] + measured["arrived"] == len(found)


def test_the_seed_makes_the_episode(started: list) -> None:
    engine = simulator()

    def episode(seed: int) -> list[np.ndarray]:
        return [engine.arrays["obs"].copy() for _ in drive(engine, 10, seed)]

    first, other, again = episode(1), episode(2), episode(1)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
