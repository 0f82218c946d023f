"""Vehicle platoons under cooperative adaptive cruise control: Catch-up and Slow-down.

Constants and equations of the tasks of Ma et al. (2024), which are those of Chu et al. (2020). Deliberate differences,
each a parameter: no reward clipping (a clipped reward makes a crash cheaper than a large gap), a crash costs
``collision_penalty`` = 1000 per vehicle and remaining step (published: 300, then clipped to 3), and Slow-down starts no
faster than the speed limit (``cap_initial_speed``; published: up to 37.5 m/s in a 30 m/s world).
"""

from __future__ import annotations

import abc
import functools
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from khop.errors import InputError
from khop.system import ConstantController, Controller, DiscreteActions, Episode, Spec, Step, System, register
from khop.topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INTERVAL = 0.1  # s, between two actions
TARGET_HEADWAY = 20.0  # m
TARGET_SPEED = 15.0  # m/s
MAX_SPEED = 30.0  # m/s
MAX_ACCELERATION = 2.5  # m/s²
COLLISION_HEADWAY = 1.0  # m
STOP_HEADWAY, GO_HEADWAY = 5.0, 35.0  # m, where the optimal velocity leaves 0 and reaches MAX_SPEED
BRAKING_STEPS = 300  # Slow-down: the leader reaches TARGET_SPEED after 30 s
SETTLED_HEADWAY, SETTLED_SPEED = 1.0, 0.75  # m and m/s, 5 % of the targets
REWARD_LIMIT = 500.0  # a headway error of 22 m: beyond it, what counts is to get back soon
GAINS = np.array([(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])  # (α, β) of the four actions


class PlatoonState(eqx.Module):
    """What a platoon is at one instant.

    ``acceleration`` is the one really executed in the last step; ``leader_start`` the leader's speed at time 0.
    """

    headway: Float[Array, " n"]  # m
    speed: Float[Array, " n"]  # m/s
    acceleration: Float[Array, " n"]  # m/s²
    leader_start: Float[Array, ""]  # m/s
    time: Int[Array, ""]  # steps
    crashed: Bool[Array, ""]


def optimal_velocity(headway: Array) -> Array:
    """The optimal-velocity model: the speed in m/s that suits a headway in m."""
    ramp = jnp.clip((headway - STOP_HEADWAY) / (GO_HEADWAY - STOP_HEADWAY), 0.0, 1.0)
    return MAX_SPEED / 2 * (1 - jnp.cos(jnp.pi * ramp))


def gains_name(alpha: float, beta: float) -> str:
    """How the constant controller with these gains is called."""
    return f"constant-{alpha:g}-{beta:g}"


@functools.lru_cache
def _chain(vehicles: int) -> Topology:
    return Topology.line(vehicles)


@functools.lru_cache
def _backwards(vehicles: int) -> Topology:
    """Vehicle i affects i + 1 and nobody ahead of it."""
    followers = np.arange(1, vehicles)
    return Topology.from_edges(vehicles, np.stack([followers, followers - 1], axis=1), directed=True)


@functools.lru_cache
def _spec(vehicles: int, horizon: int) -> Spec:
    gains = tuple(gains_name(*pair) for pair in GAINS)
    return Spec(
        n=vehicles,
        observation_sizes=np.full(vehicles, 5),
        observation_names=("speed error", "leader's speed", "optimal velocity", "next headway error", "acceleration"),
        observation_units=("15 m/s", "5 m/s, relative", "5 m/s, relative", "20 m", "2.5 m/s²"),
        action=DiscreteActions(np.full(vehicles, len(GAINS)), gains),
        horizon=horizon,
        control_interval_s=INTERVAL,
        metrics={
            "return": "reward/step",
            "collision_rate": "share of episodes",
            "headway_rmse": "m",
            "speed_rmse": "m/s",
            "settling_time": "s",
        },
        baselines=(*gains, "best-constant-pair", "best-constant"),
        kappa_actor=1,
        kappa_critic=4,
        reward_limit=REWARD_LIMIT,
    )


class Platoon(System):
    """Vehicles in a line, each steering its headway and speed through the gains of a car-following law.

    Observation (5 per vehicle, dimensionless): speed error, leader's relative speed, optimal velocity minus speed,
    predicted headway error, last acceleration. Action: the gains (α, β) of
    u = α (v°(h) − v) + β (v_leader − v), one of (0, 0), (½, 0), (0, ½), (½, ½). Reward per vehicle and step:
    −(h − 20)² − (v − 15)² − 0.1 u². Vehicle 0 follows a virtual leader. Once a headway falls below 1 m the platoon
    stands frozen, its episode lost, and every vehicle pays ``collision_penalty`` at every remaining step. Episodes are
    truncated after ``horizon`` steps and never terminate.
    """

    vehicles: int = 8
    """Number of vehicles, n."""
    collision_penalty: float = 1000.0
    """Cost per vehicle of every step from a crash on."""
    horizon: int = 600
    """Steps of 0.1 s in an episode."""

    def __check_init__(self) -> None:
        for name in ("vehicles", "horizon"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"A platoon needs {name} to be a whole number of at least 1, not {value!r}.")
        if not 0 <= self.collision_penalty < float("inf"):
            raise InputError(f"A platoon needs a finite collision_penalty from 0 on, not {self.collision_penalty!r}.")

    @property
    def spec(self) -> Spec:
        return _spec(self.vehicles, self.horizon)

    @property
    def topology(self) -> Topology:
        return _chain(self.vehicles)

    @property
    def feedback(self) -> Topology:
        return _backwards(self.vehicles)

    @abc.abstractmethod
    def initial_state(self, key: PRNGKeyArray) -> PlatoonState:
        """The state at the start of an episode."""

    @abc.abstractmethod
    def leader_speed(self, state: PlatoonState, time: Int[Array, ""]) -> Float[Array, ""]:
        """Speed of the virtual leader in m/s at a step of the episode."""

    def reset(self, key: PRNGKeyArray) -> tuple[PlatoonState, Float[Array, "n 5"]]:
        state = self.initial_state(key)
        return state, self._observe(state)

    def step(self, key: PRNGKeyArray, state: PlatoonState, action: Int[Array, " n"]) -> Step:
        moved = self._move(state, action)
        state = jax.tree.map(lambda frozen, new: jnp.where(state.crashed, frozen, new), state, moved)
        state = eqx.tree_at(lambda s: s.time, state, moved.time)
        cost = (state.headway - TARGET_HEADWAY) ** 2 + (state.speed - TARGET_SPEED) ** 2 + 0.1 * state.acceleration**2
        return Step(
            state=state,
            obs=self._observe(state),
            reward=-jnp.where(state.crashed, self.collision_penalty, cost),
            terminated=jnp.zeros(self.vehicles, bool),
            truncated=state.time >= self.horizon,
            info={
                "headway": state.headway,
                "speed": state.speed,
                "acceleration": state.acceleration,
                "crashed": state.crashed,
            },
            lost=state.crashed,
        )

    def _move(self, state: PlatoonState, action: Int[Array, " n"]) -> PlatoonState:
        alpha, beta = jnp.asarray(GAINS, state.speed.dtype)[action].T
        ahead = self._speed_ahead(state)
        wanted = alpha * (optimal_velocity(state.headway) - state.speed) + beta * (ahead - state.speed)
        wanted = jnp.clip(wanted, -MAX_ACCELERATION, MAX_ACCELERATION)
        speed = jnp.clip(state.speed + wanted * INTERVAL, 0.0, MAX_SPEED)
        moved = PlatoonState(
            headway=state.headway,
            speed=speed,
            acceleration=(speed - state.speed) / INTERVAL,
            leader_start=state.leader_start,
            time=state.time + 1,
            crashed=state.crashed,
        )
        closing = state.speed + speed - ahead - self._speed_ahead(moved)
        headway = state.headway - INTERVAL / 2 * closing  # trapezoidal rule
        crashed = jnp.any(headway < COLLISION_HEADWAY)
        return eqx.tree_at(lambda s: (s.headway, s.crashed), moved, (headway, crashed))

    def _speed_ahead(self, state: PlatoonState) -> Float[Array, " n"]:
        leader = self.leader_speed(state, state.time)
        return jnp.concatenate([leader[None], state.speed[:-1]])

    def _observe(self, state: PlatoonState) -> Float[Array, "n 5"]:
        approach = self._speed_ahead(state) - state.speed
        return jnp.stack(
            [
                (state.speed - TARGET_SPEED) / TARGET_SPEED,
                jnp.clip(approach / 5, -2, 2),
                jnp.clip((optimal_velocity(state.headway) - state.speed) / 5, -2, 2),
                (state.headway + approach * INTERVAL - TARGET_HEADWAY) / TARGET_HEADWAY,
                state.acceleration / MAX_ACCELERATION,
            ],
            axis=-1,
        )

    def known_reward(
        self, obs: Float[Array, "n 5"], action: Int[Array, " n"], next_obs: Float[Array, "n 5"]
    ) -> Float[Array, " n"]:
        """The reward as the next observation tells it, exact while the speed ahead differs by less than 10 m/s."""
        speed_error = TARGET_SPEED * next_obs[:, 0]
        headway_error = TARGET_HEADWAY * next_obs[:, 3] - 5 * next_obs[:, 1] * INTERVAL
        acceleration = MAX_ACCELERATION * next_obs[:, 4]
        crashed = headway_error + TARGET_HEADWAY < COLLISION_HEADWAY
        cost = headway_error**2 + speed_error**2 + 0.1 * acceleration**2
        return -jnp.where(crashed, self.collision_penalty, cost)

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Return, collision rate, RMSE of headway and speed, and settling time.

        The settling time is the end of the last step at which some vehicle was more than 1 m or 0.75 m/s off its
        target: 0 if none ever was, the whole episode if it never settled.
        """
        headway_error = episode.info["headway"] - TARGET_HEADWAY
        speed_error = episode.info["speed"] - TARGET_SPEED
        unsettled = jnp.any((abs(headway_error) > SETTLED_HEADWAY) | (abs(speed_error) > SETTLED_SPEED), axis=-1)
        last_unsettled = jnp.max(jnp.where(unsettled, jnp.arange(1, len(unsettled) + 1), 0))
        return super().metrics(episode) | {
            "collision_rate": episode.info["crashed"][-1].astype(float),
            "headway_rmse": jnp.sqrt(jnp.mean(headway_error**2)),
            "speed_rmse": jnp.sqrt(jnp.mean(speed_error**2)),
            "settling_time": last_unsettled * INTERVAL,
        }

    def render(self, episodes: dict[str, Episode]) -> Figure:
        """Headway, speed and acceleration over time, one column per controller."""
        from khop.systems.platoon_figure import platoon_figure  # importing matplotlib takes a second

        return platoon_figure(episodes, INTERVAL, {"headway": TARGET_HEADWAY, "speed": TARGET_SPEED})

    def baseline(self, name: str) -> Controller:
        """Constant controllers.

        ``constant-α-β``: the same gains for all. ``constant-α-β/α'-β'``: the first gains for vehicle 0, the second
        for the others. ``best-constant-pair``: the best of those sixteen. ``best-constant``: the best gains for each
        vehicle's position.
        """
        if name == "best-constant-pair":
            return ConstantController(self._best_pair())
        if name == "best-constant":
            return ConstantController(self._best_per_position())
        index = {gains_name(*pair): action for action, pair in enumerate(GAINS)}
        first, slash, rest = name.partition("/")
        others = f"constant-{rest}" if slash else first
        if first not in index or others not in index:
            return super().baseline(name)
        return ConstantController(self._pair(index[first], index[others]))

    def _pair(self, first: int | Array, others: int | Array) -> Int[Array, " n"]:
        return jnp.where(jnp.arange(self.vehicles) == 0, first, others)

    def _best_pair(self) -> Int[Array, " n"]:
        actions = range(len(GAINS))
        pairs = jnp.array([[self._pair(first, others) for others in actions] for first in actions])
        returns = jnp.array([_constant_returns(self, candidates) for candidates in pairs])
        return pairs.reshape(-1, self.vehicles)[jnp.argmax(returns)]

    def _best_per_position(self) -> Int[Array, " n"]:
        """Coordinate descent from the best pair; positions beyond the eighth share their gains."""
        positions = np.minimum(np.arange(self.vehicles), 7)
        best = self._best_pair()
        for _ in range(2):
            for position in range(positions[-1] + 1):
                candidates = jnp.where(positions == position, jnp.arange(len(GAINS))[:, None], best)
                best = candidates[jnp.argmax(_constant_returns(self, candidates))]
        return best


@eqx.filter_jit
def _constant_returns(system: Platoon, actions: Int[Array, "C n"]) -> Float[Array, " C"]:
    """Mean return of constant actions, all on the same 64 initial states."""

    def total(action: Array, key: PRNGKeyArray) -> Array:
        def step(state: PlatoonState, _: None) -> tuple[PlatoonState, Array]:
            step = system.step(key, state, action)
            return step.state, step.reward.sum()

        return jax.lax.scan(step, system.reset(key)[0], length=system.horizon)[1].mean()

    keys = jax.random.split(jax.random.key(0), 64)
    return jax.vmap(lambda action: jax.vmap(lambda key: total(action, key))(keys).mean())(actions)


@register("platoon-catchup")
class CatchUp(Platoon):
    """Vehicle 0 starts 30 to 50 m behind a leader at constant 15 m/s, and the platoon has to close the gap."""

    def initial_state(self, key: PRNGKeyArray) -> PlatoonState:
        headway = jnp.full(self.vehicles, TARGET_HEADWAY, float).at[0].mul(1.5 + jax.random.uniform(key))
        return _at_rest_in_formation(headway, jnp.asarray(TARGET_SPEED, float))

    def leader_speed(self, state: PlatoonState, time: Int[Array, ""]) -> Float[Array, ""]:
        return state.leader_start


@register("platoon-slowdown")
class SlowDown(Platoon):
    """The platoon starts at 22.5 to 30 m/s and has to follow its leader down to 15 m/s within 30 s."""

    cap_initial_speed: bool = True
    """Start no faster than 30 m/s; without it up to 37.5 m/s, as published."""

    def initial_state(self, key: PRNGKeyArray) -> PlatoonState:
        speed = TARGET_SPEED * (1.5 + jax.random.uniform(key))
        if self.cap_initial_speed:
            speed = jnp.minimum(speed, MAX_SPEED)
        return _at_rest_in_formation(jnp.full(self.vehicles, TARGET_HEADWAY, float), speed)

    def leader_speed(self, state: PlatoonState, time: Int[Array, ""]) -> Float[Array, ""]:
        braked = jnp.minimum(time / (BRAKING_STEPS - 1), 1.0)
        return state.leader_start + (TARGET_SPEED - state.leader_start) * braked


def _at_rest_in_formation(headway: Float[Array, " n"], speed: Float[Array, ""]) -> PlatoonState:
    """All vehicles and the leader at one speed, none accelerating."""
    return PlatoonState(
        headway=headway,
        speed=jnp.full_like(headway, speed),
        acceleration=jnp.zeros_like(headway),
        leader_start=speed,
        time=jnp.zeros((), int),
        crashed=jnp.zeros((), bool),
    )
