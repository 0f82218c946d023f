"""The ring against the closed form of its equilibrium, linear stability theory, and a second simulator in NumPy."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import play
from khop.system import Episode
from khop.systems.loops.car_following import equilibrium_speed, idm_acceleration, safe_speed
from khop.systems.loops.loop import Loop, LoopState, bunched
from khop.systems.loops.ring import Ring

SHORT = {"horizon": 200, "warmup": 20}


take_step = eqx.filter_jit(lambda loop, key, state, action: loop.step(key, state, action))


@eqx.filter_jit
def humans(loop: Loop, state: LoopState, steps: int, key: jax.Array) -> LoopState:
    """Human driving from a state; leaves lead with the step."""

    def advance(state: LoopState, key: jax.Array) -> tuple[LoopState, LoopState]:
        moved = loop.drive(key, state, None)
        return moved, moved

    return jax.lax.scan(advance, state, jax.random.split(key, steps))[1]


def dented(loop: Loop, length: jax.Array) -> LoopState:
    """Uniform flow, but for vehicle 0, half a metre ahead of its place."""
    gap = length / loop.vehicles - 5.0
    place = jnp.arange(loop.vehicles)
    speed = jnp.full(loop.vehicles, equilibrium_speed(gap))
    gaps = gap - 0.5 * (place == 0) + 0.5 * (place == 1)
    return dataclasses.replace(bunched(loop, length), gap=gaps, speed=speed)


# Car following --------------------------------------------------------------------------------------------------------


def test_equilibrium_speed_inverts_the_closed_form_of_the_gap() -> None:
    """s_e(v) = (s0 + v T) / √(1 − (v/v0)⁴) (Treiber & Kesting, Traffic Flow Dynamics, 2013)."""
    speed = np.linspace(0.01, 29.5, 200)
    gap = jnp.asarray((2.0 + speed) / np.sqrt(1 - (speed / 30) ** 4), float)
    found = equilibrium_speed(gap)
    np.testing.assert_allclose(found, speed, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(idm_acceleration(gap, found, found), 0.0, atol=2e-3)


def test_the_idm_on_numbers_worked_out_by_hand() -> None:
    gap, speed, leading = jnp.array([20.0, 20.0, 100.0]), jnp.array([10.0, 10.0, 30.0]), jnp.array([10.0, 4.0, 60.0])
    wanted = 2 + 10 + 10 * 6 / (2 * np.sqrt(1.5))
    free = 1 - (1 / 3) ** 4
    expected = [free - (12 / 20) ** 2, free - (wanted / 20) ** 2, -((2 / 100) ** 2)]
    np.testing.assert_allclose(idm_acceleration(gap, speed, leading), expected, rtol=1e-5, atol=1e-6)


def test_the_safe_speed_is_safe_and_no_lower_than_needed() -> None:
    """After T at that speed both brake at 4.5 m/s²: the vehicles stop just s0 apart."""
    gap, leading = map(jnp.ravel, jnp.meshgrid(jnp.linspace(2.0, 60.0, 9), jnp.linspace(0.0, 25.0, 6)))
    speed = safe_speed(gap, leading)
    np.testing.assert_allclose(speed * 1.0 + speed**2 / (2 * 4.5), gap - 2 + leading**2 / (2 * 4.5), atol=2e-3)


# The road -------------------------------------------------------------------------------------------------------------


def simulate(position: np.ndarray, length: float, speed: np.ndarray, wanted: np.ndarray) -> tuple:
    """Positions and speeds from the equations, vehicle by vehicle; no noise, everyone controlled and guarded."""
    x, v = position.astype(float), speed.astype(float)
    positions, speeds = [], []
    for action in wanted:
        new = v.copy()
        for i in range(len(v)):
            gap, leading = (x[i - 1] - x[i]) % length - 5, v[i - 1]
            star = 2 + max(0, v[i] + v[i] * (v[i] - leading) / (2 * np.sqrt(1.5)))
            human = v[i] + 0.1 * (1 - (v[i] / 30) ** 4 - (star / gap) ** 2)
            safe = -4.5 + np.sqrt(4.5**2 + leading**2 + 9 * max(gap - 2, 0))
            new[i] = np.clip(min(v[i] + 0.1 * action[i], max(safe, human)), max(v[i] - 0.9, 0), 30)
        v = new
        x = (x + 0.1 * v) % length
        positions.append(x)
        speeds.append(v)
    return np.array(positions), np.array(speeds)


def test_it_drives_as_the_equations_say() -> None:
    ring = Ring(noise=0.0, **SHORT)
    state, _ = ring.reset(jax.random.key(0))
    wanted = np.random.default_rng(0).uniform(-1, 3, (60, 22)).astype(np.float32)

    def act(state: LoopState, action: jax.Array) -> tuple[LoopState, LoopState]:
        step = ring.step(jax.random.key(0), state, action[:, None])
        return step.state, step.state

    moved = jax.jit(lambda: jax.lax.scan(act, state, wanted)[1])()
    positions, speeds = simulate(np.asarray(state.position), float(state.length), np.asarray(state.speed), wanted)
    np.testing.assert_allclose(moved.speed, speeds, atol=2e-3)
    np.testing.assert_allclose(np.sin(moved.position), np.sin(positions), atol=5e-3)
    assert np.ptp(speeds) > 1  # the guard has acted: nobody else brakes


def test_gaps_and_vehicles_fill_the_loop() -> None:
    ring = Ring(**SHORT)
    for key in jax.random.split(jax.random.key(0), 2):
        episode = eqx.filter_jit(play)(ring, ring.baseline("pi-saturation"), key)
        gap, length = np.asarray(episode.info["gap"]), np.asarray(episode.info["length"])
        position = np.asarray(episode.info["position"])
        np.testing.assert_allclose(gap.sum(1) + 22 * 5, length, rtol=1e-5)
        apart = (np.roll(position, 1, axis=1) - position) % length[:, None] - 5
        np.testing.assert_allclose(apart, gap, atol=5e-3)
        assert 220 <= length[0] <= 270
        assert len(set(length.tolist())) == 1


def growth(length: float, vehicles: int = 22) -> float:
    """Rate in 1/s of the fastest growing wave, from the IDM linearised by finite differences around uniform flow."""
    gap = length / vehicles - 5
    speed = float(equilibrium_speed(jnp.asarray(gap)))

    def slope(axis: int) -> float:
        point = np.array([gap, speed, speed])
        shift = 1e-4 * np.eye(3)[axis]

        def f(x: np.ndarray) -> float:
            star = 2 + max(0, x[1] + x[1] * (x[1] - x[2]) / (2 * np.sqrt(1.5)))
            return 1 - (x[1] / 30) ** 4 - (star / x[0]) ** 2

        return (f(point + shift) - f(point - shift)) / 2e-4

    to_gap, to_speed, to_leader = slope(0), slope(1), slope(2)
    modes = np.exp(-2j * np.pi * np.arange(1, vehicles) / vehicles)
    rates = [np.roots([1, -to_speed - to_leader * z, to_gap * (1 - z)]).real.max() for z in modes]
    return float(max(rates))


def test_waves_grow_and_vanish_as_linear_theory_says() -> None:
    """A dent in uniform flow becomes a stop-and-go wave at high density and vanishes at low density, where the flow
    then has the equilibrium speed.
    """
    lengths = np.array([230.0, 260.0, 300.0, 400.0, 500.0, 600.0, 1000.0])
    ring = Ring(noise=0.0, longest=1000.0)
    driven = jax.vmap(lambda length: humans(ring, dented(ring, length), 6000, jax.random.key(0)).speed)(
        jnp.asarray(lengths, jnp.float32)
    )
    spread = np.asarray(driven).std(axis=-1)
    rates = np.log(spread[:, 2000] / spread[:, 1000]) / 100  # between 100 and 200 s
    expected = np.array([growth(length) for length in lengths])
    known = lengths < 600  # beyond, the dent is gone by then
    np.testing.assert_allclose(rates[known][1:], expected[known][1:], atol=0.0015)
    assert np.all(expected[:4] > 0.004)
    assert np.all(expected[4:] < -0.008)
    assert np.all(spread[:2, -100:] > 2)
    assert np.all(spread[4:, -100:] < 1e-3)
    uniform = equilibrium_speed(jnp.asarray(lengths / 22 - 5, float))
    np.testing.assert_allclose(driven[4:, -1].mean(-1), uniform[4:], rtol=0.01)


# Episodes -------------------------------------------------------------------------------------------------------------


def test_controlled_vehicles_can_drive_exactly_like_humans() -> None:
    """All human under the agents' actions is all human driving, as long as nobody wants to brake harder than 3 m/s²."""
    ring = Ring(horizon=300, noise=0.0)
    state, obs = jax.jit(ring.reset)(jax.random.key(4))
    everyone = ring.baseline("all-human")
    drive = eqx.filter_jit(lambda ring, key, state: ring.drive(key, state, None))
    alone = state
    for key in jax.random.split(jax.random.key(5), 100):
        action = everyone(key, (), state, obs)[1]
        state, alone = take_step(ring, key, state, action).state, drive(ring, key, alone)
    np.testing.assert_allclose(state.speed, alone.speed, atol=1e-4)
    assert np.std(state.speed) > 0.5


def test_one_agent_leaves_the_others_human() -> None:
    ring = Ring(controlled=2, **SHORT)
    np.testing.assert_array_equal(ring.members, [0, 11])
    assert ring.topology.n == 2
    state, _ = ring.reset(jax.random.key(0))
    key = jax.random.key(1)
    braked = take_step(ring, key, state, jnp.full((2, 1), -3.0)).state
    human = ring.drive(key, state, None)
    others = np.setdiff1d(np.arange(22), ring.members)
    np.testing.assert_allclose(braked.speed[others], human.speed[others], rtol=1e-6)  # two programs may round apart
    assert np.all(np.asarray(braked.speed)[ring.members] < np.asarray(human.speed)[ring.members])


def test_a_collision_loses_the_episode_and_never_pays() -> None:
    ring = Ring(guard=False, **SHORT)
    state, _ = ring.reset(jax.random.key(0))
    charge = jnp.where(jnp.arange(22) == 5, 3.0, -3.0)[:, None]
    rewards, lost = [], []
    for key in jax.random.split(jax.random.key(1), 120):
        step = take_step(ring, key, state, charge)
        state = step.state
        rewards.append(step.reward)
        lost.append(bool(step.lost))
    first = lost.index(True)
    assert all(lost[first:])
    assert np.all(np.array(rewards[first:]) == -15)
    assert np.min(rewards[:first]) > -15
    assert np.all(state.speed == 0)
    assert not step.terminated.any()


def test_the_rewards_are_those_documented() -> None:
    state = Ring(**SHORT).reset(jax.random.key(0))[0]
    action = jnp.linspace(-1, 2, 22)[:, None]
    own = take_step(Ring(reward="published", **SHORT), jax.random.key(1), state, action)
    np.testing.assert_allclose(own.reward, 10 - np.abs(10 - own.state.speed), rtol=1e-5)
    shared = take_step(Ring(reward="flow", **SHORT), jax.random.key(1), state, action)
    np.testing.assert_allclose(shared.reward, shared.state.speed.mean() / 5 - 4 * np.abs(action[:, 0]), rtol=1e-4)
    few = take_step(Ring(controlled=3, **SHORT), jax.random.key(1), state, action[:3])
    led = np.array([few.state.speed[:7].mean(), few.state.speed[7:14].mean(), few.state.speed[14:].mean()])
    uniform = equilibrium_speed(state.length / 22 - 5)
    np.testing.assert_allclose(few.reward, led / uniform - 1, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(Ring(controlled=3).members, [0, 7, 14])


def test_agents_learn_from_those_behind_alone() -> None:
    for agents in (1, 2, 5):
        ring = Ring(controlled=agents)
        heard = ring.feedback.neighbourhood(1)
        for agent in range(agents):
            found = set(heard.index[agent][heard.mask[agent]].tolist())
            assert found == {agent} | ({(agent + 1) % agents} if agents > 2 or agent + 1 < agents else set())


def test_metrics_on_a_made_up_episode() -> None:
    """Half of the vehicles at 2, half at 6 m/s, at rest from one second on, all accelerating at 0.5 m/s² or braking."""
    ring = Ring(**SHORT)
    moving = np.arange(200)[:, None] < 10
    speed = np.where(moving, np.tile([2.0, 6.0], 11), 0.0)
    info = {
        "speed": jnp.asarray(speed, jnp.float32),
        "acceleration": jnp.asarray(np.tile([0.5, -0.5], (200, 11)), jnp.float32),
        "length": jnp.full(200, 220.0),
        "crashed": jnp.zeros(200, bool),
    }
    none = jnp.zeros((200, 22))

    def measured(info: dict) -> dict:
        return ring.metrics(Episode(none[..., None], none[..., None], none, info, jnp.ones(200, bool)))

    found = measured(info)
    assert found["mean_speed"] == pytest.approx(0.2)
    assert found["speed_std"] == pytest.approx(0.1)
    assert found["late_speed_std"] == 0
    assert found["damping_time"] == pytest.approx(1.0)
    assert found["throughput"] == pytest.approx(0.2 * 3600 / 10)
    assert found["energy"] == pytest.approx(1000 * (2 * 0.5 / 2 * 10 / 200) / 0.2)
    assert found["speed_share"] == pytest.approx(0.2 / 3.0, rel=1e-3)
    backwards = measured(info | {"speed": jnp.asarray(speed[::-1], jnp.float32)})
    assert backwards["speed_std"] == pytest.approx(0.1)
    assert backwards["late_speed_std"] == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["follower-stopper", "pi-saturation"])
def test_the_classical_controllers_settle_where_they_should(name: str) -> None:
    """Behind nobody near, FollowerStopper commands uniform flow, the PI controller its own mean and 1 m/s more."""
    ring = Ring(controlled=1, **SHORT)
    state, obs = ring.reset(jax.random.key(0))
    fast = jnp.full(22, 4.0)
    state = dataclasses.replace(state, gap=jnp.full(22, 40.0), speed=fast, uniform_speed=jnp.asarray(4.82))
    controller = ring.baseline(name)
    action = controller(jax.random.key(0), controller.initial(), state, obs)[1]
    wanted = {"follower-stopper": 4.82, "pi-saturation": 4.0 + 0.5}
    assert 4.0 + 0.1 * float(action[0, 0]) == pytest.approx(min(wanted[name], 4.3), abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vehicles": 1},
        {"controlled": 0},
        {"controlled": 23},
        {"vehicles": 60},
        {"shortest": 300.0},
        {"reward": "money"},
        {"noise": float("nan")},
        {"max_acceleration": 0.0},
        {"warmup": -1},
    ],
)
def test_impossible_rings_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        khop.make("ring", **wrong)


def test_agents_among_humans_look_farther_ahead() -> None:
    """A vehicle's own follower feels its braking at once; a wave of humans comes round later."""
    assert khop.make("ring").spec.discount < khop.make("ring", controlled=1).spec.discount
