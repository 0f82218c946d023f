"""Advantages against numbers worked out by hand and against their definition as a double sum."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from khop.trajectory import Trajectory, generalised_advantages

STEPS, ROWS = 6, 3  # every column of ROWS is an episode of its own


@partial(jax.jit, static_argnums=(5, 6))
def advantages(*arguments: object) -> jax.Array:
    return generalised_advantages(*arguments)


def double_sum(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    ended: np.ndarray,
    discount: float,
    trace: float,
) -> np.ndarray:
    """A_t = Σ_{k ≥ t} (γλ)^{k−t} δ_k, up to the end of the episode that t is in."""
    advantage = np.zeros_like(reward)
    for t, b in np.ndindex(reward.shape):
        for k in range(t, len(reward)):
            future = 0.0 if terminated[k, b] else next_value[k, b]
            delta = reward[k, b] + discount * future - value[k, b]
            advantage[t, b] += (discount * trace) ** (k - t) * delta
            if ended[k, b]:
                break
    return advantage


numbers = arrays(float, (STEPS, ROWS), elements=st.floats(-10, 10, width=32), fill=st.nothing())
switches = arrays(bool, (STEPS, ROWS), elements=st.booleans(), fill=st.nothing())


@settings(max_examples=100, deadline=None)
@given(
    reward=numbers,
    value=numbers,
    next_value=numbers,
    terminated=switches,
    truncated=switches,
    discount_and_trace=st.sampled_from([(0.9, 0.8), (0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)]),
)
def test_advantages_are_the_double_sum_of_their_definition(
    reward: np.ndarray,
    value: np.ndarray,
    next_value: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    discount_and_trace: tuple[float, float],
) -> None:
    ended = terminated | truncated
    floats = [jnp.asarray(x, jnp.float32) for x in (reward, value, next_value)]
    result = advantages(*floats, jnp.asarray(terminated), jnp.asarray(ended), *discount_and_trace)
    expected = double_sum(reward, value, next_value, terminated, ended, *discount_and_trace)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


# γ = 0.9, λ = 0.5, so γλ = 0.45, in all that follows.
#
#   t   r   V(s)  V(s')                 δ
#   0   1    2     4    1 + 0.9·4 − 2 = 2.6
#   1   2    4     6    2 + 0.9·6 − 4 = 3.4
#   2   3    6    10    3 + 0.9·10 − 6 = 6      (3 − 6 = −3 if s' is terminal)
REWARD, VALUE, NEXT_VALUE = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 6.0]), jnp.array([4.0, 6.0, 10.0])
NO = jnp.zeros(3, bool)


def by_hand(terminated: jax.Array, ended: jax.Array) -> jax.Array:
    return advantages(REWARD, VALUE, NEXT_VALUE, terminated, ended, 0.9, 0.5)


def test_three_steps_that_go_on() -> None:
    """A_2 = 6, A_1 = 3.4 + 0.45·6 = 6.1, A_0 = 2.6 + 0.45·6.1 = 5.345."""
    np.testing.assert_allclose(by_hand(NO, NO), [5.345, 6.1, 6.0], rtol=1e-6)


def test_three_steps_that_terminate() -> None:
    """A_2 = −3, A_1 = 3.4 − 0.45·3 = 2.05, A_0 = 2.6 + 0.45·2.05 = 3.5225."""
    last = NO.at[2].set(True)
    np.testing.assert_allclose(by_hand(last, last), [3.5225, 2.05, -3.0], rtol=1e-6)


def test_three_steps_that_are_truncated_in_the_middle() -> None:
    """V(s') of step 1 is kept, but A_2 belongs to another episode: A_1 = 3.4, A_0 = 2.6 + 0.45·3.4 = 4.13."""
    middle = NO.at[1].set(True)
    np.testing.assert_allclose(by_hand(NO, middle), [4.13, 3.4, 6.0], rtol=1e-6)


def test_three_steps_that_terminate_in_the_middle() -> None:
    """δ_1 = 2 − 4 = −2: A_1 = −2, A_0 = 2.6 − 0.45·2 = 1.7."""
    middle = NO.at[1].set(True)
    np.testing.assert_allclose(by_hand(middle, middle), [1.7, -2.0, 6.0], rtol=1e-6)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_trace_of_one_gives_the_discounted_return_less_the_value(terminal: bool) -> None:
    """With V(s'_t) = V(s_{t+1}), as within an episode."""
    random = np.random.default_rng(0)
    reward, value = random.normal(size=8), random.normal(size=9)
    last = jnp.arange(8) == 7
    inputs = (jnp.asarray(x, jnp.float32) for x in (reward, value[:-1], value[1:]))
    result = advantages(*inputs, last & terminal, last, 0.9, 1.0)
    gain = 0.0 if terminal else value[-1]
    for t in reversed(range(8)):
        gain = reward[t] + 0.9 * gain
        np.testing.assert_allclose(result[t], gain - value[t], rtol=1e-5, atol=1e-5)


def test_a_trace_of_zero_gives_the_temporal_difference() -> None:
    result = advantages(REWARD, VALUE, NEXT_VALUE, NO, NO, 0.9, 0.0)
    np.testing.assert_allclose(result, [2.6, 3.4, 6.0], rtol=1e-6)


def test_an_episode_ends_for_an_agent_that_terminates_and_for_all_that_are_truncated() -> None:
    terminated = jnp.array([[[False, False]], [[True, False]], [[False, False]], [[True, True]]])
    none = jnp.zeros((4, 1, 2))
    trajectory = Trajectory(
        obs=none[..., None],
        action=jnp.zeros((4, 1, 2), int),
        log_prob=none,
        reward=none,
        terminated=terminated,
        truncated=jnp.array([[False], [False], [True], [False]]),
        lost=none.astype(bool),
        next_obs=none[..., None],
        carry=(),
    )
    expected = [[[False, False]], [[True, False]], [[True, True]], [[True, True]]]
    np.testing.assert_array_equal(trajectory.ended, expected)
