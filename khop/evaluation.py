"""Episodes on the real system: never on a learned world, never on scaled rewards."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray, PyTree

from khop.agents.policies import Actors
from khop.agents.recurrent import RecurrentActors
from khop.hosts.episodes import Driven
from khop.hosts.episodes import play as play_hosted
from khop.hosts.system import HostedSystem
from khop.system import Controller, Episode, RandomController, System

PARALLEL_EPISODES = 64  # simulated side by side; bounds memory, not the number of episodes


class Learned(eqx.Module):
    """Trained actors as a controller, greedy or sampling."""

    actors: Actors | RecurrentActors
    greedy: Bool[Array, ""]

    def initial(self) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[0], self.actors.initial(1))

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: PyTree, obs: Array) -> tuple[PyTree, Array]:
        carry, distribution = self.actors(carry, obs)
        return carry, jnp.where(self.greedy, distribution.mode(), distribution.sample(key))


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation and number of episodes of one metric."""

    mean: float
    std: float
    n: int

    @classmethod
    def of(cls, values: Float[np.ndarray, "..."]) -> Summary:
        values = np.asarray(values, float).ravel()
        return cls(float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0, int(values.size))

    @classmethod
    def pooled(cls, parts: Sequence[Summary]) -> Summary:
        """The summary of the union of several groups of episodes."""
        n = sum(part.n for part in parts)
        mean = sum(part.n * part.mean for part in parts) / n
        squares = sum((part.n - 1) * part.std**2 + part.n * (part.mean - mean) ** 2 for part in parts)
        return cls(mean, (squares / (n - 1)) ** 0.5 if n > 1 else 0.0, n)


Table = dict[str, dict[str, Summary]]  # controller → metric → summary


def play(system: System, controller: Controller, key: PRNGKeyArray) -> Episode:
    """One episode, padded to the horizon."""
    reset_key, run_key = jax.random.split(key)
    state, obs = system.reset(reset_key)

    def act(moment: tuple, key: PRNGKeyArray) -> tuple[tuple, Episode]:
        carry, state, obs, running = moment
        action_key, step_key = jax.random.split(key)
        carry, action = controller(action_key, carry, state, obs)
        step = system.step(step_key, state, action)
        episode = Episode(obs, action, step.reward, step.info, running)
        return (carry, step.state, step.obs, running & ~step.done), episode

    start = (controller.initial(), state, obs, np.True_)
    return jax.lax.scan(act, start, jax.random.split(run_key, system.spec.horizon))[1]


def record(system: System, controller: Controller, key: PRNGKeyArray) -> Episode:
    """``play``, compiled; on a hosted system, in a worker."""
    if isinstance(system, HostedSystem):
        played = play_hosted(system, Driven(controller), controller.initial(), key[None], workers=1)
        return jax.tree.map(lambda leaf: leaf[:, 0], played.episode)
    return _compiled_play(system, controller, key)


def measure(system: System, controller: Controller, keys: Key[Array, " E"]) -> dict[str, Float[Array, " E"]]:
    """The system's metrics over E episodes, one per key, on what it keeps from training if it does."""
    system = system.held_out
    if isinstance(system, HostedSystem):
        return _measure_hosted(system, controller, keys)
    return _measure(system, controller, keys)


_compiled_play = eqx.filter_jit(play)


@eqx.filter_jit
def _measure(system: System, controller: Controller, keys: Key[Array, " E"]) -> dict[str, Float[Array, " E"]]:
    return jax.lax.map(
        lambda key: system.metrics(play(system, controller, key)), keys, batch_size=min(PARALLEL_EPISODES, len(keys))
    )


def _measure_hosted(
    system: HostedSystem, controller: Controller, keys: Key[Array, " E"]
) -> dict[str, Float[Array, " E"]]:
    parts = []
    for first in range(0, len(keys), PARALLEL_EPISODES):  # bounds memory, as above
        some = keys[first : first + PARALLEL_EPISODES]
        played = play_hosted(system, Driven(controller), controller.initial(), some, workers=os.cpu_count() or 1)
        parts.append(jax.vmap(system.metrics, in_axes=1)(played.episode))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def measure_seeds(
    system: System, actors: Actors | RecurrentActors, greedy: Bool[Array, ""], keys: Key[Array, " E"]
) -> dict[str, Float[Array, "seeds E"]]:
    """Metrics of the agents of every seed, stacked in ``actors``, over the same episodes."""
    if isinstance(system, HostedSystem):
        arrays, rest = eqx.partition(actors, eqx.is_array)
        count = len(jax.tree.leaves(arrays)[0])
        seeds = [eqx.combine(jax.tree.map(lambda leaf, k=k: leaf[k], arrays), rest) for k in range(count)]
        each = [measure(system, Learned(one, greedy), keys) for one in seeds]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    return _measure_seeds(system.held_out, actors, greedy, keys)


@eqx.filter_jit
def _measure_seeds(
    system: System, actors: Actors | RecurrentActors, greedy: Array, keys: Array
) -> dict[str, Float[Array, "seeds E"]]:
    return eqx.filter_vmap(lambda actors: _measure(system, Learned(actors, greedy), keys))(actors)


def controller(system: System, name: str) -> Controller:
    """``random`` or one of the system's own classical controllers."""
    return RandomController(system.spec.action) if name == "random" else system.baseline(name)


def episode_keys(seed: int, episodes: int) -> Key[Array, " E"]:
    """The keys of E episodes; the same ones for every controller, so that all face the same starts."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 0x6B686F70), episodes)


def evaluate_baselines(system: System, names: list[str], episodes: int, seed: int = 0) -> Table:
    """Every named controller over the same episodes."""
    controllers = {name: controller(system, name) for name in names}
    keys = episode_keys(seed, episodes)
    return {name: summarise(measure(system, chosen, keys)) for name, chosen in controllers.items()}


def summarise(values: dict[str, Float[Array, "..."]]) -> dict[str, Summary]:
    """Summaries over all episodes."""
    return {metric: Summary.of(np.asarray(per_episode)) for metric, per_episode in values.items()}
