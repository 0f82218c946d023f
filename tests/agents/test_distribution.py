"""Distributions against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import special, stats

from khop.agents.distribution import BoundedNormal, Categorical

MASK = jnp.array([[True, True, True, True], [True, False, True, False], [False, False, True, False]])


@settings(max_examples=50, deadline=None)
@given(arrays(float, (3, 4), elements=st.floats(-30, 30, width=32), fill=st.nothing()))
def test_categorical_log_probabilities_and_entropy(logits: np.ndarray) -> None:
    chosen = Categorical(jnp.asarray(logits, jnp.float32), MASK)
    expected = special.log_softmax(np.where(MASK, logits, -np.inf), axis=-1)
    for action in range(4):
        possible = np.asarray(MASK[:, action])
        log_prob = chosen.log_prob(jnp.full(3, action))
        np.testing.assert_allclose(log_prob[possible], expected[possible, action], rtol=1e-5, atol=1e-5)
        assert np.all(jnp.exp(log_prob[~possible]) == 0)
    entropy = stats.entropy(np.exp(expected), axis=-1)
    np.testing.assert_allclose(chosen.entropy(), entropy, rtol=1e-4, atol=1e-5)


def test_masked_actions_have_no_probability_whatever_their_logits() -> None:
    logits = jnp.where(MASK, 0.0, 1e6)
    chosen = Categorical(logits, MASK)
    np.testing.assert_allclose(jnp.exp(chosen.log_probs), MASK / MASK.sum(-1, keepdims=True), rtol=1e-6)
    assert np.all(jnp.exp(chosen.log_probs)[~MASK] == 0)
    assert MASK[jnp.arange(3), chosen.mode()].all()


def test_masked_actions_are_never_sampled_and_the_others_as_often_as_they_should() -> None:
    logits = jnp.array([[0.0, 1.0, 2.0, -1.0]] * 3)
    samples = np.asarray(Categorical(jnp.broadcast_to(logits, (20_000, 3, 4)), MASK).sample(jax.random.key(0)))
    expected = special.softmax(np.where(MASK, logits, -np.inf), axis=-1)
    for row in range(3):
        frequency = np.bincount(samples[:, row], minlength=4) / len(samples)
        assert np.all(frequency[~np.asarray(MASK[row])] == 0)
        np.testing.assert_allclose(frequency, expected[row], atol=0.015)  # 4 standard errors


def test_the_mode_is_the_most_probable_possible_action() -> None:
    chosen = Categorical(jnp.array([[0.0, 3.0, 1.0, 2.0]] * 3), MASK)
    np.testing.assert_array_equal(chosen.mode(), [1, 2, 2])


def test_gradients_through_masks_are_finite_and_zero_where_masked() -> None:
    def objective(logits: jax.Array) -> jax.Array:
        chosen = Categorical(logits, MASK)
        return chosen.log_prob(jnp.array([1, 0, 2])).sum() + chosen.entropy().sum()

    gradient = jax.grad(objective)(jnp.array([[0.5, -50.0, 50.0, 1.0]] * 3))
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[~MASK] == 0)
    assert np.all(gradient[:2][MASK[:2]] != 0)


def test_a_mask_applies_to_any_leading_axes() -> None:
    chosen = Categorical(jnp.zeros((5, 2, 3, 4)), MASK)
    assert chosen.mode().shape == chosen.entropy().shape == (5, 2, 3)
    np.testing.assert_allclose(chosen.entropy()[0, 0], np.log([4, 2, 1]), atol=1e-6)


# Bounded normal: narrow, wide, far wider than its box, at a bound, of a box that does not hold 0.
MEAN = jnp.array([0.0, 0.3, -0.5, 1.0, 7.0])
SCALE = jnp.array([0.05, 1.0, 30.0, 0.5, 2.0])
LOW = jnp.array([-1.0, -1.0, -1.0, -2.0, 5.0])
HIGH = jnp.array([1.0, 1.0, 2.0, 1.0, 7.5])
BOUNDED = BoundedNormal(MEAN, SCALE, LOW, HIGH)


def oracle() -> stats.rv_continuous:
    mean, scale, low, high = (np.asarray(x, float) for x in (MEAN, SCALE, LOW, HIGH))
    return stats.truncnorm((low - mean) / scale, (high - mean) / scale, mean, scale)


def one_by_one() -> list[BoundedNormal]:
    return [BoundedNormal(*(x[i : i + 1] for x in (MEAN, SCALE, LOW, HIGH))) for i in range(len(MEAN))]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5, 0.9, 1.0])
def test_bounded_normal_log_densities(share: float) -> None:
    """At points all over the box; the density of a vector is the product over its components."""
    action = LOW + share * (HIGH - LOW)
    expected = oracle().logpdf(np.clip(np.asarray(action, float), np.asarray(LOW), np.asarray(HIGH)))
    alone = [distribution.log_prob(action[i : i + 1]) for i, distribution in enumerate(one_by_one())]
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(BOUNDED.log_prob(action), expected.sum(), rtol=1e-4, atol=1e-4)


def test_bounded_normal_entropy() -> None:
    expected = oracle().entropy()
    np.testing.assert_allclose([each.entropy() for each in one_by_one()], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(BOUNDED.entropy(), expected.sum(), rtol=1e-3, atol=1e-3)


def test_bounded_normal_samples_stay_in_the_box_and_follow_the_density() -> None:
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (20_000, *x.shape)), BOUNDED)
    samples = np.asarray(many.sample(jax.random.key(1)))
    assert np.all((samples >= LOW) & (samples <= HIGH))
    width = np.asarray(HIGH - LOW)
    np.testing.assert_allclose(samples.mean(0), oracle().mean(), atol=0.01 * width.max())
    np.testing.assert_allclose(samples.std(0), oracle().std(), rtol=0.03)
    for i in range(len(MEAN)):
        parameters = [np.asarray(x, float)[i] for x in oracle().args]
        assert stats.kstest(samples[:, i], stats.truncnorm(*parameters).cdf).pvalue > 1e-3
    correlation = np.corrcoef(samples.T) - np.eye(len(MEAN))
    assert abs(correlation).max() < 0.03


def test_the_mode_of_a_bounded_normal_is_its_mean() -> None:
    np.testing.assert_array_equal(BOUNDED.mode(), MEAN)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("mean", [-1.0, 0.2, 1.0])
def test_gradients_of_bounded_normals_are_finite_up_to_the_bounds(mean: float, scale: float) -> None:
    low, high = jnp.array([-1.0]), jnp.array([1.0])

    def objective(mean: jax.Array, scale: jax.Array, action: jax.Array) -> jax.Array:
        distribution = BoundedNormal(mean, scale, low, high)
        return distribution.log_prob(action) + distribution.entropy()

    for action in (low, jnp.array([0.3]), high):
        value, gradient = jax.value_and_grad(objective, (0, 1))(jnp.array([mean]), jnp.array([scale]), action)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_gradients_of_bounded_normals_are_those_of_their_log_density() -> None:
    """Against finite differences of SciPy's."""

    def logpdf(mean: float, scale: float) -> float:
        return float(stats.truncnorm((-1 - mean) / scale, (1 - mean) / scale, mean, scale).logpdf(0.6))

    def log_prob(mean: float, scale: float) -> jax.Array:
        bounds = jnp.array([-1.0]), jnp.array([1.0])
        return BoundedNormal(jnp.array([mean]), jnp.array([scale]), *bounds).log_prob(jnp.array([0.6]))

    by_mean, by_scale = jax.grad(log_prob, (0, 1))(0.2, 0.7)
    np.testing.assert_allclose(by_mean, (logpdf(0.2 + 1e-5, 0.7) - logpdf(0.2 - 1e-5, 0.7)) / 2e-5, rtol=1e-3)
    np.testing.assert_allclose(by_scale, (logpdf(0.2, 0.7 + 1e-5) - logpdf(0.2, 0.7 - 1e-5)) / 2e-5, rtol=1e-3)
