"""How should many small feed-forward agents learn on a CPU: side by side or one after the other, on batches how large?

Times PPO's update of ``mdpo``'s agents on one imagined batch: all agents' networks in one batched matrix product a
layer, as khop does it, against a loop over agents that keeps one agent's weights in the cache, for several sizes of the
minibatch; and the same of a gradient step of the local models. Prints a table.

    .venv/bin/python benchmarks/ppo_layout.py [--vehicles 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array
from platoon_speed import seconds_of
from rich.console import Console
from rich.table import Table

import khop
from khop.agents.stacked import Stacked
from khop.experiment import configured
from khop.methods import METHODS
from khop.training import Training

PPO_MINIBATCHES = (8, 32, 128)  # of a batch of 6000 steps
MODEL_BATCHES = (32, 128, 512)  # windows in a gradient step of each of an agent's five models


def in_turn(self: Stacked, x: Array) -> Array:
    """``Stacked.agents_first`` as a loop over agents."""
    arrays, rest = eqx.partition(self.network, eqx.is_array)
    return jax.lax.map(lambda agent: jax.vmap(eqx.combine(agent[0], rest))(agent[1]), (arrays, x))


LAYOUTS: dict[str, Callable] = {"side by side": Stacked.agents_first, "in turn": in_turn}


def update_rate(vehicles: int, minibatches: int) -> float:
    """Agent-steps per second and pass of PPO's update on one imagined batch."""
    training = prepared(vehicles, minibatches=minibatches)
    state, world, learner = training.init(jax.random.PRNGKey(0)), training.learned, training.method.learner
    assert world is not None
    imagined = eqx.filter_jit(world.rollout)(jax.random.key(1), state.learned, state.learner.actors)
    took = seconds_of(eqx.filter_jit(learner.update), jax.random.key(2), state.learner, imagined, jnp.ones(()))
    return imagined.reward.size * learner.epochs / took


def fit_rate(vehicles: int, batch: int) -> float:
    """Windows per second, of all agents and models, while local models are fitted."""
    training = prepared(vehicles, model_batch=batch)
    state, world = training.init(jax.random.PRNGKey(0)), training.learned
    assert world is not None
    _, fresh = eqx.filter_jit(training.collect)(state)
    fit, arguments = eqx.filter_jit(world.fit), (jax.random.key(1), state.learned, fresh)
    steps = int(fit(*arguments)[1]["model_gradient_steps"])  # agents may stop early
    return steps * batch * world.options.ensemble * vehicles / seconds_of(fit, *arguments)


def prepared(vehicles: int, **options: int) -> Training:
    """``mdpo`` on a platoon of so many vehicles."""
    return Training(khop.make("platoon-catchup", vehicles=vehicles), configured(METHODS["mdpo"], **options), 10**9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vehicles", type=int, default=8)
    vehicles = parser.parse_args().vehicles
    table = Table("what", "minibatch", *LAYOUTS)
    for what, rate, sizes in (
        ("PPO, agent-steps/s", update_rate, PPO_MINIBATCHES),
        ("models, windows/s", fit_rate, MODEL_BATCHES),
    ):
        for size in sizes:
            found = []
            for layout in LAYOUTS.values():
                with mock.patch.object(Stacked, "agents_first", layout):
                    found.append(f"{rate(vehicles, size):,.0f}")
            table.add_row(what, str(6000 // size if rate is update_rate else size), *found)
    Console().print(table)


if __name__ == "__main__":
    main()
