"""Agents spread over the devices there are. One device needs none of this; results are the same on any number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Tree = TypeVar("Tree")
AXIS = "agents"


def mesh(n: int) -> Mesh | None:
    """As many devices as share n agents evenly; None if that is one."""
    devices = jax.devices()
    count = max(d for d in range(1, len(devices) + 1) if n % d == 0)
    return Mesh(np.array(devices[:count]), AXIS) if count > 1 else None


def spread(tree: Tree, n: int, axis: int) -> Tree:
    """The same arrays, each device holding its own agents' part of those whose ``axis`` is that of the n agents."""
    devices = mesh(n)
    if devices is None:
        return tree
    place = NamedSharding(devices, PartitionSpec(*[None] * axis, AXIS))

    def placed(leaf: Any) -> Any:
        if eqx.is_array(leaf) and leaf.ndim > axis and leaf.shape[axis] == n:
            return jax.lax.with_sharding_constraint(leaf, place)
        return leaf

    return jax.tree.map(placed, tree)


def each_agent(function: Callable, arguments: PyTree) -> PyTree:
    """``function`` of every agent's slice of the arguments, whose leaves lead with n.

    On a CPU a device's agents take turns, which keeps one agent's weights in the cache; elsewhere they go side by side.
    """

    def in_turn(arguments: PyTree) -> PyTree:
        if jax.default_backend() == "cpu":
            return jax.lax.map(function, arguments)
        return jax.vmap(function)(arguments)

    devices = mesh(len(jax.tree.leaves(arguments)[0]))
    if devices is None:
        return in_turn(arguments)
    apart = PartitionSpec(AXIS)
    return jax.shard_map(in_turn, mesh=devices, in_specs=apart, out_specs=apart, check_vma=False)(arguments)
