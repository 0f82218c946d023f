"""How well local models predict: their error on held-out experience, agent by agent and step by step ahead.

An error is a share of the variance of what was to be predicted, the change of an observation over so many steps, so
that 1 is what a model of no use makes. Actions are the recorded ones, observations after the first are everyone's
predictions.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from khop.agents.dynamics import LocalModels, Scales
from khop.worlds.memory import Memory

LONGEST = 200  # steps up to which errors are measured
HELD_OUT_WINDOWS = 128
FAR_WINDOWS = 32  # beyond the length of branches, where the error decides nothing and costs most
DRAWS = 8  # of so many windows that tell the error one step ahead, which few, rare steps make up
FEWEST = 0.1  # of the held-out windows that must reach so far ahead; with fewer, all counts as unknown
SMALLEST_SPREAD = 1e-6  # below it a quantity is a constant


class Errors(NamedTuple):
    """Mean squared error so many steps ahead, averaged over the observation entries that vary."""

    of_change: Float[Array, "*H n"]  # as a share of the variance of the change over as many steps
    of_state: Float[Array, "*H n"]  # as a share of the variance of the observation itself
    disagreement: Float[Array, "*H"]  # variance of the ensemble, as a share of that of the change in one step


def farthest(steps: int, branch_length: int) -> int:
    """H, up to how many steps ahead segments of ``steps`` steps tell the error; at least as far as branches go."""
    return max(min(LONGEST, steps - 1), branch_length)


def model_error(
    key: PRNGKeyArray, memory: Memory, scales: Scales, models: LocalModels, branch_length: int, stay_in_range: bool
) -> tuple[Errors, Float[Array, "H n"]]:
    """Errors one step ahead, and those of the change 1, 2, … H steps ahead; 1 before anything is held out.

    With ``stay_in_range`` predictions are kept within the range seen, as in imagination.
    Up to ``branch_length`` from windows of that length, which begin nearly anywhere in a segment; beyond it from longer
    ones.
    """
    next_key, near_key, far_key = jax.random.split(key, 3)
    known = memory.added > 1  # the second segment is the first to be held out

    def ahead(key: PRNGKeyArray, horizon: int, windows: int = HELD_OUT_WINDOWS) -> Errors:
        found = errors_ahead(key, memory, scales, models, horizon, stay_in_range, windows)
        return jax.tree.map(lambda error: jnp.where(known, error, 1.0), found)

    draws = jax.lax.map(lambda key: ahead(key, 1), jax.random.split(next_key, DRAWS))
    next_step = jax.tree.map(lambda error: error.mean((0, 1)), draws)
    near = ahead(near_key, branch_length).of_change
    far = ahead(far_key, min(LONGEST, memory.steps - 1), FAR_WINDOWS).of_change
    return next_step, jnp.concatenate([next_step.of_change[None], near[1:], far[branch_length:]])


def errors_ahead(
    key: PRNGKeyArray,
    memory: Memory,
    scales: Scales,
    models: LocalModels,
    horizon: int,
    stay_in_range: bool,
    count: int = HELD_OUT_WINDOWS,
) -> Errors:
    """Errors 1, 2, … ``horizon`` steps ahead on one draw of held-out windows; means over the ensemble's members."""
    windows = memory.windows(key, count, horizon, held_out=True)
    varies = scales.low < scales.high

    def over(entries: Bool[Array, "n d"], share: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Mean over some entries: padding and other constants say nothing of the models."""
        return jnp.where(entries, share, 0.0).sum(-1) / jnp.maximum(entries.sum(-1), 1)

    def step(obs: Array, moment: tuple) -> tuple[Array, Errors]:
        action, target, weight = moment
        following = eqx.filter_vmap(lambda one, obs: one.next_obs(scales, obs, one.inputs(scales, obs, action)))(
            models, obs
        )
        if stay_in_range:
            following = jnp.clip(following, scales.low, scales.high)
        change, weights = target - windows.obs, weight + 1e-9
        variance = jnp.average(jnp.square(change - jnp.average(change, 0, weights=weights)), 0, weights=weights)
        unexplained = jnp.average(jnp.square(following - target).mean(0), 0, weights=weights)
        moves = variance > SMALLEST_SPREAD**2
        least = jnp.square(scales.change_spread) * 1e-3  # what moves may hardly do so in these windows
        of_change = over(moves, unexplained / (variance + least))
        of_state = over(varies, unexplained / jnp.square(scales.obs_spread))
        disagreement = over(moves, jnp.var(following, axis=0).mean(0) / jnp.square(scales.unit_of_change)).mean()
        few = weight.mean() < FEWEST
        return following, Errors(jnp.where(few, 1.0, of_change), jnp.where(few, 1.0, of_state), disagreement)

    members = len(jax.tree.leaves(eqx.filter(models, eqx.is_array))[0])
    start = jnp.broadcast_to(windows.obs, (members, *windows.obs.shape))
    in_time = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (windows.action, windows.next_obs, windows.weight))
    return jax.lax.scan(step, start, in_time)[1]
