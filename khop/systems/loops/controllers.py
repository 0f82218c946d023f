"""Classical controllers of vehicles on a loop; each looks at its own vehicle and the one ahead alone.

FollowerStopper and the proportional-integral controller with saturation are those of Stern et al., Dissipation of
stop-and-go waves via control of autonomous vehicles: field experiments, Transportation Research C 89, 205–221 (2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from khop.system import Controller
from khop.systems.loops.car_following import INTERVAL

if TYPE_CHECKING:
    from khop.systems.loops.loop import Loop, LoopState

WINDOW = 380  # steps, 38 s
FOLLOWING_GAPS = (4.5, 5.25, 6.0)  # m, Δx⁰ of the three regions of FollowerStopper
FOLLOWING_BRAKING = (1.5, 1.0, 0.5)  # m/s², and d of each
CATCH_UP = 1.0  # m/s, v_catch: how much faster to close a wide gap
CLOSE_GAP, WIDE_GAP = 7.0, 30.0  # m, where catching up begins and is in full swing
BLEND = 2.0  # m, γ: over which the command passes from the leader's speed to the target


class AllHuman(eqx.Module):
    """Agents do what a human driver would."""

    loop: Loop

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: LoopState, obs: Array) -> tuple[PyTree, Array]:
        wanted = self.loop.human_acceleration(state) + self.loop.human_noise(key)
        return carry, _within(self.loop, wanted[self.loop.members])


class FullThrottle(eqx.Module):
    """Agents ask for the largest acceleration at all times and leave the rest to the guard."""

    loop: Loop

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: LoopState, obs: Array) -> tuple[PyTree, Array]:
        return carry, jnp.full((self.loop.controlled, 1), self.loop.max_acceleration)


class FollowerStopper(eqx.Module):
    """Drive at the speed of uniform flow, which it is told, and more slowly only if the gap gets too small."""

    loop: Loop

    def initial(self) -> PyTree:
        return ()

    def __call__(self, key: PRNGKeyArray, carry: PyTree, state: LoopState, obs: Array) -> tuple[PyTree, Array]:
        members = self.loop.members
        desired = state.uniform_speed
        speed, gap, leading = state.speed[members], state.gap[members], jnp.roll(state.speed, 1)[members]
        closing = jnp.minimum(leading - speed, 0.0)
        first, second, third = (
            start + closing**2 / (2 * braking) for start, braking in zip(FOLLOWING_GAPS, FOLLOWING_BRAKING, strict=True)
        )
        following = jnp.minimum(leading, desired)
        command = jnp.select(
            [gap <= first, gap <= second, gap <= third],
            [
                jnp.zeros_like(gap),
                following * (gap - first) / (second - first),
                following + (desired - following) * (gap - second) / (third - second),
            ],
            jnp.full_like(gap, desired),
        )
        return carry, _towards(self.loop, command, speed)


class Remembered(NamedTuple):
    """The last 38 s of the agents' speeds, a ring of rows, and their last commands."""

    speeds: Float[Array, "W n"]
    command: Float[Array, " n"]
    time: Int[Array, ""]


class PIWithSaturation(eqx.Module):
    """Drive at the own mean speed of the last 38 s, a little faster while the gap is wide."""

    loop: Loop

    def initial(self) -> Remembered:
        n = self.loop.controlled
        return Remembered(jnp.zeros((WINDOW, n)), jnp.zeros(n), jnp.zeros((), int))

    def __call__(self, key: PRNGKeyArray, carry: Remembered, state: LoopState, obs: Array) -> tuple[Remembered, Array]:
        members = self.loop.members
        speed, gap, leading = state.speed[members], state.gap[members], jnp.roll(state.speed, 1)[members]
        speeds = carry.speeds.at[carry.time % WINDOW].set(speed)
        mean = speeds.sum(0) / jnp.minimum(carry.time + 1, WINDOW)
        last = jnp.where(carry.time == 0, speed, carry.command)
        target = mean + CATCH_UP * jnp.clip((gap - CLOSE_GAP) / (WIDE_GAP - CLOSE_GAP), 0.0, 1.0)
        trust = jnp.clip((gap - jnp.maximum(2 * (leading - speed), 4.0)) / BLEND, 0.0, 1.0)  # α
        new = 1 - trust / 2  # β
        command = new * (trust * target + (1 - trust) * leading) + (1 - new) * last
        return Remembered(speeds, command, carry.time + 1), _towards(self.loop, command, speed)


def _towards(loop: Loop, command: Float[Array, " n"], speed: Float[Array, " n"]) -> Float[Array, "n 1"]:
    """The acceleration that reaches a commanded speed within a step, if possible."""
    return _within(loop, (command - speed) / INTERVAL)


def _within(loop: Loop, acceleration: Float[Array, " n"]) -> Float[Array, "n 1"]:
    bound = np.float32(loop.max_acceleration)
    return jnp.clip(acceleration, -bound, bound)[:, None]


BASELINES: dict[str, Callable[[Loop], Controller]] = {
    "all-human": AllHuman,
    "full-throttle": FullThrottle,
    "follower-stopper": FollowerStopper,
    "pi-saturation": PIWithSaturation,
}
