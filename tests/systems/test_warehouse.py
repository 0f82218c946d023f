"""The warehouse against the published one: recorded transitions and the returns measured on it."""

from collections import Counter
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import controller, episode_keys, measure, play
from khop.systems import warehouse, warehouse_rules
from khop.systems.warehouse import RegionState, WarehouseState
from khop.systems.warehouse_rules import CELLS, READING_ORDER

DATA = Path(__file__).parents[1] / "data"


def shelves(grid: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(T, 4N + 1, 4N + 1) cells as the ages on shelves: across (T, 3, N + 1, N), along (T, 3, N, N + 1)."""
    across = np.stack([grid[:, ::4, 1 + place :: 4] for place in range(3)], 1)
    along = np.stack([grid[:, 1 + place :: 4, ::4] for place in range(3)], 1)
    return jnp.asarray(across), jnp.asarray(along)


def square(x: np.ndarray) -> jax.Array:
    return jnp.asarray(x.reshape(len(x), 4, 4), jnp.int32)


def places(data: dict, when: str) -> np.ndarray:
    """(T, 16, 2): recorded in cells of the whole warehouse, here within each robot's region."""
    return data[f"pos{when}"] - 4 * np.stack(np.divmod(np.arange(16), 4), -1)


def state(data: dict, when: str, items: str) -> WarehouseState:
    """All T recorded states."""
    T, place = len(data[items]), places(data, when)
    parts = (square(place[..., 0]), square(place[..., 1]), *shelves(data[items]))
    return jax.vmap(WarehouseState)(*parts, jnp.full((T, 12), -1), jnp.zeros(T, jnp.int32))


@pytest.fixture(scope="module", params=["oldest", "closest"])
def recorded(request: pytest.FixtureRequest) -> dict:
    return {"border": request.param, **np.load(DATA / f"warehouse_{request.param}.npz")}


def test_every_recorded_transition_is_reproduced(recorded: dict) -> None:
    """Positions, collected items, rewards, influence sources and observations, all exact."""
    system = khop.make("warehouse", border=recorded["border"])
    before, after = state(recorded, "0", "item0"), state(recorded, "1", "item1")
    reached, reward = jax.vmap(system.transition)(before, square(recorded["actions"]))
    assert len(recorded["reward"]) == 200
    np.testing.assert_array_equal(reached.row, after.row)
    np.testing.assert_array_equal(reached.column, after.column)
    across, along = shelves(recorded["item_after_remove"])
    np.testing.assert_array_equal(reached.across, across)
    np.testing.assert_array_equal(reached.along, along)
    np.testing.assert_array_equal(reward.reshape(200, 16)[:, recorded["learner_ids"]], recorded["reward"].astype("f4"))
    np.testing.assert_array_equal(jax.vmap(system.observe)(before), recorded["dset"])
    np.testing.assert_array_equal(jax.vmap(system.observe)(after), recorded["obs1"])
    sources = jax.vmap(system.regions.sources)(before, jnp.asarray(recorded["actions"]), after)
    np.testing.assert_array_equal(sources, recorded["infs"].reshape(200, 4, 4, 4).argmax(-1))


def test_scripted_robots_go_where_the_recorded_ones_went(recorded: dict) -> None:
    """Each action of a robot that had a target brought it one step closer to ours."""
    system = khop.make("warehouse", border=recorded["border"])
    before = state(recorded, "0", "item0")
    steps, _ = warehouse_rules.ways_to_cells()
    ring = warehouse._border(2)
    target = jnp.full(12, -1)
    guided = 0
    for t in range(200):
        target = jnp.where(t % 100 == 0, -1, target)
        now = eqx.tree_at(lambda s: s.target, jax.tree.map(lambda x, t=t: x[t], before), target)
        target, _ = act_on_border(system, now)
        goal = np.maximum(target, 0)
        distance, left = (steps[places(recorded, when)[t, ring] @ [5, 1], goal] for when in "01")
        has_goal = (np.asarray(target) >= 0) & (distance > 0)
        np.testing.assert_array_equal((distance - left)[has_goal], 1)
        guided += has_goal.sum()
    assert guided > 1400


@eqx.filter_jit
def act_on_border(system: khop.System, state: WarehouseState) -> tuple:
    return system._act_on_border(jax.random.key(0), state)


def test_every_recorded_transition_of_a_region_is_reproduced() -> None:
    data = np.load(DATA / "warehouse_region.npz")
    regions = khop.make("warehouse").regions
    ages = {name: jnp.asarray(data[name][:, CELLS[:, 0], CELLS[:, 1]]) for name in ("item0", "item_after_remove")}
    row, column = jnp.asarray(data["pos0"].T, jnp.int32)
    before = jax.vmap(RegionState)(row, column, ages["item0"])
    keys = jax.random.split(jax.random.key(0), 300)
    agent = jnp.zeros(300, jnp.int32)
    step = jax.jit(jax.vmap(regions.step))(keys, agent, before, jnp.asarray(data["u"]), jnp.asarray(data["action"]))
    np.testing.assert_array_equal(jnp.stack([step.state.row, step.state.column], -1), data["pos1"])
    np.testing.assert_array_equal(step.reward, data["reward"].astype("f4"))
    kept = jnp.where(step.state.age == 0, -1, step.state.age)  # without what has just appeared
    np.testing.assert_array_equal(kept, ages["item_after_remove"])
    items = jnp.asarray(data["item1"][:, CELLS[:, 0], CELLS[:, 1]])
    arrived = (*jnp.asarray(data["pos1"].T), items.T)
    np.testing.assert_array_equal(warehouse_rules.observed(*arrived), data["obs1"])


# Returns per learning robot of the published code: mean and standard error (50 or 60 episodes), and of an independent
# re-implementation where that code was not measured.
@pytest.mark.parametrize(
    "side, name, border, mean, error",
    [
        (2, "oldest", "oldest", 13.41, 0.19),
        (5, "oldest", "oldest", 13.01, 0.10),
        (2, "closest", "closest", 13.06, 0.18),
        (5, "closest", "closest", 12.81, 0.09),
        (5, "random", "closest", 1.92, 0.03),
        (2, "random", "oldest", 1.53, 0.01),
    ],
)
def test_returns_are_those_of_the_published_code(side: int, name: str, border: str, mean: float, error: float) -> None:
    """Within three standard errors of the difference."""
    system = khop.make("warehouse", side=side, border=border)
    values = np.asarray(measure(system, controller(system, name), episode_keys(0, 200))["episode_return"])
    own_error = values.std(ddof=1) / len(values) ** 0.5
    assert abs(values.mean() - mean) < 3 * (error**2 + own_error**2) ** 0.5


def test_the_first_step_of_a_shortest_way_is_one() -> None:
    """By brute force over all ways of six steps or fewer."""
    steps, first = warehouse_rules.ways_to_cells()
    for cell, (row, column) in enumerate(CELLS):
        for start in (6, 12, 18, 1, 5, 9, 23):
            frontier, length = Counter({start: 1}), 0
            while 5 * row + column not in frontier:
                frontier = Counter(place for origin in frontier for place in neighbours(origin))
                length += 1
            assert steps[start, cell] == length
            if length:
                onward = neighbours(start)[first[start, cell]]
                assert steps[onward, cell] == length - 1


def neighbours(place: int) -> list[int]:
    """Where the four actions lead, from the rules in words."""
    row, column = divmod(place, 5)
    reached = []
    for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        to = (row + down, column + right)
        inside = 0 <= to[0] <= 4 and 0 <= to[1] <= 4
        corner = to in ((0, 0), (0, 4), (4, 0), (4, 4))
        along_a_shelf = (column in (0, 4)) if down else (row in (0, 4))
        reached.append(place if not inside or corner or along_a_shelf else 5 * to[0] + to[1])
    return reached


def test_equal_items_are_preferred_in_reading_order() -> None:
    assert [tuple(cell) for cell in CELLS[READING_ORDER]] == sorted(map(tuple, CELLS))
    target, _ = warehouse_rules.scripted(
        "oldest", jax.random.key(0), *map(jnp.asarray, ([-1], [2], [2])), jnp.full((12, 1), 4)
    )
    assert tuple(CELLS[target[0]]) == (0, 1)


def test_items_appear_with_the_published_probability() -> None:
    """2 % of a million free cells, and never where there is one."""
    draw = jax.random.bits(jax.random.key(0), (1_000_000,))
    fresh = warehouse_rules.spawned(jnp.full(1_000_000, -1), draw)
    assert abs(float((fresh == 0).mean()) - 0.02) < 3 * (0.02 * 0.98 / 1e6) ** 0.5
    np.testing.assert_array_equal(warehouse_rules.spawned(jnp.full(1000, 5), draw[:1000]), 5)


def test_local_simulators_given_the_true_sources_replay_the_whole_system() -> None:
    """Three episodes of random actions on 3 × 3: own places, ages, rewards; items spawned outside are put in."""
    system = khop.make("warehouse", side=3, horizon=60)
    regions = system.regions

    def step(state: WarehouseState, key: jax.Array) -> tuple:
        action_key, step_key = jax.random.split(key)
        action = system.spec.action.sample(action_key)
        step = system.step(step_key, state, action)
        sources = regions.sources(state, action, step.state)
        keys = jax.random.split(key, system.spec.n)
        local = jax.vmap(regions.step)(keys, jnp.arange(system.spec.n), regions.local(state), sources, action)
        return step.state, (regions.local(step.state), local, step.reward, sources)

    for seed in range(3):
        start, _ = system.reset(jax.random.key(seed))
        found = jax.jit(lambda key, start: jax.lax.scan(step, start, jax.random.split(key, 60)))
        true, local, reward, sources = found(jax.random.key(seed + 10), start)[1]
        for name in ("row", "column"):
            np.testing.assert_array_equal(getattr(local.state, name), getattr(true, name))
        known = [np.where(age == 0, -1, age) for age in (local.state.age, true.age)]  # both without new items
        np.testing.assert_array_equal(*known)
        np.testing.assert_array_equal(local.reward, reward)
        assert len(np.unique(sources)) == 4


def test_a_region_begins_as_in_the_whole_system() -> None:
    """Robot in the middle; each of the twelve cells holds an item with probability 0.02."""
    regions = khop.make("warehouse").regions
    state, obs = jax.vmap(regions.reset)(jax.random.split(jax.random.key(1), 4000), jnp.zeros(4000, jnp.int32))
    assert np.all(obs[:, 12] == 1)
    share = np.asarray(obs[:, 25:]).mean(0)
    np.testing.assert_allclose(share, 0.02, atol=4 * (0.02 * 0.98 / 4000) ** 0.5)
    np.testing.assert_array_equal(obs[:, 25:] == 1, state.age == 0)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    system = khop.make("warehouse", horizon=3)
    episode = jax.tree.map(np.asarray, play(system, controller(system, "oldest"), jax.random.key(0)))
    assert len(system.render({"oldest": episode, "random": episode}).axes) >= 2
    assert system.animate(episode, tmp_path / "warehouse.gif").read_bytes().startswith(b"GIF")


@pytest.mark.parametrize("wrong", [{"side": 0}, {"horizon": 0}])
def test_bad_parameters_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match="whole number of at least 1"):
        khop.make("warehouse", **wrong)
