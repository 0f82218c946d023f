"""PPO for agents with memory: the same options, losses and promises as in ``ppo``, on sequences of L steps.

Every sequence starts from the memory its agent had when it acted, is gone through step by step, and sends gradients
back to its start; where an episode ended on the way, the memory is emptied. Policy and value share a network and
therefore a loss. As in the published code of Suau et al. (2022), and unlike in their tables, the clip falls to 0
together with the step size, while the entropy bonus stays; values are scaled and clipping of values is left out, as
in ``ppo``.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from khop.agents.policies import distribution, limits_of, seen
from khop.agents.recurrent import RecurrentActors, RecurrentNetwork
from khop.learners.losses import clipped_surrogate, divergence, squared_error, standardised
from khop.learners.ppo import ADAM, PPO, ValueScale
from khop.sharding import each_agent
from khop.topology import Neighbourhood
from khop.trajectory import Trajectory, generalised_advantages


class RecurrentState(eqx.Module):
    """What learning changes."""

    actors: RecurrentActors
    moments: optax.OptState  # leaves lead like the actors' parameters
    value_scale: ValueScale
    feedback: Neighbourhood = eqx.field(static=True)  # over whom an agent's advantage is averaged

    @property
    def networks(self) -> RecurrentNetwork:
        """All that has parameters."""
        return self.actors.networks


class Sequences(NamedTuple):
    """S sequences of L steps of every agent (n is 1 if all share one network)."""

    memory: Float[Array, "n S h"]  # before the first step
    emptied: Bool[Array, "n S L"]  # before the step
    inputs: Float[Array, "n S L f"]
    action: Array  # (n, S, L) int or (n, S, L, a) float
    log_prob: Float[Array, "n S L"]
    advantage: Float[Array, "n S L"]
    target: Float[Array, "n S L"]
    limits: tuple[Array, ...]  # of the actions, (n, S, 1, a)


@dataclasses.dataclass(frozen=True)
class RecurrentPPO:
    """The learner of agents with memory."""

    options: PPO

    def init(self, actors: RecurrentActors, feedback: Neighbourhood) -> RecurrentState:
        """Fresh optimisers for fresh networks."""
        moments = jax.vmap(ADAM.init)(eqx.filter(actors.networks, eqx.is_inexact_array))
        return RecurrentState(actors, moments, ValueScale.initial(feedback.n), feedback)

    def update(
        self, key: PRNGKeyArray, state: RecurrentState, trajectory: Trajectory, remaining: Float[Array, ""]
    ) -> tuple[RecurrentState, dict[str, Float[Array, ""]]]:
        """Improve policies and values on one batch of experience; arguments as in ``PPO.update``."""
        vigour = remaining if self.options.anneal else jnp.ones(())
        state, sequences = self.prepare(state, trajectory)
        dynamic, static = eqx.partition(state.networks, eqx.is_array)

        def one_agent(arguments: tuple) -> tuple:
            dynamic, moments, sequences = arguments
            return self.learn(key, dynamic, static, moments, sequences, vigour)

        dynamic, moments, metrics = each_agent(one_agent, (dynamic, state.moments, sequences))
        networks = eqx.combine(dynamic, static)
        state = eqx.tree_at(lambda s: (s.actors.networks, s.moments), state, (networks, moments))
        metrics = {name: value.mean() for name, value in metrics.items()}
        return state, metrics | {"value_scale": state.value_scale.value.mean()}

    def prepare(self, state: RecurrentState, trajectory: Trajectory) -> tuple[RecurrentState, Sequences]:
        """Sequences with advantages and targets, from values taken with the memories of when the agents acted."""
        options, actors, share = self.options, state.actors, state.actors.share
        T, B, n = trajectory.reward.shape
        inputs = seen(actors.neighbourhood, trajectory.obs)
        scale = state.value_scale.value
        value, next_value = self._values(actors, trajectory, inputs)
        value, next_value = scale * value, scale * next_value
        reward = trajectory.reward
        if options.reward_limit is not None:
            reward = jnp.clip(reward, -options.reward_limit, options.reward_limit)
        # A lost episode repeats its last reward for ever.
        next_value = jnp.where(trajectory.lost, reward / max(1 - options.gamma, 1e-4), next_value)
        advantage = generalised_advantages(
            reward, value, next_value, trajectory.terminated, trajectory.ended, options.gamma, options.trace
        )
        target = advantage + value
        new = state.value_scale.updated(target, share)
        state = eqx.tree_at(lambda s: (s.actors, s.value_scale), state, (actors.rescaled(scale / new.value), new))
        advantage = state.feedback.mean(advantage)
        advantage = standardised(advantage.reshape(-1, n).T).T.reshape(T, B, n)

        def sequences(leaf: Array) -> Array:
            """(T, B, n, …) as (n, S, L, …): the steps of each environment cut into T / L pieces."""
            pieces = leaf.reshape(T // options.sequence, options.sequence, B, n, *leaf.shape[3:])
            pieces = jnp.moveaxis(pieces, (3, 0, 2, 1), (0, 1, 2, 3))
            pieces = pieces.reshape(n, -1, options.sequence, *leaf.shape[3:])
            return pieces.reshape(1, -1, *pieces.shape[2:]) if share else pieces

        ended = trajectory.ended
        emptied = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])
        limits = (jnp.broadcast_to(x, (T, B, *x.shape)) for x in limits_of(actors.action))
        found = Sequences(
            sequences(trajectory.carry)[:, :, 0],
            sequences(emptied),
            sequences(inputs),
            sequences(trajectory.action),
            sequences(trajectory.log_prob),
            sequences(advantage),
            sequences(target / new.value),
            tuple(sequences(limit)[:, :, :1] for limit in limits),
        )
        return state, jax.lax.stop_gradient(found)

    def _values(
        self, actors: RecurrentActors, trajectory: Trajectory, inputs: Float[Array, "T B n f"]
    ) -> tuple[Float[Array, "T B n"], Float[Array, "T B n"]]:
        """Values before and after each step; after an end, that of the final observation."""

        def one_agent(arguments: tuple) -> tuple[Array, Array]:
            dynamic, memory, inputs, next_inputs = arguments
            network = jax.vmap(eqx.combine(dynamic, static))
            memory, _, value = network(memory, inputs)
            return value, network(memory, next_inputs)[2]

        dynamic, static = eqx.partition(actors.networks, eqx.is_array)
        next_inputs = seen(actors.neighbourhood, trajectory.next_obs)
        agents = len(actors.networks.log_scale)  # 1 if they share
        rows = [jnp.moveaxis(x, 2, 0) for x in (trajectory.carry, inputs, next_inputs)]
        rows = [x.reshape(agents, -1, x.shape[-1]) for x in rows]
        found = each_agent(one_agent, (dynamic, *rows))
        value, following = (jnp.moveaxis(x.reshape(-1, *trajectory.reward.shape[:2]), 0, 2) for x in found)
        if actors.pass_memory:  # the memory that an agent reads next is not the one it left
            following = following.at[:-1].set(jnp.where(trajectory.ended[:-1], following[:-1], value[1:]))
        return value, following

    # One agent ------------------------------------------------------------------------------------------------------

    def learn(
        self,
        key: PRNGKeyArray,
        dynamic: RecurrentNetwork,
        static: RecurrentNetwork,
        moments: optax.OptState,
        sequences: Sequences,
        vigour: Float[Array, ""],
    ) -> tuple[RecurrentNetwork, optax.OptState, dict[str, Float[Array, ""]]]:
        """All gradient steps of one agent on one batch; leaves of the sequences lead with S."""
        options = self.options
        total = len(sequences.memory)
        size = total // options.minibatches

        def epoch(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, dict]:
            order = jnp.argsort(jax.random.bits(key, (total,)))[: size * options.minibatches]
            return jax.lax.scan(step, carry, order.reshape(options.minibatches, size))

        def step(carry: tuple, rows: Array) -> tuple[tuple, dict]:
            learning, dynamic, moments = carry
            batch = jax.tree.map(lambda leaf: leaf[rows], sequences)
            (_, metrics), gradient = jax.value_and_grad(self.loss, has_aux=True)(dynamic, static, batch, vigour)
            learning = learning & (metrics["kl"] < options.target_kl)
            clipping = jnp.minimum(1.0, options.max_gradient_norm / (optax.tree.norm(gradient) + 1e-8))
            updates, moments = ADAM.update(optax.tree.scale(clipping, gradient), moments)
            rate = vigour * options.actor_learning_rate * learning
            dynamic = jax.tree.map(lambda x, update: x - rate * update, dynamic, updates)
            return (learning, dynamic, moments), metrics

        keys = jax.random.split(key, options.epochs)
        carry, metrics = jax.lax.scan(epoch, (jnp.asarray(True), dynamic, moments), keys)
        learning, dynamic, moments = carry
        return dynamic, moments, {name: value.mean() for name, value in metrics.items()} | {"stopped": 1.0 - learning}

    def loss(
        self, dynamic: RecurrentNetwork, static: RecurrentNetwork, batch: Sequences, vigour: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Clipped surrogate, minus the entropy bonus, plus the squared error of the value."""
        network = eqx.combine(dynamic, static)

        def step(memory: Array, moment: tuple) -> tuple[Array, tuple[Array, Array]]:
            inputs, emptied = moment
            memory, output, value = jax.vmap(network)(jnp.where(emptied[:, None], 0.0, memory), inputs)
            return memory, (output, value)

        in_time = (jnp.moveaxis(batch.inputs, 1, 0), batch.emptied.T)
        output, value = jax.lax.scan(step, batch.memory, in_time)[1]
        chosen = distribution(batch.limits, jnp.moveaxis(output, 0, 1), network.log_scale)
        log_prob, entropy = chosen.log_prob(batch.action), chosen.entropy().mean()
        log_prob, old, advantage = (x.reshape(1, -1) for x in (log_prob, batch.log_prob, batch.advantage))
        surrogate = clipped_surrogate(log_prob, old, advantage, vigour * self.options.clip)[0]
        error = squared_error(value.T.reshape(1, -1), batch.target.reshape(1, -1))[0]
        loss = surrogate - self.options.entropy * entropy + error
        kl = divergence(log_prob, old)[0]
        return loss, {"actor_loss": surrogate, "critic_loss": error, "kl": kl, "entropy": entropy}
