"""The real world: what is handed to the learner where an episode is lost, and where it is cut."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import Queues

import khop
from khop.methods import METHODS, Method
from khop.system import step_and_reset
from khop.training import Training

PLATOON = khop.make("platoon-catchup", vehicles=3)


def test_a_crash_loses_the_episode_and_begins_a_new_one() -> None:
    state, _ = PLATOON.reset(jax.random.key(0))
    close = jnp.array([60.0, 1.05, 20.0])
    state = type(state)(close, jnp.array([5.0, 25.0, 15.0]), *jax.tree.leaves(state)[2:])
    fresh, obs, step = step_and_reset(PLATOON, jax.random.key(1), state, jnp.zeros(3, int))
    assert step.lost
    assert not step.truncated
    assert not step.terminated.any()
    np.testing.assert_array_equal(step.reward, -1000.0)
    assert fresh.time == 0
    assert fresh.headway[1] == 20
    assert not np.allclose(step.obs, obs)


def test_experience_tells_lost_steps_to_every_agent() -> None:
    """Random vehicles crash within the first 30 seconds; every such step is the last of its episode."""
    training = Training(khop.make("platoon-catchup"), METHODS["dppo"], 10_000)
    state = training.init(jax.random.PRNGKey(0))
    trajectory = jax.jit(lambda: training.real.rollout(jax.random.key(1), state.real, state.learner.actors, 300)[1])()
    lost = np.asarray(trajectory.lost)
    assert lost.any()
    np.testing.assert_array_equal(lost, lost[..., :1] & np.ones(8, bool))
    np.testing.assert_array_equal(np.asarray(trajectory.reward)[lost], -1000.0)
    assert trajectory.ended[lost].all()
    after = np.asarray(trajectory.obs)[1:][lost[:-1, :, 0]]
    np.testing.assert_allclose(after[:, :, 0], 0.0, atol=1e-6)  # at 15 m/s again


def test_vehicles_learn_from_those_behind_them() -> None:
    hood = khop.make("platoon-catchup", vehicles=5).feedback.neighbourhood(2)
    members = [set(row[mask].tolist()) for row, mask in zip(hood.index, hood.mask, strict=True)]
    assert members == [{0, 1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4}, {4}]


@pytest.mark.parametrize("shortest", [1.0, 0.5, 0.0])
def test_episodes_are_cut_at_random_shares_of_the_horizon(shortest: float) -> None:
    """Queues go on until their horizon, so every ending is that or a cut."""
    horizon, many = 40, 32
    training = Training(Queues(horizon=horizon), Method(environments=many, shortest_episode=shortest), 10_000)
    state = training.init(jax.random.PRNGKey(0))
    rollout = eqx.filter_jit(training.real.rollout)
    trajectory = rollout(jax.random.key(1), state.real, state.learner.actors, 10 * horizon)[1]
    endings = [np.flatnonzero(column) for column in np.asarray(trajectory.truncated).T]
    np.testing.assert_array_equal([1 + ends[0] for ends in endings], np.ceil(horizon * np.arange(1, many + 1) / many))
    lengths = np.array([np.diff(ends)[:5] for ends in endings])  # the same number of each: long ones count in full
    assert lengths.max() <= horizon
    assert lengths.min() >= shortest * horizon
    np.testing.assert_allclose(lengths.mean() / horizon, (1 + shortest) / 2, atol=0.05)
