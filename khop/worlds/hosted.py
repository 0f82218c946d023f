"""The real world of a hosted system: agents practise in worker processes, outside what is compiled."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from khop.agents.policies import Actors
from khop.agents.recurrent import RecurrentActors
from khop.hosts.episodes import play
from khop.hosts.system import HostedSystem
from khop.trajectory import Trajectory


class HostedState(eqx.Module):
    """What the last batch of episodes was like; the next one starts from nothing."""

    metrics: dict[str, Float[Array, ""]]  # the system's own, means over the episodes
    dropped: Int[Array, ""]  # episodes that a worker failed in


class Sampled(eqx.Module):
    """Actors that sample, and keep what learning needs to know."""

    actors: Actors | RecurrentActors

    def __call__(self, key: PRNGKeyArray, carry: PyTree, info: dict, obs: Array) -> tuple[PyTree, Array, PyTree]:
        following, distribution = self.actors(carry, obs)
        action = distribution.sample(key)
        return following, action, (distribution.log_prob(action), self.actors.read(carry, following))


class HostedWorld(eqx.Module):
    """``environments`` workers that play whole episodes side by side."""

    system: HostedSystem
    environments: int

    def init(self, key: PRNGKeyArray, actors: Actors | RecurrentActors) -> HostedState:
        """Before the first episode; starts no worker."""
        return HostedState(dict.fromkeys(self.system.spec.metrics, jnp.zeros(())), jnp.zeros((), int))

    def like(self, key: PRNGKeyArray, actors: Actors | RecurrentActors) -> Trajectory:
        """The shapes of one step of experience."""

        def moment(actors: Actors | RecurrentActors) -> Trajectory:
            B, n, d = self.environments, self.system.spec.n, self.system.spec.d
            carry, obs = actors.initial(B), jnp.zeros((B, n, d))
            _, distribution = actors(carry, obs)
            action = distribution.sample(key)
            log_prob = distribution.log_prob(action)
            return _trajectory(obs, action, log_prob, jnp.zeros((B, n)), jnp.zeros(B, bool), obs, carry)

        shapes = eqx.filter_eval_shape(moment, actors)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), shapes)

    def fit(self, key: PRNGKeyArray, state: HostedState, actors: Actors | RecurrentActors, steps: int) -> HostedState:
        """Nothing has to be learned of what is real."""
        return state

    def log(self, state: HostedState) -> dict[str, Array]:
        """The system's own metrics of the last batch, and the episodes that were dropped."""
        return state.metrics | {"dropped": state.dropped}

    def rollout(
        self, key: PRNGKeyArray, state: HostedState, actors: Actors | RecurrentActors, steps: int
    ) -> tuple[HostedState, Trajectory]:
        """Let the actors act, sampling from their distributions, for some whole episodes in every environment."""
        horizon = self.system.spec.horizon
        rounds = steps // horizon
        keys = jax.random.split(key, rounds * self.environments)
        carry = jax.tree.map(lambda leaf: leaf[0], actors.initial(1))
        played = play(self.system, Sampled(actors), carry, keys, self.environments)
        episode, (log_prob, carry) = played.episode, played.extra
        metrics = jax.vmap(self.system.metrics, in_axes=1)(episode)

        def in_a_row(leaf: Array) -> Array:
            """(T, rounds · B, …) → (rounds · T, B, …)."""
            apart = leaf.reshape(horizon, rounds, self.environments, *leaf.shape[2:])
            return jnp.moveaxis(apart, 1, 0).reshape(steps, self.environments, *leaf.shape[2:])

        last = jnp.arange(horizon) == horizon - 1
        truncated = jnp.broadcast_to(last[:, None], (horizon, len(keys)))
        trajectory = _trajectory(
            episode.obs, episode.action, log_prob, episode.reward, truncated, played.next_obs, carry
        )
        state = HostedState({name: value.mean() for name, value in metrics.items()}, jnp.asarray(played.dropped))
        return state, jax.tree.map(in_a_row, trajectory)


def _trajectory(
    obs: Array, action: Array, log_prob: Array, reward: Array, truncated: Array, next_obs: Array, carry: PyTree
) -> Trajectory:
    """Episodes that neither terminate nor get lost."""
    never = jnp.zeros(reward.shape, bool)
    return Trajectory(
        obs=obs,
        action=action,
        log_prob=log_prob,
        reward=reward,
        terminated=never,
        truncated=truncated,
        lost=never,
        next_obs=next_obs,
        carry=carry,
    )
