"""A warehouse of robots, each with a region of its own whose shelves it shares with its four neighbours.

The warehouse commissioning task of Suau et al. (NeurIPS 2022, "Distributed Influence-Augmented Local Simulators"), as
their code at the time of the paper has it: scripted robots on the border go for the oldest item. Deliberate
difference: the time limit truncates an episode; published, it ends all future although no robot can see the time.

Shape letters: k learning robots along a side, n = k²; N = k + 2 with the scripted ones; L = N + 1 lines of shelves.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from khop.errors import InputError, unknown
from khop.system import Controller, DiscreteActions, Episode, LocalStep, Regions, Spec, Step, System, register
from khop.systems.warehouse_rules import (
    CELLS,
    CENTRE,
    NOBODY,
    SIDES,
    Policy,
    collected,
    moved,
    observed,
    scripted,
    spawned,
    standing,
    taken_by_neighbours,
)
from khop.topology import Topology

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WarehouseState(eqx.Module):
    """Where robots and items are. An item's age counts steps since it appeared; −1: there is no item.

    ``target`` is the cell, an index into ``CELLS``, that a robot on the border is on its way to; −1: none.
    """

    row: Int[Array, "N N"]  # of each robot within its region
    column: Int[Array, "N N"]
    across: Int[Array, "3 L N"]  # ages on the shelves above and below regions
    along: Int[Array, "3 N L"]  # ages on the shelves left and right of regions
    target: Int[Array, " border"]
    time: Int[Array, ""]


class RegionState(eqx.Module):
    """What one robot's region is at one instant."""

    row: Int[Array, ""]
    column: Int[Array, ""]
    age: Int[Array, "12"]


def regions_of(across: Int[Array, "3 L N"], along: Int[Array, "3 N L"]) -> Int[Array, "12 N N"]:
    """The ages on each region's own twelve cells."""
    left, right = along[:, :, :-1], along[:, :, 1:]
    sides = jnp.stack([left, right], 1).reshape(6, *left.shape[1:])
    return jnp.concatenate([across[:, :-1], across[:, 1:], sides])


def shelves_of(on: Bool[Array, "12 N N"]) -> tuple[Bool[Array, "3 L N"], Bool[Array, "3 N L"]]:
    """Which cells of all shelves some robot stands on."""
    none, before, after = (0, 0), (1, 0), (0, 1)
    above, below, left, right = on[:3], on[3:6], on[6::2], on[7::2]
    across = jnp.pad(above, (none, after, none)) | jnp.pad(below, (none, before, none))
    along = jnp.pad(left, (none, none, after)) | jnp.pad(right, (none, none, before))
    return across, along


class Scripted(eqx.Module):
    """All learning robots follow a scripted policy, each seeing its own region; its memory is their targets."""

    policy: Policy = eqx.field(static=True)
    side: int = eqx.field(static=True)

    def initial(self) -> PyTree:
        return jnp.full(self.side**2, -1, int)

    def __call__(
        self, key: PRNGKeyArray, carry: PyTree, state: WarehouseState, obs: Array
    ) -> tuple[PyTree, Int[Array, " n"]]:
        row, column = _inner(state.row).ravel(), _inner(state.column).ravel()
        age = _inner(regions_of(state.across, state.along)).reshape(12, -1)
        return scripted(self.policy, key, carry, row, column, age)


# The system -----------------------------------------------------------------------------------------------------------


@functools.lru_cache
def _grid(side: int) -> Topology:
    return Topology.grid(side, side)


@functools.lru_cache
def _border(side: int) -> Int[np.ndarray, " border"]:
    """The scripted robots, counted row by row over all N × N."""
    inside = np.pad(np.ones((side, side), bool), 1)
    return np.flatnonzero(~inside)


@functools.lru_cache
def _spec(side: int, horizon: int) -> Spec:
    n = side**2
    names = [f"robot at {row},{column}" for row in range(5) for column in range(5)]
    names += [f"item at {row},{column}" for row, column in CELLS]
    return Spec(
        n=n,
        observation_sizes=np.full(n, 37),
        observation_names=tuple(names),
        observation_units=("0/1",) * 37,
        action=DiscreteActions(np.full(n, 4), ("up", "down", "left", "right")),
        horizon=horizon,
        control_interval_s=1.0,
        metrics={
            "return": "reward/step",
            "episode_return": "reward/robot",
            "items": "1/robot",
            "reward_per_item": "reward",
        },
        baselines=("oldest", "closest"),
        kappa_actor=1,
        kappa_critic=1,
    )


def _inner(x: Array) -> Array:
    """The learning robots of an array over all."""
    return x[..., 1:-1, 1:-1]


@register("warehouse")
class Warehouse(System):
    """Robots that collect items from shelves which each shares with its four neighbours.

    ``side`` × ``side`` learning robots, inside a ring of scripted ones. Each moves within its own region of 5 × 5
    cells, whose sides are shelves of three cells, shared with the neighbour. Observation (37 bits): own place and
    which of the twelve cells hold an item; not how old it is. Action: up, down, left, right. Robots never block each
    other. An item is collected by standing on it; the reward is its age relative to the oldest item of the region.
    Free cells receive new items with probability 0.02 per step. Episodes are truncated and never terminate.
    """

    side: int = 2
    """Learning robots along each side of the warehouse; n = side²."""
    border: Policy = "oldest"
    """Which items the scripted robots of the surrounding ring go for: the oldest, as in the paper, or the closest."""
    horizon: int = 100
    """Steps of an episode."""

    def __check_init__(self) -> None:
        for name in ("side", "horizon"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"A warehouse needs {name} to be a whole number of at least 1, not {value!r}.")
        if self.border not in ("oldest", "closest"):
            raise unknown("border policy", str(self.border), ("oldest", "closest"))

    @property
    def spec(self) -> Spec:
        return _spec(self.side, self.horizon)

    @property
    def topology(self) -> Topology:
        return _grid(self.side)

    @property
    def regions(self) -> Regions:
        return WarehouseRegions()

    def reset(self, key: PRNGKeyArray) -> tuple[WarehouseState, Float[Array, "n 37"]]:
        N = self.side + 2
        centre, nothing = jnp.full((N, N), CENTRE, int), functools.partial(jnp.full, fill_value=-1, dtype=int)
        across, along = self._spawned(key, nothing((3, N + 1, N)), nothing((3, N, N + 1)))
        state = WarehouseState(centre, centre, across, along, nothing(len(_border(self.side))), jnp.zeros((), int))
        return state, self.observe(state)

    def step(self, key: PRNGKeyArray, state: WarehouseState, action: Int[Array, " n"]) -> Step:
        border_key, spawn_key = jax.random.split(key)
        target, border_action = self._act_on_border(border_key, state)
        everyone = jnp.pad(action.reshape(self.side, self.side), 1)
        everyone = everyone.ravel().at[_border(self.side)].set(border_action).reshape(state.row.shape)
        state, reward = self.transition(state, everyone)
        across, along = self._spawned(spawn_key, state.across, state.along)
        state = WarehouseState(state.row, state.column, across, along, target, state.time)
        return Step(
            state=state,
            obs=self.observe(state),
            reward=_inner(reward).ravel(),
            terminated=jnp.zeros(self.side**2, bool),
            truncated=state.time >= self.horizon,
            info={"row": state.row, "column": state.column, "across": across, "along": along},
        )

    def transition(self, state: WarehouseState, action: Int[Array, "N N"]) -> tuple[WarehouseState, Array]:
        """All of a step that is not chance: items age, all N × N robots move, are rewarded (N, N), and collect."""
        across, along = (jnp.where(shelf >= 0, shelf + 1, -1) for shelf in (state.across, state.along))
        row, column = moved(state.row, state.column, action)
        on = standing(row, column)
        reward = collected(on, regions_of(across, along))
        taken = shelves_of(on)
        across, along = (jnp.where(gone, -1, shelf) for gone, shelf in zip(taken, (across, along), strict=True))
        return WarehouseState(row, column, across, along, state.target, state.time + 1), reward

    def _act_on_border(self, key: PRNGKeyArray, state: WarehouseState) -> tuple[Array, Array]:
        border = _border(self.side)
        age = regions_of(state.across, state.along).reshape(12, -1)[:, border]
        row, column = state.row.ravel()[border], state.column.ravel()[border]
        return scripted(self.border, key, state.target, row, column, age)

    def _spawned(self, key: PRNGKeyArray, across: Array, along: Array) -> tuple[Array, Array]:
        draw = jax.random.bits(key, (across.size + along.size,))
        return spawned(across, draw[: across.size]), spawned(along, draw[across.size :])

    def observe(self, state: WarehouseState) -> Float[Array, "n 37"]:
        """What the learning robots see."""
        age = _inner(regions_of(state.across, state.along))
        return observed(_inner(state.row), _inner(state.column), age).reshape(-1, 37)

    def metrics(self, episode: Episode) -> dict[str, Float[Array, ""]]:
        """Beside the common return: reward per robot and episode, items per robot and episode, reward per item."""
        reward = jnp.where(episode.valid[:, None], episode.reward, 0.0)
        items = (reward > 0).sum()
        return super().metrics(episode) | {
            "episode_return": reward.sum(0).mean(),
            "items": items / self.side**2,
            "reward_per_item": reward.sum() / jnp.maximum(items, 1),
        }

    def baseline(self, name: str) -> Controller:
        """``oldest``: every robot goes for the oldest item of its region, whose age no learning robot sees.
        ``closest``: for the nearest one.
        """
        if name == "oldest":
            return Scripted("oldest", self.side)
        if name == "closest":
            return Scripted("closest", self.side)
        return super().baseline(name)

    def render(self, episodes: dict[str, Episode]) -> Figure:
        """The last moment of an episode per controller, and what has been collected until then."""
        from khop.systems.warehouse_figure import warehouse_figure  # importing matplotlib takes a second

        return warehouse_figure(episodes)

    def animate(self, episode: Episode, file: str | Path) -> Path:
        """One episode as a moving picture, a GIF."""
        from khop.systems.warehouse_figure import animation

        return animation(episode, Path(file))


class WarehouseRegions(eqx.Module):
    """A robot's region without the rest: where its four neighbours stand on shared shelves is told from outside.

    A source's class is the shared cell the neighbour stands on, counted from above or from the left, or ``NOBODY``.
    """

    @property
    def categories(self) -> tuple[int, ...]:
        return (NOBODY + 1,) * len(SIDES)

    def sources(self, state: WarehouseState, action: Array, next_state: WarehouseState) -> Int[Array, "n 4"]:
        """On which shared cell each neighbour stands after the step."""
        row, column = next_state.row, next_state.column
        seen = [
            jnp.where(column == 0, row - 1, NOBODY)[1:-1, 2:],
            jnp.where(row == 0, column - 1, NOBODY)[2:, 1:-1],
            jnp.where(column == 4, row - 1, NOBODY)[1:-1, :-2],
            jnp.where(row == 4, column - 1, NOBODY)[:-2, 1:-1],
        ]
        return jnp.stack(seen, -1).reshape(-1, len(SIDES))

    def local(self, state: WarehouseState) -> RegionState:
        """Every learning robot's region; leaves lead with n."""
        age = _inner(regions_of(state.across, state.along)).reshape(12, -1).T
        row, column = _inner(state.row).ravel(), _inner(state.column).ravel()
        return jax.vmap(RegionState)(row, column, age)

    def features(self, obs: Float[Array, "*batch 37"]) -> Float[Array, "*batch 37"]:
        """The observation's bits as −1 and 1."""
        return 2 * obs - 1

    def reset(self, key: PRNGKeyArray, agent: Int[Array, ""]) -> tuple[RegionState, Float[Array, "37"]]:
        age = spawned(jnp.full(12, -1, int), jax.random.bits(key, (12,)))
        centre = jnp.full((), CENTRE, int)
        return RegionState(centre, centre, age), observed(centre, centre, age)

    def step(
        self, key: PRNGKeyArray, agent: Int[Array, ""], state: RegionState, sources: Int[Array, "4"], action: Array
    ) -> LocalStep:
        age = jnp.where(state.age >= 0, state.age + 1, -1)
        row, column = moved(state.row, state.column, action)
        on = standing(row, column)
        reward = collected(on, age)
        age = jnp.where(on | taken_by_neighbours(sources), -1, age)
        age = spawned(age, jax.random.bits(key, (12,)))
        return LocalStep(RegionState(row, column, age), observed(row, column, age), reward, jnp.zeros((), bool))
