"""The real world: agents practise on the system itself, B environments side by side."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from khop.agents.policies import Actors
from khop.system import System, step_and_reset
from khop.trajectory import Trajectory


class RealState(eqx.Module):
    """Where the B environments stand."""

    system: PyTree  # leaves lead with B
    obs: Float[Array, "B n d"]
    carry: PyTree  # the actors' memory
    left: Int[Array, " B"]  # steps until the episode is cut, if the system does not end it before


class RealWorld(eqx.Module):
    """``environments`` copies of the system that start a new episode as soon as the old one is over.

    Episodes are cut after ``horizon`` steps, which may be fewer than the system's own: what comes after the interesting
    part of an episode then costs no real steps. The first ones are cut at evenly spread lengths, so that every batch
    holds all phases of an episode. A cut is a truncation, which bootstraps, so no value depends on it.
    """

    system: System
    environments: int
    horizon: int

    def init(self, key: PRNGKeyArray, actors: Actors) -> RealState:
        """All environments freshly reset."""
        state, obs = jax.vmap(self.system.reset)(jax.random.split(key, self.environments))
        spread = jnp.arange(1, self.environments + 1) / self.environments
        left = jnp.ceil(self.horizon * spread).astype(int)
        return RealState(state, obs, actors.initial(self.environments), left)

    def rollout(self, key: PRNGKeyArray, state: RealState, actors: Actors, steps: int) -> tuple[RealState, Trajectory]:
        """Let the actors act, sampling from their distributions, for some steps in every environment."""

        def act(state: RealState, key: PRNGKeyArray) -> tuple[RealState, Trajectory]:
            action_key, step_key = jax.random.split(key)
            carry, distribution = actors(state.carry, state.obs)
            action = distribution.sample(action_key)
            system_state, obs, step = jax.vmap(step_and_reset, in_axes=(None, 0, 0, 0, 0))(
                self.system,
                jax.random.split(step_key, self.environments),
                state.system,
                action,
                state.left <= 1,
            )
            moment = Trajectory(
                obs=state.obs,
                action=action,
                log_prob=distribution.log_prob(action),
                reward=step.reward,
                terminated=step.terminated,
                truncated=step.truncated,
                next_obs=step.obs,
                carry=state.carry,
            )
            left = jnp.where(step.done, self.horizon, state.left - 1)
            return RealState(system_state, obs, carry, left), moment

        return jax.lax.scan(act, state, jax.random.split(key, steps))
