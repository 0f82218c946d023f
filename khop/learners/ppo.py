"""Decentralised PPO on extended value functions.

Every agent is a learner of its own: its loss averages over its own samples, its gradient is clipped by its own norm,
and its KL stop ends its own policy's updates. What agents exchange is the advantage: an agent averages those within κ
hops that its own actions can reach (the gradient of Ma et al. 2024, eqs. 4–5, through GAE). The published sum runs over
all within κ hops; terms of agents that cannot be reached have mean 0 and are noise.

Differences from the published implementation, which has them as defects: targets carry no gradient, advantages are
computed once per batch, standardised over the batch rather than per trajectory, truncation bootstraps, the KL stop
stops, and the entropy bonus is the entropy.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from khop.agents.policies import Actors, Critics, seen
from khop.agents.stacked import leading
from khop.errors import InputError
from khop.learners.losses import clipped_surrogate, divergence, squared_error, standardised
from khop.sharding import everywhere, mesh, spread
from khop.system import Spec
from khop.topology import Neighbourhood
from khop.trajectory import Trajectory, generalised_advantages

Agents = TypeVar("Agents", Actors, Critics)


class ValueScale(eqx.Module):
    """Running root mean square of each agent's value targets, in the units of its rewards."""

    mean_square: Float[Array, " n"]
    weight: Float[Array, ""]

    @classmethod
    def initial(cls, n: int) -> ValueScale:
        return cls(jnp.zeros(n), jnp.zeros(()))

    def updated(self, target: Float[Array, "*batch n"], share: bool) -> ValueScale:
        """Forget a little and add one batch of targets; agents that share weights share the scale."""
        square = jnp.square(target).mean(tuple(range(target.ndim - 1)))
        square = jnp.full_like(square, square.mean()) if share else square
        memory = SCALE_MEMORY
        return ValueScale(memory * self.mean_square + (1 - memory) * square, memory * self.weight + 1 - memory)

    @property
    def value(self) -> Float[Array, " n"]:
        """The scale, 1 before the first batch."""
        known = self.weight > 0
        size = jnp.sqrt(self.mean_square / jnp.where(known, self.weight, 1.0))
        return jnp.where(known, jnp.maximum(size, 1e-6), 1.0)


class LearnerState(eqx.Module):
    """What learning changes."""

    actors: Actors
    critics: Critics
    actor_moments: optax.OptState
    critic_moments: optax.OptState
    value_scale: ValueScale
    feedback: Neighbourhood = eqx.field(static=True)  # over whom an agent's advantage is averaged

    @property
    def networks(self) -> tuple[Actors, Critics]:
        """All that has parameters."""
        return self.actors, self.critics


class Samples(NamedTuple):
    """S moments of every agent, as the losses need them."""

    actor_input: Float[Array, "n S f"]
    critic_input: Float[Array, "n S g"]
    action: Array  # (n, S) int or (n, S, a) float
    log_prob: Float[Array, "n S"]
    advantage: Float[Array, "n S"]
    target: Float[Array, "n S"]

    def repeated(self, total: int) -> Samples:
        """The same moments over and over, ``total`` in all."""
        size = self.log_prob.shape[1]
        return self if size == total else jax.tree.map(lambda leaf: leaf[:, jnp.arange(total) % size], self)


@dataclasses.dataclass(frozen=True)
class PPO:
    """Options of the learner."""

    actor_learning_rate: float = 2.2e-3
    """Adam's step size for the policies."""
    critic_learning_rate: float = 3e-3
    """Adam's step size for the values."""
    epochs: int = 5
    """Passes over each batch."""
    minibatches: int = 20
    """Gradient steps in a pass."""
    discount: float | None = None
    """γ; None for what suits the system."""
    trace: float = 0.95
    """λ of the generalised advantages."""
    clip: float = 0.2
    """ε, how far a probability ratio may pay off."""
    entropy: float = 0.004
    """Weight of the entropy bonus."""
    target_kl: float = 0.02
    """An agent's policy stands still for the rest of a batch once its KL exceeds this."""
    max_gradient_norm: float = 0.5
    """Each agent's gradient is clipped to this norm."""
    anneal: bool = True
    """Let step sizes and entropy bonus fall linearly to 0 over the budget."""
    sequence: int = 8
    """Steps in a sequence that agents with memory learn from; of no meaning without memory."""
    reward_limit: float | None = None
    """Rewards beyond this size count as this size; None for what suits the system."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # NaN fails too
                raise InputError(f"{name} must lie between {low:g} and {high:g}, not {value:g}.")
        if self.reward_limit is not None and not self.reward_limit > 0:
            raise InputError(f"reward_limit must be above 0 (inf: no limit), not {self.reward_limit:g}.")

    def resolved(self, spec: Spec) -> PPO:
        """The learner with what it left open as the system suggests."""
        suited = {name: getattr(spec, name) for name in ("discount", "reward_limit") if getattr(self, name) is None}
        return dataclasses.replace(self, **suited)

    @property
    def gamma(self) -> float:
        """γ, once it has been chosen."""
        if self.discount is None:
            raise InputError("The learner's discount is open: resolve it for a system, or set it.")
        return self.discount

    def init(self, actors: Actors, critics: Critics, feedback: Neighbourhood) -> LearnerState:
        """Fresh optimisers for fresh networks; ``feedback`` says over whom each agent's advantage is averaged."""
        return LearnerState(
            actors,
            critics,
            ADAM.init(eqx.filter(actors, eqx.is_inexact_array)),
            ADAM.init(eqx.filter(critics, eqx.is_inexact_array)),
            ValueScale.initial(feedback.n),
            feedback,
        )

    def update(
        self, key: PRNGKeyArray, state: LearnerState, trajectory: Trajectory, remaining: Float[Array, ""]
    ) -> tuple[LearnerState, dict[str, Float[Array, ""]]]:
        """Improve policies and values on one batch of experience.

        Args:
            key: for the order of the minibatches.
            state: what learning changes.
            trajectory: the batch.
            remaining: share of the budget that is still ahead, from 1 to 0.
        """
        return self.learn(key, *self.prepare(state, trajectory), remaining)

    def learn(
        self, key: PRNGKeyArray, state: LearnerState, samples: Samples, remaining: Float[Array, ""]
    ) -> tuple[LearnerState, dict[str, Float[Array, ""]]]:
        """Gradient steps on the minibatches of a prepared batch, pass after pass."""
        vigour = remaining if self.anneal else jnp.ones(())
        n, total = samples.log_prob.shape
        if state.actors.networks.share:  # apart they would have to agree on every gradient step
            state, samples = everywhere((state, samples), mesh(n))
        else:
            state, samples = spread((state, samples), mesh(n), axis=0)
        size = total // self.minibatches

        def epoch(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, dict]:
            order = jnp.argsort(jax.random.bits(key, (total,)))[: size * self.minibatches]  # one sort: a cheap shuffle
            return jax.lax.scan(step, carry, order.reshape(self.minibatches, size))

        def step(carry: tuple, rows: Array) -> tuple[tuple, dict]:
            learning, dynamic = carry
            batch = jax.tree.map(lambda leaf: leaf[:, rows], samples)
            learning, state, metrics = self.improve(learning, eqx.combine(dynamic, static), batch, vigour)
            return (learning, eqx.filter(state, eqx.is_array)), metrics

        dynamic, static = eqx.partition(state, eqx.is_array)
        learning = jnp.ones(n, bool)
        (learning, dynamic), metrics = jax.lax.scan(epoch, (learning, dynamic), jax.random.split(key, self.epochs))
        metrics = {name: value.mean() for name, value in metrics.items()}
        metrics |= {"stopped": jnp.mean(~learning), "value_scale": state.value_scale.value.mean()}
        return eqx.combine(dynamic, static), metrics

    def prepare(self, state: LearnerState, trajectory: Trajectory) -> tuple[LearnerState, Samples]:
        """Inputs, advantages and targets of a batch, its T × B moments flattened to S.

        A critic's network puts out its agent's value in units of that agent's running scale; everything here is in the
        rewards' own units, so that averaging advantages over neighbours weighs all agents' rewards alike.
        """
        scale = state.value_scale.value
        value, next_value = scale * state.critics(trajectory.obs), scale * state.critics(trajectory.next_obs)
        reward = trajectory.reward
        if self.reward_limit is not None:
            reward = jnp.clip(reward, -self.reward_limit, self.reward_limit)
        # A lost episode repeats its last reward for ever.
        next_value = jnp.where(trajectory.lost, reward / max(1 - self.gamma, 1e-4), next_value)
        advantage = generalised_advantages(
            reward,
            value,
            next_value,
            trajectory.terminated,
            trajectory.ended,
            self.gamma,
            self.trace,
        )
        target = advantage + value
        new = state.value_scale.updated(target, state.critics.networks.share)
        critics = state.critics.rescaled(scale / new.value)  # the values stay what they are (van Hasselt et al. 2016)
        state = eqx.tree_at(lambda s: (s.critics, s.value_scale), state, (critics, new))
        samples = Samples(
            seen(state.actors.neighbourhood, trajectory.obs),
            seen(state.critics.neighbourhood, trajectory.obs),
            trajectory.action,
            trajectory.log_prob,
            state.feedback.mean(advantage),
            target / new.value,
        )
        samples = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(-1, *leaf.shape[2:]), 1, 0), samples)
        samples = samples._replace(advantage=standardised(samples.advantage))
        return state, jax.lax.stop_gradient(samples)

    def improve(
        self, learning: Bool[Array, " n"], state: LearnerState, batch: Samples, vigour: Float[Array, ""]
    ) -> tuple[Bool[Array, " n"], LearnerState, dict[str, Float[Array, " n"]]]:
        """One gradient step on one minibatch; ``learning`` marks the agents whose KL stop has not fired."""
        actor_gradient, (actor_loss, kl, entropy) = eqx.filter_grad(self.actor_loss, has_aux=True)(
            state.actors, batch, vigour * self.entropy
        )
        critic_gradient, critic_loss = eqx.filter_grad(self.critic_loss, has_aux=True)(state.critics, batch)
        learning = learning & (_agreed(kl, state.actors) < self.target_kl)
        actors, actor_moments = self.descend(
            state.actors, actor_gradient, state.actor_moments, vigour * self.actor_learning_rate, learning
        )
        critics, critic_moments = self.descend(
            state.critics,
            critic_gradient,
            state.critic_moments,
            vigour * self.critic_learning_rate,
            jnp.ones_like(learning),
        )
        metrics = {"actor_loss": actor_loss, "critic_loss": critic_loss, "kl": kl, "entropy": entropy}
        new = LearnerState(actors, critics, actor_moments, critic_moments, state.value_scale, state.feedback)
        return learning, new, metrics

    def actor_loss(
        self, actors: Actors, batch: Samples, bonus: Float[Array, ""]
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        """Sum over agents of surrogate minus entropy bonus, whose gradient for each agent is that of it alone; and each
        agent's loss, divergence and entropy.
        """
        distribution = actors.agents_first(batch.actor_input)
        log_prob = distribution.log_prob(batch.action)
        entropy = distribution.entropy().mean(-1)
        loss = clipped_surrogate(log_prob, batch.log_prob, batch.advantage, self.clip) - bonus * entropy
        return loss.sum(), (loss, divergence(log_prob, batch.log_prob), entropy)

    def critic_loss(self, critics: Critics, batch: Samples) -> tuple[Array, Float[Array, " n"]]:
        """Sum over agents of the value error, and each agent's."""
        loss = squared_error(critics.agents_first(batch.critic_input), batch.target)
        return loss.sum(), loss

    def descend(
        self, agents: Agents, gradient: Agents, moments: optax.OptState, rate: Array, learning: Bool[Array, " n"]
    ) -> tuple[Agents, optax.OptState]:
        """One Adam step for the agents that still learn, each with its own clipped gradient."""
        if agents.networks.share:
            learning = learning.any()
        direction: PyTree = _clipped(gradient, self.max_gradient_norm, agents.networks.share)
        updates, new_moments = ADAM.update(direction, moments)
        updates = jax.tree.map(lambda leaf: jnp.where(leading(learning, leaf), -rate * leaf, 0), updates)
        return eqx.apply_updates(agents, updates), new_moments


LIMITS: dict[str, tuple[float, float]] = {
    "actor_learning_rate": (0, 1e6),
    "critic_learning_rate": (0, 1e6),
    "epochs": (1, 1e6),
    "minibatches": (1, 1e9),
    "discount": (0, 1),
    "trace": (0, 1),
    "clip": (0, 1e6),
    "entropy": (0, 1e6),
    "target_kl": (0, 1e6),
    "sequence": (1, 1e6),
    "max_gradient_norm": (0, 1e30),
}
METRICS = ("actor_loss", "critic_loss", "kl", "entropy", "stopped", "value_scale")
ADAM = optax.scale_by_adam(eps=1e-5)
SCALE_MEMORY = 0.8  # per batch; the scale must follow when agents stop failing and values shrink a thousandfold


def _clipped(gradient: PyTree, max_norm: float, share: bool) -> PyTree:
    """Gradients scaled down to a norm, each agent's by itself."""
    squares = [jnp.square(leaf) for leaf in jax.tree.leaves(gradient)]
    norm = jnp.sqrt(sum(square.sum() if share else square.sum(tuple(range(1, square.ndim))) for square in squares))
    factor = jnp.minimum(1.0, max_norm / (norm + 1e-8))
    return jax.tree.map(lambda leaf: leaf * leading(factor, leaf), gradient)


def _agreed(kl: Float[Array, " n"], agents: Actors) -> Float[Array, " n"]:
    """With shared weights the agents stop together, at their mean divergence."""
    return jnp.full_like(kl, kl.mean()) if agents.networks.share else kl
