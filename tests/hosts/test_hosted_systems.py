"""What every hosted system has to keep; see tests/test_system.py for the others."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_system as conformance
from drifters import Drifters

import khop
from khop.evaluation import controller, measure
from khop.hosts.episodes import Driven, Recorded, play
from khop.hosts.system import HostedSystem

ROADS = Path(__file__).parents[1] / "data" / "roads"
SMALL = {
    "traffic-grid": {"duration": 60},
    "traffic-net": {"net": f"{ROADS}/two.net.xml", "routes": f"{ROADS}/two.rou.xml", "duration": 120},
}
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module", params=["drifters", *SMALL])
def system(request: pytest.FixtureRequest) -> Iterator[HostedSystem]:
    name = request.param
    system = Drifters() if name == "drifters" else khop.make(name, **SMALL[name])
    yield system
    system.pool(1).close()


@pytest.fixture(scope="module")
def played(system: HostedSystem) -> Recorded:
    return play_random(system, workers=2)


def play_random(system: HostedSystem, workers: int) -> Recorded:
    dice = controller(system, "random")
    return play(system, Driven(dice), dice.initial(), KEYS, workers)


def test_all_hosted_systems_are_covered() -> None:
    hosted = {name for name, cls in khop.registered().items() if issubclass(cls, HostedSystem)}
    elsewhere = {"traffic-city", "traffic-resco"}  # the same class on networks that take long to build, or are not ours
    assert hosted == SMALL.keys() | elsewhere


def test_the_spec_fits_itself(system: HostedSystem) -> None:
    conformance.test_the_spec_fits_itself(system)
    assert system.spec.whole_episodes
    assert system.spec is system.spec


def test_the_action_sets_fit_the_spec(system: HostedSystem) -> None:
    conformance.test_the_action_sets_fit_the_spec(system)
    conformance.test_random_actions_fill_each_agents_own_set(system)
    conformance.test_an_unknown_baseline_is_refused(system)


def test_arrays_fit_the_spec(system: HostedSystem, played: Recorded) -> None:
    n, d, T = system.spec.n, system.spec.d, system.spec.horizon
    episode = played.episode
    assert conformance.types(episode.obs) == conformance.types(played.next_obs) == ((T, 2, n, d), jnp.float32)
    assert conformance.types(episode.reward) == ((T, 2, n), jnp.float32)
    for leaf in jax.tree.leaves(played):
        assert np.all(np.isfinite(leaf))
    np.testing.assert_array_equal(episode.obs[1:], played.next_obs[:-1])
    assert not np.array_equal(episode.obs[:, 0], episode.obs[:, 1])


def test_observation_padding_is_exactly_zero(system: HostedSystem, played: Recorded) -> None:
    padding = np.arange(system.spec.d) >= np.asarray(system.spec.observation_sizes)[:, None]
    for obs in (played.episode.obs, played.next_obs):
        assert np.all(np.asarray(obs)[..., padding] == 0)


def test_the_same_key_gives_the_same_episodes(system: HostedSystem, played: Recorded) -> None:
    """Whatever was played before, and by how many workers."""
    jax.tree.map(np.testing.assert_array_equal, play_random(system, workers=1), played)


def test_every_baseline_drives_the_system(system: HostedSystem) -> None:
    for name in ("random", *system.spec.baselines):
        metrics = measure(system, controller(system, name), KEYS[:1])
        assert metrics.keys() == system.spec.metrics.keys()
        for metric, value in metrics.items():
            assert conformance.types(value) == ((1,), jnp.float32), metric
            assert np.isfinite(value), f"{metric} of {name}"
