"""The figure eight: who gives way, what a collision at the crossing is, and what agents see of each other."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import controller, episode_keys, measure
from khop.systems.loops.figure_eight import LENGTH, FigureEight, approach, course, stop_gap
from khop.systems.loops.loop import LoopState, ahead, bunched

FREE = FigureEight(vehicles=2, controlled=1, noise=0.0, warmup=0)
MINOR, MAIN = 209.0, 418.0  # m, where the crossing is on either road


def placed(positions: list[float], speeds: list[float], loop: FigureEight = FREE) -> LoopState:
    """Vehicles at given places, in the order of the file: the first one leads."""
    state = bunched(loop, jnp.asarray(LENGTH, jnp.float32))
    position = jnp.asarray(positions, jnp.float32) % LENGTH
    gap = (ahead(position) - position) % LENGTH - 5
    return dataclasses.replace(state, position=position, gap=gap, speed=jnp.asarray(speeds, jnp.float32))


@eqx.filter_jit
def humans(loop: FigureEight, state: LoopState, steps: int) -> LoopState:
    def advance(state: LoopState, _: None) -> tuple[LoopState, LoopState]:
        moved = loop.drive(jax.random.key(0), state, None)
        return moved, moved

    return jax.lax.scan(advance, state, length=steps)[1]


def overlap(one: float, other: float) -> bool:
    """Whether two outlines of 5 m × 1.8 m overlap, one driving north to the crossing, the other west, by sampling."""
    along = np.linspace(-5, 0, 101)
    across = np.linspace(-0.9, 0.9, 37)
    north = np.stack(np.meshgrid(across, one + along), -1).reshape(-1, 2)
    west_x = -(other + along)
    inside = (north[:, 0] >= west_x.min()) & (north[:, 0] <= west_x.max()) & (np.abs(north[:, 1]) <= 0.9)
    return bool(inside.any())


def test_a_collision_at_the_crossing_is_an_overlap_of_outlines() -> None:
    """Front bumpers up to 9 m before and behind the middle of the crossing, on both roads."""
    collided = jax.jit(lambda state: FREE.collided(state))
    places = np.random.default_rng(0).uniform(-9, 9, (150, 2)).round(1) + 0.03
    found = [bool(collided(placed([MAIN + main, MINOR + minor], [0.0, 0.0]))) for main, minor in places]
    assert found == [overlap(main, minor) for main, minor in places]
    assert 20 < sum(found) < 130


def test_the_minor_road_gives_way_and_the_main_road_does_not() -> None:
    """Both 40 m before the crossing at 8 m/s."""
    driven = humans(FREE, placed([MAIN - 40, MINOR - 40], [8.0, 8.0]), 150)
    assert not driven.crashed.any()
    main, minor = np.asarray(driven.speed).T
    assert main.min() >= 8.0 - 1e-3
    assert minor.min() < 4.0
    passed = int(np.argmax(np.asarray(driven.position)[:, 0] < 100))
    assert float(driven.position[passed, 1]) < MINOR


def test_with_the_main_road_far_away_the_minor_road_slows_down_to_look_and_drives_on() -> None:
    driven = humans(FREE, placed([MAIN - 200, MINOR - 20], [5.0, 8.0]), 150)
    assert 1.0 < float(driven.speed[:, 1].min()) < 6.0
    assert float(driven.position[-1, 1]) > MINOR + 6


def test_the_main_road_waits_for_whoever_is_on_the_crossing() -> None:
    """A vehicle stands on the crossing; the one on the main road stops before its vehicles pass."""
    state = placed([MAIN - 60, MINOR + 2], [10.0, 0.0])
    drive = jax.jit(lambda state: FREE.drive(jax.random.key(0), state, None))
    for _ in range(300):
        moved = drive(state)
        hold = dataclasses.replace(moved, position=moved.position.at[1].set(MINOR + 2), speed=moved.speed.at[1].set(0))
        state = dataclasses.replace(hold, gap=(ahead(hold.position) - hold.position) % LENGTH - 5)
    assert float(state.speed[0]) < 0.3
    assert MAIN - 10 < float(state.position[0]) < MAIN - 0.9


def test_whoever_cannot_stop_need_not() -> None:
    late = placed([MAIN - 1.5, MINOR - 3], [10.0, 10.0])
    assert np.all(np.isinf(stop_gap(late, approach(late))))
    early = placed([MAIN - 1.5, MINOR - 30], [10.0, 10.0])
    np.testing.assert_allclose(stop_gap(early, approach(early)), [np.inf, 30 - 6.2 + 2], rtol=1e-4)


@pytest.mark.parametrize("name", ["all-human", "full-throttle", "random"])
def test_nobody_collides_who_gives_way(name: str) -> None:
    eight = FigureEight(horizon=600, warmup=200)
    found = measure(eight, controller(eight, name), episode_keys(0, 16))
    assert float(found["collision_rate"].max()) == 0
    assert float(found["mean_speed"].min()) > 0.05


def test_without_the_right_of_way_full_throttle_collides() -> None:
    eight = FigureEight(horizon=600, warmup=200, right_of_way=False)
    found = measure(eight, controller(eight, "full-throttle"), episode_keys(0, 16))
    assert float(found["collision_rate"].mean()) > 0.9


def test_agents_see_the_rivals_at_the_crossing() -> None:
    eight = FigureEight(vehicles=4, controlled=4, noise=0.0, warmup=0)
    # On the main road 10 and 40 m before the crossing, on the minor one 15 m before it and 3 m past its middle.
    state = placed([MAIN - 10, MAIN - 40, MINOR + 3, MINOR - 15], [4.0, 5.0, 6.0, 7.0], eight)
    seen = {name: np.asarray(eight.observe(state))[:, k] for k, name in enumerate(eight.spec.observation_names)}
    leads = {"lead of the rival before": [13.0, 25.0, 50.0, 5.0], "lag of the rival after": [5.0, 50.0, 50.0, 25.0]}
    for name, metres in leads.items():
        np.testing.assert_allclose(seen[name], np.array(metres) / 25 - 1, atol=1e-3)
    np.testing.assert_allclose(seen["speed of the rival before"], [-0.4, -0.3, 0.0, -0.6], atol=1e-5)
    np.testing.assert_allclose(
        seen["crossing"], [1 - 2 * 9.1 / 50, 1 - 2 * 39.1 / 50, -1, 1 - 2 * 14.1 / 50], atol=1e-4
    )
    np.testing.assert_allclose(seen["gap"][:2], [60 / 20 - 1, 25 / 20 - 1], atol=1e-3)  # at most 60 m


def test_agents_hear_their_neighbours_in_order_or_also_across_the_crossing() -> None:
    order, conflict = FigureEight().topology, FigureEight(neighbours="conflict").topology
    assert order.statistics()["max_degree"] == 2
    for agent in range(14):
        heard = conflict.neighbourhood(1).index[agent]
        assert set(heard.tolist()) == {agent, (agent - 1) % 14, (agent + 1) % 14, (agent + 7) % 14}


@pytest.mark.parametrize("wrong", [{"vehicles": 62}, {"controlled": 15}])
def test_impossible_figure_eights_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        khop.make("figure-eight", **wrong)


def test_the_drawn_course_is_as_long_as_the_loop_and_crosses_itself_halfway() -> None:
    points = course()
    steps = np.linalg.norm(np.roll(points, -1, axis=0) - points, axis=1)
    np.testing.assert_allclose(steps, LENGTH / len(points), rtol=1e-3)
    np.testing.assert_allclose(points[[0, len(points) // 2]], 0.0, atol=1e-9)
