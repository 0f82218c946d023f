"""The influence world: each agent practises in a simulator of its own region (DIALS, Suau et al. 2022).

What the rest of the network does to a region comes from a learned predictor of its influence sources, given the
agent's own history. Every F steps the agents act together in the whole system for some episodes, from which the
predictors learn; in between no agent needs any other.

Differences from the published implementation: every agent in every environment has random numbers of its own, the
time limit truncates, and predictors learn with ten times the step size in a fifth of the epochs, to the same error.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from khop.agents.distribution import IMPOSSIBLE
from khop.agents.policies import Actors
from khop.agents.recurrent import RecurrentActors, forgotten
from khop.agents.stacked import mlp
from khop.errors import InputError
from khop.sharding import each_agent, mesh, spread
from khop.system import Regions, System
from khop.trajectory import Trajectory

HELD_OUT = 10  # one episode in so many, the last ones
ADAM = optax.scale_by_adam()


@dataclasses.dataclass(frozen=True)
class Influence:
    """How influence is predicted, and how often predictors are refreshed."""

    predictor: Literal["gru", "mlp", "marginal", "untrained"] = "gru"
    """With memory, without, constant class frequencies, or a GRU that is never trained (a control experiment)."""
    predictor_hidden: int = 64
    """Width of the predictors' memory or hidden layer."""
    predictor_learning_rate: float = 1e-3
    """Adam's step size for the predictors."""
    predictor_epochs: int = 60
    """Passes over the episodes at each refresh."""
    predictor_batch: int = 32
    """Episodes in a gradient step."""
    refresh: int = 4_000_000
    """F, steps of practice per agent between two refreshes; the first is at the start."""
    collected: int = 100
    """Episodes of the whole system collected for each refresh; older ones are forgotten."""

    def __post_init__(self) -> None:
        for name in ("predictor_hidden", "predictor_epochs", "predictor_batch", "refresh"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.collected < 2:
            raise InputError(f"collected must be at least 2 (one episode is held out), not {self.collected}.")
        if not self.predictor_learning_rate > 0:
            raise InputError(f"predictor_learning_rate must be above 0, not {self.predictor_learning_rate:g}.")


class Predictor(eqx.Module):
    """One agent's log-probabilities (M, C) of its M influence sources, of up to C classes each, given its history.

    ``constant``, log-frequencies, is all there is to a marginal predictor, and of no meaning in the others.
    """

    cell: eqx.nn.GRUCell | None
    head: eqx.nn.Sequential | None
    constant: Float[Array, "M C"]
    categories: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, kind: str, inputs: int, hidden: int, categories: tuple[int, ...], *, key: PRNGKeyArray):
        cell_key, head_key = jax.random.split(key)
        shape = (len(categories), max(categories))
        learned = kind != "marginal"
        self.cell = eqx.nn.GRUCell(inputs, hidden, key=cell_key) if kind in ("gru", "untrained") else None
        features, layers = (hidden, ()) if self.cell is not None else (inputs, (hidden,))
        outputs = shape[0] * shape[1]
        self.head = mlp(features, layers, outputs, 1.0, jax.nn.relu, key=head_key) if learned else None
        self.constant = jnp.zeros(shape)
        self.categories = categories

    @property
    def memory(self) -> int:
        """Size of the memory."""
        return 0 if self.cell is None else self.cell.hidden_size

    def __call__(
        self, memory: Float[Array, " h"], features: Float[Array, " f"]
    ) -> tuple[Float[Array, " h"], Float[Array, "M C"]]:
        """The next memory and the log-probabilities."""
        if self.cell is not None:
            features = memory = self.cell(features, memory)
        logits = self.constant if self.head is None else self.head(features).reshape(self.constant.shape)
        there = np.arange(logits.shape[1]) < np.array(self.categories)[:, None]
        return memory, jax.nn.log_softmax(jnp.where(there, logits, IMPOSSIBLE))


class Histories(eqx.Module):
    """E episodes of the whole system as the predictors see them; in front n, or nothing for a single agent."""

    features: Float[Array, "*n E T f"]
    sources: Int[Array, "*n E T M"]
    valid: Bool[Array, "*n E T"]


class InfluenceState(eqx.Module):
    """Where all local simulators stand, and what is known of influence."""

    predictors: Predictor  # leaves lead with n
    regions: PyTree  # leaves lead with B, n
    history: Float[Array, "B n h"]  # the predictors' memory
    obs: Float[Array, "B n d"]
    carry: PyTree  # the actors' memory
    clock: Int[Array, " B"]  # steps of the present episodes
    steps: Int[Array, ""]  # of practice, per agent
    real_steps: Int[Array, ""]  # of the whole system, for the predictors
    errors: dict[str, Float[Array, ""]]  # of the last refresh


class InfluenceWorld(eqx.Module):
    """``environments`` local simulators for every agent, all in one array program."""

    system: System
    environments: int
    options: Influence = eqx.field(static=True)

    @property
    def regions(self) -> Regions:
        """The system's own."""
        return regions_of(self.system)

    def init(self, key: PRNGKeyArray, actors: Actors | RecurrentActors) -> InfluenceState:
        """Fresh simulators, whose first episodes are cut at evenly spread lengths, and untrained predictors."""
        predictor_key, reset_key = jax.random.split(key)
        n, B, horizon = self.system.spec.n, self.environments, self.system.spec.horizon
        regions, obs = self._reset(reset_key)
        features = self.regions.features(obs).shape[-1]
        predictors = eqx.filter_vmap(
            lambda key: Predictor(
                self.options.predictor, features, self.options.predictor_hidden, self.regions.categories, key=key
            )
        )(jax.random.split(predictor_key, n))
        zero = jnp.zeros((), int)
        errors = dict.fromkeys(("influence_loss_before", "influence_loss", "influence_loss_marginal"), jnp.zeros(()))
        clock = horizon - jnp.ceil(horizon * jnp.arange(1, B + 1) / B).astype(int)
        history = jnp.zeros((B, n, predictors.memory))
        return InfluenceState(predictors, regions, history, obs, actors.initial(B), clock, zero, zero, errors)

    # Practise ---------------------------------------------------------------------------------------------------------

    def rollout(
        self, key: PRNGKeyArray, state: InfluenceState, actors: Actors | RecurrentActors, steps: int
    ) -> tuple[InfluenceState, Trajectory]:
        """Let every agent act for some steps in each of its local simulators."""
        horizon, n = self.system.spec.horizon, self.system.spec.n
        agents = jnp.broadcast_to(jnp.arange(n), state.obs.shape[:2])

        def act(state: InfluenceState, key: PRNGKeyArray) -> tuple[InfluenceState, Trajectory]:
            action_key, source_key, step_key, reset_key = jax.random.split(key, 4)
            carry, distribution = actors(state.carry, state.obs)
            action = distribution.sample(action_key)
            history, log_probs = predicted(state.predictors, state.history, self.regions.features(state.obs))
            sources = drawn(source_key, log_probs, self.regions.categories)
            keys = jax.random.split(step_key, agents.shape)
            step = jax.vmap(jax.vmap(self.regions.step))(keys, agents, state.regions, sources, action)
            truncated = state.clock + 1 >= horizon
            moment = Trajectory(
                obs=state.obs,
                action=action,
                log_prob=distribution.log_prob(action),
                reward=step.reward,
                terminated=step.terminated,
                truncated=truncated,
                lost=jnp.zeros_like(step.terminated),
                next_obs=step.obs,
                carry=state.carry,
            )
            over = step.terminated | truncated[:, None]
            regions, obs = jax.tree.map(
                lambda fresh, old: jnp.where(over.reshape(*over.shape, *[1] * (old.ndim - 2)), fresh, old),
                self._reset(reset_key),
                (step.state, step.obs),
            )
            following = InfluenceState(
                state.predictors,
                regions,
                forgotten(history, over),
                obs,
                forgotten(carry, over),
                jnp.where(truncated, 0, state.clock + 1),
                state.steps + self.environments,
                state.real_steps,
                state.errors,
            )
            return following, moment

        devices = mesh(n)
        actors = eqx.tree_at(lambda a: a.networks, actors, spread(actors.networks, devices, axis=0))
        simulators = {
            name: spread(getattr(state, name), devices, axis=1) for name in ("regions", "history", "obs", "carry")
        }
        state = dataclasses.replace(state, predictors=spread(state.predictors, devices, axis=0), **simulators)
        return jax.lax.scan(act, state, jax.random.split(key, steps))

    def _reset(self, key: PRNGKeyArray) -> tuple[PyTree, Float[Array, "B n d"]]:
        shape = (self.environments, self.system.spec.n)
        agents = jnp.broadcast_to(jnp.arange(shape[1]), shape)
        return jax.vmap(jax.vmap(self.regions.reset))(jax.random.split(key, shape), agents)

    # Fit --------------------------------------------------------------------------------------------------------------

    def fit(
        self, key: PRNGKeyArray, state: InfluenceState, actors: Actors | RecurrentActors, steps: int
    ) -> InfluenceState:
        """Refresh the predictors if it is time.

        Args:
            key: for episodes and minibatches.
            state: as it is before ``steps`` more steps of practice in each simulator.
            actors: who acts in the whole system.
            steps: what the next rollout takes.
        """
        if self.options.predictor != "untrained":
            due = state.steps % self.options.refresh < steps * self.environments
            dynamic, static = eqx.partition(state, eqx.is_array)

            def refresh(dynamic: InfluenceState) -> InfluenceState:
                return eqx.filter(self._refreshed(key, eqx.combine(dynamic, static), actors), eqx.is_array)

            state = eqx.combine(jax.lax.cond(due, refresh, lambda dynamic: dynamic, dynamic), static)
        return state

    def log(self, state: InfluenceState) -> dict[str, Array]:
        """Held-out cross-entropies of the last refresh, and what the predictors have cost in real steps so far."""
        return state.errors | {"real_steps": state.real_steps.astype(float)}

    def _refreshed(self, key: PRNGKeyArray, state: InfluenceState, actors: Actors | RecurrentActors) -> InfluenceState:
        collect_key, learn_key = jax.random.split(key)
        histories = self.collect(collect_key, actors)
        dynamic, static = eqx.partition(state.predictors, eqx.is_array)

        def one_agent(arguments: tuple) -> tuple[Predictor, dict[str, Array]]:
            dynamic, histories = arguments
            held_out = max(self.options.collected // HELD_OUT, 1)
            seen = jax.tree.map(lambda leaf: leaf[:-held_out], histories)
            unseen = jax.tree.map(lambda leaf: leaf[-held_out:], histories)
            before = cross_entropy(eqx.combine(dynamic, static), unseen)
            constant = frequencies(seen, self.regions.categories)
            marginal = eqx.tree_at(
                lambda p: (p.cell, p.head, p.constant),
                eqx.combine(dynamic, static),
                (None, None, constant),
                is_leaf=lambda leaf: leaf is None,
            )
            if self.options.predictor == "marginal":
                dynamic = eqx.filter(marginal, eqx.is_array)
            else:
                dynamic = self._learned(learn_key, dynamic, static, seen)
            errors = {
                "influence_loss_before": before,
                "influence_loss": cross_entropy(eqx.combine(dynamic, static), unseen),
                "influence_loss_marginal": cross_entropy(marginal, unseen),
            }
            return dynamic, errors

        dynamic, errors = each_agent(one_agent, (dynamic, histories))
        errors = {name: value.mean() for name, value in errors.items()}
        real_steps = state.real_steps + self.options.collected * self.system.spec.horizon
        return eqx.tree_at(
            lambda s: (s.predictors, s.errors, s.real_steps), state, (eqx.combine(dynamic, static), errors, real_steps)
        )

    def collect(self, key: PRNGKeyArray, actors: Actors | RecurrentActors) -> Histories:
        """Whole episodes of the real system under the agents' present policies, sampled."""
        episodes = self.options.collected
        reset_key, run_key = jax.random.split(key)
        start = jax.vmap(self.system.reset)(jax.random.split(reset_key, episodes))

        def act(moment: tuple, key: PRNGKeyArray) -> tuple[tuple, tuple]:
            state, obs, carry, running = moment
            action_key, step_key = jax.random.split(key)
            carry, distribution = actors(carry, obs)
            action = distribution.sample(action_key)
            step = jax.vmap(self.system.step)(jax.random.split(step_key, episodes), state, action)
            sources = jax.vmap(self.regions.sources)(state, action, step.state)
            record = (self.regions.features(obs), sources, jnp.broadcast_to(running[:, None], sources.shape[:2]))
            return (step.state, step.obs, carry, running & ~jax.vmap(lambda step: step.done)(step)), record

        moment = (*start, actors.initial(episodes), jnp.ones(episodes, bool))
        _, record = jax.lax.scan(act, moment, jax.random.split(run_key, self.system.spec.horizon))
        return Histories(*(jnp.moveaxis(x, (2, 1, 0), (0, 1, 2)) for x in record))

    def _learned(self, key: PRNGKeyArray, dynamic: Predictor, static: Predictor, histories: Histories) -> Predictor:
        """One agent's predictor after some epochs of Adam, which starts afresh."""
        episodes = len(histories.valid)
        size = min(self.options.predictor_batch, episodes)
        batches = episodes // size

        def epoch(carry: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
            order = jax.random.permutation(key, episodes)[: batches * size]
            return jax.lax.scan(step, carry, order.reshape(batches, size))

        def step(carry: tuple, rows: Array) -> tuple[tuple, None]:
            dynamic, moments = carry
            batch = jax.tree.map(lambda leaf: leaf[rows], histories)
            gradient = jax.grad(lambda dynamic: cross_entropy(eqx.combine(dynamic, static), batch))(dynamic)
            updates, moments = ADAM.update(gradient, moments)
            rate = self.options.predictor_learning_rate
            return (jax.tree.map(lambda x, update: x - rate * update, dynamic, updates), moments), None

        moments = ADAM.init(eqx.filter(dynamic, eqx.is_inexact_array))
        keys = jax.random.split(key, self.options.predictor_epochs)
        return jax.lax.scan(epoch, (dynamic, moments), keys)[0][0]


def regions_of(system: System) -> Regions:
    """The regions of a system; one that has none is refused."""
    if not hasattr(system, "regions"):
        raise InputError(
            f"{type(system).__name__} has no regions, which local simulators need: use ippo, or a system that has "
            "them, e.g. warehouse."
        )
    return system.regions


def predicted(
    predictors: Predictor, memory: Float[Array, "B n h"], features: Float[Array, "B n f"]
) -> tuple[Float[Array, "B n h"], Float[Array, "B n M C"]]:
    """All agents' next memories and log-probabilities."""
    rows = (jnp.moveaxis(memory, 1, 0), jnp.moveaxis(features, 1, 0))
    found = eqx.filter_vmap(lambda predictor, *rows: jax.vmap(predictor)(*rows))(predictors, *rows)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)


def drawn(
    key: PRNGKeyArray, log_probs: Float[Array, "*batch M C"], categories: tuple[int, ...]
) -> Int[Array, "*batch M"]:
    """A class for every source, each drawn by itself."""
    *shape, _ = log_probs.shape
    level = jax.random.uniform(key, (math.prod(shape),)).reshape(shape)  # draws with many axes compile slowly
    rank = (level[..., None] >= jnp.cumsum(jnp.exp(log_probs), -1)).sum(-1)
    return jnp.minimum(rank, jnp.asarray(categories) - 1)


def frequencies(histories: Histories, categories: tuple[int, ...]) -> Float[Array, "M C"]:
    """The logits of the class frequencies of one agent's histories; one imagined observation of every class."""
    counts = jax.nn.one_hot(histories.sources, max(categories)) * histories.valid[..., None, None]
    return jnp.log(counts.sum((0, 1)) + 1.0)


def cross_entropy(predictor: Predictor, histories: Histories) -> Float[Array, ""]:
    """One agent's mean negative log-likelihood of a source, in nats."""

    def step(memory: Array, features: Array) -> tuple[Array, Array]:
        return jax.vmap(predictor)(memory, features)

    start = jnp.zeros((len(histories.valid), predictor.memory))
    _, log_probs = jax.lax.scan(step, start, jnp.moveaxis(histories.features, 1, 0))
    chosen = jnp.take_along_axis(log_probs, jnp.moveaxis(histories.sources, 1, 0)[..., None], -1)
    weight = histories.valid.T[..., None, None]
    return -(chosen * weight).sum() / (weight.sum() * chosen.shape[-2])
