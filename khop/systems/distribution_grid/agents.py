"""Who controls which inverters, answers for which buses and hears whom.

Shape letters: n agents, N buses, I inverters, a inverters of the agent that has most, K buses of the agent that has
most.
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import csgraph

from khop.errors import InputError
from khop.systems.distribution_grid.grid import MAIN, Grid
from khop.topology import Topology


@dataclasses.dataclass(frozen=True, eq=False)
class Agents:
    """Agents of a grid.

    Attributes:
        topology: agents whose buses a branch joins hear each other, and so do zones that border the same bus.
        of_inverter: (I,) the agent that controls an inverter.
        of_bus: (N,) the agent that answers for a bus: that of its zone or inverter, else the electrically nearest.
    """

    topology: Topology
    of_inverter: Int[np.ndarray, " I"]
    of_bus: Int[np.ndarray, " N"]

    @property
    def n(self) -> int:
        """Agents."""
        return self.topology.n

    @cached_property
    def inverters(self) -> Int[np.ndarray, "n a"]:
        """Every agent's inverters, padded with I, which is none."""
        return _members(self.of_inverter, self.n)

    @cached_property
    def buses(self) -> Int[np.ndarray, "n K"]:
        """Every agent's buses, padded with N, which is none."""
        return _members(self.of_bus, self.n)

    @cached_property
    def slot(self) -> Int[np.ndarray, " I"]:
        """(I,) the place of an inverter among those of its agent."""
        return np.array([np.flatnonzero(self.inverters[agent] == i)[0] for i, agent in enumerate(self.of_inverter)])

    @property
    def has_inverter(self) -> Bool[np.ndarray, "n a"]:
        """Where ``inverters`` is no padding."""
        return self.inverters < len(self.of_inverter)


def zones(grid: Grid) -> Agents:
    """One agent for each zone."""
    if np.all(grid.zone == MAIN):
        raise InputError("The grid has no zones: name them in bus.zone, or choose --agents inverter.")
    of_bus = grid.zone[_nearest(grid, np.flatnonzero(grid.zone != MAIN))]
    around: dict[int, set[int]] = {}  # a bus outside all zones → the zones it borders
    for bus, zone in _ends(grid, grid.zone):
        if grid.zone[bus] == MAIN and zone != MAIN:
            around.setdefault(bus, set()).add(zone)
    pairs = [pair for bordering in around.values() for pair in itertools.combinations(bordering, 2)]
    return Agents(_topology(grid, int(grid.zone.max()) + 1, of_bus, pairs), grid.zone[grid.inverter_bus], of_bus)


def single_inverters(grid: Grid) -> Agents:
    """One agent for each inverter; those at one bus hear each other, and the first of them answers for its buses."""
    buses, first, place = np.unique(grid.inverter_bus, return_index=True, return_inverse=True)
    of_bus = first[np.searchsorted(buses, _nearest(grid, buses))]
    pairs = [*zip(first[place].tolist(), range(grid.inverters), strict=True)]
    return Agents(_topology(grid, grid.inverters, of_bus, pairs), np.arange(grid.inverters), of_bus)


def _nearest(grid: Grid, sources: Int[np.ndarray, " S"]) -> Int[np.ndarray, " N"]:
    """(N,) the source with the shortest electrical path to each bus."""
    return csgraph.dijkstra(grid.connections, indices=sources, min_only=True, return_predecessors=True)[2]


def _ends(grid: Grid, label: Int[np.ndarray, " N"]) -> list[tuple[int, int]]:
    """Every bus that is the end of a branch, with the label of the other end."""
    ends = [*zip(grid.from_bus, grid.to_bus, strict=True), *zip(grid.to_bus, grid.from_bus, strict=True)]
    return [(int(bus), int(label[other])) for bus, other in ends]


def _topology(grid: Grid, n: int, of_bus: Int[np.ndarray, " N"], pairs: list[tuple[int, int]]) -> Topology:
    """Agents joined by a branch between their buses, or by one of the further pairs."""
    across = [(int(of_bus[bus]), label) for bus, label in _ends(grid, of_bus)]
    joined = {(min(pair), max(pair)) for pair in [*pairs, *across]}
    edges = np.array(sorted(pair for pair in joined if pair[0] != pair[1]), int).reshape(-1, 2)
    return Topology.from_edges(n, edges)


def _members(of: Int[np.ndarray, " X"], n: int) -> Int[np.ndarray, "n K"]:
    groups = [np.flatnonzero(of == agent) for agent in range(n)]
    width = max(map(len, groups))
    return np.stack([np.append(group, np.full(width - len(group), len(of))) for group in groups]).astype(int)
