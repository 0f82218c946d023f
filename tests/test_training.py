"""The loop: agents that learn, and seeds that do not disturb each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import Learned, episode_keys, evaluate_baselines, measure
from khop.methods import METHODS
from khop.run import METRICS
from khop.system import System
from khop.training import Training, TrainingState


def agents_of(state: TrainingState, index: int) -> Learned:
    """The sampling agents of one of several stacked seeds."""
    actors = jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, state.learner.actors)
    return Learned(actors, jnp.asarray(False))


def returns(system: System, agents: Learned) -> float:
    return float(measure(system, agents, episode_keys(3, 50))["return"].mean())


def test_decentralised_agents_learn_to_drive() -> None:
    """Three vehicles, 80k steps, two seeds: far above dice, which is where agents that learn nothing stay."""
    system = khop.make("platoon-catchup", vehicles=3, horizon=300)
    training = Training(system, METHODS["dppo"], 80_000)
    state = training.init_seeds([0, 1])
    dice = evaluate_baselines(system, ["random"], 50, seed=3)["random"]["return"].mean
    assert dice < -110
    assert returns(system, agents_of(state, 0)) < -90  # nothing learned yet
    iterate = training.compiled()
    while int(state.iteration[0]) * training.steps_per_iteration < training.steps:
        state, _ = iterate(state)
    for index in range(2):
        assert returns(system, agents_of(state, index)) > -70


@pytest.mark.parametrize("method", ["ippo", "dppo", "cppo"])
def test_a_seed_learns_the_same_alone_and_beside_others(method: str) -> None:
    """Up to the order in which a larger matrix product adds."""
    system = khop.make("platoon-slowdown", vehicles=3, horizon=20)
    small = dataclasses.replace(METHODS[method], hidden=(8,), environments=3, rollout=16)
    small = dataclasses.replace(small, learner=dataclasses.replace(small.learner, epochs=2, minibatches=2))
    training = Training(system, small, 480)
    iterate = training.compiled()
    (alone, _), (beside, _) = (iterate(training.init_seeds(seeds)) for seeds in ([5], [7, 5]))
    for single, both in zip(jax.tree.leaves(alone), jax.tree.leaves(beside), strict=True):
        if eqx.is_array(single):
            np.testing.assert_allclose(single[0], both[1], rtol=1e-3, atol=1e-4)


def test_a_run_tells_how_well_each_agents_models_predict(tmp_path: Path) -> None:
    platoon = khop.make("platoon-catchup", vehicles=3, horizon=30)
    small = {"rollout": 30, "hidden": (8,), "epochs": 1, "minibatches": 2}
    models = {"model_hidden": (8,), "ensemble": 2, "fit_rounds": 1, "branches": 4, "branch_length": 5, "rounds": 1}
    run = khop.train(platoon, "mdpo", steps=90, seeds=[3, 4], episodes=1, out=tmp_path / "run", **small, **models)
    rows = run.folder.read(METRICS)[-2:]
    for seed, row in zip((3, 4), rows, strict=True):
        error = run.model_error(seed)
        assert error.shape == (29, 3)
        logged = [float(row[f"model_error_{steps}"]) for steps in (1, 5, 25)]
        np.testing.assert_allclose(error[[0, 4, 24]].mean(1), logged, rtol=1e-5)
        assert float(row["model_error_worst_agent"]) == pytest.approx(error[0].max(), rel=1e-5)
    with pytest.raises(InputError, match="no seed 0"):
        run.model_error(0)
