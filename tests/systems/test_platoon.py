"""Platoons against a second simulator in a few lines of NumPy, and what a crash costs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import khop
from khop.errors import InputError
from khop.evaluation import controller, episode_keys, measure
from khop.system import Episode, Step
from khop.systems.platoon import GAINS, Platoon, PlatoonState, optimal_velocity

TASKS = ["platoon-catchup", "platoon-slowdown"]
STEPS, VEHICLES = 40, 3


def platoon_state(headway: list | np.ndarray, speed: list | np.ndarray, leader: float) -> PlatoonState:
    headway, speed = jnp.asarray(headway, jnp.float32), jnp.asarray(speed, jnp.float32)
    none = jnp.zeros_like(speed)
    leader_start = jnp.asarray(leader, jnp.float32)
    return PlatoonState(headway, speed, none, leader_start, jnp.zeros((), jnp.int32), jnp.zeros((), bool))


@eqx.filter_jit
def play_from(system: Platoon, state: PlatoonState, actions: jax.Array) -> Step:
    def step(state: PlatoonState, action: jax.Array) -> tuple[PlatoonState, Step]:
        step = system.step(jax.random.key(0), state, action)
        return step.state, step

    return jax.lax.scan(step, state, actions)[1]


def simulate(headway: np.ndarray, speed: np.ndarray, leader: np.ndarray, actions: np.ndarray, penalty: float) -> tuple:
    """Headways, speeds and rewards after each step, vehicle by vehicle from the papers' equations."""
    h, v, crashed = headway.astype(float), speed.astype(float), False
    headways, speeds, rewards = [], [], []
    for t, action in enumerate(actions):
        if not crashed:
            ahead, new_v, u = np.array([leader[t], *v[:-1]]), v.copy(), v.copy()
            for i in range(len(v)):
                alpha, beta = [(0, 0), (0.5, 0), (0, 0.5), (0.5, 0.5)][action[i]]
                suits = 0 if h[i] <= 5 else 30 if h[i] >= 35 else 15 * (1 - np.cos(np.pi * (h[i] - 5) / 30))
                wanted = min(max(alpha * (suits - v[i]) + beta * (ahead[i] - v[i]), -2.5), 2.5)
                new_v[i] = min(max(v[i] + wanted * 0.1, 0), 30)
                u[i] = (new_v[i] - v[i]) / 0.1
            new_ahead = np.array([leader[t + 1], *new_v[:-1]])
            h, v = h + 0.05 * (ahead + new_ahead - v - new_v), new_v
            crashed = bool(min(h) < 1)
            reward = -((h - 20) ** 2) - (v - 15) ** 2 - 0.1 * u**2
        headways.append(h)
        speeds.append(v)
        rewards.append(np.full(len(v), -penalty) if crashed else reward)
    return np.array(headways), np.array(speeds), np.array(rewards)


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=60, deadline=None)
@given(
    headway=arrays(float, VEHICLES, elements=st.floats(1.5, 60)),
    speed=arrays(float, VEHICLES, elements=st.floats(0, 37.5)),
    leader=st.floats(15, 37.5),
    actions=arrays(int, (STEPS, VEHICLES), elements=st.integers(0, 3), fill=st.nothing()),
)
def test_any_actions_lead_where_the_equations_say(
    task: str, headway: np.ndarray, speed: np.ndarray, leader: float, actions: np.ndarray
) -> None:
    profile = np.full(601, leader)
    if task == "platoon-slowdown":
        profile = np.concatenate([np.linspace(leader, 15, 300), np.full(301, 15)])
    headways, speeds, rewards = simulate(headway, speed, profile, actions, 700.0)
    assume(np.min(abs(headways - 1)) > 1e-3)  # where float32 may tell a crash from none differently
    system = khop.make(task, vehicles=VEHICLES, collision_penalty=700.0)
    step = play_from(system, platoon_state(headway, speed, leader), jnp.asarray(actions))
    np.testing.assert_allclose(step.info["headway"], headways, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(step.info["speed"], speeds, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(step.reward, rewards, rtol=1e-3, atol=1e-2)


def test_the_optimal_velocity_at_its_corners() -> None:
    at = jnp.array([0.0, 5.0, 12.5, 20.0, 27.5, 35.0, 90.0])
    expected = [0, 0, 15 - 15 / 2**0.5, 15, 15 + 15 / 2**0.5, 30, 30]
    np.testing.assert_allclose(optimal_velocity(at), expected, atol=1e-5)


# Starts


@eqx.filter_jit
def starts(system: Platoon, keys: jax.Array) -> PlatoonState:
    return jax.vmap(lambda key: system.reset(key)[0])(keys)


@pytest.mark.parametrize("cap", [True, False])
def test_slowdown_starts_within_its_bounds(cap: bool) -> None:
    keys = jax.random.split(jax.random.key(0), 1000)
    state = starts(khop.make("platoon-slowdown", vehicles=2, cap_initial_speed=cap), keys)
    uncapped = starts(khop.make("platoon-slowdown", vehicles=2, cap_initial_speed=False), keys)
    speed = np.asarray(uncapped.leader_start)
    assert speed.min() == pytest.approx(22.5, abs=0.1)
    assert speed.max() == pytest.approx(37.5, abs=0.1)
    assert speed.mean() == pytest.approx(30, abs=0.5)
    expected = np.minimum(speed, 30) if cap else speed
    np.testing.assert_array_equal(state.leader_start, expected)
    np.testing.assert_array_equal(state.speed, np.stack([expected, expected], -1))
    assert np.all(state.headway == 20)


def test_catchup_starts_within_its_bounds() -> None:
    keys = jax.random.split(jax.random.key(0), 1000)
    state = starts(khop.make("platoon-catchup", vehicles=3), keys)
    first = np.asarray(state.headway[:, 0])
    assert first.min() == pytest.approx(30, abs=0.1)
    assert first.max() == pytest.approx(50, abs=0.1)
    assert first.mean() == pytest.approx(40, abs=0.5)
    assert np.all(state.headway[:, 1:] == 20)
    assert np.all(state.speed == 15)
    assert np.all(state.leader_start == 15)


# Crashes

CRASH_AT = 4  # vehicle 1 closes in on vehicle 0 by 0.5 m a step from 2.8 m


def crashing(penalty: float) -> Step:
    """Three vehicles that keep their speeds, 15, 20 and 15 m/s."""
    system = khop.make("platoon-catchup", vehicles=3, collision_penalty=penalty, horizon=10)
    actions = jnp.zeros((10, 3), int).at[CRASH_AT:].set(3)  # what would move the platoon if it were not frozen
    return play_from(system, platoon_state([20, 2.8, 20], [15, 20, 15], 15), actions)


def test_a_crash_freezes_the_platoon_and_costs_everyone_at_every_remaining_step() -> None:
    step = crashing(1000.0)
    np.testing.assert_array_equal(step.info["crashed"], np.arange(10) >= CRASH_AT - 1)
    np.testing.assert_allclose(step.info["headway"][CRASH_AT - 2], [20, 1.3, 20.0 + 1.5], atol=1e-4)
    for name in ("headway", "speed", "acceleration"):
        frozen = step.info[name][CRASH_AT - 1 :]
        np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[0], frozen.shape))
    np.testing.assert_array_equal(step.reward[CRASH_AT - 1 :], -1000)
    expected = [-0.0, -((1.3 - 20) ** 2) - 25, -(1.5**2)]
    np.testing.assert_allclose(step.reward[CRASH_AT - 2], expected, rtol=1e-4, atol=1e-4)
    assert not step.terminated.any()
    np.testing.assert_array_equal(step.truncated, np.arange(10) == 9)


def test_the_collision_penalty_scales_what_follows_a_crash_alone() -> None:
    high, low = crashing(1000.0), crashing(250.0)
    np.testing.assert_array_equal(high.reward[: CRASH_AT - 1], low.reward[: CRASH_AT - 1])
    np.testing.assert_array_equal(high.reward[CRASH_AT - 1 :], 4 * low.reward[CRASH_AT - 1 :])


@eqx.filter_jit
def play_many(system: Platoon, keys: jax.Array, actions: np.ndarray) -> Step:
    return jax.vmap(lambda key, actions: play_from(system, system.reset(key)[0], actions))(keys, jnp.asarray(actions))


def gains_of_prudence(task: str, penalty: float) -> np.ndarray:
    """What is gained up to each step by driving at (½, ½) from ten seconds before a crash on, where that avoids it.

    One row per crash that random actions lead to; 0 before the crash.
    """
    system = khop.make(task, collision_penalty=penalty)
    keys = jax.random.split(jax.random.key(1), 64)
    actions = np.random.default_rng(2).integers(0, 4, (64, 600, 8))
    reckless = play_many(system, keys, actions)
    crashed = np.asarray(reckless.info["crashed"])
    warning = crashed.argmax(1) - 100
    late = np.arange(600) >= np.where(crashed[:, -1], warning, 600)[:, None]
    prudent = play_many(system, keys, np.where(late[..., None], 3, actions))
    avoided = crashed[:, -1] & ~np.asarray(prudent.info["crashed"][:, -1])
    assert avoided.sum() > 40
    gain = np.cumsum(np.asarray((prudent.reward - reckless.reward).sum(-1), float), axis=1)
    return np.where(crashed, gain, 0.0)[avoided]


@pytest.mark.parametrize("task", TASKS)
def test_a_crash_never_pays(task: str) -> None:
    """Wherever the episode ends after it, careful driving that avoids it would have scored better."""
    gains = gains_of_prudence(task, penalty=1000.0)
    assert gains.min() >= 0
    assert np.all(gains[:, -1] > 1e6)


def test_the_published_clipped_penalty_does_pay() -> None:
    """300 / 100, on the scale of unclipped rewards: what the test above says is not so of any penalty."""
    assert gains_of_prudence("platoon-catchup", penalty=3.0).min() < -1e4


# Sizes and parameters


@pytest.mark.parametrize(("task", "vehicles"), [("platoon-catchup", 1), ("platoon-slowdown", 50)])
def test_vehicles_behind_change_nothing_ahead(task: str, vehicles: int) -> None:
    """So that any number of them obeys the same equations, as long as none crashes."""
    actions = jnp.full((100, vehicles), 3)
    small, large = khop.make(task, vehicles=vehicles), khop.make(task, vehicles=vehicles + 1)
    key = jax.random.key(3)
    fewer = play_many(small, key[None], actions[None])
    more = play_many(large, key[None], jnp.pad(actions, ((0, 0), (0, 1)), constant_values=3)[None])
    assert not more.info["crashed"].any()
    np.testing.assert_allclose(more.obs[:, :, :-1], fewer.obs, atol=1e-5)
    np.testing.assert_allclose(more.reward[:, :, :-1], fewer.reward, rtol=1e-4, atol=1e-4)
    assert small.topology.edges.tolist() == [[i, i + 1] for i in range(vehicles - 1)]


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("name", ["vehicles", "horizon"])
def test_sizes_that_are_no_counts_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"needs {name} to be a whole number of at least 1, not {value!r}"):
        khop.make("platoon-catchup", **{name: value})


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_penalty_that_is_no_cost_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="collision_penalty"):
        khop.make("platoon-slowdown", collision_penalty=value)


@pytest.mark.parametrize("name", ["constant-0.5", "constant-0.5-0.7", "constant-0.5-0.5/", "constant-0-0/1-1", "best"])
def test_baselines_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="Unknown baseline"):
        khop.make("platoon-catchup").baseline(name)


# Metrics


def episode_of(headway: list, speed: list, crashed: list, reward: list) -> Episode:
    T = len(headway)
    info = {"headway": jnp.asarray(headway, float), "speed": jnp.asarray(speed, float)}
    info |= {"acceleration": jnp.zeros((T, 2)), "crashed": jnp.asarray(crashed)}
    still = jnp.zeros((T, 2), int)
    return Episode(jnp.zeros((T, 2, 5)), still, jnp.asarray(reward, float), info, jnp.ones(T, bool))


def metrics_of(headway: list, speed: list, crashed: list, reward: list) -> dict[str, float]:
    metrics = khop.make("platoon-catchup", vehicles=2).metrics(episode_of(headway, speed, crashed, reward))
    return {name: float(value) for name, value in metrics.items()}


def test_metrics_of_a_platoon_on_target() -> None:
    metrics = metrics_of([[20, 20]] * 3, [[15, 15]] * 3, [False] * 3, [[0, 0]] * 3)
    assert metrics == {
        "return": 0,
        "collision_rate": 0,
        "headway_rmse": 0,
        "speed_rmse": 0,
        "settling_time": 0,
    }


def test_metrics_of_a_platoon_that_settles() -> None:
    """Off by 3 m in step 1 and by 0.8 m/s in step 3 of 4: settled after 0.3 s. 1 m and 0.75 m/s off is on target."""
    headway = [[23, 20], [20, 20], [21, 20], [20, 19]]
    speed = [[15, 15], [15, 15.75], [15, 15.8], [14.25, 15]]
    metrics = metrics_of(headway, speed, [False] * 4, [[-1, -2], [0, 0], [0, -4], [-1, 0]])
    assert metrics["return"] == -2
    assert metrics["collision_rate"] == 0
    assert metrics["headway_rmse"] == pytest.approx((11 / 8) ** 0.5)
    assert metrics["speed_rmse"] == pytest.approx(((0.75**2 + 0.8**2 + 0.75**2) / 8) ** 0.5)
    assert metrics["settling_time"] == pytest.approx(0.3)


def test_metrics_of_a_platoon_that_crashes() -> None:
    metrics = metrics_of([[20, 5], [20, 0.5]], [[15, 15]] * 2, [False, True], [[0, -225], [-1000, -1000]])
    assert metrics["return"] == -2225 / 2
    assert metrics["collision_rate"] == 1
    assert metrics["settling_time"] == pytest.approx(0.2)


# Baselines


def test_names_of_constants_say_their_gains() -> None:
    system = khop.make("platoon-catchup", vehicles=3)
    for action, (alpha, beta) in enumerate(GAINS):
        np.testing.assert_array_equal(system.baseline(f"constant-{alpha:g}-{beta:g}").action, [action] * 3)
    np.testing.assert_array_equal(system.baseline("constant-0.5-0/0-0.5").action, [1, 2, 2])


@pytest.mark.parametrize("task", TASKS)
def test_better_baselines_are_better(task: str) -> None:
    """On the same fresh episodes: the best per position, the best pair, every constant."""
    system = khop.make(task)

    def score(name: str) -> float:
        return float(measure(system, controller(system, name), episode_keys(1, 64))["return"].mean())

    constants = [f"constant-{a:g}-{b:g}" for a, b in GAINS]
    pairs = [f"{first}/{rest.removeprefix('constant-')}" for first in constants for rest in constants]
    best, pair = score("best-constant"), score("best-constant-pair")
    assert pair == max(map(score, pairs if task == "platoon-catchup" else constants))
    assert best >= pair
    assert best > pair + 1 or task == "platoon-slowdown"  # there, (½, ½) everywhere is best of all
