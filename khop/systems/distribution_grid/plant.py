"""A grid with its profiles, power flow and agents: everything of a voltage-control task that never changes.

Shape letters: n agents, N buses, I inverters, M buses with loads, m injecting buses, a and K as in ``agents``.
"""

from __future__ import annotations

import dataclasses
import functools
from functools import cached_property
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from khop.systems.distribution_grid import agents as who
from khop.systems.distribution_grid.builtin import grid_and_profiles
from khop.systems.distribution_grid.own import own_grid_and_profiles
from khop.systems.distribution_grid.power_flow import PowerFlow, Solution
from khop.systems.distribution_grid.storage import Data

OVERSIZED = 1.2  # apparent power of an inverter over its largest active power
Source = int | tuple[str, str]  # buses of a built-in grid, or a user's net and data
Division = Literal["zone", "inverter"]


@dataclasses.dataclass(frozen=True, eq=False)
class Plant:
    """See above; ``data`` holds the grid and its profiles."""

    data: Data
    agents: who.Agents

    @cached_property
    def flow(self) -> PowerFlow:
        """The power flow with loads and inverters as injections."""
        grid, profiles = self.data
        buses = np.union1d(profiles.load_bus, grid.inverter_bus)
        return PowerFlow(grid, buses[buses > 0])

    @cached_property
    def apparent(self) -> Float[np.ndarray, " I"]:
        """MVA that every inverter can carry."""
        return (OVERSIZED * self.data[0].inverter_peak).astype(np.float32)

    @cached_property
    def load_peak(self) -> Float[np.ndarray, "n 2"]:
        """The most active and reactive load that any moment has at an agent's buses, MW and Mvar; at least 1e-4."""
        _, profiles = self.data
        at_agent = np.eye(self.agents.n)[self.agents.of_bus[profiles.load_bus]]
        active = abs(profiles.active @ (profiles.load_active @ at_agent)).max(0)
        reactive = abs(profiles.reactive @ (profiles.load_reactive @ at_agent)).max(0)
        return np.maximum(np.stack([active, reactive], 1), 1e-4).astype(np.float32)

    @cached_property
    def _load_place(self) -> Int[np.ndarray, " m"]:
        """Which load an injecting bus has; M for none."""
        place = {bus: load for load, bus in enumerate(self.data[1].load_bus)}
        return np.array([place.get(bus, len(place)) for bus in self.flow.injecting])

    @cached_property
    def _inverter_at(self) -> Float[np.ndarray, "I m"]:
        return (self.data[0].inverter_bus[:, None] == self.flow.injecting).astype(np.float32)

    @cached_property
    def sensitivity(self) -> tuple[Float[np.ndarray, "N I"], Float[np.ndarray, "I I"], Float[np.ndarray, " 2"]]:
        """What reactive power does near a grid without load, per Mvar fed in by each inverter.

        Change of voltages in pu, quadratic form of the losses in MW, and the largest eigenvalues of the squares of the
        first and of the second.
        """
        flow, grid = self.flow, self.data[0]
        at = np.searchsorted(flow.injecting, grid.inverter_bus)
        current = -1j / flow.idle[grid.inverter_bus].conj() / grid.base
        voltage = np.real(flow.idle.conj()[:, None] * flow.impedance[:, at] * current) / abs(flow.idle)[:, None]
        through = flow.series[0][:, at] * current
        losses = grid.base * np.real(through.conj().T @ (grid.impedance.real[:, None] * through))
        return voltage, losses, np.array([np.linalg.norm(voltage, 2) ** 2, np.linalg.norm(losses, 2)])

    def capability(self, sun: Float[Array, " I"]) -> Float[Array, " I"]:
        """√(s² − p²), the reactive power left to every inverter, Mvar."""
        return jnp.sqrt(jnp.maximum(self.apparent**2 - sun**2, 0.0))

    def injections(
        self, load: Float[Array, "M 2"], sun: Float[Array, " I"], reactive: Float[Array, " I"]
    ) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
        """Active and reactive power fed in at the injecting buses, MW and Mvar."""
        drawn = jnp.concatenate([load, jnp.zeros((1, 2))])[self._load_place]
        return sun @ self._inverter_at - drawn[:, 0], reactive @ self._inverter_at - drawn[:, 1]

    def solve(self, load: Float[Array, "M 2"], sun: Float[Array, " I"], reactive: Float[Array, " I"]) -> Solution:
        """The power flow under loads and inverters."""
        return self.flow.solve(*self.injections(load, sun, reactive))

    def per_agent(self, values: Float[Array, " N"], empty: float) -> Float[Array, "n K"]:
        """What buses have, by agent; ``empty`` where an agent has fewer."""
        return jnp.append(values, empty)[self.agents.buses]

    def per_slot(self, values: Float[Array, " I"]) -> Float[Array, "n a"]:
        """What inverters have, by agent; 0 where an agent has fewer."""
        return jnp.append(values, 0.0)[self.agents.inverters]

    def load_of_agents(self, load: Float[Array, "M 2"]) -> Float[Array, "n 2"]:
        """Active and reactive load at every agent's buses, MW and Mvar."""
        _, profiles = self.data
        at_agent = np.eye(self.agents.n, dtype=np.float32)[self.agents.of_bus[profiles.load_bus]]
        return at_agent.T @ load


@functools.lru_cache
def plant(source: Source, division: Division, photovoltaics: float) -> Plant:
    """The plant of a built-in or a user's grid; the same object at every call.

    Args:
        source: which grid.
        division: who decides.
        photovoltaics: factor on the size of every inverter and on what the sun gives it.
    """
    grid, profiles = grid_and_profiles(source) if isinstance(source, int) else own_grid_and_profiles(*source)
    grid = dataclasses.replace(grid, inverter_peak=photovoltaics * grid.inverter_peak)
    profiles = dataclasses.replace(profiles, sun_share=photovoltaics * profiles.sun_share)
    return Plant((grid, profiles), who.zones(grid) if division == "zone" else who.single_inverters(grid))
