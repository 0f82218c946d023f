"""The pure losses of policy optimisation; every function keeps the agent axis and averages over samples alone."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

OUTLIER = 10.0  # standardised advantages are cut here


def clipped_surrogate(
    log_prob: Float[Array, "S n"], old_log_prob: Float[Array, "S n"], advantage: Float[Array, "S n"], clip: float
) -> Float[Array, " n"]:
    """PPO's loss, −mean min(ρ A, clip(ρ, 1 ± ε) A) (Schulman et al. 2017, eq. 7)."""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantage, clipped * advantage).mean(0)


def squared_error(value: Float[Array, "S n"], target: Float[Array, "S n"]) -> Float[Array, " n"]:
    """The critic's loss, mean ½ (V − R)²."""
    return 0.5 * jnp.square(value - target).mean(0)


def divergence(log_prob: Float[Array, "S n"], old_log_prob: Float[Array, "S n"]) -> Float[Array, " n"]:
    """KL(π_old ‖ π) estimated from the old policy's own samples by mean(ρ − 1 − log ρ), which is never negative."""
    log_ratio = log_prob - old_log_prob
    return (jnp.expm1(log_ratio) - log_ratio).mean(0)


def standardised(advantage: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Advantages of zero mean and about unit spread, separately for every agent, over the whole batch.

    Measured from the median in units of the range of the middle 90 % (which is 3.29 σ for a normal), cut at
    ± ``OUTLIER`` and centred. Where one failure costs a thousand times what ordinary decisions are about, mean and
    standard deviation would leave those decisions no weight until the last failure has disappeared.
    """
    samples = advantage.reshape(-1, advantage.shape[-1])
    low, middle, high = jnp.quantile(samples, jnp.array([0.05, 0.5, 0.95]), axis=0)
    spread = (high - low) / 3.29 + 1e-8
    cut = jnp.clip((samples - middle) / spread, -OUTLIER, OUTLIER)
    return (cut - cut.mean(0)).reshape(advantage.shape)
