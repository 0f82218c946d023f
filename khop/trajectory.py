"""Experience and what is computed from it: discounting, generalised advantages, minibatches of sequences.

Experience is time-major: T steps, B environments, n agents.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree


class Trajectory(eqx.Module):
    """What B environments went through in T steps, whichever world they were in.

    ``next_obs`` is the true successor of ``obs``, also where an episode ended and the next row already belongs to a
    new one. ``lost`` marks the last step of an episode that could only repeat that step's reward. ``carry`` is each
    actor's memory before the step, ``()`` for feed-forward actors.
    """

    obs: Float[Array, "*T B n d"]
    action: Array  # (T, B, n) int or (T, B, n, a) float
    log_prob: Float[Array, "*T B n"]
    reward: Float[Array, "*T B n"]
    terminated: Bool[Array, "*T B n"]
    truncated: Bool[Array, "*T B"]
    lost: Bool[Array, "*T B n"]
    next_obs: Float[Array, "*T B n d"]
    carry: PyTree

    @property
    def ended(self) -> Bool[Array, "*T B n"]:
        """Where an agent's episode ends, for whichever reason: nothing flows back across it."""
        return self.terminated | self.lost | self.truncated[..., None] | jnp.all(self.terminated, -1, keepdims=True)


def generalised_advantages(
    reward: Float[Array, "T *B"],
    value: Float[Array, "T *B"],
    next_value: Float[Array, "T *B"],
    terminated: Bool[Array, "T *B"],
    ended: Bool[Array, "T *B"],
    discount: float,
    trace: float,
) -> Float[Array, "T *B"]:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16).

    A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V(s_{t+1}) − V(s_t). Termination removes the bootstrap from δ_t;
    termination and truncation both stop the sum.

    Args:
        reward: r_t.
        value: V(s_t).
        next_value: V of the true successor of s_t.
        terminated: no future after this step.
        ended: the row after this step belongs to another episode.
        discount: γ.
        trace: λ.
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value

    def backward(advantage: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = step
        advantage = delta + discount * trace * jnp.where(ended, 0.0, advantage)
        return advantage, advantage

    _, advantages = jax.lax.scan(backward, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)
    return advantages
