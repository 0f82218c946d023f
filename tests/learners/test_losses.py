"""Losses against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khop.learners.losses import clipped_surrogate, divergence, squared_error, standardised


def columns(*rows: tuple[float, ...]) -> jax.Array:
    """Rows are moments, columns agents; the losses want agents first."""
    return jnp.array(rows, float).T


# ε = 0.2. The loss is −min(ρ A, clip(ρ, 0.8, 1.2) A); its slope in log ρ is −ρ A where nothing is clipped, else 0.
SURROGATES = [
    (1.1, 2.0, -2.2, -2.2),  # within the bounds
    (1.5, 2.0, -2.4, 0.0),  # min(3, 2.4): a good action is probable enough
    (0.5, 2.0, -1.0, -1.0),  # min(1, 1.6): a good action has become rare, and is pulled back
    (1.5, -2.0, 3.0, 3.0),  # min(−3, −2.4): a bad action has become frequent, and is pushed back
    (0.5, -2.0, 1.6, 0.0),  # min(−1, −1.6): a bad action is rare enough
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope"), SURROGATES)
def test_clipped_surrogate(ratio: float, advantage: float, loss: float, slope: float) -> None:
    def surrogate(log_prob: jax.Array) -> jax.Array:
        return clipped_surrogate(log_prob, columns((-3.0,)), columns((advantage,)), 0.2)[0]

    result, gradient = jax.value_and_grad(surrogate)(columns((np.log(ratio) - 3.0,)))
    np.testing.assert_allclose(result, loss, rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 0], slope, rtol=1e-5)


def test_clipped_surrogate_averages_over_samples_and_keeps_agents_apart() -> None:
    """Agent 0: −(2.4 − 1.6) / 2 = −0.4. Agent 1: −(1 − 3) / 2 = 1."""
    log_prob = jnp.log(columns((1.5, 0.5), (0.5, 1.5)))
    advantage = columns((2.0, 2.0), (-2.0, -2.0))
    np.testing.assert_allclose(clipped_surrogate(log_prob, 0 * log_prob, advantage, 0.2), [-0.4, 1.0], rtol=1e-5)


def test_squared_error() -> None:
    """Agent 0: ½ (1² + 2²) / 2 = 1.25. Agent 1: ½ (0 + 4²) / 2 = 4."""
    value, target = columns((1.0, 5.0), (3.0, -1.0)), columns((2.0, 5.0), (1.0, 3.0))
    np.testing.assert_allclose(squared_error(value, target), [1.25, 4.0], rtol=1e-6)


def test_divergence() -> None:
    """ρ = 2: 2 − 1 − log 2. ρ = ½: ½ − 1 + log 2. Equal: 0."""
    old = columns((-1.0, -1.0, -2.0))
    new = old + jnp.log(columns((2.0, 0.5, 1.0)))
    np.testing.assert_allclose(divergence(new, old), [1 - np.log(2), np.log(2) - 0.5, 0.0], rtol=1e-5, atol=1e-7)


def test_divergence_of_samples_in_proportion_is_the_divergence() -> None:
    """π_old = (½, ¼, ¼), π = (¼, ½, ¼): KL(π_old ‖ π) = ½ log 2 + ¼ log ½ = ¼ log 2."""
    old, new = np.log([0.5, 0.25, 0.25]), np.log([0.25, 0.5, 0.25])
    samples = np.array([0, 0, 1, 2])
    result = divergence(jnp.asarray(new[None, samples], jnp.float32), jnp.asarray(old[None, samples], jnp.float32))
    np.testing.assert_allclose(result, [0.25 * np.log(2)], rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 2, width=32), st.floats(-20, 2, width=32)), min_size=3, max_size=3))
def test_divergence_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    new, old = jnp.asarray(pairs, jnp.float32).T[:, None]
    assert divergence(new, old)[0] >= 0
    assert divergence(old, old)[0] == 0


def test_standardised() -> None:
    """0, 1, 2, 3 has mean 1.5 and variance 1.25; scale and shift are no matter, and agents are kept apart."""
    count = np.arange(4.0)
    result = standardised(jnp.asarray(np.stack([count, 5 - 100 * count]), jnp.float32))
    expected = (count - 1.5) / 1.25**0.5
    np.testing.assert_allclose(result, np.stack([expected, -expected]), rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -1000.1, 123456.7])
def test_an_advantage_that_never_varies_is_none(value: float) -> None:
    """Rounding must not be blown up to unit variance."""
    assert np.all(abs(standardised(jnp.full((2, 600), value))) < 0.1)
