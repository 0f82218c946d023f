"""The loop: act in the world, improve the policies, again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray

from khop.agents.policies import Actors, Critics
from khop.learners.ppo import LearnerState
from khop.methods import Method
from khop.system import System
from khop.worlds.real import RealState, RealWorld


class TrainingState(eqx.Module):
    """Everything that training changes; written to disk and read back it continues to the same result."""

    key: PRNGKeyArray
    iteration: Int[Array, ""]
    world: RealState
    learner: LearnerState


@dataclasses.dataclass(frozen=True)
class Training:
    """A method on a system, as two pure functions: the first state, and one iteration."""

    system: System
    method: Method
    steps: int  # the budget, in real environment steps

    @property
    def world(self) -> RealWorld:
        """Where the agents practise."""
        return RealWorld(self.system, self.method.environments)

    @property
    def steps_per_iteration(self) -> int:
        """Real environment steps that one iteration costs."""
        return self.method.environments * self.method.rollout

    def init(self, key: PRNGKeyArray) -> TrainingState:
        """Fresh agents in freshly reset environments."""
        spec, topology, method = self.system.spec, self.system.topology, self.method
        kappa_actor, kappa_critic = method.kappas(spec)
        key, actor_key, critic_key, world_key = jax.random.split(key, 4)
        acting = topology.neighbourhood(kappa_actor)
        valuing = topology.neighbourhood(kappa_critic)
        actors = Actors(spec, acting, method.hidden, method.share, key=actor_key)
        critics = Critics(spec, valuing, method.hidden, method.share, key=critic_key)
        learner = method.learner.init(actors, critics)
        state = TrainingState(key, jnp.zeros((), int), self.world.init(world_key, actors), learner)
        # Without weak types: otherwise the second iteration, whose input has none, would be compiled once more.
        return jax.tree.map(lambda leaf: leaf.astype(leaf.dtype) if eqx.is_array(leaf) else leaf, state)

    def iterate(self, state: TrainingState) -> tuple[TrainingState, dict[str, Array]]:
        """Collect one batch of real experience and learn from it.

        Metrics: the losses, and ``return``, the mean over steps of the reward summed over agents in this batch.
        """
        key, act_key, learn_key = jax.random.split(state.key, 3)
        world, trajectory = self.world.rollout(act_key, state.world, state.learner.actors, self.method.rollout)
        remaining = jnp.maximum(1 - state.iteration * (self.steps_per_iteration / self.steps), 0.0)
        learner, metrics = self.method.learner.update(learn_key, state.learner, trajectory, remaining)
        metrics["return"] = trajectory.reward.sum(-1).mean()
        metrics["parameter_norm"] = optax.tree.norm(eqx.filter((learner.actors, learner.critics), eqx.is_inexact_array))
        return TrainingState(key, state.iteration + 1, world, learner), metrics

    def init_seeds(self, seeds: list[int]) -> TrainingState:
        """One independent state per seed, stacked."""
        keys = jnp.stack([jax.random.PRNGKey(seed) for seed in seeds])  # plain arrays, which a file can hold
        return eqx.filter_jit(eqx.filter_vmap(self.init))(keys)

    def compiled(self) -> Callable[[TrainingState], tuple[TrainingState, dict[str, Array]]]:
        """``iterate`` for stacked seeds, as one program."""
        return eqx.filter_jit(eqx.filter_vmap(self.iterate))
