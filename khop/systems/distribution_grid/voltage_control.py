"""Voltage control: inverters hold the voltages of a distribution grid in their band by reactive power.

The task of Wang, J. et al., Multi-agent reinforcement learning for active voltage control on power distribution
networks, NeurIPS (2021), as used by Ma et al. (2024) with zones as agents. Deliberate differences, for which
docs/systems/distribution_grid.md gives the reasons: rewards are each agent's own share of the cost, observations are
few and scaled, agents hear their electrical neighbours, noise is unbiased, profiles are not the published ones,
training never sees the days of evaluation, and the grid of 421 buses is a radial one (the published one has 200 buses).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from khop.errors import InputError
from khop.system import ContinuousActions, Controller, DiscreteActions, Episode, Spec, Step, System, register
from khop.systems.distribution_grid.controllers import Droop, NoControl, OptimalPowerFlow
from khop.systems.distribution_grid.plant import Division, Plant, Source, plant
from khop.systems.distribution_grid.profiles import DAY, STEP
from khop.topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOW, HIGH = 0.95, 1.05  # pu, the band
VOLTAGE_SCALE = 0.1  # pu, of observed voltages
DAY_STEPS = DAY // STEP
Barrier = Literal["bowl", "l1", "l2", "courant-beltrami"]


def barrier_cost(barrier: Barrier, voltage: Float[Array, "*axes"]) -> Float[Array, "*axes"]:
    """What a voltage in pu costs (Wang et al. 2021, section 4.2)."""
    off = abs(voltage - 1)
    if barrier == "l1":
        return off
    if barrier == "l2":
        return 2 * off**2
    if barrier == "courant-beltrami":
        return jnp.maximum(0.0, voltage - HIGH) ** 2 + jnp.maximum(0.0, LOW - voltage) ** 2
    density = jnp.exp(-0.5 * (off / 0.1) ** 2) / (0.1 * np.sqrt(2 * np.pi))
    return jnp.where(off > HIGH - 1, 2 * off - 0.095, 0.04 - 0.01 * density)


class GridState(eqx.Module):
    """What a grid is between two actions: loads and sun of the coming interval, and what was done in the last one."""

    load: Float[Array, "M 2"]  # MW and Mvar
    sun: Float[Array, " I"]  # MW
    reactive: Float[Array, " I"]  # Mvar, fed in during the last interval
    voltage: Float[Array, " N"]  # pu, of the last interval
    start: Int[Array, ""]  # step of the year at which the episode began
    time: Int[Array, ""]  # steps since


class VoltageControl(System):
    """Inverters hold a distribution grid's voltages by reactive power.

    An agent is a zone with all its inverters or a single inverter. Observation: highest and lowest voltage at the
    agent's buses, their active and reactive load, and for each of its inverters sun, reactive power and voltage.
    Action: the reactive power of each inverter as a fraction, from −``limit`` to ``limit``, of what its apparent power
    leaves, √(s² − p²). Reward: minus the agent's share of the mean cost over all buses, and of the mean use of
    inverters times ``effort``. Episodes are 240 steps of 3 minutes of one day; a power flow without solution ends them.
    """

    agents: Division = "zone"
    """Who decides: one agent per zone, or per inverter."""
    barrier: Barrier = "bowl"
    """What voltages cost."""
    margin: float = 0.005
    """By how much, in pu, the band that rewards ask for is narrower than the real one, on either side."""
    effort: float = 0.003
    """Cost of running all inverters' full apparent power as reactive power, against costs of voltages."""
    limit: float = 0.8
    """Largest fraction of an inverter's remaining apparent power that is used."""
    levels: int = 0
    """0: continuous actions; else each agent picks one of so many evenly spaced fractions for all its inverters."""
    photovoltaics: float = 1.0
    """Installed photovoltaic power, with its inverters, relative to what the grid comes with."""
    noise: float = 0.01
    """Standard deviation of measurement-like noise on loads and sun, as a share of each."""
    failure_penalty: float = 20.0
    """Cost, over all agents, of a power flow without solution."""
    horizon: int = 240
    """Steps of 3 minutes in an episode."""
    days: Literal["train", "test"] = "train"
    """Which days episodes are drawn from; evaluation always uses the test days."""

    def __check_init__(self) -> None:
        name = f"{type(self).__name__} needs"
        if self.horizon < 1 or self.horizon > DAY_STEPS:
            raise InputError(f"{name} a horizon of 1 to {DAY_STEPS} steps, one day, not {self.horizon}.")
        if not 0 < self.limit <= 1:
            raise InputError(f"{name} a limit above 0 and at most 1, not {self.limit:g}.")
        if self.levels < 0 or self.levels == 1:
            raise InputError(f"{name} levels to be 0, for continuous actions, or at least 2, not {self.levels}.")
        if not 0 < self.photovoltaics <= 10:
            raise InputError(f"{name} photovoltaics above 0 and at most 10, not {self.photovoltaics:g}.")
        for field, most in (("margin", 0.04), ("effort", 1e6), ("noise", 0.2), ("failure_penalty", 1e6)):
            if not 0 <= getattr(self, field) <= most:
                raise InputError(f"{name} {field} from 0 to {most:g}, not {getattr(self, field):g}.")

    @property
    @abc.abstractmethod
    def source(self) -> Source:
        """Which grid."""

    @property
    def plant(self) -> Plant:
        """The grid and all that never changes."""
        return plant(self.source, self.agents, self.photovoltaics)

    @property
    def spec(self) -> Spec:
        return _spec(self.plant, self.limit, self.levels, self.horizon)

    @property
    def topology(self) -> Topology:
        return self.plant.agents.topology

    @property
    def held_out(self) -> VoltageControl:
        """The same grid on the days that training never sees."""
        return dataclasses.replace(self, days="test")

    def reset(self, key: PRNGKeyArray) -> tuple[GridState, Float[Array, "n d"]]:
        """A random moment of a random day, early enough for the episode to end on that day; no reactive power yet."""
        day_key, start_key, noise_key = jax.random.split(key, 3)
        day = jax.random.choice(day_key, jnp.asarray(self.plant.data[1].days_of(self.days)))
        start = day * DAY_STEPS + jax.random.randint(start_key, (), 0, DAY_STEPS - self.horizon + 1)
        load, sun = self._conditions(noise_key, start)
        reactive = jnp.zeros_like(sun)
        solution = self.plant.solve(load, sun, reactive)
        voltage = jnp.where(solution.converged, solution.magnitude, 1.0)
        state = GridState(load, sun, reactive, voltage, start, jnp.zeros((), int))
        return state, self._observe(state)

    def step(self, key: PRNGKeyArray, state: GridState, action: Array) -> Step:
        plant = self.plant
        reactive = self.fractions(action) * plant.capability(state.sun)
        solution = plant.solve(state.load, state.sun, reactive)
        losses = plant.flow.losses(solution)
        voltage = jnp.where(solution.converged, solution.magnitude, state.voltage)
        losses = jnp.where(solution.converged, losses, 0.0)
        load, sun = self._conditions(key, state.start + state.time + 1)
        after = GridState(load, sun, reactive, voltage, state.start, state.time + 1)
        failed = jnp.broadcast_to(~solution.converged, (plant.agents.n,))
        return Step(
            state=after,
            obs=self._observe(after),
            reward=jnp.where(failed, -self.failure_penalty / plant.agents.n, -self._cost(voltage, reactive)),
            terminated=failed,
            truncated=after.time >= self.horizon,
            info={
                "voltage": voltage,
                "reactive": reactive,
                "sun": state.sun,
                "load": state.load.sum(0),
                "line_loss": losses @ jnp.asarray(plant.data[0].is_line, jnp.float32),
                "total_loss": losses.sum(),
                "hour": (state.start + state.time) % DAY_STEPS * (24.0 / DAY_STEPS),
                "failed": ~solution.converged,
            },
        )

    def fractions(self, action: Array) -> Float[Array, " I"]:
        """Every inverter's fraction, from the agents' actions."""
        of = self.plant.agents.of_inverter
        if self.levels:
            return jnp.linspace(-self.limit, self.limit, self.levels)[action][of]
        return jnp.clip(action, -self.limit, self.limit)[of, self.plant.agents.slot]

    def action(self, fractions: Float[Array, " I"]) -> Array:
        """The agents' actions that come nearest to every inverter's fraction."""
        each = self.plant.per_slot(fractions)
        if not self.levels:
            return jnp.clip(each, -self.limit, self.limit)
        mean = each.sum(1) / self.plant.agents.has_inverter.sum(1)
        nearest = jnp.round((mean / self.limit + 1) / 2 * (self.levels - 1)).astype(int)
        return jnp.clip(nearest, 0, self.levels - 1)

    def _conditions(self, key: PRNGKeyArray, step: Int[Array, ""]) -> tuple[Float[Array, "M 2"], Float[Array, " I"]]:
        """Loads and sun of a step of the year, with noise."""
        active, reactive, sun = self.plant.data[1].at(step)
        factor = 1 + self.noise * jax.random.normal(key, (active.size + sun.size,))
        drawn = jnp.stack([active, reactive], 1) * factor[: active.size, None]
        return drawn, sun * factor[active.size :]

    def _cost(self, voltage: Float[Array, " N"], reactive: Float[Array, " I"]) -> Float[Array, " n"]:
        """Each agent's share of the mean cost over all buses and of the mean use of all inverters."""
        asked = 1 + (voltage - 1) * ((HIGH - 1) / (HIGH - 1 - self.margin))
        buses = self.plant.per_agent(barrier_cost(self.barrier, asked), 0.0).sum(1) / voltage.size
        used = self.plant.per_slot(abs(reactive) / self.plant.apparent).sum(1) / reactive.size
        return buses + self.effort * used

    def _observe(self, state: GridState) -> Float[Array, "n d"]:
        plant = self.plant
        grid = plant.data[0]
        off = (state.voltage - 1) / VOLTAGE_SCALE
        highest = jnp.max(plant.per_agent(off, -jnp.inf), 1)
        lowest = jnp.min(plant.per_agent(off, jnp.inf), 1)
        at_inverters = off[grid.inverter_bus]
        nothing = plant.agents.buses[:, 0] == grid.buses  # an agent that shares its bus with another answers for none
        own = plant.per_slot(at_inverters)[:, 0]
        highest, lowest = jnp.where(nothing, own, highest), jnp.where(nothing, own, lowest)
        load = plant.load_of_agents(state.load) / plant.load_peak
        per_inverter = jnp.stack(
            [
                plant.per_slot(state.sun / grid.inverter_peak.astype(np.float32)),
                plant.per_slot(state.reactive / plant.apparent),
                plant.per_slot(at_inverters),
            ],
            axis=-1,
        )
        return jnp.concatenate(
            [highest[:, None], lowest[:, None], load, per_inverter.reshape(plant.agents.n, -1)], axis=1
        )

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Return, controllable ratio and what else docs/systems/distribution_grid.md describes; means over steps."""
        info, steps = episode.info, episode.valid.sum()

        def mean(values: Float[Array, " T"]) -> Float[Array, ""]:
            return jnp.where(episode.valid, values, 0.0).sum() / steps

        voltage = info["voltage"]
        out = ((voltage < LOW) | (voltage > HIGH)).sum(1)
        valid = episode.valid[:, None]
        return super().metrics(episode) | {
            "controllable_ratio": mean(((out == 0) & ~info["failed"]).astype(float)),
            "out_of_band": mean(out.astype(float)),
            "q_loss": mean(abs(info["reactive"]).mean(1)),
            "line_loss": mean(info["line_loss"]),
            "total_loss": mean(info["total_loss"]),
            "max_voltage": jnp.max(jnp.where(valid, voltage, 0.0)),
            "min_voltage": jnp.min(jnp.where(valid, voltage, jnp.inf)),
            "failure_rate": jnp.any(info["failed"] & episode.valid).astype(float),
        }

    def baseline(self, name: str) -> Controller:
        """``no-control``, ``droop`` (every inverter by its own voltage) or ``opf`` (all inverters jointly)."""
        controllers: dict[str, Callable[[VoltageControl], Controller]]
        controllers = {"no-control": NoControl, "droop": Droop, "opf": OptimalPowerFlow}
        return controllers[name](self) if name in controllers else super().baseline(name)

    def render(self, episodes: dict[str, Episode]) -> Figure:
        """Voltages over time, where they leave the band, and losses and reactive power, one column per controller."""
        from khop.systems.distribution_grid.figure import grid_figure  # importing matplotlib takes a second

        return grid_figure(self.plant.data[0], episodes, (LOW, HIGH))


@functools.lru_cache
def _spec(plant: Plant, limit: float, levels: int, horizon: int) -> Spec:
    who = plant.agents
    width = who.inverters.shape[1]
    action: DiscreteActions | ContinuousActions
    if levels:
        names = tuple(f"{fraction:+.2f}" for fraction in np.linspace(-limit, limit, levels))
        action = DiscreteActions(np.full(who.n, levels), names)
    else:
        bound = np.full((who.n, width), limit, np.float32)
        names = tuple(f"reactive power {slot + 1}" for slot in range(width))
        action = ContinuousActions(-bound, bound, names, ("√(s² − p²)",) * width)
    numbers = [str(slot + 1) for slot in range(width)]
    return Spec(
        n=who.n,
        observation_sizes=4 + 3 * who.has_inverter.sum(1),
        observation_names=(
            "highest voltage",
            "lowest voltage",
            "active load",
            "reactive load",
            *(f"{what} {number}" for number in numbers for what in ("sun", "reactive power", "voltage")),
        ),
        observation_units=(
            "0.1 pu off 1",
            "0.1 pu off 1",
            "its peak",
            "its peak",
            *("peak power", "apparent power", "0.1 pu off 1") * width,
        ),
        action=action,
        horizon=horizon,
        control_interval_s=60.0 * STEP,
        discount=0.0,  # what inverters do in one interval is over in the next
        gate=1.0,  # noise of loads and sun is most of what changes; what inverters do to it shows in the reward
        metrics={
            "return": "reward/step",
            "controllable_ratio": "share of steps",
            "out_of_band": "buses",
            "q_loss": "Mvar/inverter",
            "line_loss": "MW",
            "total_loss": "MW",
            "max_voltage": "pu",
            "min_voltage": "pu",
            "failure_rate": "share of episodes",
        },
        baselines=("no-control", "droop", "opf"),
        kappa_actor=1,
        kappa_critic=2,  # reactive power moves voltages beyond the next zone
    )


@register("grid-33")
class Grid33(VoltageControl):
    """Voltage control on the 33-bus feeder of Baran and Wu: 6 inverters in 4 zones, synthetic profiles."""

    @property
    def source(self) -> Source:
        return 33


@register("grid-141")
class Grid141(VoltageControl):
    """Voltage control on a 141-bus feeder in Caracas: 22 inverters in 9 zones, SimBench profiles."""

    limit: float = 0.6
    """Largest fraction of an inverter's remaining apparent power that is used."""

    @property
    def source(self) -> Source:
        return 141


@register("grid-322")
class Grid322(VoltageControl):
    """Voltage control on 322 buses, three SimBench villages below a 20 kV chain: 38 inverters in 22 zones."""

    @property
    def source(self) -> Source:
        return 322


@register("grid-421")
class Grid421(VoltageControl):
    """Voltage control on 421 buses, four SimBench villages below a 20 kV chain: 199 inverters, each an agent."""

    agents: Division = "inverter"
    """Who decides: one agent per zone, or per inverter."""

    @property
    def source(self) -> Source:
        return 421


def _absolute(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


@register("grid-own")
class OwnGrid(VoltageControl):
    """Voltage control on your own grid: a pandapower net and a folder of profiles."""

    net: str = eqx.field(default="", converter=_absolute)
    """A pandapower net in JSON; empty, with --data, for the 33-bus feeder."""
    data: str = eqx.field(default="", converter=_absolute)
    """A folder with load_active.csv, load_reactive.csv and pv_active.csv."""

    def __check_init__(self) -> None:
        if bool(self.net) != bool(self.data):
            raise InputError("Your own grid needs both, a net (--net NET.json) and its profiles (--data FOLDER).")
        plant(self.source, self.agents, self.photovoltaics)  # so that all that is wrong with the files is said at once

    @property
    def source(self) -> Source:
        return (self.net, self.data) if self.net else 33
