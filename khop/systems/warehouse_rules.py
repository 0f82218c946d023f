"""The rules of the warehouse within a region of 5 × 5 cells: moving, collecting, seeing, and the scripted robots.

S are any axes; a region's twelve shelf cells come in the order of ``CELLS``, ages of items as in ``WarehouseState``.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

SPAWN_PROBABILITY = 0.02  # of a free shelf cell, at every step
CENTRE = 2  # row and column of a region's centre; a region is 5 × 5 cells
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # rows and columns of the four actions
SIDES = ("right", "below", "left", "above")  # the order of the influence sources
NOBODY = 3  # class of a source: the neighbour stands on none of the three shared cells
# The twelve shelf cells of a region in the order of the observation: three above, three below, then left and right.
CELLS = np.array([(0, 1), (0, 2), (0, 3), (4, 1), (4, 2), (4, 3), (1, 0), (1, 4), (2, 0), (2, 4), (3, 0), (3, 4)])
SHARED = np.array([(7, 9, 11), (3, 4, 5), (6, 8, 10), (0, 1, 2)])  # cells shared with the neighbour on each side
READING_ORDER = np.lexsort(CELLS.T[::-1])  # which of two equal items is preferred
Policy = Literal["oldest", "closest"]


def moved(row: Int[Array, "*S"], column: Int[Array, "*S"], action: Int[Array, "*S"]) -> tuple[Array, Array]:
    """Where robots are after an action. From a shelf the only way is back inside; nobody leaves a region."""
    down = jnp.where(action == 0, -1, jnp.where(action == 1, 1, 0))
    right = jnp.where(action == 2, -1, jnp.where(action == 3, 1, 0))
    aisle_row, aisle_column = (row > 0) & (row < 4), (column > 0) & (column < 4)
    return (
        jnp.clip(row + jnp.where(aisle_column, down, 0), 0, 4),
        jnp.clip(column + jnp.where(aisle_row, right, 0), 0, 4),
    )


def standing(row: Int[Array, "*S"], column: Int[Array, "*S"]) -> Bool[Array, "12 *S"]:
    """On which cells robots stand."""
    cells = CELLS.reshape(12, 2, *[1] * row.ndim)
    return (row == cells[:, 0]) & (column == cells[:, 1])


def collected(on: Bool[Array, "12 *S"], age: Int[Array, "12 *S"]) -> Float[Array, "*S"]:
    """The reward: the age of the item a robot stands on, relative to the oldest item of its region; 0 for none."""
    own = jnp.where(on, age, 0).max(0)
    return jnp.maximum(own, 0) / jnp.maximum(age.max(0), 1)


def observed(row: Int[Array, "*S"], column: Int[Array, "*S"], age: Int[Array, "12 *S"]) -> Float[Array, "*S 37"]:
    """25 bits for the own place, 12 for the items. Ages are hidden."""
    place = 5 * row[..., None] + column[..., None] == np.arange(25)
    return jnp.concatenate([place, jnp.moveaxis(age, 0, -1) >= 0], -1).astype(float)


def spawned(age: Int[Array, "*S"], draw: Array) -> Int[Array, "*S"]:
    """New items on free cells; ``draw`` holds random words, one for each cell."""
    appears = draw.reshape(age.shape) < np.uint32(SPAWN_PROBABILITY * 2**32)
    return jnp.where((age < 0) & appears, 0, age)


def taken_by_neighbours(sources: Int[Array, "4"]) -> Bool[Array, "12"]:
    """The cells that neighbours stand on."""
    side, place = (np.array(x) for x in zip(*(np.argwhere(cell == SHARED)[0] for cell in range(12)), strict=True))
    return sources[side] == place


@functools.lru_cache
def ways_to_cells() -> tuple[Int[np.ndarray, "25 12"], Int[np.ndarray, "25 12"]]:
    """From every place to every cell, by breadth-first search: the number of steps, and the first one's action."""
    place, action = np.divmod(np.arange(100), 4)
    with jax.ensure_compile_time_eval():  # the first to ask may be tracing
        row, column = moved(jnp.asarray(place // 5), jnp.asarray(place % 5), jnp.asarray(action))
        after = (5 * np.asarray(row) + np.asarray(column)).reshape(25, 4).tolist()
    steps, first = np.full((25, 12), 99), np.zeros((25, 12), int)
    for cell, (row, column) in enumerate(CELLS):
        goal = 5 * row + column
        steps[goal, cell] = 0
        queue = deque([goal])
        while queue:
            place = queue.popleft()
            for origin, reached in enumerate(after):
                if place in reached and steps[origin, cell] == 99:
                    steps[origin, cell] = steps[place, cell] + 1
                    first[origin, cell] = reached.index(place)
                    queue.append(origin)
    return steps, first


def scripted(
    policy: Policy,
    key: PRNGKeyArray,
    target: Int[Array, " r"],
    row: Int[Array, " r"],
    column: Int[Array, " r"],
    age: Int[Array, "12 r"],
) -> tuple[Int[Array, " r"], Int[Array, " r"]]:
    """Targets and actions of r scripted robots: the shortest way to an item, at random while there is none.

    ``oldest``: the oldest item of the region. ``closest``: the nearest one, kept until it is gone; an item under the
    robot does not count.
    """
    place, cells = 5 * row + column, jnp.arange(12)[:, None]
    ways, first = (jnp.asarray(table) for table in ways_to_cells())
    distance = ways[place].T
    if policy == "oldest":
        wanted = age
    else:
        visible = (age >= 0) & (distance > 0)
        wanted = jnp.where(visible, 99 - distance + 99 * (cells == target), -1)
    best = jnp.asarray(READING_ORDER)[jnp.argmax(wanted[READING_ORDER], 0)]
    target = jnp.where(wanted.max(0) >= 0, best, -1)
    there = jnp.where(cells == target, distance, 0).sum(0) == 0
    action = jnp.where(cells == target, first[place].T, 0).sum(0)
    return target, jnp.where(there, jax.random.randint(key, target.shape, 0, 4), action)
