"""Work spread over the devices there are; on a CPU every core counts as one. Results are the same on any number.

XLA hardly shares the small matrix products of many agents among the cores of a CPU; two devices with half of the agents
each do use them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Tree = TypeVar("Tree")
AXIS = "agents"


def every_core_a_device() -> None:
    """Let JAX see as many CPU devices as this process may use cores, unless that has been decided otherwise."""
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not by_flag and jax.config.values["jax_num_cpu_devices"] < 1:
        with contextlib.suppress(RuntimeError):  # JAX is in use already: it stays as it is
            jax.config.update("jax_num_cpu_devices", usable_cores())


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mesh(n: int) -> Mesh | None:
    """As many devices as share n agents evenly; None if that is one."""
    devices = jax.devices()
    count = max(d for d in range(1, len(devices) + 1) if n % d == 0)
    return Mesh(np.array(devices[:count]), AXIS) if count > 1 else None


def spread(tree: Tree, devices: Mesh | None, axis: int) -> Tree:
    """The same arrays, each device holding an equal part of ``axis``; arrays that cannot be parted so, everywhere."""
    if devices is None:
        return tree

    def placed(leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        parted = leaf.ndim > axis and leaf.shape[axis] % devices.size == 0
        place = PartitionSpec(*[None] * axis, AXIS) if parted else PartitionSpec()
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(devices, place))

    return jax.tree.map(placed, tree)


def everywhere(tree: Tree, devices: Mesh | None) -> Tree:
    """The same arrays, each device holding all of them; within compiled programs."""
    return _held(jax.lax.with_sharding_constraint, tree, devices)


def put_everywhere(tree: Tree, devices: Mesh | None) -> Tree:
    """The same for arrays in hand. (Within a program ``device_put`` would leave the results wherever XLA likes.)"""
    return _held(jax.device_put, tree, devices)


def _held(place: Callable[[Any, NamedSharding], Any], tree: Tree, devices: Mesh | None) -> Tree:
    if devices is None:
        return tree
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(place(arrays, NamedSharding(devices, PartitionSpec())), rest)


def each_agent(function: Callable, arguments: PyTree) -> PyTree:
    """``function`` of every agent's slice of the arguments, whose leaves lead with n.

    On a CPU a device's agents take turns, which keeps one agent's weights in the cache; elsewhere they go side by side.
    Agents that no number of devices shares evenly are joined by copies of the first ones, whose results are dropped.
    """

    def in_turn(arguments: PyTree) -> PyTree:
        if jax.default_backend() == "cpu":
            return jax.lax.map(function, arguments)
        return jax.vmap(function)(arguments)

    n = len(jax.tree.leaves(arguments)[0])
    devices = mesh(n) or Mesh(np.array(jax.devices()[:n]), AXIS)
    if devices.size == 1:
        return in_turn(arguments)
    missing = -n % devices.size
    filled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:missing]]) if missing else leaf, arguments)
    apart = PartitionSpec(AXIS)
    found = jax.shard_map(in_turn, mesh=devices, in_specs=apart, out_specs=apart, check_vma=False)(filled)
    return jax.tree.map(lambda leaf: leaf[:n], found) if missing else found


every_core_a_device()
