"""What khop needs to know of a SUMO network: its lights, their phases and lanes, and the roads between them."""

from __future__ import annotations

import dataclasses
import functools
import heapq
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.sax import SAXException

import numpy as np

from khop.errors import InputError
from khop.systems.traffic import sumo
from khop.topology import Topology

REACH = 1000.0  # m of road without a light in between, up to which two lights are neighbours


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """The lights of a network and all they touch; lanes are numbered, those that lead to a light first.

    Attributes:
        lights: (n) names of the lights that have something to choose: two green phases or more.
        left_alone: names of the lights that have not, and keep their own programme.
        states: green phases of each light, the distinct ones of all its programmes in their order.
        lanes: (m) names; the first ``observed`` of them lead to a light.
        limits, lengths: (m) m/s and m.
        incoming, outgoing: (n, L) and (n, L') lane numbers, −1 where there is none.
        links: incoming and outgoing lane of every link of each light, by link number.
        entries: edge → number of the light it leads to.
        roads: (E, 2) pairs (i, j): traffic that leaves light i meets light j next.
        positions: (n, 2) m.
        shapes: of the lanes that lead to a light, each (points, 2) m.
        streets: of all roads, likewise.
    """

    lights: tuple[str, ...]
    left_alone: tuple[str, ...]
    states: tuple[tuple[str, ...], ...]
    lanes: tuple[str, ...]
    observed: int
    limits: np.ndarray
    lengths: np.ndarray
    incoming: np.ndarray
    outgoing: np.ndarray
    links: tuple[dict[int, tuple[int, int]], ...]
    entries: dict[str, int]
    roads: np.ndarray
    positions: np.ndarray
    shapes: tuple[np.ndarray, ...]
    streets: tuple[np.ndarray, ...]

    @property
    def phases(self) -> int:
        """A, of the light that has most."""
        return max(map(len, self.states))

    def capacity(self) -> np.ndarray:
        """(n, A, K) how much of an incoming lane each phase serves by each of a light's K links.

        A lane's links share it evenly; a link without green, or that does not exist, gets nothing.
        """
        table = np.zeros((len(self.lights), self.phases, max(map(len, self.links))))
        for light, (states, links) in enumerate(zip(self.states, self.links, strict=True)):
            sharing = Counter(before for before, _ in links.values())
            for column, (link, (before, _)) in enumerate(links.items()):
                for phase, state in enumerate(states):
                    table[light, phase, column] = (state[link] in "Gg") / sharing[before]
        return table

    def link_lanes(self, side: int) -> np.ndarray:
        """(n, K) incoming (side 0) or outgoing (side 1) lane of every link, −1 where there is none."""
        return _padded([[pair[side] for pair in links.values()] for links in self.links])


@functools.lru_cache(maxsize=8)
def read(file: Path) -> Network:
    """Read a network's lights.

    Raises:
        InputError: if it cannot be read, has no light with a choice, or a light that never gives green.
    """
    try:
        net = sumo.module("sumolib").net.readNet(os.fspath(file), withPrograms=True)
    except (SAXException, KeyError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{file} is no SUMO network ({error}): netconvert writes one.") from error
    everyone = {light.getID(): light for light in net.getTrafficLights() if light.getConnections()}
    if not everyone:
        raise InputError(f"{file} has no traffic light: build it with lights, e.g. by netconvert --tls.guess.")
    greens = {name: _green_phases(name, light) for name, light in everyone.items()}
    lights = tuple(name for name in sorted(everyone, key=_naturally) if len(greens[name]) > 1)
    if not lights:
        raise InputError(f"None of the {len(everyone)} lights of {file} has two green phases to choose between.")

    connections = {name: sorted(everyone[name].getConnections(), key=lambda link: link[2]) for name in lights}
    before = [_distinct(link[0] for link in connections[name]) for name in lights]
    after = [_distinct(link[1] for link in connections[name]) for name in lights]
    leading = _distinct(lane for lanes in before for lane in lanes)
    lanes = _distinct([*leading, *(lane for lanes in after for lane in lanes)])
    number = {lane.getID(): index for index, lane in enumerate(lanes)}
    entries = {lane.getEdge().getID(): light for light, lanes in enumerate(before) for lane in lanes}
    return Network(
        lights=lights,
        left_alone=tuple(name for name in everyone if name not in lights),
        states=tuple(greens[name] for name in lights),
        lanes=tuple(number),
        observed=len(leading),
        limits=np.array([lane.getSpeed() for lane in lanes]),
        lengths=np.array([lane.getLength() for lane in lanes]),
        incoming=_padded([[number[lane.getID()] for lane in lanes] for lanes in before]),
        outgoing=_padded([[number[lane.getID()] for lane in lanes] for lanes in after]),
        links=tuple(
            {link: (number[a.getID()], number[b.getID()]) for a, b, link in connections[name]} for name in lights
        ),
        entries=entries,
        roads=_roads(after, entries),
        positions=np.array([np.mean([lane.getEdge().getToNode().getCoord() for lane in row], 0) for row in before]),
        shapes=tuple(np.array(lane.getShape()) for lane in leading),
        streets=tuple(np.array(edge.getShape()) for edge in net.getEdges()),
    )


@functools.lru_cache(maxsize=16)
def topology(network: Network, directed: bool) -> Topology:
    """Lights hear each other where a road leads from one to the next; directed, only what comes towards them."""
    return Topology.from_edges(len(network.lights), network.roads, directed, network.positions)


def _green_phases(name: str, light: Any) -> tuple[str, ...]:
    """States with green and without yellow, in the order of the programmes."""
    states = [phase.state for programme in light.getPrograms().values() for phase in programme.getPhases()]
    green = tuple(dict.fromkeys(state for state in states if set(state) & set("Gg") and not set(state) & set("yYu")))
    if not green:
        raise InputError(f"The light {name!r} has no green phase in any of its programmes: give it one in netedit.")
    return green


def _roads(after: list[list[Any]], entries: dict[str, int]) -> np.ndarray:
    """Whom traffic from each light meets next: shortest paths along roads that pass no other light."""
    pairs = []
    for light, lanes in enumerate(after):
        queue = [(edge.getLength(), edge.getID(), edge) for edge in {lane.getEdge() for lane in lanes}]
        heapq.heapify(queue)
        seen, met = set(), []
        while queue:
            distance, name, edge = heapq.heappop(queue)
            if name in seen or distance > REACH:
                continue
            seen.add(name)
            if name in entries:
                met.append(entries[name])
            else:
                for following in edge.getOutgoing():
                    heapq.heappush(queue, (distance + following.getLength(), following.getID(), following))
        pairs += [(light, other) for other in dict.fromkeys(met) if other != light]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def _distinct(lanes: Iterable[Any]) -> list[Any]:
    return list({lane.getID(): lane for lane in lanes}.values())


def _padded(rows: list[list[int]]) -> np.ndarray:
    table = np.full((len(rows), max(map(len, rows))), -1)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
    return table


def _naturally(name: str) -> list[tuple[bool, int, str]]:
    """nt2 before nt10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]
