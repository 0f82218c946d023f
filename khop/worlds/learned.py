"""The learned world: agents practise in local models of their own (Ma et al. 2024).

Fit: an ensemble of local models per agent, on stretches of real experience that it steps through open-loop, until the
agent's error on held-out experience stops falling. Imagine: many short rollouts that branch off remembered states,
every agent stepping its own model and sharing only what it predicts. How long they are, and whether there are any, is
decided by the held-out error.

Differences from the published implementation: errors are measured on held-out experience and against the variance of
the change to be predicted, branches start anywhere in memory, κ is honoured, an isolated agent sees its own state, and
an agent's loss sends no gradient into its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from khop.agents.dynamics import LocalModels, Outcome, Scales, symexp, symlog
from khop.agents.policies import Actors
from khop.agents.stacked import leading
from khop.errors import InputError
from khop.sharding import everywhere, mesh, spread
from khop.system import System
from khop.topology import Neighbourhood
from khop.trajectory import Trajectory
from khop.worlds.imagination import Imagination
from khop.worlds.memory import Memory, Windows
from khop.worlds.model_error import HELD_OUT_WINDOWS, SMALLEST_SPREAD, farthest, model_error

HORIZONS = (1, 5, 25, 100, 200)  # steps ahead at which the log tells the error
VALIDATION_ROUND = 25  # gradient steps between two looks at the held-out error
AVERAGING = 0.04  # share of the newest parameters in their running average
PATIENCE = 4  # rounds without progress before an agent's models stop learning
PROGRESS = 0.98  # of the best error so far: what counts as progress


class LearnedState(eqx.Module):
    """The models and what they were learned from; arrays of the ensemble lead with E, then n."""

    memory: Memory
    models: LocalModels
    moments: optax.OptState
    scales: Scales
    error: Float[Array, "H n"]  # held-out error 1, 2, … H steps ahead, as a share of the variance of the change


class LearnedWorld(eqx.Module):
    """Where agents practise in what they believe of each other."""

    system: System
    options: Imagination = eqx.field(static=True)
    neighbourhood: Neighbourhood = eqx.field(static=True)
    share: bool = eqx.field(static=True)  # one set of weights for all agents
    segments: int = eqx.field(static=True)  # room in memory
    steps: int = eqx.field(static=True)  # length of a segment
    shortest: int = eqx.field(static=True)  # steps of a branch worth practising on

    def init(self, key: PRNGKeyArray, like: Trajectory) -> LearnedState:
        """Untrained models and an empty memory for what ``like`` is made of."""
        spec, options = self.system.spec, self.options
        models = eqx.filter_vmap(
            lambda key: LocalModels(spec, self.neighbourhood, options.model_hidden, options.linear, self.share, key=key)
        )(jax.random.split(key, options.ensemble))
        return LearnedState(
            Memory.empty(self.segments, self.steps, like),
            models,
            ADAM.init(eqx.filter(models, eqx.is_inexact_array)),
            Scales.unknown(spec.n, spec.d),
            jnp.ones((farthest(self.steps, options.branch_length), spec.n)),
        )

    def trusted(self, state: LearnedState) -> Int[Array, ""]:
        """For how many steps ahead the models' mean error stays below the gate, at most the length of a branch; 0 if
        that is too few to see where a policy leads.
        """
        options = self.options
        if options.gate is None:
            raise InputError("The gate of the imagination is open: resolve it for a system, or set it.")
        below = state.error[: options.branch_length].mean(-1) < options.gate
        steps = jnp.sum(jnp.cumprod(below))
        return jnp.where(steps < self.shortest, 0, steps)

    # Fit --------------------------------------------------------------------------------------------------------------

    def fit(
        self, key: PRNGKeyArray, state: LearnedState, fresh: Trajectory
    ) -> tuple[LearnedState, dict[str, Float[Array, ""]]]:
        """Remember fresh experience and learn from all that is remembered."""
        memory = state.memory.add(fresh)
        scales = measured(memory, self.share)
        held_out_key, learn_key, error_key = jax.random.split(key, 3)
        held_out = memory.windows(held_out_key, HELD_OUT_WINDOWS, self.options.window, held_out=True)
        devices = mesh(self.system.spec.n)  # each learns the models of its part of the agents
        start = (state.models, state.moments)
        start = everywhere(start, devices) if self.share else spread(start, devices, axis=1)
        models, moments, rounds = self._learn(learn_key, memory, scales, held_out, *start)
        models, moments = everywhere((models, moments), devices)
        options = self.options
        next_step, error = model_error(error_key, memory, scales, models, options.branch_length, options.stay_in_range)
        state = LearnedState(memory, models, moments, scales, error)
        ahead = {f"model_error_{h}": error[h - 1].mean() for h in HORIZONS if h <= len(error)}
        return state, ahead | {
            "model_error_worst_agent": error[0].max(),
            "model_error_of_state_worst_agent": next_step.of_state.max(),
            "model_disagreement": next_step.disagreement,
            "model_gradient_steps": rounds * VALIDATION_ROUND,
        }

    def _learn(
        self,
        key: PRNGKeyArray,
        memory: Memory,
        scales: Scales,
        held_out: Windows,
        models: LocalModels,
        moments: optax.OptState,
    ) -> tuple[LocalModels, optax.OptState, Int[Array, ""]]:
        """Gradient steps until no agent's held-out error falls any more; every agent keeps its best models. Agents that
        share weights go by their mean error.

        What is judged and kept is the running average of the parameters, which is far more precise than where the last
        noisy step has led.
        """
        dynamic, static = eqx.partition(models, eqx.is_inexact_array)

        size, so_far = self.options.model_batch, memory.endings_so_far
        endings_key, key = jax.random.split(key)
        judged_endings = memory.endings(endings_key, size, so_far)  # too few to hold any out

        def held_out_error(dynamic: LocalModels) -> Float[Array, "*n"]:
            losses = jax.vmap(lambda one: self.loss(eqx.combine(one, static), scales, held_out, judged_endings))
            return losses(dynamic).mean() if self.share else losses(dynamic).mean(0)

        def gradient_step(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
            dynamic, average, moments, learning = carry

            def member_loss(one: LocalModels, key: PRNGKeyArray) -> Array:
                windows_key, endings_key, noise_key = jax.random.split(key, 3)
                windows = memory.windows(windows_key, size, self.options.window, held_out=False)
                noise = self.options.input_noise * jax.random.normal(noise_key, windows.obs.shape)
                windows = windows._replace(obs=windows.obs + scales.change_spread * noise)
                endings = memory.endings(endings_key, -(-size // 4), so_far)
                return self.loss(eqx.combine(one, static), scales, windows, endings).sum()

            gradient = jax.grad(
                lambda dynamic: jax.vmap(member_loss)(dynamic, jax.random.split(key, self.options.ensemble)).sum()
            )(dynamic)
            updates, moments = ADAM.update(gradient, moments)
            rate = self.options.model_learning_rate
            updates = jax.tree.map(lambda leaf: -rate * leaf * leading(learning, leaf[0])[None], updates)
            dynamic = eqx.apply_updates(dynamic, updates)
            average = jax.tree.map(lambda slow, fast: slow + AVERAGING * (fast - slow), average, dynamic)
            return (dynamic, average, moments, learning), None

        class Search(NamedTuple):
            dynamic: LocalModels
            average: LocalModels
            moments: optax.OptState
            best: LocalModels
            best_error: Float[Array, "*n"]
            idle: Int[Array, "*n"]
            round: Int[Array, ""]
            key: PRNGKeyArray

        def unfinished(search: Search) -> Bool[Array, ""]:
            return (search.round < self.options.fit_rounds) & jnp.any(search.idle < PATIENCE)

        def one_round(search: Search) -> Search:
            key, round_key = jax.random.split(search.key)
            keys = jax.random.split(round_key, VALIDATION_ROUND)
            learning = search.idle < PATIENCE
            start = (search.dynamic, search.average, search.moments, learning)
            (dynamic, average, moments, _), _ = jax.lax.scan(gradient_step, start, keys)
            error = held_out_error(average)
            better = error < search.best_error
            best = jax.tree.map(
                lambda old, new: jnp.where(leading(better, new[0])[None], new, old), search.best, average
            )
            idle = jnp.where(error < PROGRESS * search.best_error, 0, search.idle + 1)
            lowest = jnp.minimum(error, search.best_error)
            return Search(dynamic, average, moments, best, lowest, idle, search.round + 1, key)

        error = held_out_error(dynamic)
        idle = jnp.zeros_like(error, int)
        start = Search(dynamic, dynamic, moments, dynamic, error, idle, jnp.zeros((), int), key)
        found = jax.lax.while_loop(unfinished, one_round, start)
        return eqx.combine(found.best, static), found.moments, found.round

    def loss(self, models: LocalModels, scales: Scales, windows: Windows, endings: Windows) -> Float[Array, " n"]:
        """Every agent's own loss: squared error of its state over open-loop windows, in units of the change's spread,
        squared error of its symlog reward, and cross-entropy of its endings, which are rare and therefore shown apart.
        """

        def step(obs: Array, moment: tuple) -> tuple[Array, Array]:
            action, target, weight = moment
            predicted = models.next_obs(scales, obs, models.inputs(scales, obs, action, local=True))
            wrong = jnp.square((predicted - target) / scales.unit_of_change).mean(-1)
            return predicted, weight[:, None] * wrong

        in_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (windows.action, windows.next_obs, windows.weight))
        _, wrong = jax.lax.scan(step, windows.obs, in_time)
        state_loss = wrong.sum((0, 1)) / windows.weight.sum()

        outcome, reward = self._judged(models, scales, windows)
        terminated, lost = windows.terminated[:, 0], windows.lost[:, 0]
        goes_on = 1.0 - (terminated | lost)
        reward_loss = (goes_on * jnp.square(outcome.reward - reward)).mean(0)
        ending_loss = optax.sigmoid_binary_cross_entropy(outcome.terminated, terminated.astype(float))
        ending_loss += optax.sigmoid_binary_cross_entropy(outcome.lost, lost.astype(float))

        outcome, reward = self._judged(models, scales, endings)
        terminated, lost = endings.weight * endings.terminated[:, 0], endings.weight * endings.lost[:, 0]
        rare_loss = _average(jnp.square(outcome.final_reward - reward), jnp.maximum(terminated, lost))
        rare_loss += _average(jax.nn.softplus(-outcome.terminated), terminated)
        rare_loss += _average(jax.nn.softplus(-outcome.lost), lost)
        return state_loss + reward_loss + ending_loss.mean(0) + rare_loss

    def _judged(self, models: LocalModels, scales: Scales, windows: Windows) -> tuple[Outcome, Float[Array, "S n"]]:
        """What the models say of the windows' first steps, and the normalised rewards that followed."""
        action, next_obs = windows.action[:, 0], windows.next_obs[:, 0]
        outcome = models.judge(scales, models.inputs(scales, windows.obs, action), next_obs)
        return outcome, (symlog(windows.reward[:, 0]) - scales.reward_mean) / scales.reward_spread

    # Imagine ----------------------------------------------------------------------------------------------------------

    def rollout(self, key: PRNGKeyArray, state: LearnedState, actors: Actors) -> Trajectory:
        """Branched rollouts: T steps in every row, a new branch wherever the last one has come to its end.

        A branch ends for all agents of its row after as many steps as the models are trusted for, or as soon as one
        agent's models predict its ending; for the others that is a truncation.
        """
        options, members = self.options, self.options.ensemble
        trusted = jnp.maximum(self.trusted(state), 1)
        shape = (options.branches // members, members)
        devices = mesh(self.system.spec.n)  # each imagines its share of the branches
        state, actors = everywhere(state, devices), everywhere(actors, devices)

        def branch_off(key: PRNGKeyArray) -> Float[Array, "R m n d"]:
            return spread(state.memory.states(key, shape), devices, axis=0)

        def imagine(moment: tuple, key: PRNGKeyArray) -> tuple[tuple, Trajectory]:
            obs, age = moment
            action_key, branch_key = jax.random.split(key)
            _, distribution = actors((), obs)
            action = distribution.sample(action_key)
            foreseen = eqx.filter_vmap(self._foresee, in_axes=(eqx.if_array(0), None, 1, 1), out_axes=1)(
                state.models, state.scales, obs, action
            )
            next_obs, reward, terminated, lost = spread(foreseen, devices, axis=0)
            if options.model_reward == "known":
                reward = jax.vmap(jax.vmap(known_reward(self.system)))(obs, action, next_obs)
            truncated = (age + 1 >= trusted) | jnp.any(terminated | lost, -1)  # R, m
            step = Trajectory(
                obs=obs,
                action=action,
                log_prob=distribution.log_prob(action),
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                lost=lost,
                next_obs=next_obs,
                carry=(),
            )
            obs = jnp.where(truncated[..., None, None], branch_off(branch_key), next_obs)
            return (obs, jnp.where(truncated, 0, age + 1)), step

        start_key, key = jax.random.split(key)
        start = (branch_off(start_key), jnp.zeros(shape, int))
        imagined = jax.lax.scan(imagine, start, jax.random.split(key, options.branch_length))[1]
        return jax.tree.map(lambda leaf: leaf.reshape(len(leaf), options.branches, *leaf.shape[3:]), imagined)

    def _foresee(
        self, models: LocalModels, scales: Scales, obs: Float[Array, "B n d"], action: Array
    ) -> tuple[Array, Array, Array, Array]:
        inputs = models.inputs(scales, obs, action)
        next_obs = models.next_obs(scales, obs, inputs)
        if self.options.stay_in_range:
            next_obs = jnp.clip(next_obs, scales.low, scales.high)
        outcome = models.judge(scales, inputs, next_obs)
        terminated, lost = outcome.endings(scales)
        reward = jnp.where(terminated | lost, outcome.final_reward, outcome.reward)
        reward = symexp(scales.reward_mean + scales.reward_spread * reward)
        if self.options.stay_in_range:
            reward = jnp.clip(reward, scales.least_reward, scales.most_reward)
        return next_obs, reward, terminated, lost


ADAM = optax.scale_by_adam()


def known_reward(system: System) -> Callable[[Array, Array, Array], Array]:
    """The system's own reward as a function of observation, action and next observation."""
    if not hasattr(system, "known_reward"):
        raise InputError(
            f"{type(system).__name__} has no known_reward(obs, action, next_obs): use model_reward learned instead."
        )
    return system.known_reward


def measured(memory: Memory, share: bool) -> Scales:
    """Scales of the experience that may be trained on; with ``share`` the same ones for all agents."""
    weight = memory.training[:, None] * jnp.ones((1, memory.steps))

    def alike(per_agent: Array) -> Array:
        return jnp.broadcast_to(per_agent.mean(0), per_agent.shape) if share else per_agent

    def mean_and_spread(x: Array) -> tuple[Array, Array]:
        shaped = leading(weight.reshape(-1), x.reshape(-1, *x.shape[2:]))
        x = x.reshape(-1, *x.shape[2:])
        total = jnp.maximum(shaped.sum(), 1.0)
        mean = alike((shaped * x).sum(0) / total)
        return mean, jnp.sqrt(alike((shaped * jnp.square(x - mean)).sum(0) / total))

    moments = memory.moments
    obs_mean, obs_spread = mean_and_spread(moments.obs)
    change_mean, change_spread = mean_and_spread(moments.next_obs - moments.obs)
    reward_mean, reward_spread = mean_and_spread(symlog(moments.reward))
    there = (jnp.arange(memory.capacity) < memory.filled)[:, None]

    def seen_range(x: Array) -> tuple[Array, Array]:
        known = leading(there, x)
        return jnp.where(known, x, jnp.inf).min((0, 1)), jnp.where(known, x, -jnp.inf).max((0, 1))

    low, high = seen_range(jnp.concatenate([moments.obs, moments.next_obs], 1))
    least_reward, most_reward = seen_range(moments.reward)
    return Scales(
        obs_mean,
        jnp.where(obs_spread < SMALLEST_SPREAD, 1.0, obs_spread),
        change_mean,
        jnp.where(change_spread < SMALLEST_SPREAD, 0.0, change_spread),
        reward_mean,
        jnp.where(reward_spread < SMALLEST_SPREAD, 1.0, reward_spread),
        low,
        high,
        least_reward,
        most_reward,
        *map(alike, memory.ending_rates),
    )


def _average(x: Float[Array, "S n"], weight: Float[Array, "S n"]) -> Float[Array, " n"]:
    """Over S; 0 where nothing has weight."""
    return (weight * x).sum(0) / jnp.maximum(weight.sum(0), 1.0)
