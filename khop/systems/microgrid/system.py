"""Secondary voltage control of islanded microgrids with 6, 20 or 40 droop-controlled inverters.

The tasks are those of PowerNet (Chen et al. 2022), as used by Ma et al. (2024). Deliberate differences: what inverters
observe is true (published: bus voltages and currents in the common frame stay 0 for ever), messages go both ways along
every link, loads stay between 0.3 and 2 times their size, the ten set-points reach 540 V as the continuous ones do
(published: 535 V), the frequency is controlled from the first step on (published: from the ninth, as a clock is set
back at reset) and Kirchhoff's current law holds. ``as_published`` brings the last three back.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from khop.errors import InputError
from khop.system import (
    ConstantController,
    ContinuousActions,
    Controller,
    DiscreteActions,
    Episode,
    Spec,
    Step,
    System,
    register,
)
from khop.systems.microgrid.controllers import Averaging, best_constant
from khop.systems.microgrid.dynamics import Electrical, advance, at_rest, terminal_voltage
from khop.systems.microgrid.network import BAND, NOMINAL_VOLTAGE, Network, network
from khop.systems.microgrid.observation import NAMES, UNITS, observe, voltage_error
from khop.topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL = 0.05  # s, between two actions
PRIMARY = 0.4  # s of droop control alone, from rest to the start of an episode
SUBSTEPS, PRIMARY_SUBSTEPS = 50, 80  # of 1 ms and 5 ms: voltages to 1e-4 pu
LOWEST, HIGHEST = 490.0, 540.0  # V, set-points
LEVELS = 10
TRIP = (0.8, 1.25)  # pu, where an inverter would disconnect
TRIP_PENALTY = 10.0
INITIAL_LOAD = (0.8, 1.2)  # multiples of a load's resistance and inductance
LOAD_STEP = 0.05  # how far a disturbance moves them in one step
LOAD_LIMITS = (0.3, 2.0)
DELAY_AS_PUBLISHED = 8  # steps without frequency control


class MicrogridState(eqx.Module):
    """What a microgrid is at one instant."""

    electrical: Electrical
    set_point: Float[Array, " n"]  # V, in force during the last step
    load: Float[Array, "2 loads"]  # multiples of each load's resistance and inductance
    time: Int[Array, ""]  # steps


@functools.cache
def _set_points(as_published: bool) -> np.ndarray:
    """The set-points in V that discrete actions choose from."""
    return np.linspace(LOWEST, 535.0 if as_published else HIGHEST, LEVELS)


@functools.cache
def _spec(inverters: int, horizon: int, as_published: bool, continuous: bool) -> Spec:
    action: DiscreteActions | ContinuousActions
    if continuous:
        one = np.ones((inverters, 1))
        action = ContinuousActions(LOWEST * one, HIGHEST * one, ("set-point",), ("V",))
    else:
        names = tuple(f"{level:.4g} V" for level in _set_points(as_published))
        action = DiscreteActions(np.full(inverters, LEVELS), names)
    return Spec(
        n=inverters,
        observation_sizes=np.full(inverters, len(NAMES)),
        observation_names=NAMES,
        observation_units=UNITS,
        action=action,
        horizon=horizon,
        control_interval_s=INTERVAL,
        metrics={
            "return": "reward/step",
            "in_band": "share of inverters",
            "all_in_band": "share of episodes",
            "time_to_band": "s",
            "survival": "share of episodes",
        },
        baselines=("nominal", "best-constant", "averaging"),
        kappa_actor=1,
        kappa_critic=2,
        reward_limit=1.0,
        discount=0.5,  # voltages settle within an interval or two
    )


class Microgrid(System):
    """Inverters that feed one islanded network, each setting the voltage from which its droop law descends.

    An inverter's terminal voltage is v = V* − n Q: its set-point minus its droop times its reactive power. Action: V*,
    one of ten levels from 490 to 540 V, or any value in between (``continuous``), for 50 ms. Observation: 10 per
    inverter, all measured at the inverter and its bus. Reward per inverter and step, in pu, with e = |v − 1|:
    0.05 − e in the band e ≤ 0.05, −e outside, −10 where v ≤ 0.8 or v ≥ 1.25. Episodes start after 0.4 s of droop
    control alone at 480 V from rest, are truncated after ``horizon`` steps and never terminate.
    """

    inverters: ClassVar[int]

    disturbances: bool = True
    """Let every load wander at every step; otherwise it stays as drawn at the start."""
    continuous: bool = False
    """Choose any set-point between 490 and 540 V rather than one of ten."""
    as_published: bool = False
    """With the published environment's slips in network, frequency control and levels (see docs)."""
    horizon: int = 20
    """Steps of 50 ms in an episode."""

    def __check_init__(self) -> None:
        if not isinstance(self.horizon, int) or self.horizon < 1:
            raise InputError(f"A microgrid needs horizon to be a whole number of at least 1, not {self.horizon!r}.")

    @property
    def network(self) -> Network:
        """Inverters, lines and loads."""
        return network(self.inverters, self.as_published)

    @property
    def spec(self) -> Spec:
        return _spec(self.inverters, self.horizon, self.as_published, self.continuous)

    @property
    def topology(self) -> Topology:
        return self.network.topology

    def reset(self, key: PRNGKeyArray) -> tuple[MicrogridState, Float[Array, "n 10"]]:
        low, high = INITIAL_LOAD
        load = jax.random.uniform(key, (2 * self.network.loads,), minval=low, maxval=high).reshape(2, -1)
        set_point = jnp.full(self.inverters, NOMINAL_VOLTAGE, float)
        start = at_rest(self.network)
        electrical = advance(self.network, start, set_point, load, False, PRIMARY, PRIMARY_SUBSTEPS)
        state = MicrogridState(electrical, set_point, load, jnp.zeros((), int))
        return state, observe(self.network, electrical, set_point)

    def step(self, key: PRNGKeyArray, state: MicrogridState, action: Array) -> Step:
        load = state.load
        if self.disturbances:
            moves = jax.random.uniform(key, (load.size,), minval=-LOAD_STEP, maxval=LOAD_STEP)
            load = jnp.clip(load + moves.reshape(load.shape), *LOAD_LIMITS)
        set_point = self._set_point(action)
        controlled = state.time >= (DELAY_AS_PUBLISHED if self.as_published else 0)
        electrical = advance(self.network, state.electrical, set_point, load, controlled, INTERVAL, SUBSTEPS)
        state = MicrogridState(electrical, set_point, load, state.time + 1)
        voltage = terminal_voltage(self.network, set_point, electrical.reactive) / NOMINAL_VOLTAGE
        return Step(
            state=state,
            obs=observe(self.network, electrical, set_point),
            reward=_reward(voltage),
            terminated=jnp.zeros(self.inverters, bool),
            truncated=state.time >= self.horizon,
            info={"voltage": voltage, "set_point": set_point},
        )

    def _set_point(self, action: Array) -> Float[Array, " n"]:
        if self.continuous:
            return jnp.clip(action[:, 0], LOWEST, HIGHEST)
        return jnp.asarray(_set_points(self.as_published))[action]

    def known_reward(
        self, obs: Float[Array, "n 10"], action: Array, next_obs: Float[Array, "n 10"]
    ) -> Float[Array, " n"]:
        """The reward as the next observation tells it, exactly."""
        return _reward(1 + voltage_error(next_obs) / NOMINAL_VOLTAGE)

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Return, and how well the voltages keep to 0.95–1.05 pu.

        ``in_band``: share of inverters within it, averaged over steps. ``all_in_band``: 1 if all are at the end.
        ``time_to_band``: end of the first step at which all are, the whole episode if they never are. ``survival``: 1
        if no inverter ever reached the trip limits of 0.8 and 1.25 pu.
        """
        voltage = episode.info["voltage"]
        steps = jnp.arange(1, len(voltage) + 1)
        inside = abs(voltage - 1) <= BAND
        everyone = inside.all(-1)
        first = jnp.min(jnp.where(everyone, steps, len(voltage)))
        return super().metrics(episode) | {
            "in_band": inside.mean(),
            "all_in_band": everyone[-1].astype(float),
            "time_to_band": first * INTERVAL,
            "survival": 1 - jnp.any(_tripped(voltage)).astype(float),
        }

    def render(self, episodes: dict[str, Episode]) -> Figure:
        """Voltages and set-points over time, one column per controller."""
        from khop.systems.microgrid.figure import microgrid_figure  # importing matplotlib takes a second

        return microgrid_figure(episodes, INTERVAL, BAND)

    def baseline(self, name: str) -> Controller:
        """Classical controllers.

        ``nominal``: the set-point nearest to the nominal voltage, 490 V. ``best-constant``: the same set-point for all
        at all times, the best of ten. ``averaging``: distributed averaging (Simpson-Porco et al. 2015).
        """
        levels = jnp.asarray(_set_points(self.as_published), float)
        constants = jnp.broadcast_to(jnp.arange(LEVELS)[:, None], (LEVELS, self.inverters))
        if self.continuous:
            constants = levels[constants][..., None]
        if name == "nominal":
            return ConstantController(constants[0])
        if name == "best-constant":
            return best_constant(self, constants)
        if name == "averaging":
            return Averaging(
                droop=jnp.asarray(self.network.reactive_droop),
                levels=None if self.continuous else levels,
                limits=(LOWEST, HIGHEST),
                interval=INTERVAL,
                neighbourhood=self.topology.neighbourhood(1),
            )
        return super().baseline(name)


def _tripped(voltage: Array) -> Array:
    return (voltage <= TRIP[0]) | (voltage >= TRIP[1])


def _reward(voltage: Float[Array, " n"]) -> Float[Array, " n"]:
    """Of voltages in pu."""
    error = abs(voltage - 1)
    return jnp.where(_tripped(voltage), -TRIP_PENALTY, jnp.where(error <= BAND, BAND - error, -error))


@register("microgrid-6")
class Microgrid6(Microgrid):
    """Six inverters on the feeder of the IEEE 34-bus test system, scaled to 480 V, with four loads."""

    inverters: ClassVar[int] = 6


@register("microgrid-20")
class Microgrid20(Microgrid):
    """Twenty inverters at twenty buses, with ten loads."""

    inverters: ClassVar[int] = 20


@register("microgrid-40")
class Microgrid40(Microgrid):
    """Two microgrids of twenty inverters, joined by two lines."""

    inverters: ClassVar[int] = 40
