"""Whole episodes on a hosted system: many at once, each in a worker of its own."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from khop.errors import InputError
from khop.hosts.system import HostedSystem
from khop.system import Controller, Episode

ATTEMPTS = 3  # failures of one episode after which the engine, not chance, is to blame
NOT_INFO = ("obs", "action", "reward")  # of what an engine shares
log = logging.getLogger("khop")

# (key, memory, the newest info, observations) → (memory, action, anything to keep of this moment): for one environment
Act = Callable[[Array, PyTree, dict[str, Array], Float[Array, "n d"]], tuple[PyTree, Array, PyTree]]


class Driven(eqx.Module):
    """A controller as it decides for ``play``."""

    controller: Controller

    def __call__(self, key: Array, carry: PyTree, info: dict, obs: Array) -> tuple[PyTree, Array, PyTree]:
        carry, action = self.controller(key, carry, info, obs)
        return carry, action, ()


class Recorded(NamedTuple):
    """E whole episodes, time-major."""

    episode: Episode  # leaves (T, E, …); ``valid`` everywhere
    next_obs: Float[Array, "T E n d"]
    extra: PyTree  # what ``act`` wanted kept, (T, E, …)
    dropped: int  # episodes that failed and were played anew from another seed


@functools.lru_cache(maxsize=8)
def _decider(static: Act) -> Callable[..., tuple[PyTree, Array, PyTree]]:
    """Every worker's next action, compiled; the part of ``act`` that is no array says which program that is.

    This is ``eqx.filter_jit`` with its bookkeeping done once for all steps: it would take longer than the decision.
    """

    def decide(
        arrays: PyTree, keys: Array, episode: Array, time: Array, fresh: PyTree, carry: PyTree, info: dict, obs: Array
    ) -> tuple[PyTree, Array, PyTree]:
        act: Any = eqx.combine(arrays, static)

        def one(key: Array, time: Array, carry: PyTree, info: dict, obs: Array) -> tuple[PyTree, Array, PyTree]:
            carry = jax.tree.map(lambda start, now: jnp.where(time == 0, start, now), fresh, carry)
            return act(jax.random.fold_in(key, time), carry, info, obs)

        which = jnp.minimum(episode, len(keys) - 1)
        return jax.vmap(one)(keys[which], time, carry, info, obs)

    return jax.jit(decide)


@jax.jit
def _engine_seeds(keys: Array, attempt: Int[Array, " E"]) -> Int[Array, " E"]:
    """Seeds from 0 to 2³¹ − 1, others after each failed attempt."""
    bits = jax.vmap(lambda key, attempt: jax.random.bits(jax.random.fold_in(key, attempt)))(keys, attempt)
    return (bits >> 1).astype(int)


def play(system: HostedSystem, act: Act, carry: PyTree, keys: Array, workers: int) -> Recorded:
    """Play one episode per key.

    Args:
        system: the hosted system.
        act: chooses one environment's actions; compiled, and called for all workers at once.
        carry: its memory at the start of an episode.
        keys: E of them; an episode depends on its own key alone, not on which other ones are played.
        workers: how many episodes are played at once.

    Raises:
        InputError: in the engine's own words, if an episode fails three times.
    """
    count, horizon = len(keys), system.spec.horizon
    stage = _Stage(system, keys, min(workers, count))
    memory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (len(stage.time), *jnp.shape(leaf))), carry)
    arrays, static = eqx.partition(act, eqx.is_array)
    decide = _decider(static)
    kept: list[np.ndarray] = []
    while stage.busy:
        obs, info = stage.begin()
        memory, *decided = decide(arrays, keys, stage.episode, stage.time, carry, memory, info, obs)
        action, extra = jax.tree.map(np.asarray, decided)
        moved = stage.step(action)
        next_obs, after = stage.seen()
        leaves, shape = jax.tree.flatten((obs, action, stage.reward(), after, next_obs, extra))
        kept = kept or [np.zeros((horizon, count, *leaf.shape[1:]), leaf.dtype) for leaf in leaves]
        for row, *place in moved:
            for whole, leaf in zip(kept, leaves, strict=True):
                whole[tuple(place)] = leaf[row]
        stage.move_on(moved)
    all_obs, actions, reward, all_info, next_obs, extra = jax.tree.unflatten(shape, map(jnp.asarray, kept))
    episode = Episode(all_obs, actions, reward, all_info, jnp.ones((horizon, count), bool))
    return Recorded(episode, next_obs, extra, stage.dropped)


class _Stage:
    """Which worker plays which episode, and how far it is. A worker whose episode is no key's has nothing to do."""

    def __init__(self, system: HostedSystem, keys: Array, workers: int):
        self.pool, self.horizon, self.keys = system.pool(workers), system.spec.horizon, keys
        self.episode, self.time = np.arange(workers), np.zeros(workers, int)
        self.following = workers
        self.attempt = np.zeros(len(keys), int)
        self.dropped = 0
        self.waiting = list(range(workers))  # for their episode to start

    @property
    def busy(self) -> bool:
        """Some worker still plays."""
        return bool(np.any(self.episode < len(self.keys)))

    def begin(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Start what waits, again from another seed where that fails; then as ``seen``."""
        while self.waiting:
            seeds = np.asarray(_engine_seeds(self.keys, self.attempt))
            failures = self.pool.reset({row: int(seeds[self.episode[row]]) for row in self.waiting})
            self.waiting = []
            self._drop(failures)
        return self.seen()

    def seen(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Every worker's newest observations and info, stacked."""
        arrays = self.pool.arrays[: len(self.episode)]
        stacked = {name: np.stack([own[name] for own in arrays]) for name in arrays[0] if name not in NOT_INFO}
        return np.stack([own["obs"] for own in arrays]), stacked

    def reward(self) -> np.ndarray:
        """Every worker's newest rewards, stacked."""
        return np.stack([own["reward"] for own in self.pool.arrays[: len(self.episode)]])

    def step(self, action: np.ndarray) -> list[tuple[int, int, int]]:
        """Advance the workers that play; which of them could be, from which time of which episode."""
        active = [row for row in range(len(self.episode)) if self.episode[row] < len(self.keys)]
        failures = self.pool.step({row: action[row] for row in active})
        moved = [(row, int(self.time[row]), int(self.episode[row])) for row in active if row not in failures]
        self._drop(failures)
        return moved

    def move_on(self, moved: list[tuple[int, int, int]]) -> None:
        """Count the steps that were taken; who is through with an episode takes the next one."""
        for row, time, _ in moved:
            self.time[row] = time + 1
            if self.time[row] == self.horizon:
                self.episode[row], self.time[row], self.following = self.following, 0, self.following + 1
                if self.episode[row] < len(self.keys):
                    self.waiting.append(row)

    def _drop(self, failures: dict[int, str]) -> None:
        for row, reason in failures.items():
            episode = self.episode[row]
            self.attempt[episode] += 1
            if self.attempt[episode] == ATTEMPTS:
                raise InputError(f"The simulator failed {ATTEMPTS} times in a row: {reason}")
            log.warning("khop: a simulator failed and was restarted; its episode is dropped. %s", reason)
            self.dropped += 1
            self.time[row] = 0
            self.waiting.append(row)
