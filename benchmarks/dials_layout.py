"""How should many small recurrent agents learn on a CPU: one after the other or side by side, on batches how large?

Times the update of agents with memory (networks of the published size) on one batch of experience: agents in turn, as
khop does it on a CPU, against all in one batched program, for the minibatch and the number of environments per agent.
Prints a table.

    .venv/bin/python benchmarks/dials_layout.py [--agents 25]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from rich.console import Console
from rich.table import Table

import khop
from khop.experiment import configured
from khop.learners import recurrent
from khop.learners.recurrent import RecurrentPPO
from khop.methods import METHODS
from khop.training import Training

# Environments per agent and samples in a minibatch, with 128 steps in each environment.
BATCHES = ((1, 32), (1, 128), (4, 128), (16, 128), (16, 512), (16, 2048), (32, 512))


def side_by_side(function: Callable, arguments: PyTree) -> PyTree:
    """``function`` of every agent's slice of the arguments, as one batched program."""
    return jax.vmap(function)(arguments)


LAYOUTS: dict[str, Callable] = {"in turn": recurrent.each_agent, "side by side": side_by_side}


def rate(side: int, environments: int, minibatch: int, layout: str, repetitions: int = 5) -> float:
    """Agent-steps per second of one update, compilation aside."""
    system = khop.make("warehouse", side=side)
    minibatches = environments * 128 // minibatch
    method = configured(METHODS["ippo-memory"], environments=environments, minibatches=minibatches)
    training = Training(system, method, 10**9)
    state = training.init(jax.random.PRNGKey(0))
    _, trajectory = eqx.filter_jit(training.collect)(state)
    arguments = (jax.random.key(0), state.learner, trajectory, jnp.ones(()))
    update = eqx.filter_jit(RecurrentPPO(method.learner).update)
    with mock.patch.object(recurrent, "each_agent", LAYOUTS[layout]):
        jax.block_until_ready(jax.tree.leaves(update(*arguments)))
    seconds = []
    for _ in range(repetitions):
        started = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(update(*arguments)))
        seconds.append(time.perf_counter() - started)
    return math.prod((environments, 128, side**2)) / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=25, choices=[4, 25, 100])
    side = math.isqrt(parser.parse_args().agents)
    table = Table("environments per agent", "minibatch", *(f"{name} [agent-steps/s]" for name in LAYOUTS))
    for environments, minibatch in BATCHES:
        rates = [f"{rate(side, environments, minibatch, layout):,.0f}" for layout in LAYOUTS]
        table.add_row(str(environments), str(minibatch), *rates)
    Console().print(table)


if __name__ == "__main__":
    main()
