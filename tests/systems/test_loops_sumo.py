"""The loops against SUMO's own IDM drivers; benchmarks/loops_sumo.py compares more of them."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from khop.systems.loops.car_following import equilibrium_speed
from khop.systems.loops.figure_eight import LENGTH, FigureEight
from khop.systems.loops.loop import Loop, LoopState, bunched
from khop.systems.loops.ring import Ring
from khop.systems.loops.sumo import Driven, Road, drive, eight_road, ring_road

pytest.importorskip("libsumo", reason="needs the extra traffic")
pytest.importorskip("sumolib", reason="needs the extra traffic")


@eqx.filter_jit
def speeds(loop: Loop, state: LoopState, steps: int) -> jax.Array:
    """Human driving without noise, (T, V)."""

    def advance(state: LoopState, _: None) -> tuple[LoopState, jax.Array]:
        moved = loop.drive(jax.random.key(0), state, None)
        return moved, moved.speed

    return jax.lax.scan(advance, state, length=steps)[1]


def in_sumo(road: Road, state: LoopState, steps: int) -> Driven:
    return drive(road, np.asarray(state.position) / float(state.length), np.asarray(state.speed), steps)


@pytest.mark.parametrize("length", [220.0, 500.0, 1500.0])
def test_uniform_flow_has_the_same_speed(length: float) -> None:
    ring = Ring(noise=0.0, longest=1500.0)
    even = length / 22 * (21.5 - np.arange(22))
    state = dataclasses.replace(
        bunched(ring, jnp.asarray(length)),
        position=jnp.asarray(even, jnp.float32),
        speed=jnp.full(22, equilibrium_speed(jnp.asarray(length / 22 - 5))),
    )
    driven = in_sumo(ring_road(length), state, 100)
    assert driven.length == pytest.approx(length, abs=0.1)
    np.testing.assert_allclose(driven.speed[-1], state.speed, rtol=0.01)


def test_traffic_on_a_ring_goes_the_same_way_from_a_standing_start() -> None:
    """Until the wave breaks the trajectories are the same; then its spread is."""
    ring = Ring(noise=0.0)
    state = bunched(ring, jnp.asarray(260.0, jnp.float32))
    ours, theirs = np.asarray(speeds(ring, state, 3000)), in_sumo(ring_road(260.0), state, 3000)
    assert theirs.collisions == 0
    np.testing.assert_allclose(ours[:100], theirs.speed[:100], atol=0.1)
    assert ours[-1000:].std(1).mean() == pytest.approx(theirs.speed[-1000:].std(1).mean(), rel=0.15)
    assert ours[-1000:].mean() == pytest.approx(theirs.speed[-1000:].mean(), rel=0.05)


def test_as_many_vehicles_pass_the_crossing() -> None:
    eight = FigureEight(noise=0.0)
    state = bunched(eight, jnp.asarray(LENGTH, jnp.float32))
    ours, theirs = np.asarray(speeds(eight, state, 3000)), in_sumo(eight_road(), state, 3000)
    assert theirs.length == pytest.approx(LENGTH, abs=1.0)
    assert ours[500:].mean() == pytest.approx(theirs.speed[500:].mean(), rel=0.2)
