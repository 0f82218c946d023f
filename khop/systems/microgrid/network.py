"""Which inverters, lines and loads a microgrid has, and how they are connected."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from jaxtyping import Float

from khop.topology import Topology

NOMINAL_FREQUENCY = 2 * np.pi * 60  # rad/s
NOMINAL_VOLTAGE = 480.0  # V
BAND = 0.05  # how far voltages may be from it, pu
POWER_FILTER = 31.41  # 1/s, cut-off of the power measurement
COUPLING_RESISTANCE, COUPLING_INDUCTANCE = 0.03, 0.35e-3  # Ω and H, between an inverter and its bus
VIRTUAL_RESISTANCE = 1e4  # Ω, from every bus to ground: it turns Kirchhoff's current law into a voltage


@dataclass(frozen=True, eq=False)
class Network:
    """A microgrid of n inverters and b buses, whose m branches are the inverters, then the lines, then the loads.

    Attributes:
        topology: which inverters talk to each other.
        resistance, inductance: (m,) of each branch, Ω and H; of a load without its service line.
        service_resistance, service_inductance: (loads,) of the line in series with each load.
        incidence: (b, m), 1 where a branch's current enters the bus, −1 where it leaves it.
        balance: (b, m), the currents that are summed at each bus: the incidence, unless mistaken as published.
        active_droop, reactive_droop: (n,) rad/s per W and V per var.
        consensus: (n, n) and ``pinning`` (n,): the frequency set-points ω of the inverters follow
            −consensus · (ω − ω_nominal) + pinning · droop · P, in 1/s.
    """

    topology: Topology
    resistance: Float[np.ndarray, " m"]
    inductance: Float[np.ndarray, " m"]
    service_resistance: Float[np.ndarray, " loads"]
    service_inductance: Float[np.ndarray, " loads"]
    incidence: Float[np.ndarray, "b m"]
    balance: Float[np.ndarray, "b m"]
    active_droop: Float[np.ndarray, " n"]
    reactive_droop: Float[np.ndarray, " n"]
    consensus: Float[np.ndarray, "n n"]
    pinning: Float[np.ndarray, " n"]

    @property
    def n(self) -> int:
        """Inverters."""
        return self.topology.n

    @property
    def loads(self) -> int:
        """Loads, the last branches."""
        return len(self.service_resistance)

    @property
    def inverter_bus(self) -> np.ndarray:
        """(n,) the bus each inverter feeds."""
        return np.argmax(self.incidence[:, : self.n], axis=0)


@functools.cache
def network(inverters: int, as_published: bool) -> Network:
    """The microgrid with 6, 20 or 40 inverters.

    Args:
        inverters: how many.
        as_published: with the slips of the published environment in Kirchhoff's current law (with 20 and 40
            inverters a load counts at a wrong bus, with 20 a line too) and in the graph of the frequency control.
    """
    table = _tables()[str(inverters)]
    feeding, lines, loads = table["inverter_bus"], np.array(table["lines"]), np.array(table["loads"])
    branches = {"inverter": 0, "line": inverters, "load": inverters + len(lines)}
    ends = [(None, bus) for bus in feeding] + [tuple(row[:2]) for row in lines] + [(row[0], None) for row in loads]
    buses = sorted({int(bus) for pair in ends for bus in pair if bus is not None})
    incidence = np.zeros((len(buses), len(ends)))
    for branch, pair in enumerate(ends):
        for bus, sign in zip(pair, (-1, 1), strict=True):
            if bus is not None:
                incidence[buses.index(int(bus)), branch] = sign
    balance = incidence.copy()
    links = np.array(table["links"]) - 1
    topology = Topology.from_edges(inverters, links)
    heard = np.zeros((inverters, inverters))
    heard[links[:, 0], links[:, 1]] = heard[links[:, 1], links[:, 0]] = 1
    if as_published:
        for bus, kind, left_out, other_kind, counted in table["published"]["kirchhoff"]:
            balance[buses.index(bus), branches[kind] + left_out - 1] = 0
            balance[buses.index(bus), branches[other_kind] + counted - 1] = -1
        for inverter, others in enumerate(table["published"]["consensus"]):
            heard[inverter] = np.isin(np.arange(inverters), np.array(others) - 1)
    weights = table["consensus_gain"] * heard
    pinned = np.eye(inverters)[0]
    return Network(
        topology=topology,
        resistance=np.concatenate([np.full(inverters, COUPLING_RESISTANCE), lines[:, 2], loads[:, 1]]),
        inductance=np.concatenate([np.full(inverters, COUPLING_INDUCTANCE), lines[:, 3], loads[:, 2]]),
        service_resistance=loads[:, 3],
        service_inductance=loads[:, 4],
        incidence=incidence,
        balance=balance,
        active_droop=np.array(table["active_droop"]),
        reactive_droop=np.array(table["reactive_droop"]),
        consensus=table["consensus_rate"] * (np.diag(weights.sum(1)) - weights + np.diag(pinned)),
        pinning=table["consensus_rate"] * pinned,
    )


@functools.cache
def _tables() -> dict[str, Any]:
    return json.loads((resources.files(__package__) / "networks.json").read_text())
