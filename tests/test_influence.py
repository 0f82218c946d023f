"""Measured influence: on a chain whose influence is known exactly, and on every system there is."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS

import khop
from khop.influence import decay, dependence, influence, outside_effect
from khop.system import DiscreteActions, RandomController, Spec, Step, System
from khop.topology import Topology

VEHICLES = 5
ROUNDING = 1e-4  # copies side by side may round apart, by 8e-6 here; what agents do changes hundreds of times as much
SYSTEMS = {
    "catchup": khop.make("platoon-catchup", vehicles=VEHICLES, horizon=60),
    "slowdown": khop.make("platoon-slowdown", vehicles=VEHICLES, horizon=60),
    **{name: cls() for name, cls in TOYS.items()},
}

_LINE = Topology.line(6)
_DOWNSTREAM = Topology.from_edges(6, [(agent + 1, agent) for agent in range(5)], directed=True)


class ChainState(eqx.Module):
    level: jax.Array  # (n,)
    time: jax.Array  # ()


class Chain(System):
    """Agent i's next level is ρ (level + action) of agent i − 1, 0 for the first; levels start at 1 … 1 + spread."""

    coupling: float = 0.5
    spread: float = 0.0

    @property
    def spec(self) -> Spec:
        return Spec(
            n=6,
            observation_sizes=np.ones(6, int),
            observation_names=("level",),
            observation_units=("1",),
            action=DiscreteActions(np.full(6, 2), ("nothing", "one more")),
            horizon=8,
            control_interval_s=1.0,
            metrics={"return": "1"},
        )

    @property
    def topology(self) -> Topology:
        return _LINE

    @property
    def feedback(self) -> Topology:
        return _DOWNSTREAM

    def reset(self, key):
        level = 1 + self.spread * jax.random.uniform(key, (6,))
        return ChainState(level, jnp.zeros((), int)), level[:, None]

    def step(self, key, state, action):
        level = jnp.roll(self.coupling * (state.level + action), 1).at[0].set(0.0)
        following = ChainState(level, state.time + 1)
        truncated = following.time >= self.spec.horizon
        return Step(following, level[:, None], level, jnp.zeros(6, bool), truncated, {})


def dice(system: System) -> RandomController:
    return RandomController(system.spec.action)


@pytest.mark.parametrize("coupling", [0.3, 0.5, 1.5])
def test_influence_of_a_chain(coupling: float) -> None:
    """1 % more at agent j is 0.01 ρ^d more at agent j + d, d steps later, whatever anybody does; and j forgets it."""
    chain = Chain(coupling)
    response = influence(chain, dice(chain), episodes=3)
    source, agent = np.indices((6, 6))
    expected = np.where(agent > source, 0.01 * coupling ** (agent - source.astype(float)), 0.0)
    np.testing.assert_allclose(response, expected, rtol=2e-3, atol=1e-7)  # differences of single-precision levels

    found = decay(response, chain.feedback)
    assert found.distance.tolist() == [1, 2, 3, 4, 5]
    assert found.rate == pytest.approx(coupling, rel=1e-3)
    assert found.scale == pytest.approx(0.01, rel=1e-3)
    np.testing.assert_allclose(found.fitted, found.response, rtol=2e-3)


def test_influence_that_has_no_time_to_arrive() -> None:
    chain = Chain()
    response = influence(chain, dice(chain), episodes=2, steps=2)
    assert ((response > 0) == np.tri(6, 6, -1).T * (np.arange(6) - np.arange(6)[:, None] <= 2)).all()
    with pytest.raises(khop.InputError, match="fewer than two distances"):
        decay(influence(chain, dice(chain), episodes=2, steps=1), chain.feedback)


def test_decay_averages_over_pairs_within_reach() -> None:
    """On a line heard both ways every pair counts; the responses 8, (4 + 2) / 2 … by hand."""
    response = np.array([[8.0, 4.0, 1.0], [2.0, 8.0, 4.0], [1.0, 2.0, 8.0]])
    found = decay(response, Topology.line(3))
    np.testing.assert_allclose(found.response, [8.0, 3.0, 1.0])
    # ln 8, ln 3, ln 1 at 0, 1, 2: slope (ln 1 − ln 8) / 2, through their mean at 1
    assert found.rate == pytest.approx(8**-0.5)
    assert found.scale == pytest.approx(24 ** (1 / 3) * 8**0.5)


def test_what_a_chain_misses() -> None:
    """At the first step, an agent alone misses ρ · (what the action and level ahead of it are in B but not in A)."""
    chain = Chain(0.5)
    first = outside_effect(chain, dice(chain), 0, episodes=64, steps=1)
    assert first.shape == (64, 6)
    assert set(np.unique(first)) == {0.0, 0.5}
    assert (first[:, 0] == 0).all()
    share = dependence(first, 0.4)
    assert share[0] == 0
    assert ((share[1:] > 0.25) & (share[1:] < 0.75)).all()
    assert (dependence(first, 0.5) == 0).all()

    uneven = Chain(0.5, spread=1.0)
    levels = outside_effect(uneven, dice(uneven), 0, episodes=64)
    assert ((levels < 0.5) & (levels > 0)).any()
    assert (outside_effect(uneven, dice(uneven), 1, episodes=64) == 0).all()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_can_be_measured(name: str) -> None:
    system = SYSTEMS[name]
    n, steps = system.spec.n, 8
    response = influence(system, dice(system), episodes=4, steps=steps)
    assert response.shape == (n, n)
    assert np.isfinite(response).all()
    found = decay(response, system.feedback)
    assert 0 < found.rate < 10

    alone = outside_effect(system, dice(system), 0, episodes=4, steps=steps)
    assert 0 < len(alone) <= 4 * steps
    assert (alone > ROUNDING).any()
    assert (outside_effect(system, dice(system), "all", episodes=4, steps=steps) < ROUNDING).all()


@pytest.mark.parametrize("name", ["catchup", "slowdown"])
def test_platoons(name: str) -> None:
    """Nothing runs forwards; vehicles ahead matter through the leader's speed, whose own leader is two hops away."""
    system = SYSTEMS[name]
    response = influence(system, system.baseline("best-constant-pair"), episodes=4)
    assert (response[np.tril_indices(VEHICLES, -1)] == 0).all()
    assert (response[np.triu_indices(VEHICLES)] > 0).all()
    seen = [(outside_effect(system, dice(system), kappa, episodes=4) > ROUNDING).any() for kappa in range(3)]
    assert seen == [True, True, False]


def test_rooms_feel_their_neighbours_alone() -> None:
    rooms = SYSTEMS["toy-rooms"]
    assert (outside_effect(rooms, dice(rooms), 1, episodes=4, steps=8) < ROUNDING).all()


def test_steps_in_a_lost_episode_do_not_count() -> None:
    """Random gains crash the platoon sooner or later; from then on it stands."""
    platoon = khop.make("platoon-catchup")
    rows = outside_effect(platoon, dice(platoon), 0, episodes=4)
    assert 0 < len(rows) < 4 * 600


def test_the_same_seed_measures_the_same() -> None:
    rooms = SYSTEMS["toy-rooms"]
    first, same, other = (influence(rooms, dice(rooms), episodes=4, steps=8, seed=seed) for seed in (1, 1, 2))
    assert (first == same).all()
    assert (first != other).any()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"episodes": 0}, "takes at least 1 episode of 1 to 8 steps"),
        ({"steps": 0}, "takes at least 1 episode"),
        ({"steps": 9}, "not 64 of 9"),
        ({"change": 0.0}, "The change must be a finite share above 0"),
    ],
)
def test_what_is_refused(wrong: dict, words: str) -> None:
    chain = Chain()
    with pytest.raises(khop.InputError, match=words):
        influence(chain, dice(chain), **wrong)
    with pytest.raises(khop.InputError, match="tolerance must be at least 0"):
        dependence(np.zeros((1, 1)), -1.0)
