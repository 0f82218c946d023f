"""Microgrid tasks: what is observed and rewarded, what disturbs, what is measured, how classical control does."""

import dataclasses
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import khop
from khop.errors import InputError
from khop.evaluation import controller, episode_keys, measure
from khop.system import ContinuousActions, DiscreteActions, Episode, Step
from khop.systems.microgrid import Microgrid
from khop.systems.microgrid.system import MicrogridState

STEPS = 12


@eqx.filter_jit
def play(system: Microgrid, action: jax.Array) -> tuple[MicrogridState, jax.Array, Step]:
    """The start, its observations, and some steps of one joint action."""

    def step(state: MicrogridState, key: jax.Array) -> tuple[MicrogridState, Step]:
        step = system.step(key, state, action)
        return step.state, step

    state, obs = system.reset(jax.random.key(0))
    return state, obs, jax.lax.scan(step, state, jax.random.split(jax.random.key(1), STEPS))[1]


@pytest.fixture(scope="module")
def played() -> tuple[MicrogridState, jax.Array, Step]:
    return play(khop.make("microgrid-6"), jnp.array([0, 9, 4, 2, 7, 5]))


# Actions and loads


def test_set_points_are_those_of_the_actions(played: tuple) -> None:
    expected = 490 + 50 / 9 * np.array([0, 9, 4, 2, 7, 5])
    np.testing.assert_allclose(played[2].info["set_point"], np.tile(expected, (STEPS, 1)), rtol=1e-6)


def test_levels_and_bounds() -> None:
    discrete = khop.make("microgrid-6").spec.action
    assert isinstance(discrete, DiscreteActions)
    assert (discrete.names[0], discrete.names[-1], discrete.width) == ("490 V", "540 V", 10)
    published = khop.make("microgrid-6", as_published=True).spec.action
    assert published.names == tuple(f"{490 + 5 * level} V" for level in range(10))
    continuous = khop.make("microgrid-6", continuous=True).spec.action
    assert isinstance(continuous, ContinuousActions)
    assert np.all(continuous.low == 490)
    assert np.all(continuous.high == 540)


def test_disturbances_move_the_loads_and_nothing_does_without(played: tuple) -> None:
    start, _, steps = played
    load = np.concatenate([np.asarray(start.load)[None], steps.state.load])
    assert np.all((load[0] >= 0.8) & (load[0] <= 1.2))
    moved = abs(np.diff(load, axis=0))
    assert moved.max() <= 0.05 + 1e-6
    assert moved.mean() == pytest.approx(0.025, abs=0.005)
    calm = play(khop.make("microgrid-6", disturbances=False), jnp.array([0, 9, 4, 2, 7, 5]))
    np.testing.assert_array_equal(calm[2].state.load, np.broadcast_to(calm[0].load, load[1:].shape))


# Observations and rewards


def test_observations_are_measurements_that_change(played: tuple) -> None:
    """Powers and voltages that agree with each other, by Ohm's and the droop law; no entry is constant."""
    _, _, steps = played
    obs = np.asarray(steps.obs)
    assert np.all(obs.std(axis=0)[1:] > 1e-5)  # inverter 1 is the angle's reference
    assert np.all(obs.std(axis=0)[0, 1:] > 1e-5)
    assert abs(obs).max() < 3
    electrical = steps.state.electrical
    voltage = 480 + 24 * obs[..., 9]
    droop = np.array([0.52e-3, 0.52e-3, 0.6e-3, 0.6e-3, 0.52e-3, 0.52e-3])
    np.testing.assert_allclose(voltage, steps.info["set_point"] - droop * 1e5 * obs[..., 2], atol=1e-2)
    np.testing.assert_allclose(obs[..., 0] * 0.5, electrical.angle, atol=1e-5)
    own, common = 200 * (obs[..., 3] + 1j * obs[..., 4]), 200 * (obs[..., 5] + 1j * obs[..., 6])
    np.testing.assert_allclose(own * np.exp(1j * 0.5 * obs[..., 0]), common, atol=0.05)
    # Measured powers lag, and the coupling carries (v − V_bus) / (r + jωL) but for what still rings.
    np.testing.assert_allclose((voltage * own.real / 1e5)[4:], obs[4:, :, 1], atol=0.05)
    bus = 480 + 100 * obs[..., 7] + 200j * obs[..., 8]
    through = (voltage * np.exp(1j * 0.5 * obs[..., 0]) - bus) / (0.03 + 1j * 120 * np.pi * 0.35e-3)
    np.testing.assert_allclose(through[4:], common[4:], atol=8)


@pytest.mark.parametrize(
    ("voltage", "reward"),
    [(1.0, 0.05), (0.96, 0.01), (1.04, 0.01), (0.94, -0.06), (1.1, -0.1), (0.79, -10), (1.26, -10), (0.81, -0.19)],
)
def test_rewards(voltage: float, reward: float) -> None:
    obs = jnp.zeros((6, 10)).at[:, 9].set((voltage - 1) / 0.05)
    found = khop.make("microgrid-6").known_reward(obs, jnp.zeros(6, int), obs)
    np.testing.assert_allclose(found, reward, atol=1e-5)


def test_known_rewards_are_the_rewards(played: tuple) -> None:
    _, _, steps = played
    known = jax.vmap(lambda obs: khop.make("microgrid-6").known_reward(obs, jnp.zeros(6, int), obs))(steps.obs)
    np.testing.assert_allclose(known, steps.reward, atol=1e-6)


# Metrics


def metrics_of(voltage: list) -> dict[str, float]:
    T = len(voltage)
    info = {"voltage": jnp.asarray(voltage, float), "set_point": jnp.zeros((T, 2))}
    none = jnp.zeros((T, 2))
    episode = Episode(jnp.zeros((T, 2, 10)), none, none, info, jnp.ones(T, bool))
    metrics = khop.make("microgrid-6").metrics(episode)
    return {name: pytest.approx(float(value)) for name, value in metrics.items()}


def test_metrics_of_an_episode_that_comes_into_the_band() -> None:
    metrics = metrics_of([[0.9, 1.0], [0.94, 1.0], [0.96, 1.04], [0.96, 1.06]])
    assert metrics == {"return": 0, "in_band": 5 / 8, "all_in_band": 0, "time_to_band": 0.15, "survival": 1}


def test_metrics_of_an_episode_that_never_does_and_trips() -> None:
    metrics = metrics_of([[0.9, 1.0], [0.79, 1.0]])
    assert metrics == {"return": 0, "in_band": 0.5, "all_in_band": 0, "time_to_band": 0.1, "survival": 0}


def test_metrics_of_an_episode_in_band() -> None:
    metrics = metrics_of([[0.96, 1.0], [1.0, 1.0]])
    assert metrics == {"return": 0, "in_band": 1, "all_in_band": 1, "time_to_band": 0.05, "survival": 1}


# Controllers


def test_distributed_averaging_regulates() -> None:
    """With any set-point allowed and steady loads it brings all of them into the band and keeps them there."""
    system = khop.make("microgrid-6", continuous=True, disturbances=False)
    found = measure(system, controller(system, "averaging"), episode_keys(0, 4))
    assert np.all(found["all_in_band"] == 1)
    assert np.all(found["time_to_band"] < 0.3)


def test_distributed_averaging_listens_to_neighbours_alone() -> None:
    averaging = khop.make("microgrid-6", continuous=True).baseline("averaging")
    obs = jnp.zeros((6, 10)).at[0, 2].set(0.5)  # inverter 1, at nominal voltage, delivers 50 kvar
    memory = jnp.full(6, 510.0)
    after, action = averaging(jax.random.key(0), memory, (), obs)
    moved = np.asarray(after - memory)
    np.testing.assert_array_equal(np.sign(moved), [-1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(moved[0], -moved[1:].sum(), rtol=1e-4)
    np.testing.assert_array_equal(action[:, 0], after)


@pytest.mark.parametrize("horizon", [0, -1])
def test_horizons_that_are_no_counts_are_refused(horizon: int) -> None:
    with pytest.raises(InputError, match="needs horizon to be a whole number of at least 1"):
        khop.make("microgrid-20", horizon=horizon)


def test_parameters_metrics_and_baselines_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "systems" / "microgrid.md").read_text()
    section = page[page.index("## Parameters") : page.index("## Metrics")]
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))
    system = khop.make("microgrid-20")
    defaults = {field.name: getattr(system, field.name) for field in dataclasses.fields(system)}
    assert documented == {name: str(value).lower() for name, value in defaults.items()}
    for name in (*system.spec.metrics, *system.spec.baselines):
        assert f"`{name}`" in page
