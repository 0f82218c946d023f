"""Car following: how humans drive, how fast uniform traffic flows, and which speed is safe.

Gaps are bumper to bumper, in m; speeds in m/s; accelerations in m/s². The human driver is the intelligent driver model
(IDM) of Treiber, Hennecke & Helbing, Phys. Rev. E 62, 1805 (2000), with the constants that Flow gives it (Wu et al.,
IEEE Trans. Robotics 38, 2022).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

INTERVAL = 0.1  # s, of a step
FREE_SPEED = 30.0  # m/s, v0
TIME_GAP = 1.0  # s, T
STANDSTILL_GAP = 2.0  # m, s0
ACCELERATION = 1.0  # m/s², a
COMFORTABLE_BRAKING = 1.5  # m/s², b
VEHICLE_LENGTH = 5.0  # m
GUARD_BRAKING = 4.5  # m/s², how hard the safe speed expects the vehicle ahead to brake
EMERGENCY_BRAKING = 9.0  # m/s², what brakes can do
SMALLEST_GAP = 0.1  # m; keeps the IDM finite when bumpers touch

Values = Float[Array, "*shape"]


def idm_acceleration(gap: Values, speed: Values, speed_ahead: Values) -> Values:
    """a (1 − (v/v0)⁴ − (s*/s)²) with s* = s0 + max(0, v T + v (v − v⁺) / 2√(ab))."""
    approach = speed * (speed - speed_ahead) / (2 * (ACCELERATION * COMFORTABLE_BRAKING) ** 0.5)
    wanted_gap = STANDSTILL_GAP + jnp.maximum(0.0, speed * TIME_GAP + approach)
    free = jnp.square(jnp.square(speed / FREE_SPEED))
    return ACCELERATION * (1 - free - jnp.square(wanted_gap / jnp.maximum(gap, SMALLEST_GAP)))


def equilibrium_speed(gap: Values) -> Values:
    """The speed at which IDM traffic flows uniformly with this gap: the root of s0 + v T = s √(1 − (v/v0)⁴)."""

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_slow = STANDSTILL_GAP + middle * TIME_GAP < gap * jnp.sqrt(1 - jnp.square(jnp.square(middle / FREE_SPEED)))
        return jnp.where(too_slow, middle, low), jnp.where(too_slow, high, middle)

    gap = jnp.asarray(gap, float)
    bounds = (jnp.zeros_like(gap), jnp.full_like(gap, FREE_SPEED))
    return jax.lax.fori_loop(0, 30, halve, bounds)[0]


def safe_speed(gap: Values, speed_ahead: Values) -> Values:
    """The fastest speed from which a vehicle, reacting after T, stops s0 behind one ahead that brakes at 4.5 m/s².

    Krauß, Wagner & Gawron, Phys. Rev. E 55, 5597 (1997), with the humans' T and s0: what SUMO's speed mode calls the
    safe speed. Uniform flow at the safe speed is v = (s − s0) / T, that of the IDM but for its term in v0.
    """
    reaction = GUARD_BRAKING * TIME_GAP
    room = jnp.maximum(gap - STANDSTILL_GAP, 0.0)
    return jnp.sqrt(reaction**2 + jnp.square(speed_ahead) + 2 * GUARD_BRAKING * room) - reaction
