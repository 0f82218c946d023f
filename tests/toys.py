"""Two small systems that use what platoons do not: padding, masks, boxes, terminations, noise; and networks for them.

The systems stay out of the registry; the fixture ``registered_toys`` puts them in for one test.
"""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from khop.system import ConstantController, ContinuousActions, Controller, DiscreteActions, Episode, Spec, Step, System
from khop.topology import Topology

COMFORTABLE = 20.0  # °C
Module = TypeVar("Module", bound=eqx.Module)


def with_random_weights(build: Callable[[jax.Array], Module], seed: int = 0) -> Module:
    """What ``build(key)`` gives, with every parameter drawn anew from a standard normal.

    Nothing is compiled, and no weight is too small to be seen.
    """
    random = np.random.default_rng(seed)
    shapes = eqx.filter_eval_shape(build, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: (
            jnp.asarray(random.standard_normal(leaf.shape), leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        shapes,
    )


class RoomsState(eqx.Module):
    temperature: jax.Array  # (n,) °C
    outdoors: jax.Array  # () °C
    broken: jax.Array  # (n,) bool
    time: jax.Array  # () steps


_ROOMS_LINE = Topology.line(4)
_ROOMS_PADDING = np.arange(3) < np.array([1, 2, 3, 2])[:, None]
_ROOMS_ACTION = ContinuousActions(
    low=np.array([[0.0, 0.0], [0.0, -0.5], [-1.0, 0.0], [-3.0, 0.25]]),
    high=np.array([[4.0, 1.0], [3.0, 0.5], [1.0, 0.5], [0.0, 1.0]]),
    names=("heating", "window"),
    units=("K/step", "1"),
)


class Rooms(System):
    """Four rooms in a row, heated or cooled, with a window each; a room that gets too hot or too cold terminates.

    A terminated room keeps its temperature and earns nothing more. Rooms see 1, 2, 3 and 2 of: temperature error,
    outdoor temperature, clock.
    """

    horizon: int = 12

    @property
    def spec(self) -> Spec:
        return Spec(
            n=4,
            observation_sizes=_ROOMS_PADDING.sum(1),
            observation_names=("temperature error", "outdoor temperature", "clock"),
            observation_units=("K", "°C", "episodes"),
            action=_ROOMS_ACTION,
            horizon=self.horizon,
            control_interval_s=60.0,
            metrics={"return": "reward/step", "broken": "rooms"},
            baselines=("off",),
        )

    @property
    def topology(self) -> Topology:
        return _ROOMS_LINE

    def reset(self, key):
        outdoors, indoors = jax.random.split(key)
        state = RoomsState(
            temperature=COMFORTABLE + jax.random.normal(indoors, (4,)),
            outdoors=jax.random.uniform(outdoors, minval=-5.0, maxval=15.0),
            broken=jnp.zeros(4, bool),
            time=jnp.zeros((), int),
        )
        return state, self._observe(state)

    def step(self, key, state, action):
        heating, window = jnp.clip(action, _ROOMS_ACTION.low, _ROOMS_ACTION.high).T
        walls = jnp.diff(state.temperature, prepend=state.temperature[:1], append=state.temperature[-1:])
        change = heating + 0.1 * (walls[1:] - walls[:-1]) + 0.05 * window * (state.outdoors - state.temperature)
        change = change + 0.1 * jax.random.normal(key, (4,))
        temperature = jnp.where(state.broken, state.temperature, state.temperature + change)
        following = RoomsState(
            temperature=temperature,
            outdoors=state.outdoors,
            broken=state.broken | (abs(temperature - COMFORTABLE) > 8),
            time=state.time + 1,
        )
        return Step(
            state=following,
            obs=self._observe(following),
            reward=jnp.where(state.broken, 0.0, -((temperature - COMFORTABLE) ** 2)),
            terminated=following.broken,
            truncated=following.time >= self.horizon,
            info={"broken": following.broken},
        )

    def _observe(self, state: RoomsState) -> jax.Array:
        clock = jnp.full(4, state.time / self.horizon)
        seen = jnp.stack([state.temperature - COMFORTABLE, jnp.full(4, state.outdoors), clock], axis=-1)
        return jnp.where(_ROOMS_PADDING, seen, 0.0)

    def metrics(self, episode: Episode):
        return super().metrics(episode) | {"broken": episode.info["broken"][-1].sum().astype(float)}

    def baseline(self, name: str) -> Controller:
        if name == "off":
            return ConstantController(jnp.clip(0.0, _ROOMS_ACTION.low, _ROOMS_ACTION.high))
        return super().baseline(name)


class QueuesState(eqx.Module):
    waiting: jax.Array  # (n,) jobs
    time: jax.Array  # () steps


_QUEUES_TREE = Topology.from_edges(4, [(0, 1), (1, 2), (1, 3)])
_QUEUES_PADDING = np.arange(2) < np.array([2, 1, 2, 2])[:, None]
_QUEUES_ACTION = DiscreteActions(np.array([2, 4, 3, 1]), ("serve 0", "serve 1", "serve 2", "serve 3"))


class Queues(System):
    """Four servers that pass jobs on, 0 → 1 → 2, 3; each serves 0 up to 1, 3, 2 and 0 jobs a step.

    Servers see 2, 1, 2 and 2 of: jobs waiting, clock. Episodes never terminate.
    """

    horizon: int = 10

    @property
    def spec(self) -> Spec:
        return Spec(
            n=4,
            observation_sizes=_QUEUES_PADDING.sum(1),
            observation_names=("waiting", "clock"),
            observation_units=("jobs", "episodes"),
            action=_QUEUES_ACTION,
            horizon=self.horizon,
            control_interval_s=1.0,
            metrics={"return": "reward/step"},
        )

    @property
    def topology(self) -> Topology:
        return _QUEUES_TREE

    def reset(self, key):
        state = QueuesState(jax.random.randint(key, (4,), 0, 5).astype(float), jnp.zeros((), int))
        return state, self._observe(state)

    def step(self, key, state, action):
        served = jnp.minimum(action.astype(float), state.waiting)
        arrivals = jnp.array([0.0, served[0], served[1] / 2, served[1] / 2])
        arrivals = arrivals.at[0].add(jax.random.bernoulli(key).astype(float))
        following = QueuesState(state.waiting - served + arrivals, state.time + 1)
        return Step(
            state=following,
            obs=self._observe(following),
            reward=-following.waiting,
            terminated=jnp.zeros(4, bool),
            truncated=following.time >= self.horizon,
            info={},
        )

    def _observe(self, state: QueuesState) -> jax.Array:
        seen = jnp.stack([state.waiting, jnp.full(4, state.time / self.horizon)], axis=-1)
        return jnp.where(_QUEUES_PADDING, seen, 0.0)


TOYS: dict[str, type[System]] = {"toy-rooms": Rooms, "toy-queues": Queues}
