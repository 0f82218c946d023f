"""The pure losses of policy optimisation; every function keeps the agent axis and averages over samples alone."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


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
    """Zero mean and unit variance over the whole batch, separately for every agent."""
    axes = tuple(range(advantage.ndim - 1))
    return (advantage - advantage.mean(axes)) / (advantage.std(axes) + 1e-8)
