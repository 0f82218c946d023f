"""Whole episodes on a hosted system."""

import logging
import os
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drifters import LAYOUT, Drifters
from drifting import Drifting

from khop.errors import InputError
from khop.evaluation import controller, episode_keys, measure, record
from khop.hosts.episodes import Driven, Recorded, play

SYSTEM = Drifters()
KEYS = episode_keys(0, 5)


class Counting(eqx.Module):
    """Left until its count of steps reaches 2, then right."""

    def initial(self):
        return jnp.zeros((), int)

    def __call__(self, key, carry, state, obs):
        return carry + 1, jnp.where(carry < 2, 0, 1) * jnp.ones(2, jnp.int32)


def played(workers: int, **parameters: object) -> Recorded:
    return play(Drifters(**parameters), Driven(Counting()), Counting().initial(), KEYS, workers)


def test_episodes_are_what_the_engine_plays_in_this_process() -> None:
    """Two workers and five episodes: also, every episode starts with a fresh controller."""
    record = played(workers=2)
    episode = jax.tree.map(np.asarray, record.episode)
    assert episode.obs.shape == (6, 5, 2, 2)
    assert record.dropped == 0
    seeds = episode.info["seed"]
    assert len(set(seeds[0])) == 5
    for number in range(5):
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in LAYOUT.items()}
        engine = Drifting(arrays)
        engine.reset(int(seeds[0, number]))
        for time in range(6):
            np.testing.assert_array_equal(episode.obs[time, number], arrays["obs"])
            arrays["action"][...] = 0 if time < 2 else 1
            np.testing.assert_array_equal(episode.action[time, number], arrays["action"])
            engine.step()
            np.testing.assert_array_equal(episode.reward[time, number], arrays["reward"])
            np.testing.assert_array_equal(record.next_obs[time, number], arrays["obs"])


def test_an_episode_does_not_depend_on_how_many_are_played_at_once() -> None:
    dice = controller(SYSTEM, "random")
    one, three = (play(SYSTEM, Driven(dice), dice.initial(), KEYS, workers) for workers in (1, 3))
    jax.tree.map(np.testing.assert_array_equal, one, three)
    alone = record(SYSTEM, dice, KEYS[3])
    jax.tree.map(lambda whole, part: np.testing.assert_array_equal(whole[:, 3], part), one.episode, alone)
    returns = measure(SYSTEM, dice, KEYS)["return"]
    np.testing.assert_allclose(returns, one.episode.reward.sum(-1).mean(0), rtol=1e-6)


class Murderous(eqx.Module):
    """Kills a worker the first time that it decides on the third step."""

    def __call__(self, key, carry, info, obs):
        jax.debug.callback(kill, obs[0, 1])
        return carry, jnp.zeros(2, jnp.int32), obs[0, 1]


done: list[float] = []


def kill(time: np.ndarray) -> None:
    if time == 3 and not done:
        done.append(float(time))
        os.kill(SYSTEM.pool(2).process_ids[0], signal.SIGKILL)


def test_the_episode_of_a_killed_worker_is_dropped_and_played_anew(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "khop"):
        found = play(SYSTEM, Murderous(), (), KEYS[:2], 2)
    assert found.dropped == 1
    assert "killed by signal 9" in caplog.text
    np.testing.assert_array_equal(found.extra, np.arange(6)[:, None] * np.ones(2))
    seeds = np.asarray(found.episode.info["seed"])
    assert np.all(seeds == seeds[0])  # no step of the dropped episode is left
    assert seeds[0, 0] != np.asarray(played(workers=1).episode.info["seed"])[0, 0]
    assert seeds[0, 1] == np.asarray(played(workers=1).episode.info["seed"])[0, 1]


def test_an_engine_that_always_fails_is_given_up() -> None:
    with pytest.raises(InputError, match="failed 3 times in a row: the bridge is out"):
        played(workers=2, fail_at=2, how="raise")


def test_there_is_no_state_to_step_by_hand() -> None:
    with pytest.raises(InputError, match="play whole episodes"):
        SYSTEM.reset(jax.random.key(0))
