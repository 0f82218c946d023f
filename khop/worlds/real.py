"""The real world: agents practise on the system itself, B environments side by side."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from khop.agents.policies import Actors
from khop.agents.recurrent import RecurrentActors, forgotten
from khop.sharding import everywhere, mesh, spread
from khop.system import System, step_and_reset
from khop.trajectory import Trajectory


class RealState(eqx.Module):
    """Where the B environments stand."""

    system: PyTree  # leaves lead with B
    obs: Float[Array, "B n d"]
    carry: PyTree  # the actors' memory
    left: Int[Array, " B"]  # steps until an environment's episode is cut short


class RealWorld(eqx.Module):
    """``environments`` copies of the system that start a new episode as soon as the old one is over.

    Episodes are cut at a random share of the horizon, at least ``shortest``: where most is decided early, experience
    of long calm endings teaches little. The first ones are cut at evenly spread lengths, so that from then on every
    batch holds all phases of an episode. A cut is a truncation, which bootstraps.
    """

    system: System
    environments: int
    shortest: float = 1.0

    def init(self, key: PRNGKeyArray, actors: Actors | RecurrentActors) -> RealState:
        """All environments freshly reset."""
        state, obs = jax.vmap(self.system.reset)(jax.random.split(key, self.environments))
        spread = jnp.arange(1, self.environments + 1) / self.environments
        return RealState(state, obs, actors.initial(self.environments), self._steps(spread))

    def _steps(self, share: Float[Array, " B"]) -> Int[Array, " B"]:
        """A share of the horizon in whole steps, at least one."""
        return jnp.maximum(jnp.ceil(self.system.spec.horizon * share), 1).astype(int)

    def like(self, key: PRNGKeyArray, actors: Actors | RecurrentActors) -> Trajectory:
        """The shapes of one step of experience."""
        return eqx.filter_eval_shape(lambda: self.rollout(key, self.init(key, actors), actors, 1))[1]

    def fit(self, key: PRNGKeyArray, state: RealState, actors: Actors | RecurrentActors, steps: int) -> RealState:
        """Nothing has to be learned of what is real."""
        return state

    def log(self, state: RealState) -> dict[str, Array]:
        """Nothing."""
        return {}

    def rollout(
        self, key: PRNGKeyArray, state: RealState, actors: Actors | RecurrentActors, steps: int
    ) -> tuple[RealState, Trajectory]:
        """Let the actors act, sampling from their distributions, for some steps in every environment."""

        def act(state: RealState, key: PRNGKeyArray) -> tuple[RealState, Trajectory]:
            action_key, step_key, cut_key = jax.random.split(key, 3)
            carry, distribution = actors(state.carry, state.obs)
            action = distribution.sample(action_key)
            system_state, obs, step = jax.vmap(step_and_reset, in_axes=(None, 0, 0, 0, 0))(
                self.system,
                jax.random.split(step_key, self.environments),
                state.system,
                action,
                state.left == 1,
            )
            lost = jnp.broadcast_to(jnp.asarray(step.lost)[..., None], step.terminated.shape)
            moment = Trajectory(
                obs=state.obs,
                action=action,
                log_prob=distribution.log_prob(action),
                reward=step.reward,
                terminated=step.terminated,
                truncated=step.truncated,
                lost=lost,
                next_obs=step.obs,
                carry=actors.read(state.carry, carry),
            )
            carry = forgotten(carry, moment.ended)
            share = jax.random.uniform(cut_key, (self.environments,), minval=self.shortest, maxval=1.0)
            left = jnp.where(moment.ended.all(-1), self._steps(share), state.left - 1)
            return RealState(system_state, obs, carry, left), moment

        devices = mesh(self.system.spec.n)
        state, actors = spread(state, devices, axis=0), everywhere(actors, devices)
        state, trajectory = jax.lax.scan(act, state, jax.random.split(key, steps))
        return state, spread(trajectory, devices, axis=1)
