"""An irregular city, generated: junctions of three to seven arms, arterials, one-way and missing streets.

It stands in for the New York of Ma et al. (2024), whose network was not published. That one has 436 lights and about
35 vehicles on the road at a time; here there is enough traffic for control to matter.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from khop.errors import InputError
from khop.system import register
from khop.systems.traffic import sumo
from khop.systems.traffic.system import Scenario, Traffic

BLOCK, JITTER = 150.0, 35.0  # m, the streets' mean spacing and how far a junction lies off it
ARTERIAL_EVERY = 5  # streets; an arterial has two lanes a direction, the third and fourth street after it go one way
MISSING, DIAGONAL = 0.2, 0.04  # share of local streets left out, and of blocks crossed
SPARE = 1.05  # junctions fit for a light, per light; those left over have none
DURATION = 3600  # s


class Street(NamedTuple):
    """A street from junction ``a`` to ``b``, and back unless it goes one way."""

    a: int
    b: int
    arterial: bool = False
    one_way: bool = False


@register("traffic-city")
class TrafficCity(Traffic):
    """A generated city of 436 traffic lights at junctions of differing shapes, in heavy traffic."""

    lights: int = 436
    """Junctions with a traffic light."""
    vehicles: int = 9000
    """Vehicles that set out within the hour."""
    city_seed: int = 0
    """Which city, and which trips."""

    @property
    def setup(self) -> Scenario:
        for name, least in (("lights", 4), ("vehicles", 1), ("city_seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        net, routes = files(self.lights, self.vehicles, self.city_seed)
        return Scenario(net, (routes,), duration=DURATION)


@functools.lru_cache(maxsize=4)
def files(lights: int, vehicles: int, seed: int) -> tuple[Path, Path]:
    """The city's network and demand, built when first asked for."""
    random = np.random.default_rng(seed)
    side, fit = math.isqrt(lights), np.empty(0, int)
    while len(fit) < SPARE * lights:
        side += 1
        streets = _streets(random, side)
        fit = np.flatnonzero(np.bincount([end for street in streets for end in street[:2]]) >= 3)
    lit = set(random.permutation(fit)[:lights].tolist())
    row, column = np.divmod(np.arange(side * side), side)
    places = BLOCK * np.stack([column, row], 1) + random.uniform(-JITTER, JITTER, (side * side, 2))
    recipe = f"{places.round(1).tolist()} {streets} {sorted(lit)} {vehicles} {seed}"
    folder = sumo.generated("city", recipe, lambda into: _build(into, places, streets, lit, vehicles, seed))
    return folder / "city.net.xml", folder / "city.rou.xml"


def _streets(random: np.random.Generator, side: int) -> list[Street]:
    """A grid with arterials and one-way streets, some diagonals added and some local streets left out."""
    node = np.arange(side * side).reshape(side, side)
    streets = []
    for line in range(side):
        arterial, turn = line % ARTERIAL_EVERY == 0, line % ARTERIAL_EVERY
        for here, there in zip(node[line, :-1], node[line, 1:], strict=True):
            ends = (here, there) if turn != 3 else (there, here)
            streets.append(Street(int(ends[0]), int(ends[1]), arterial, one_way=turn in (2, 3)))
        streets += [
            Street(int(here), int(there), arterial) for here, there in zip(node[:-1, line], node[1:, line], strict=True)
        ]
    crossed = random.random((side - 1, side - 1)) < DIAGONAL
    streets += [Street(int(node[i, j]), int(node[i + 1, j + 1])) for i, j in np.argwhere(crossed)]
    for street in [street for street in streets if not street.arterial and not street.one_way]:
        rest = [other for other in streets if other is not street]
        if random.random() < MISSING and _connected(rest, side * side):
            streets = rest
    return streets


def _connected(streets: list[Street], junctions: int) -> bool:
    """Everywhere can be reached from everywhere, one-way streets included."""
    arcs = [(a, b) for a, b, *_ in streets] + [(b, a) for a, b, _, one_way in streets if not one_way]
    sender, receiver = np.array(arcs).T
    graph = sparse.csr_array((np.ones(len(arcs)), (sender, receiver)), shape=(junctions, junctions))
    return csgraph.connected_components(graph, connection="strong")[0] == 1


def _kind(junction: int, lit: set[int]) -> str:
    """Every third light gives green to one road after the other, all others to opposite roads together."""
    if junction not in lit:
        return "priority"
    return 'traffic_light" tlLayout="incoming' if junction % 3 == 0 else "traffic_light"


def _build(folder: Path, places: np.ndarray, streets: list[Street], lit: set[int], vehicles: int, seed: int) -> None:
    nodes = [f'<node id="{k}" x="{x:.1f}" y="{y:.1f}" type="{_kind(k, lit)}"/>' for k, (x, y) in enumerate(places)]
    edges = []
    for a, b, arterial, one_way in streets:
        kind = 'numLanes="2" speed="16.7" priority="2"' if arterial else 'numLanes="1" speed="13.9" priority="1"'
        edges += [f'<edge id="{i}_{j}" from="{i}" to="{j}" {kind}/>' for i, j in ((a, b), (b, a))[: 2 - one_way]]
    for name, lines in (("nodes", nodes), ("edges", edges)):
        (folder / f"{name}.xml").write_text(f"<{name}>\n" + "\n".join(lines) + f"\n</{name}>\n")
    net = folder / "city.net.xml"
    sumo.run(
        "netconvert",
        *("--node-files", folder / "nodes.xml", "--edge-files", folder / "edges.xml", "--output-file", net),
        *("--no-turnarounds", "true", "--no-warnings", "true"),
    )
    sumo.run(
        "randomTrips.py",
        *("--net-file", net, "--output-trip-file", folder / "trips.xml", "--route-file", folder / "city.rou.xml"),
        *("--period", str(DURATION / vehicles), "--end", str(DURATION), "--seed", str(seed), "--fringe-factor", "3"),
        *("--min-distance", str(4 * BLOCK), "--trip-attributes", 'departLane="best" departSpeed="max"'),
        script=True,
    )
