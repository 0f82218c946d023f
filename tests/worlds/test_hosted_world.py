"""Training where experience comes from worker processes."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from drifters import Drifters

import khop
from khop import system as registry
from khop.agents.policies import Actors
from khop.errors import InputError
from khop.experiment import Progress, Stopped
from khop.learners.ppo import PPO
from khop.methods import METHODS, configured
from khop.training import Training
from khop.worlds.hosted import HostedWorld

SMALL = {"hidden": (4,), "environments": 2, "rollout": 6, "minibatches": 2, "episodes": 2}
MODELS = {"model_hidden": (4,), "branches": 10, "branch_length": 3, "window": 2, "fit_rounds": 1, "rounds": 2}


@pytest.fixture(autouse=True)
def drifters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._REGISTRY, "drifters", Drifters)


def test_a_rollout_is_whole_episodes_in_a_row() -> None:
    system = Drifters()
    actors = Actors(system.spec, system.topology.neighbourhood(1), (4,), share=False, key=jax.random.key(0))
    world = HostedWorld(system, 3)
    state = world.init(jax.random.key(1), actors)
    state, found = world.rollout(jax.random.key(2), state, actors, 12)
    assert jax.tree.map(lambda leaf: (1, *leaf.shape[1:]), found) == jax.tree.map(
        lambda leaf: leaf.shape, world.like(jax.random.key(3), actors)
    )
    np.testing.assert_array_equal(found.obs[:, 1, 0, 1], [*range(6), *range(6)])
    np.testing.assert_array_equal(found.truncated[:, 2], 2 * [*5 * [False], True])
    going_on = ~np.asarray(found.truncated)[:-1]
    np.testing.assert_array_equal(found.obs[1:][going_on], found.next_obs[:-1][going_on])
    assert not np.any(found.terminated | found.lost)
    log_prob = actors((), found.obs)[1].log_prob(found.action)
    np.testing.assert_allclose(found.log_prob, log_prob, rtol=1e-5)
    np.testing.assert_allclose(state.metrics["return"], found.reward.sum(-1).mean(), rtol=1e-5)
    assert state.dropped == 0


@pytest.mark.parametrize(
    ("environments", "rollout", "expected"), [(16, 128, (16, 132)), (4, 4, (3, 6)), (2, 12, (2, 12)), (1, 1, (1, 6))]
)
def test_batches_are_made_of_whole_episodes(environments: int, rollout: int, expected: tuple[int, int]) -> None:
    """About as many steps as asked for; what already is whole stays."""
    chosen = dataclasses.replace(
        METHODS["dppo"], environments=environments, rollout=rollout, learner=PPO(minibatches=1)
    )
    resolved = chosen.resolved(Drifters().spec)
    assert (resolved.environments, resolved.rollout) == expected
    assert resolved.resolved(Drifters().spec) == resolved


def test_agents_learn_models_of_what_workers_play() -> None:
    method = configured(METHODS["mdpo"], hidden=(4,), environments=2, rollout=12, minibatches=2, **MODELS)
    training = Training(Drifters(), method, 48)
    state, metrics = training.compiled()(training.init_seeds([0]))
    assert metrics["dropped"] == 0
    assert metrics["model_gradient_steps"] > 0
    assert np.all([np.isfinite(value) for value in metrics.values()])
    assert state.learned.memory.added == 2
    np.testing.assert_array_equal(state.learned.memory.moments.obs[0, 0, :, 0, 1], [*range(6), *range(6)])


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path: Path) -> None:
    options = {**SMALL, "seeds": (0, 1), "steps": 48}
    whole = khop.train("drifters", "dppo", out=tmp_path / "whole", **options)

    def interrupt(progress: Progress) -> None:
        if progress.env_steps == 24:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped):
        khop.train("drifters", "dppo", out=tmp_path / "cut", watchers=[interrupt], **options)
    resumed = khop.resume(tmp_path / "cut")
    for seed in (0, 1):
        same = jax.tree.map(np.array_equal, *(eqx.filter(run.actors(seed), eqx.is_array) for run in (whole, resumed)))
        assert all(jax.tree.leaves(same))
    first, second = (jax.tree.leaves(eqx.filter(whole.actors(seed), eqx.is_array))[0] for seed in (0, 1))
    assert not np.array_equal(first, second)
    rows = whole.folder.read("metrics.csv")
    assert {"far", "dropped", "return"} <= rows[0].keys()
    assert {row["dropped"] for row in rows} == {"0"}
    assert whole.final_table()["learned"].keys() == Drifters().spec.metrics.keys()


def test_a_simulator_that_cannot_start_stops_training_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such road"):
        khop.train(Drifters(how="start"), "ippo", out=tmp_path / "run", **SMALL)
