"""The same loops in SUMO, with its own IDM drivers, as a second opinion; needs the extra ``traffic``.

Networks are built by netconvert, simulations run in this process through libsumo.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from khop.errors import InputError
from khop.systems.loops.car_following import (
    ACCELERATION,
    COMFORTABLE_BRAKING,
    EMERGENCY_BRAKING,
    FREE_SPEED,
    INTERVAL,
    STANDSTILL_GAP,
    TIME_GAP,
    VEHICLE_LENGTH,
)
from khop.systems.loops.figure_eight import LENGTH

RADIUS = LENGTH / (4 + 3 * np.pi)  # m, of the figure eight's arcs and the length of its four arms
POINTS = 60  # of an arc's shape


class Driven(NamedTuple):
    """What SUMO's vehicles did, (T, V), and whether any two ever touched."""

    position: Float[np.ndarray, "T V"]  # m along the loop
    speed: Float[np.ndarray, "T V"]  # m/s
    length: float  # m, of the loop
    collisions: int


class Road(NamedTuple):
    """A closed course: its edges in order, each from node to node with a shape and, for a ring, a length."""

    nodes: Mapping[str, tuple[float, float, str]]  # x, y and kind of junction
    edges: Mapping[str, tuple[str, str, np.ndarray, float | None, int]]  # from, to, shape, length, priority
    options: tuple[str, ...]


def ring_road(length: float) -> Road:
    """Four quarter circles without junctions between them, so that the loop has exactly this length."""
    radius, quarter = length / (2 * np.pi), np.pi / 2
    corners = [(f"n{k}", arc(0.0, 0.0, radius, k * quarter, k * quarter)[0]) for k in range(4)]
    edges = {
        f"e{k}": (f"n{k}", f"n{(k + 1) % 4}", arc(0.0, 0.0, radius, k * quarter, (k + 1) * quarter), length / 4, 1)
        for k in range(4)
    }
    nodes = {name: (float(x), float(y), "priority") for name, (x, y) in corners}
    return Road(nodes, edges, ("--no-internal-links", "true"))


def eight_road() -> Road:
    """Flow's figure eight, 418 m all told: the road from bottom to top has priority over the one from right to left."""
    r = RADIUS
    nodes = {"centre": (0, 0), "bottom": (0, -r), "top": (0, r), "right": (r, 0), "left": (-r, 0)}

    def straight(start: str, end: str) -> np.ndarray:
        return np.array([nodes[start], nodes[end]], float)

    edges = {
        "top": ("centre", "top", straight("centre", "top"), None, 78),
        "upper_ring": ("top", "right", arc(r, r, r, np.pi, -np.pi / 2), None, 78),
        "right": ("right", "centre", straight("right", "centre"), None, 46),
        "left": ("centre", "left", straight("centre", "left"), None, 46),
        "lower_ring": ("left", "bottom", arc(-r, -r, r, np.pi / 2, 2 * np.pi), None, 46),
        "bottom": ("bottom", "centre", straight("bottom", "centre"), None, 78),
    }
    return Road({name: (float(x), float(y), "priority") for name, (x, y) in nodes.items()}, edges, ())


def arc(x: float, y: float, radius: float, start: float, end: float) -> Float[np.ndarray, "P 2"]:
    """Points of a circle's arc between two angles."""
    angle = np.linspace(start, end, POINTS)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def drive(
    road: Road, position: Float[np.ndarray, " V"], speed: Float[np.ndarray, " V"], steps: int, seed: int = 0
) -> Driven:
    """Let SUMO's IDM drive from given positions (share of the loop, front bumpers) and speeds.

    Raises:
        InputError: without the extra ``traffic``, or if SUMO refuses the road.
    """
    try:
        import libsumo
        import sumolib
    except ImportError as error:
        raise InputError("Driving in SUMO needs the extra traffic: pip install 'khop[traffic]'.") from error
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = _network(road, folder)
        course = _course(sumolib.net.readNet(str(net), withInternal=True), list(road.edges))
        length = sum(course.values())
        routes = _vehicles(folder, road, course, position * length, speed)
        command = ["sumo", "-n", str(net), "-r", str(routes), "--step-length", str(INTERVAL), "--seed", str(seed)]
        command += ["--no-step-log", "true", "--no-warnings", "true", "--time-to-teleport", "-1"]
        command += ["--collision.action", "warn", "--collision.check-junctions", "true"]
        command += ["--collision.mingap-factor", "0", "--default.speeddev", "0"]
        libsumo.start(command)
        try:
            return _recorded(libsumo, position * length, length, steps)
        finally:
            libsumo.close()


def _recorded(libsumo: Any, start: Float[np.ndarray, " V"], length: float, steps: int) -> Driven:
    """Speeds as SUMO reports them, and positions as it integrates them, at each step's new speeds."""
    speeds, names = np.zeros((steps, len(start))), [f"v{i}" for i in range(len(start))]
    collisions = 0
    for t in range(steps):
        libsumo.simulationStep()
        collisions += len(libsumo.simulation.getCollisions())
        speeds[t] = [libsumo.vehicle.getSpeed(name) for name in names]
    return Driven((start + INTERVAL * np.cumsum(speeds, axis=0)) % length, speeds, length, collisions)


def _network(road: Road, folder: Path) -> Path:
    nodes = "".join(f'<node id="{n}" x="{x}" y="{y}" type="{kind}"/>' for n, (x, y, kind) in road.nodes.items())
    edges = connections = ""
    names = list(road.edges)
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        start, end, shape, length, priority = road.edges[name]
        points = " ".join(f"{x:.3f},{y:.3f}" for x, y in shape)
        fixed = f' length="{length}"' if length else ""
        edges += f'<edge id="{name}" from="{start}" to="{end}" numLanes="1" speed="{FREE_SPEED}" '
        edges += f'priority="{priority}" shape="{points}"{fixed}/>'
        connections += f'<connection from="{name}" to="{following}" fromLane="0" toLane="0"/>'
    parts = {"node": f"<nodes>{nodes}</nodes>", "edge": f"<edges>{edges}</edges>"}
    parts["connection"] = f"<connections>{connections}</connections>"
    import sumolib

    net = folder / "loop.net.xml"
    command = [sumolib.checkBinary("netconvert"), "-o", str(net), "--no-turnarounds", "true", *road.options]
    for kind, text in parts.items():
        (folder / f"loop.{kind}.xml").write_text(text)
        command += [f"--{kind}-files", str(folder / f"loop.{kind}.xml")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"SUMO's netconvert refused the road: {done.stderr.strip()}")
    return net


def _course(net: Any, names: list[str]) -> dict[str, float]:
    """Edges in the order in which they are driven, those inside junctions included, and their lengths."""
    course: dict[str, float] = {}
    for name, following in zip(names, names[1:] + names[:1], strict=True):
        edge = net.getEdge(name)
        course[name] = edge.getLength()
        for connections in edge.getOutgoing().values():
            via = connections[0].getViaLaneID()
            while via and connections[0].getTo().getID() == following:
                lane = net.getLane(via)
                course[lane.getEdge().getID()] = lane.getLength()
                via = lane.getOutgoing()[0].getViaLaneID()
    return course


def _vehicles(folder: Path, road: Road, course: dict[str, float], front: np.ndarray, speed: np.ndarray) -> Path:
    kind = f'<vType id="idm" carFollowModel="IDM" accel="{ACCELERATION}" decel="{COMFORTABLE_BRAKING}" '
    kind += f'emergencyDecel="{EMERGENCY_BRAKING}" tau="{TIME_GAP}" minGap="{STANDSTILL_GAP}" '
    kind += f'length="{VEHICLE_LENGTH}" maxSpeed="{FREE_SPEED}" speedFactor="1" speedDev="0" sigma="0"/>'
    route = f'<route id="round" edges="{" ".join(road.edges)}" repeat="1000"/>'
    ends = np.cumsum(list(course.values()))
    names, places = list(course), list(road.edges)
    rows = ""
    for i, (place, pace) in enumerate(zip(front % ends[-1], speed, strict=True)):
        at = int(np.searchsorted(ends, place, side="right"))
        offset = place - (ends[at - 1] if at else 0.0)
        while names[at] not in places:  # none can start inside a junction
            at, offset = at - 1, course[names[at - 1]] - 0.1
        rows += f'<vehicle id="v{i}" type="idm" route="round" depart="0" departEdge="{places.index(names[at])}" '
        rows += f'departPos="{offset:.4f}" departSpeed="{pace:.4f}" insertionChecks="none"/>'
    file = folder / "loop.rou.xml"
    file.write_text(f"<routes>{kind}{route}{rows}</routes>")
    return file
