"""Real experience kept for fitting models: a ring of segments, some of them held out."""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from khop.trajectory import Trajectory

HELD_OUT_EVERY = 5  # one segment in so many is never trained on


class Windows(NamedTuple):
    """S stretches of W consecutive steps; ``weight`` is 0 where an episode had ended before."""

    obs: Float[Array, "S n d"]  # at the start
    action: Array  # (S, W, n) int or (S, W, n, a) float
    next_obs: Float[Array, "S W n d"]
    reward: Float[Array, "S W n"]
    terminated: Bool[Array, "S W n"]
    lost: Bool[Array, "S W n"]
    weight: Float[Array, "S W"]


class Moments(NamedTuple):
    """Steps as they are kept, (C, R, …): C segments of R steps."""

    obs: Float[Array, "C R n d"]
    action: Array
    next_obs: Float[Array, "C R n d"]
    reward: Float[Array, "C R n"]
    terminated: Bool[Array, "C R n"]
    lost: Bool[Array, "C R n"]
    ended: Bool[Array, "C R"]  # for any agent


class Memory(eqx.Module):
    """The newest C segments of R consecutive steps each, every segment from one environment.

    Segment 1, 6, 11, … is held out: nothing is trained on it, so that errors measured there are those of experience
    the models have not seen.
    """

    moments: Moments
    added: Int[Array, ""]  # segments, ever

    @classmethod
    def empty(cls, segments: int, steps: int, like: Trajectory) -> Memory:
        """Room for ``segments`` segments of ``steps`` steps of what ``like`` (T, B, …) is made of."""
        shapes = jax.eval_shape(_moments, like)
        room = jax.tree.map(lambda leaf: jnp.zeros((segments, steps, *leaf.shape[2:]), leaf.dtype), shapes)
        return cls(room, jnp.zeros((), int))

    @property
    def capacity(self) -> int:
        """C."""
        return self.moments.ended.shape[0]

    @property
    def steps(self) -> int:
        """R."""
        return self.moments.ended.shape[1]

    @property
    def filled(self) -> Int[Array, ""]:
        """How many segments there are."""
        return jnp.minimum(self.added, self.capacity)

    @property
    def training(self) -> Bool[Array, " C"]:
        """Which segments may be trained on."""
        slot = jnp.arange(self.capacity)
        return (slot < self.filled) & (slot % HELD_OUT_EVERY != 1)

    def add(self, trajectory: Trajectory) -> Memory:
        """Keep a trajectory (T = R, B, …): B segments, in place of the oldest."""
        fresh = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), _moments(trajectory))
        slots = (self.added + jnp.arange(fresh.ended.shape[0])) % self.capacity
        moments = jax.tree.map(lambda kept, new: kept.at[slots].set(new), self.moments, fresh)
        return Memory(moments, self.added + len(slots))

    def states(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*shape n d"]:
        """Observations drawn from all that is kept."""
        segment_key, step_key = jax.random.split(key)
        segment = jax.random.randint(segment_key, shape, 0, jnp.maximum(self.filled, 1))
        return self.moments.obs[segment, jax.random.randint(step_key, shape, 0, self.steps)]

    def windows(self, key: PRNGKeyArray, count: int, length: int, held_out: bool) -> Windows:
        """Stretches of ``length`` steps drawn from the held-out segments or from all others."""
        segment_key, start_key = jax.random.split(key)
        kept_out = (self.filled + HELD_OUT_EVERY - 2) // HELD_OUT_EVERY
        if held_out:
            drawn = jax.random.randint(segment_key, (count,), 0, jnp.maximum(kept_out, 1))
            segment = HELD_OUT_EVERY * drawn + 1
        else:
            drawn = jax.random.randint(segment_key, (count,), 0, jnp.maximum(self.filled - kept_out, 1))
            block, place = jnp.divmod(drawn, HELD_OUT_EVERY - 1)
            segment = HELD_OUT_EVERY * block + jnp.where(place > 0, place + 1, 0)
        start = jax.random.randint(start_key, (count,), 0, self.steps - length + 1)
        return self._stretches(segment, start, length)

    @property
    def endings_so_far(self) -> Int[Array, " M"]:
        """Among the first 1, 2, … steps kept, how many ended an agent's episode otherwise than by truncation."""
        ending = (self.moments.terminated | self.moments.lost).any(-1) & self._there[:, None]
        return jnp.cumsum(ending.reshape(-1))

    def endings(self, key: PRNGKeyArray, count: int, so_far: Int[Array, " M"]) -> Windows:
        """Single steps that ended an agent's episode, drawn from all that are kept; weight 0 if there are none."""
        drawn = jax.random.randint(key, (count,), 0, jnp.maximum(so_far[-1], 1))
        segment, start = jnp.divmod(jnp.searchsorted(so_far, drawn, side="right"), self.steps)
        found = self._stretches(segment, start, 1)
        return found._replace(weight=found.weight * (so_far[-1] > 0))

    @property
    def ending_rates(self) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The share of steps kept at which an agent's episode terminated, and was lost."""
        there = self._there[:, None, None]
        total = jnp.maximum(self.filled * self.steps, 1)
        return (there & self.moments.terminated).sum((0, 1)) / total, (there & self.moments.lost).sum((0, 1)) / total

    @property
    def _there(self) -> Bool[Array, " C"]:
        return jnp.arange(self.capacity) < self.filled

    def _stretches(self, segment: Int[Array, " S"], start: Int[Array, " S"], length: int) -> Windows:
        rows = start[:, None] + jnp.arange(length)
        found = jax.tree.map(lambda leaf: leaf[segment[:, None], rows], self.moments)
        gone_on = jnp.cumprod(1.0 - found.ended.astype(float), axis=1)
        weight = jnp.concatenate([jnp.ones((len(start), 1)), gone_on[:, :-1]], axis=1)
        return Windows(
            found.obs[:, 0], found.action, found.next_obs, found.reward, found.terminated, found.lost, weight
        )


def _moments(trajectory: Trajectory) -> Moments:
    ended = trajectory.ended.any(-1)
    return Moments(
        trajectory.obs,
        trajectory.action,
        trajectory.next_obs,
        trajectory.reward,
        trajectory.terminated,
        trajectory.lost,
        ended,
    )
