"""A distribution grid as arrays: branches in per unit, where inverters stand, which zone a bus belongs to.

Shape letters: N buses, of which bus 0 is the slack; E branches; I inverters.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Complex, Float, Int
from scipy import sparse
from scipy.sparse import csgraph

from khop.errors import InputError

MAIN = -1  # the zone of buses that belong to no agent's zone


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """Buses joined by branches, fed at bus 0. Compared by identity, so that it can be a static value in JAX.

    A branch is the two-port of a line or transformer: an ideal transformer ``ratio`` at its from-side, then a series
    impedance between two shunt admittances.

    Attributes:
        base: MVA that one per unit of power stands for.
        slack_voltage: complex voltage of bus 0, pu.
        from_bus, to_bus: (E,) ends of the branches.
        impedance: (E,) series impedance, pu.
        shunt_from, shunt_to: (E,) shunt admittances behind the ratio and at the to-bus, pu.
        ratio: (E,) complex turns ratio, 1 for a line.
        is_line: (E,) whether it is a line (otherwise a transformer).
        shunt: (N,) shunt admittances of buses, pu.
        bus_name: (N,) what the buses are called where the grid comes from.
        zone: (N,) zone of each bus, 0, 1, …, or ``MAIN``.
        inverter_bus: (I,) where the inverters stand.
        inverter_peak: (I,) MW, the most active power each ever feeds in.
    """

    base: float
    slack_voltage: complex
    from_bus: Int[np.ndarray, " E"]
    to_bus: Int[np.ndarray, " E"]
    impedance: Complex[np.ndarray, " E"]
    shunt_from: Complex[np.ndarray, " E"]
    shunt_to: Complex[np.ndarray, " E"]
    ratio: Complex[np.ndarray, " E"]
    is_line: Bool[np.ndarray, " E"]
    shunt: Complex[np.ndarray, " N"]
    bus_name: Int[np.ndarray, " N"]
    zone: Int[np.ndarray, " N"]
    inverter_bus: Int[np.ndarray, " I"]
    inverter_peak: Float[np.ndarray, " I"]

    def __post_init__(self) -> None:
        parts = csgraph.connected_components(self.connections)[1]
        apart = np.flatnonzero(parts != parts[0])
        if apart.size:
            raise InputError(
                f"Bus {self.bus_name[apart[0]]} and {apart.size - 1} more are an island without the slack bus: connect "
                "every bus to it, or take the island out."
            )
        if not self.inverter_bus.size:
            raise InputError("The grid has no inverter (pandapower: sgen): place at least one.")
        if np.any(self.inverter_bus == 0):
            raise InputError("An inverter at the slack bus cannot move any voltage: place it at another bus.")
        zones = np.unique(self.zone[self.zone != MAIN])
        empty = np.setdiff1d(zones, self.zone[self.inverter_bus])
        if empty.size:
            bus = self.bus_name[np.flatnonzero(self.zone == empty[0])[0]]
            raise InputError(f"The zone of bus {bus} has no inverter: place one there, or call the zone 'main'.")

    @property
    def buses(self) -> int:
        """N."""
        return len(self.zone)

    @property
    def inverters(self) -> int:
        """I."""
        return len(self.inverter_bus)

    @cached_property
    def connections(self) -> sparse.csr_array:
        """(N, N) undirected, electrical length |z| of the shortest branch between two buses, pu."""
        ends = np.sort(np.stack([self.from_bus, self.to_bus]), axis=0)
        order = np.lexsort((abs(self.impedance), *ends))
        low, high = ends[:, order]
        first = np.append(True, (low[1:] != low[:-1]) | (high[1:] != high[:-1]))
        lengths = np.maximum(abs(self.impedance[order]), 1e-12)
        one_way = sparse.coo_array((lengths[first], (low[first], high[first])), shape=(self.buses,) * 2)
        return sparse.csr_array(one_way + one_way.T)

    @cached_property
    def admittance(self) -> Complex[np.ndarray, "N N"]:
        """The bus admittance matrix, pu."""
        series = 1 / self.impedance
        matrix = np.diag(self.shunt).astype(complex)
        np.add.at(matrix, (self.from_bus, self.from_bus), (series + self.shunt_from) / abs(self.ratio) ** 2)
        np.add.at(matrix, (self.from_bus, self.to_bus), -series / self.ratio.conj())
        np.add.at(matrix, (self.to_bus, self.from_bus), -series / self.ratio)
        np.add.at(matrix, (self.to_bus, self.to_bus), series + self.shunt_to)
        return matrix
