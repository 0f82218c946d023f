"""What the ring and the figure eight share: vehicles in single file round a closed loop, some of them controlled.

Vehicle i follows i − 1, and vehicle 0 the last one. All move at once, every 0.1 s: first the speeds, then the positions
at the new speeds (SUMO's default integration). Deliberate differences from the published environments (Ma et al. 2024):
human drivers, episodes that are reset, a collision that costs, and observed gaps in place of a position that wraps.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from khop.errors import InputError
from khop.system import ContinuousActions, Controller, Episode, Spec, Step, System
from khop.systems.loops.car_following import (
    EMERGENCY_BRAKING,
    FREE_SPEED,
    INTERVAL,
    VEHICLE_LENGTH,
    equilibrium_speed,
    idm_acceleration,
    safe_speed,
)
from khop.systems.loops.controllers import BASELINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUNCHING = 50.0  # m of the loop that are empty before the warm-up, as in Flow
STARTS = 128  # warmed-up states that episodes begin from
LONGEST_GAP = 60.0  # m, beyond which a sensor sees no vehicle
RETURN_SPEED = 20.0  # m/s, in Flow's reward
METRICS = {
    "return": "reward/step",
    "mean_speed": "m/s",
    "speed_share": "share of uniform flow",
    "speed_std": "m/s",
    "late_speed_std": "m/s",
    "throughput": "vehicles/h",
    "energy": "J/(kg km)",
    "collision_rate": "share of episodes",
}


class LoopState(eqx.Module):
    """V vehicles at one instant. Positions are those of front bumpers; gaps, bumper to bumper, are what counts."""

    position: Float[Array, " V"]  # m, from 0 to length
    gap: Float[Array, " V"]  # m
    speed: Float[Array, " V"]  # m/s
    acceleration: Float[Array, " V"]  # m/s², of the last step
    length: Float[Array, ""]  # m, of the loop
    uniform_speed: Float[Array, ""]  # m/s, at which IDM traffic would flow uniformly on it
    time: Int[Array, ""]  # steps
    crashed: Bool[Array, ""]


def ahead(x: Float[Array, " V"]) -> Float[Array, " V"]:
    """The same of the vehicle in front."""
    return jnp.roll(x, 1)


class Loop(System):
    """Vehicles in single file round a loop, ``controlled`` of them, evenly spread in the file, the others human.

    An action is an acceleration. Humans drive by the IDM, their accelerations with noise. No vehicle brakes harder
    than 9 m/s², none drives backwards. A collision blocks the loop: all stand to the end of the episode, which is lost,
    and every agent pays ``collision_penalty`` a step.
    """

    vehicles: int
    controlled: int
    reward: Literal["relative", "published", "flow"] = eqx.field(static=True, default="relative")
    """relative: speed against uniform flow, of the vehicles the agent leads; published: target speed less the own
    speed's distance from it; flow: mean speed less the own acceleration."""
    target_speed: float = 10.0
    """Speed in m/s that the published reward wants."""
    max_acceleration: float = 3.0
    """Accelerations lie within ± this, in m/s²."""
    guard: bool = True
    """Controlled vehicles drive no faster than is safe behind the one ahead."""
    noise: float = 0.2
    """Humans' accelerations vary by √0.1 times this, in m/s²."""
    collision_penalty: float = 15.0
    """Cost per agent of every step from a collision on; no step without one costs as much."""
    horizon: int = 3000
    """Steps of 0.1 s in an episode."""
    warmup: int = 750
    """Steps of human driving before an episode."""

    def __check_init__(self) -> None:
        for name, least in (("vehicles", 2), ("controlled", 1), ("horizon", 1), ("warmup", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"A loop needs {name} to be a whole number of at least {least}, not {value!r}.")
        if self.controlled > self.vehicles:
            raise InputError(
                f"controlled must be at most the number of vehicles, {self.vehicles}, not {self.controlled}."
            )
        for name in ("target_speed", "max_acceleration"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"A loop needs a finite {name} above 0, not {getattr(self, name)!r}.")
        for name in ("noise", "collision_penalty"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"A loop needs a finite {name} from 0 on, not {getattr(self, name)!r}.")
        if self.reward not in ("relative", "published", "flow"):
            raise InputError(f"The reward of a loop is relative, published or flow, not {self.reward!r}.")
        shortest, room = self.lengths[0], VEHICLE_LENGTH + 1
        if not self.vehicles * room <= shortest - BUNCHING:
            most = int((shortest - BUNCHING) // room)
            raise InputError(f"{self.vehicles} vehicles do not fit a loop of {shortest:g} m: choose at most {most}.")

    # What loops differ in ---------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def lengths(self) -> tuple[float, float]:
        """The shortest and the longest loop, in m."""

    @abc.abstractmethod
    def observe(self, state: LoopState) -> Float[Array, "V d"]:
        """What every vehicle measures, controlled or not."""

    def human_acceleration(self, state: LoopState) -> Float[Array, " V"]:
        """What every driver would do, were all human."""
        return idm_acceleration(state.gap, state.speed, ahead(state.speed))

    def human_noise(self, key: PRNGKeyArray) -> Float[Array, " V"]:
        """What human drivers add to their accelerations."""
        return self.noise * INTERVAL**0.5 * jax.random.normal(key, (self.vehicles,))

    def safe_speed(self, state: LoopState) -> Float[Array, " V"]:
        """How fast the guard lets every vehicle drive, in m/s."""
        return safe_speed(state.gap, ahead(state.speed))

    def collided(self, state: LoopState) -> Bool[Array, ""]:
        """Whether any two vehicles overlap."""
        return jnp.any(state.gap < 0)

    # What they share --------------------------------------------------------------------------------------------------

    @property
    def members(self) -> Int[np.ndarray, " n"]:
        """Which vehicle each agent drives."""
        return np.arange(self.controlled) * self.vehicles // self.controlled

    def reset(self, key: PRNGKeyArray) -> tuple[LoopState, Float[Array, "n d"]]:
        """One of the warmed-up states, the vehicles renumbered at random, so that agents start anywhere in a wave."""
        which_key, turn_key = jax.random.split(key)
        which = jax.random.randint(which_key, (), 0, STARTS)
        turn = jax.random.randint(turn_key, (), 0, self.vehicles)
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf)[which], _starts(type(self), dataclasses.astuple(self)))
        order = (jnp.arange(self.vehicles) + turn) % self.vehicles
        state = jax.tree.map(lambda leaf: leaf[order] if leaf.ndim else leaf, state)
        return state, self.observe(state)[self.members]

    def step(self, key: PRNGKeyArray, state: LoopState, action: Float[Array, "n 1"]) -> Step:
        limit = self.max_acceleration
        wanted = jnp.clip(action[:, 0], -limit, limit)
        moved = self.drive(key, state, wanted)
        stopped = moved.crashed | state.crashed
        moved = dataclasses.replace(
            jax.tree.map(lambda old, new: jnp.where(state.crashed, old, new), state, moved),
            speed=jnp.where(stopped, 0.0, moved.speed),
            acceleration=jnp.where(stopped, 0.0, moved.acceleration),
            time=moved.time,
            crashed=stopped,
        )
        return Step(
            state=moved,
            obs=self.observe(moved)[self.members],
            reward=jnp.where(stopped, -self.collision_penalty, self._reward(moved, wanted)),
            terminated=jnp.zeros(self.controlled, bool),
            truncated=moved.time >= self.horizon,
            info={
                "position": moved.position,
                "gap": moved.gap,
                "speed": moved.speed,
                "acceleration": moved.acceleration,
                "length": moved.length,
                "crashed": moved.crashed,
            },
            lost=stopped,
        )

    def drive(self, key: PRNGKeyArray, state: LoopState, wanted: Float[Array, " n"] | None) -> LoopState:
        """A tenth of a second later; ``wanted`` are the agents' accelerations, None leaves all to humans."""
        human = state.speed + INTERVAL * self.human_acceleration(state)
        speed = human + INTERVAL * self.human_noise(key)
        if wanted is not None:
            driver, is_controlled = _drivers(self.vehicles, self.controlled)
            own = state.speed + INTERVAL * wanted[driver]
            if self.guard:  # a human's choice is always allowed, so that agents can drive like humans
                own = jnp.minimum(own, jnp.maximum(self.safe_speed(state), human))
            speed = jnp.where(is_controlled, own, speed)
        speed = jnp.clip(speed, jnp.maximum(state.speed - EMERGENCY_BRAKING * INTERVAL, 0.0), FREE_SPEED)
        position = state.position + INTERVAL * speed
        moved = LoopState(
            position=jnp.where(position >= state.length, position - state.length, position),
            gap=state.gap + INTERVAL * (ahead(speed) - speed),
            speed=speed,
            acceleration=(speed - state.speed) / INTERVAL,
            length=state.length,
            uniform_speed=state.uniform_speed,
            time=state.time + 1,
            crashed=state.crashed,
        )
        return dataclasses.replace(moved, crashed=self.collided(moved))

    def _reward(self, state: LoopState, wanted: Float[Array, " n"]) -> Float[Array, " n"]:
        if self.reward == "relative":
            return jnp.asarray(_led(self.vehicles, self.controlled)) @ state.speed / state.uniform_speed - 1
        if self.reward == "published":
            return self.target_speed - jnp.abs(self.target_speed - state.speed[self.members])
        return 4 * state.speed.mean() / RETURN_SPEED - 4 * jnp.abs(wanted)

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Of all vehicles, controlled or not, over the whole episode; after a collision all stand.

        ``speed_share``: mean speed over that of uniform IDM flow on the same loop. ``speed_std``: spread of the speeds
        at one instant, averaged over time; ``late_speed_std``: the same over the second half, when a wave from
        before the episode has had time to die. ``energy``: what pushes the vehicles forward, ∫ v max(v̇, 0) dt, per
        distance.
        """
        speed, length = episode.info["speed"], episode.info["length"][0]
        mean, spread = speed.mean(), speed.std(axis=1)
        power = jnp.mean(speed * jnp.maximum(episode.info["acceleration"], 0.0))
        return super().metrics(episode) | {
            "mean_speed": mean,
            "speed_share": mean / equilibrium_speed(length / self.vehicles - VEHICLE_LENGTH),
            "speed_std": spread.mean(),
            "late_speed_std": spread[len(spread) // 2 :].mean(),
            "throughput": 3600 * mean * self.vehicles / length,
            "energy": 1000 * power / jnp.maximum(mean, 0.01),
            "collision_rate": episode.info["crashed"][-1].astype(float),
        }

    def baseline(self, name: str) -> Controller:
        """Human driving, the largest acceleration, FollowerStopper or the PI controller with saturation."""
        if name not in BASELINES or name not in self.spec.baselines:
            return super().baseline(name)
        return BASELINES[name](self)

    def render(self, episodes: dict[str, Episode]) -> Figure:
        """Space–time diagrams coloured by speed, and speeds and gaps over time, one column per controller."""
        from khop.systems.loops.figure import loop_figure  # importing matplotlib takes a second

        return loop_figure(episodes, INTERVAL)


def following(state: LoopState, usual_speed: float, usual_gap: float) -> tuple[Array, ...]:
    """What a vehicle measures of itself and the one ahead, each (V,), near 1 for usual values; see ``FOLLOWING``."""
    return (
        state.speed / usual_speed - 1,
        jnp.minimum(state.gap, LONGEST_GAP) / usual_gap - 1,
        (ahead(state.speed) - state.speed) / usual_speed,
    )


def place(state: LoopState) -> tuple[Array, ...]:
    """Where on the loop a vehicle is, as sine and cosine, each (V,)."""
    angle = 2 * np.pi * state.position / state.length
    return jnp.sin(angle), jnp.cos(angle)


FOLLOWING = ("speed", "gap", "speed ahead, relative")
PLACE = ("sine of the place", "cosine of the place")


def loop_spec(
    loop: Loop,
    observed: dict[str, str],
    metrics: dict[str, str],
    baselines: tuple[str, ...],
    gate: float = 0.4,
) -> Spec:
    """The spec of a loop: what its vehicles observe and what it measures, by name with their units, and the gate that
    suits its models, by default one that lets vehicles alone with their experience imagine after a minute or two.
    """
    n = loop.controlled
    bound = np.full((n, 1), loop.max_acceleration)
    return Spec(
        n=n,
        observation_sizes=np.full(n, len(observed)),
        observation_names=tuple(observed),
        observation_units=tuple(observed.values()),
        action=ContinuousActions(-bound, bound, ("acceleration",), ("m/s²",)),
        horizon=loop.horizon,
        control_interval_s=INTERVAL,
        metrics=METRICS | metrics,
        baselines=baselines,
        kappa_actor=1,
        kappa_critic=1,
        # The vehicle behind feels an acceleration within seconds, a wave of humans carries it on for a minute.
        discount=0.97 if n == loop.vehicles else 0.99,
        gate=gate,
    )


@functools.lru_cache
def _drivers(vehicles: int, controlled: int) -> tuple[Int[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """The agent that drives each vehicle (0 where none does), and whether one does."""
    members = np.arange(controlled) * vehicles // controlled
    driver, is_controlled = np.zeros(vehicles, int), np.zeros(vehicles, bool)
    driver[members], is_controlled[members] = np.arange(controlled), True
    return driver, is_controlled


@functools.lru_cache
def _led(vehicles: int, controlled: int) -> Float[np.ndarray, "n V"]:
    """Averages over the vehicles that each agent leads: its own, and the humans behind it up to the next agent."""
    leader = np.cumsum(_drivers(vehicles, controlled)[1]) - 1
    belongs = leader == np.arange(controlled)[:, None]
    return (belongs / belongs.sum(1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=16)
def _starts(kind: type[Loop], parameters: tuple) -> LoopState:
    """States to begin episodes from, leaves leading with ``STARTS``: simulated once, when first needed.

    Resetting is part of every step of training, so the warm-up cannot be.
    """
    loop = kind(*parameters)
    lengths = np.linspace(*loop.lengths, STARTS, dtype=np.float32)

    @jax.jit
    def warmed(length: Float[Array, ""], key: PRNGKeyArray) -> LoopState:
        def advance(state: LoopState, key: PRNGKeyArray) -> tuple[LoopState, None]:
            return loop.drive(key, state, None), None

        state = jax.lax.scan(advance, bunched(loop, length), jax.random.split(key, loop.warmup))[0]
        return dataclasses.replace(state, time=jnp.zeros((), int))

    with jax.ensure_compile_time_eval():
        states = jax.vmap(warmed)(jnp.asarray(lengths), jax.random.split(jax.random.key(0), STARTS))
        return jax.tree.map(np.asarray, states)


def bunched(loop: Loop, length: Float[Array, ""]) -> LoopState:
    """All vehicles at rest, evenly spaced but for 50 m of empty road before the first one."""
    place = jnp.arange(loop.vehicles)
    spacing = (length - BUNCHING) / loop.vehicles
    still = jnp.zeros(loop.vehicles)
    return LoopState(
        position=length - BUNCHING - spacing * place,
        gap=spacing - VEHICLE_LENGTH + BUNCHING * (place == 0),
        speed=still,
        acceleration=still,
        length=length,
        uniform_speed=equilibrium_speed(length / loop.vehicles - VEHICLE_LENGTH),
        time=jnp.zeros((), int),
        crashed=jnp.zeros((), bool),
    )
