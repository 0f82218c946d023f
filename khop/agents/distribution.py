"""How agents choose: masked categorical and bounded normal distributions.

Both act on any leading axes, usually (T, B, n) or (B, n).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

IMPOSSIBLE = -1e9  # a logit whose probability is exactly 0 in float32, yet whose gradient is no NaN


class Categorical(eqx.Module):
    """A choice among A actions, of which the masked ones have probability exactly 0."""

    log_probs: Float[Array, "*batch A"]

    def __init__(self, logits: Float[Array, "*batch A"], mask: Bool[Array, "*#batch A"]):
        self.log_probs = jax.nn.log_softmax(jnp.where(mask, logits, IMPOSSIBLE))

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch"]:
        """One action each."""
        return jax.random.categorical(key, self.log_probs)

    def mode(self) -> Int[Array, "*batch"]:
        """The most probable action."""
        return jnp.argmax(self.log_probs, -1)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Log-probability of an action."""
        return jnp.take_along_axis(self.log_probs, action[..., None], -1)[..., 0]

    def entropy(self) -> Float[Array, "*batch"]:
        """−Σ p log p, in nats."""
        return -jnp.sum(jnp.exp(self.log_probs) * self.log_probs, -1)


class BoundedNormal(eqx.Module):
    """A normal truncated to a box: sampled inside it, with the density and entropy of what is really executed.

    ``mean`` has to lie in the box, which keeps the truncated mass above a half of one side. Components are
    independent; ``log_prob`` and ``entropy`` sum over the last axis.
    """

    mean: Float[Array, "*batch a"]
    scale: Float[Array, "*batch a"]
    low: Float[Array, "*#batch a"]
    high: Float[Array, "*#batch a"]

    @property
    def _bounds(self) -> tuple[Array, Array]:
        return (self.low - self.mean) / self.scale, (self.high - self.mean) / self.scale

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch a"]:
        """One action each, inside the box."""
        low, high = self._bounds
        standard = jax.random.truncated_normal(key, low, high, self.mean.shape)
        return jnp.clip(self.mean + self.scale * standard, self.low, self.high)

    def mode(self) -> Float[Array, "*batch a"]:
        """The most probable action."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch a"]) -> Float[Array, "*batch"]:
        """Log-density of an action inside the box."""
        z = (action - self.mean) / self.scale
        density = -0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - jnp.log(self.scale) - jnp.log(self._mass())
        return density.sum(-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Differential entropy of the truncated normal, in nats."""
        low, high = self._bounds
        mass = self._mass()
        edge = (low * _density(low) - high * _density(high)) / (2 * mass)
        return (0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(self.scale * mass) + edge).sum(-1)

    def _mass(self) -> Float[Array, "*batch a"]:
        low, high = self._bounds
        return ndtr(high) - ndtr(low)


Distribution = Categorical | BoundedNormal


def _density(z: Array) -> Array:
    return jnp.exp(-0.5 * z**2) / jnp.sqrt(2 * jnp.pi)
