"""What is kept of real experience, what is held out of training, and where windows stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from khop.trajectory import Trajectory
from khop.worlds.memory import Memory

STEPS, ROWS, N, D = 6, 2, 3, 2


def experience(first: int, ends: tuple[tuple[int, int], ...] = ()) -> Trajectory:
    """Two segments whose every number tells where it is from: 100 · segment + step; ``ends`` are (step, row)."""
    label = 100.0 * (first + jnp.arange(ROWS)) + jnp.arange(STEPS)[:, None]
    per_agent = jnp.broadcast_to(label[..., None], (STEPS, ROWS, N))
    obs = jnp.broadcast_to(per_agent[..., None], (STEPS, ROWS, N, D))
    terminated = jnp.zeros((STEPS, ROWS, N), bool)
    for step, row in ends:
        terminated = terminated.at[step, row, 1].set(True)
    return Trajectory(
        obs=obs,
        action=per_agent.astype(int),
        log_prob=per_agent,
        reward=per_agent,
        terminated=terminated,
        truncated=jnp.zeros((STEPS, ROWS), bool),
        lost=jnp.zeros((STEPS, ROWS, N), bool),
        next_obs=obs + 1,
        carry=(),
    )


def filled(segments: int, capacity: int = 20) -> Memory:
    memory = Memory.empty(capacity, STEPS, experience(0))
    for first in range(0, segments, ROWS):
        memory = memory.add(experience(first))
    return memory


@pytest.mark.parametrize("segments", [2, 4, 6, 12])
def test_training_and_held_out_windows_share_no_segment_and_leave_none_out(segments: int) -> None:
    memory = filled(segments)
    found = [
        set(np.unique(np.asarray(memory.windows(jax.random.key(1), 500, 2, held_out).reward) // 100).astype(int))
        for held_out in (False, True)
    ]
    held_out = {segment for segment in range(segments) if segment % 5 == 1}
    assert found == [set(range(segments)) - held_out, held_out]
    np.testing.assert_array_equal(np.flatnonzero(memory.training), sorted(found[0]))


def test_windows_are_consecutive_and_cover_every_start() -> None:
    windows = filled(4).windows(jax.random.key(0), 300, 4, held_out=False)
    first = np.asarray(windows.obs)[:, 0, 0]
    np.testing.assert_array_equal(np.asarray(windows.reward)[..., 0], first[:, None] + np.arange(4))
    np.testing.assert_array_equal(np.asarray(windows.next_obs)[..., 0, 0], first[:, None] + np.arange(4) + 1)
    assert set(first % 100) == {0, 1, 2}  # starts that leave room for 4 of 6 steps
    assert np.all(windows.weight == 1)


def test_nothing_counts_after_an_end() -> None:
    """An episode that ends with step 2: of the windows from steps 0, 1, 2 and 3 so many steps count."""
    memory = Memory.empty(4, STEPS, experience(0)).add(experience(0, ends=((2, 0),)))
    windows = memory.windows(jax.random.key(0), 200, 3, held_out=False)
    start = np.asarray(windows.reward)[:, 0, 0]
    expected = {0: [1, 1, 1], 1: [1, 1, 0], 2: [1, 0, 0], 3: [1, 1, 1]}
    assert set(start) == set(expected)
    np.testing.assert_array_equal(windows.weight, [expected[int(first)] for first in start])


def test_endings_are_the_steps_that_ended_an_episode() -> None:
    memory = Memory.empty(5, STEPS, experience(0)).add(experience(0, ends=((2, 0), (5, 1)))).add(experience(2))
    found = memory.endings(jax.random.key(0), 50, memory.endings_so_far)
    assert set(np.asarray(found.reward)[:, 0, 0]) == {2, 105}
    assert np.all(found.weight == 1)
    np.testing.assert_array_equal(np.asarray(found.terminated)[:, 0], np.broadcast_to(np.arange(N) == 1, (50, N)))
    terminated, lost = memory.ending_rates
    np.testing.assert_allclose(terminated, [0, 2 / (4 * STEPS), 0], rtol=1e-6)
    np.testing.assert_array_equal(lost, 0)


def test_without_an_ending_none_counts() -> None:
    memory = filled(2)
    assert not memory.endings(jax.random.key(0), 3, memory.endings_so_far).weight.any()


def test_the_oldest_segments_are_overwritten() -> None:
    memory = filled(6, capacity=4)
    kept = np.unique(np.asarray(memory.moments.reward) // 100)
    np.testing.assert_array_equal(kept, [2, 3, 4, 5])
    assert (int(memory.filled), int(memory.added)) == (4, 6)


def test_branches_start_anywhere_in_what_is_kept_and_nowhere_else() -> None:
    states = filled(4).states(jax.random.key(2), (40, 50))
    assert states.shape == (40, 50, 3, 2)
    states = np.asarray(states[..., 0, 0]).ravel()
    assert set(states) == {100 * segment + step for segment in range(4) for step in range(STEPS)}
