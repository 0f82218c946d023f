"""The pure losses of policy optimisation, which keep the agent axis and average over samples alone."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def clipped_surrogate(
    log_prob: Float[Array, "n S"],
    old_log_prob: Float[Array, "n S"],
    advantage: Float[Array, "n S"],
    clip: float | Float[Array, ""],
) -> Float[Array, " n"]:
    """PPO's loss, −mean min(ρ A, clip(ρ, 1 ± ε) A) (Schulman et al. 2017, eq. 7)."""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return -jnp.minimum(ratio * advantage, clipped * advantage).mean(-1)


def squared_error(value: Float[Array, "n S"], target: Float[Array, "n S"]) -> Float[Array, " n"]:
    """The critic's loss, mean ½ (V − R)²."""
    return 0.5 * jnp.square(value - target).mean(-1)


def divergence(log_prob: Float[Array, "n S"], old_log_prob: Float[Array, "n S"]) -> Float[Array, " n"]:
    """KL(π_old ‖ π) estimated from the old policy's own samples by mean(ρ − 1 − log ρ), which is never negative."""
    log_ratio = log_prob - old_log_prob
    return (jnp.expm1(log_ratio) - log_ratio).mean(-1)


def standardised(advantage: Float[Array, "n S"]) -> Float[Array, "n S"]:
    """Advantages of zero mean and unit variance, separately for every agent, over the whole batch."""
    mean = advantage.mean(-1, keepdims=True)
    rounding = 1e-5 * jnp.abs(mean) + 1e-8  # what varies less than this does not vary
    return (advantage - mean) / (advantage.std(-1, keepdims=True) + rounding)
