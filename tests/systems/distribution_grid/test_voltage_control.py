"""Voltage control: costs by hand, actions, ends, baselines against brute force."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import evaluate_baselines
from khop.system import Episode
from khop.systems.distribution_grid.voltage_control import GridState, VoltageControl, barrier_cost

MIDSUMMER_NOON = 172 * 480 + 240  # step of the year


@eqx.filter_jit
def step(system: VoltageControl, state: GridState, action: jax.Array):
    return system.step(jax.random.key(0), state, action)


def state_at(system: VoltageControl, when: int) -> GridState:
    """No noise, no reactive power."""
    active, reactive, sun = system.plant.data[1].at(jnp.int32(when))
    load = jnp.stack([active, reactive], 1)
    voltage = system.plant.solve(load, sun, 0 * sun).magnitude
    return GridState(load, sun, 0 * sun, voltage, jnp.int32(when), jnp.int32(0))


@pytest.fixture(scope="module")
def system() -> VoltageControl:
    return khop.make("grid-33", noise=0.0)


@pytest.fixture(scope="module")
def noon(system: VoltageControl) -> GridState:
    return state_at(system, MIDSUMMER_NOON)


def test_barriers_are_those_of_the_article() -> None:
    voltage = np.array([0.80, 0.94, 0.951, 0.97, 1.0, 1.02, 1.06, 1.2])
    off = abs(voltage - 1)
    bell = np.exp(-(off**2) / 0.02) / np.sqrt(2 * np.pi * 0.01)
    expected = {
        "l1": off,
        "l2": 2 * off**2,
        "courant-beltrami": np.clip(voltage - 1.05, 0, None) ** 2 + np.clip(0.95 - voltage, 0, None) ** 2,
        "bowl": np.where(off > 0.0501, 2 * off - 0.095, 0.04 - 0.01 * bell),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(barrier_cost(name, jnp.asarray(voltage)), values, atol=2e-5)


@pytest.mark.parametrize(("agents", "margin"), [("zone", 0.0), ("inverter", 0.0), ("zone", 0.01)])
def test_rewards_add_up_to_the_cost_of_the_grid(agents: str, margin: float, noon: GridState) -> None:
    system = khop.make("grid-33", agents=agents, effort=0.5, margin=margin, noise=0.0)
    action = system.spec.action.sample(jax.random.key(1))
    done = step(system, noon, action)
    voltage, used = done.info["voltage"], abs(done.info["reactive"]) / (1.2 * 8.75 / 6)
    asked = 1 + (voltage - 1) * 0.05 / (0.05 - margin)  # at the edge of the band once ``margin`` before it
    np.testing.assert_allclose(done.reward.sum(), -barrier_cost("bowl", asked).mean() - 0.5 * used.mean(), rtol=1e-5)
    assert done.reward.shape == (4 if agents == "zone" else 6,)


def test_an_action_is_a_fraction_of_what_the_sun_leaves(system: VoltageControl, noon: GridState) -> None:
    fractions = jnp.array([0.8, -0.8, 0.1, 0.0, -0.3, 0.5])
    action = system.action(fractions)
    np.testing.assert_allclose(action, [[0.8, -0.8], [0.1, 0], [0, 0], [-0.3, 0.5]])
    apparent = 1.2 * 8.75 / 6
    expected = fractions * np.sqrt(apparent**2 - noon.sun**2)
    done = step(system, noon, action)
    np.testing.assert_allclose(done.info["reactive"], expected, rtol=1e-4)
    np.testing.assert_allclose(done.state.reactive, expected, rtol=1e-4)


def test_discrete_levels_are_evenly_spaced_and_common_to_a_zone(noon: GridState) -> None:
    system = khop.make("grid-33", levels=5, noise=0.0)
    np.testing.assert_array_equal(system.spec.action.sizes, [5, 5, 5, 5])
    np.testing.assert_allclose(system.fractions(jnp.array([0, 1, 2, 4])), [-0.8, -0.8, -0.4, 0, 0.8, 0.8], atol=1e-6)
    np.testing.assert_array_equal(system.action(jnp.array([-0.8, -0.7, -0.35, 0.1, 0.8, 0.4])), [0, 1, 2, 4])
    assert np.isfinite(step(system, noon, jnp.array([0, 1, 2, 4])).reward).all()


def test_reactive_power_moves_voltages_the_right_way(system: VoltageControl, noon: GridState) -> None:
    ones = jnp.full((4, 2), 0.8)
    up, none, down = (step(system, noon, factor * ones).info["voltage"][1:] for factor in (1.0, 0.0, -1.0))
    assert np.all(up > none)
    assert np.all(none > down)


def test_observations_are_what_they_are_called(system: VoltageControl, noon: GridState) -> None:
    done = step(system, noon, jnp.full((4, 2), -0.4))
    voltage, sun = done.info["voltage"], done.state.sun
    zone = slice(6, 18)  # agent 0, inverters at buses 12 and 17
    expected = [
        *((voltage[zone].max() - 1) / 0.1, (voltage[zone].min() - 1) / 0.1),
        *(sun[0] / (8.75 / 6), done.state.reactive[0] / (1.2 * 8.75 / 6), (voltage[12] - 1) / 0.1),
        *(sun[1] / (8.75 / 6), done.state.reactive[1] / (1.2 * 8.75 / 6), (voltage[17] - 1) / 0.1),
    ]
    np.testing.assert_allclose(np.delete(done.obs[0], [2, 3]), expected, atol=1e-5)
    assert np.all((done.obs[:, 2:4] >= 0) & (done.obs[:, 2:4] <= 1.0))


def test_a_power_flow_without_solution_ends_the_episode_and_is_penalised(noon: GridState) -> None:
    system = khop.make("grid-33", noise=0.0, failure_penalty=7.0)
    heavy = eqx.tree_at(lambda s: s.load, noon, 40 * noon.load)
    done = step(system, heavy, jnp.zeros((4, 2)))
    assert done.terminated.all()
    assert not done.truncated
    np.testing.assert_allclose(done.reward, -7.0 / 4)
    np.testing.assert_array_equal(done.state.voltage, noon.voltage)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(done))


@pytest.mark.parametrize("days", ["train", "test"])
def test_episodes_stay_on_the_days_of_their_split(days: str) -> None:
    system = khop.make("grid-33", days=days)
    starts = jax.jit(jax.vmap(lambda key: system.reset(key)[0].start))(jax.random.split(jax.random.key(2), 500))
    first, last = starts // 480, (starts + system.horizon - 1) // 480
    np.testing.assert_array_equal(first, last)
    assert np.isin(first, system.plant.data[1].days_of(days)).all()
    assert len(np.unique(first)) > 60
    assert (starts % 480).min() < 20
    assert (starts % 480).max() > 220
    assert system.held_out.days == "test"


def test_noise_is_unbiased() -> None:
    system = khop.make("grid-33", noise=0.05)
    keys = jax.random.split(jax.random.key(3), 4000)
    load, sun = jax.jit(jax.vmap(lambda key: system._conditions(key, jnp.int32(MIDSUMMER_NOON))))(keys)
    still = state_at(system, MIDSUMMER_NOON)
    for drawn, true in ((load, still.load), (sun, still.sun)):
        np.testing.assert_allclose(drawn.mean(0), true, rtol=0.005)
        np.testing.assert_allclose(drawn.std(0), 0.05 * true, rtol=0.1)


def test_metrics_of_a_hand_made_episode() -> None:
    system = khop.make("grid-33", horizon=4)
    voltage = np.ones((4, 33), np.float32)
    voltage[1, 5] = 1.06
    voltage[2, [3, 4]] = 0.94, 1.08
    voltage[3] = 2.0  # after the end
    info = {
        "voltage": voltage,
        "reactive": np.array([[0.5] * 6, [-0.5] * 6, [0.0] * 6, [9.0] * 6], np.float32),
        "line_loss": np.array([0.1, 0.2, 0.3, 9], np.float32),
        "total_loss": np.array([0.2, 0.4, 0.6, 9], np.float32),
        "failed": np.array([False, False, False, True]),
    }
    info = jax.tree.map(jnp.asarray, info)
    valid = jnp.array([True, True, True, False])
    metrics = system.metrics(Episode(jnp.zeros((4, 4, 10)), jnp.zeros((4, 4, 2)), jnp.ones((4, 4)), info, valid))
    expected = {
        "return": 4.0,
        "controllable_ratio": 1 / 3,
        "out_of_band": 1.0,
        "q_loss": 1 / 3,
        "line_loss": 0.2,
        "total_loss": 0.4,
        "max_voltage": 1.08,
        "min_voltage": 0.94,
        "failure_rate": 0.0,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


# Baselines ------------------------------------------------------------------------------------------------------------


@eqx.filter_jit
def act(system: VoltageControl, name: str, state: GridState) -> jax.Array:
    controller = system.baseline(name)
    return system.fractions(controller(jax.random.key(0), controller.initial(), state, jnp.zeros((4, 10)))[1])


def test_droop_is_at_rest_where_its_law_says(system: VoltageControl, noon: GridState) -> None:
    fraction = act(system, "droop", noon)
    solution = system.plant.solve(noon.load, noon.sun, fraction * system.plant.capability(noon.sun))
    at = solution.magnitude[system.plant.data[0].inverter_bus]
    np.testing.assert_allclose(fraction, -0.8 * np.clip((at - 1) / 0.05, -1, 1), atol=2e-3)


def test_optimal_power_flow_is_no_worse_than_a_search_over_actions(system: VoltageControl, noon: GridState) -> None:
    """Of 5⁶ combinations of fractions none that keeps the band loses less power, but for a hundredth."""
    cap = system.plant.capability(noon.sun)

    @jax.jit
    def outcome(fractions: jax.Array) -> tuple[jax.Array, jax.Array]:
        solution = system.plant.solve(noon.load, noon.sun, fractions * cap)
        return abs(solution.magnitude - 1).max(-1), system.plant.flow.losses(solution).sum(-1)

    found_off, found_loss = outcome(act(system, "opf", noon))
    assert found_off <= 0.05
    levels = jnp.linspace(-0.8, 0.8, 5)
    grid = jnp.stack(jnp.meshgrid(*[levels] * 6), -1).reshape(-1, 6)
    off, loss = jax.lax.map(outcome, grid, batch_size=625)
    assert found_loss <= 1.01 * loss[off <= 0.05 - 0.002].min()
    assert outcome(jnp.zeros(6))[0] > 0.05  # doing nothing would not have done


def test_control_beats_no_control() -> None:
    system = khop.make("grid-33", horizon=60)
    table = evaluate_baselines(system, ["no-control", "droop"], episodes=8)
    ratio = {name: row["controllable_ratio"].mean for name, row in table.items()}
    assert ratio["no-control"] < ratio["droop"]


def test_evaluation_is_on_days_that_training_never_sees() -> None:
    """Whatever days the system is set to."""
    tables = [
        evaluate_baselines(khop.make("grid-33", horizon=2, days=days), ["no-control"], episodes=4)
        for days in ("train", "test")
    ]
    assert tables[0] == tables[1]


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"horizon": 481}, "horizon of 1 to 480"),
        ({"horizon": 0}, "horizon of 1 to 480"),
        ({"limit": 0.0}, "limit above 0"),
        ({"limit": float("nan")}, "limit above 0"),
        ({"levels": 1}, "levels to be 0"),
        ({"noise": -0.1}, "noise from 0 to 0.2"),
        ({"photovoltaics": 0.0}, "photovoltaics above 0"),
        ({"margin": 0.05}, "margin from 0 to 0.04"),
        ({"failure_penalty": float("inf")}, "failure_penalty from 0"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameters: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        khop.make("grid-33", **parameters)


def test_the_page_names_every_parameter_with_its_default_every_metric_and_every_baseline() -> None:
    page = (Path(__file__).parents[3] / "docs" / "systems" / "distribution_grid.md").read_text()
    section = page[page.index("## Parameters") : page.index("## Metrics")]
    documented = dict(re.findall(r"^\| `(\w+)` \| ([\w.]+) \|", section, re.MULTILINE))
    system = khop.make("grid-33")
    assert documented == {
        name: f"{value:g}" if isinstance(value, int | float) else value for name, value in vars(system).items()
    }
    for name in (*system.spec.metrics, *system.spec.baselines):
        assert f"`{name}`" in page
