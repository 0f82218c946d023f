"""How far influence travels in a system, measured: how it fades with distance, and what agents miss beyond κ hops.

Both estimators are khop's own; they drive any system through reset, step and observations. Shape letters: n agents,
d observation size, T steps, E episodes, D distances.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from khop.errors import InputError
from khop.evaluation import episode_keys
from khop.system import Controller, System
from khop.topology import Kappa, Topology

PARALLEL_EPISODES = 16  # simulated side by side, each with n + 1 copies of the system


@dataclass(frozen=True, eq=False)
class Decay:
    """Mean influence at every distance, and c · ρ^distance as the least squares of its logarithm have it.

    Attributes:
        distance: hops, (D,).
        response: mean over the pairs of agents at that distance, (D,), in the unit of the observations.
        scale: c.
        rate: ρ, by which influence shrinks per hop.
    """

    distance: Int[np.ndarray, " D"]
    response: Float[np.ndarray, " D"]
    scale: float
    rate: float

    @property
    def fitted(self) -> Float[np.ndarray, " D"]:
        """c · ρ^distance."""
        return self.scale * self.rate**self.distance


def influence(
    system: System,
    controller: Controller,
    episodes: int = 64,
    steps: int | None = None,
    seed: int = 0,
    change: float = 0.01,
) -> Float[np.ndarray, "n n"]:
    """What agents notice of a small change of one other agent; entry (j, i): of agent j's, by agent i.

    Every episode is played n + 1 times with the same start, later randomness of the system and random numbers of the
    controller, which acts in closed loop; in the j-th, all real numbers of agent j's initial state are 1 % larger.
    Agent i's response is the largest change of any entry of its observation at any step (until the undisturbed episode
    is over or lost), averaged over episodes.

    Args:
        system: what to measure. A part of its state is taken to belong to agents if its leading axis has length n.
        controller: who drives it.
        episodes: to average over.
        steps: length of an episode; by default the system's horizon.
        seed: which episodes.
        change: of the initial state, as a share of it.
    """
    steps = _counted(system, episodes, steps)
    if not 0 < change < float("inf"):
        raise InputError(f"The change must be a finite share above 0, not {change}.")
    return np.asarray(_influence(system, controller, episode_keys(seed, episodes), steps, change), float)


def decay(response: Float[np.ndarray, "n n"], topology: Topology) -> Decay:
    """Responses by distance, and their exponential fit.

    Args:
        response: as `influence` gives it.
        topology: whose N_i are those that agent i's actions reach (``System.feedback``); other pairs are left out.

    Raises:
        InputError: if fewer than two distances show any response, which no curve can be fitted to.
    """
    reached = topology.neighbourhood(topology.n - 1)
    source = np.broadcast_to(np.arange(topology.n)[:, None], reached.index.shape)[reached.mask]
    hops, values = reached.distance[reached.mask], response[source, reached.index[reached.mask]]
    mean = np.bincount(hops, values) / np.bincount(hops)
    distance = np.flatnonzero(mean > 0)  # what never arrives has no logarithm
    if len(distance) < 2:
        raise InputError("Influence was seen at fewer than two distances: measure longer episodes or a larger system.")
    slope, intercept = np.polyfit(distance, np.log(mean[distance]), 1)
    return Decay(distance, mean[distance], float(np.exp(intercept)), float(np.exp(slope)))


def outside_effect(
    system: System,
    controller: Controller,
    kappa: Kappa,
    episodes: int = 16,
    steps: int | None = None,
    seed: int = 0,
) -> Float[np.ndarray, "S n"]:
    """How much agents' next observations depend on what lies beyond their κ hops.

    Two independent episodes A and B are played side by side. At every step and for every agent i, a third state is put
    together: agents within N_i^κ as in A, all others as in B, and what belongs to no agent as in A. It is stepped with
    the same randomness as A, by the actions of A within N_i^κ and of B outside. The effect is the largest difference
    between any entry of agent i's next observation and that of A: no more than rounding where N_i^κ holds all that
    matters.

    κ counts hops of states, and an observation may itself see a hop further.

    Args:
        system, controller, steps, seed: as for `influence`, also what belongs to agents.
        kappa: hops within which states and actions agree.
        episodes: pairs of episodes.

    Returns:
        One row per step that was played, S ≤ episodes · steps: a step in an ended or lost episode does not count.
    """
    steps = _counted(system, episodes, steps)
    members = system.topology.neighbourhood(kappa)
    agree = np.zeros((system.spec.n, system.spec.n), bool)
    agree[np.nonzero(members.mask)[0], members.index[members.mask]] = True
    keys = episode_keys(seed, episodes)
    effect, counts = _outside_effect(system, controller, jnp.asarray(agree), keys, steps)
    return np.asarray(effect, float)[np.asarray(counts)]


def dependence(effect: Float[np.ndarray, "S n"], tolerance: int | float) -> Float[np.ndarray, " n"]:
    """ξ̂_i: how often what lies outside N_i^κ changes agent i's next observation by more than a tolerance.

    With common random numbers this bounds the total variation between the two distributions of that observation, once
    differences up to the tolerance are called equal; without a tolerance it is 0 or 1 at each step of deterministic
    dynamics, however small the effect. The ξ of the theory is another: a supremum over all states where this is a mean
    over those that were visited, and joint where this is one agent's. With suprema it would lie between half the
    largest ξ_i, as one local model cannot match two different truths, and, if agents' noise is independent, their sum.

    Args:
        effect: as `outside_effect` gives it.
        tolerance: in the unit of the observations.
    """
    if not tolerance >= 0:
        raise InputError(f"The tolerance must be at least 0, not {tolerance}.")
    return np.mean(effect > tolerance, axis=0)


def _counted(system: System, episodes: int, steps: int | None) -> int:
    steps = system.spec.horizon if steps is None else steps
    if episodes < 1 or not 1 <= steps <= system.spec.horizon:
        raise InputError(
            f"Measuring influence takes at least 1 episode of 1 to {system.spec.horizon} steps, "
            f"not {episodes} of {steps}."
        )
    return steps


@eqx.filter_jit
def _influence(
    system: System, controller: Controller, keys: Key[Array, " E"], steps: int, change: float
) -> Float[Array, "n n"]:
    n = system.spec.n
    factor = 1 + change * jnp.eye(n + 1, n)  # copy j: agent j is changed; in the last copy, nobody

    def changed(copies: Array) -> Array:
        real = _per_agent(copies[0], n) and jnp.issubdtype(copies.dtype, jnp.floating)
        return copies * _like(factor, copies[0]) if real else copies

    def episode(key: PRNGKeyArray) -> Float[Array, "n n"]:
        reset_key, run_key = jax.random.split(key)
        start = (controller.initial(), *system.reset(reset_key))
        carry, state, obs = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (n + 1, *jnp.shape(leaf))), start)
        state = jax.tree.map(changed, state)

        def advance(moment: tuple, key: PRNGKeyArray) -> tuple[tuple, None]:
            copies, running, response = moment
            copies, _, over = jax.vmap(partial(_step, system, controller), (None, None, 0))(*_two(key), copies)
            obs = copies[2]
            noticed = jnp.abs(obs[:n] - obs[n]).max(-1)
            response = jnp.where(running, jnp.maximum(response, noticed), response)
            return (copies, running & ~over[n], response), None

        begin = ((carry, state, obs), jnp.asarray(True), jnp.zeros((n, n)))
        return jax.lax.scan(advance, begin, jax.random.split(run_key, steps))[0][-1]

    return jax.lax.map(episode, keys, batch_size=min(PARALLEL_EPISODES, len(keys))).mean(0)


@eqx.filter_jit
def _outside_effect(
    system: System, controller: Controller, agree: Array, keys: Key[Array, " E"], steps: int
) -> tuple[Float[Array, "E T n"], Array]:
    n = system.spec.n

    def spliced(agree: Array, inside: PyTree, outside: PyTree) -> PyTree:
        """Agents that agree as in the first, the others as in the second."""

        def splice(a: Array, b: Array) -> Array:
            return jnp.where(_like(agree, a), a, b) if _per_agent(a, n) else a

        return jax.tree.map(splice, inside, outside)

    def episode(key: PRNGKeyArray) -> tuple[Float[Array, "T n"], Array]:
        reset_key, run_key = jax.random.split(key)
        state, obs = jax.vmap(system.reset)(jax.random.split(reset_key))
        carry = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * 2), controller.initial())

        def advance(moment: tuple, key: PRNGKeyArray) -> tuple[tuple, tuple]:
            pair, running = moment
            act_key, step_key = _two(key)
            play = jax.vmap(partial(_step, system, controller), (0, None, 0))
            following, action, over = play(jax.random.split(act_key), step_key, pair)
            a, b = (jax.tree.map(lambda leaf, of=of: leaf[of], (pair[1], action)) for of in range(2))
            mixed = jax.vmap(lambda agree: system.step(step_key, *spliced(agree, a, b)).obs)(agree)
            effect = jnp.abs(mixed[jnp.arange(n), jnp.arange(n)] - following[2][0]).max(-1)
            return (following, running & ~over.any()), (effect, running)

        return jax.lax.scan(advance, ((carry, state, obs), jnp.asarray(True)), jax.random.split(run_key, steps))[1]

    return jax.lax.map(episode, keys, batch_size=min(PARALLEL_EPISODES, len(keys)))


def _step(
    system: System, controller: Controller, act_key: PRNGKeyArray, step_key: PRNGKeyArray, moment: tuple
) -> tuple[tuple, Array, Array]:
    """The next (memory of the controller, state, observations), the action, and whether the episode is over or lost."""
    carry, state, obs = moment
    carry, action = controller(act_key, carry, state, obs)
    step = system.step(step_key, state, action)
    return (carry, step.state, step.obs), action, step.done | step.lost


def _two(key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    act_key, step_key = jax.random.split(key)
    return act_key, step_key


def _per_agent(leaf: Array, n: int) -> bool:
    return jnp.shape(leaf)[:1] == (n,)


def _like(per_agent: Array, values: Array) -> Array:
    """One number per agent, (..., n), with the trailing axes of values per agent, (n, ...)."""
    return per_agent.reshape(per_agent.shape + (1,) * (jnp.ndim(values) - 1))
