"""Influence predictors and the local simulators that they drive."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import with_random_weights

import khop
from khop.agents.recurrent import RecurrentActors
from khop.errors import InputError
from khop.methods import METHODS
from khop.training import Training
from khop.worlds.influence import (
    Histories,
    Influence,
    InfluenceState,
    InfluenceWorld,
    Predictor,
    cross_entropy,
    drawn,
    frequencies,
)

SYSTEM = khop.make("warehouse", horizon=10)
N, B = 4, 5
OPTIONS = Influence(predictor="marginal", collected=20, refresh=1000)


def actors() -> RecurrentActors:
    hood = SYSTEM.topology.neighbourhood(0)
    return with_random_weights(lambda key: RecurrentActors(SYSTEM.spec, hood, 3, (4,), False, key=key))


@pytest.fixture(scope="module")
def world() -> InfluenceWorld:
    return InfluenceWorld(SYSTEM, B, OPTIONS)


@pytest.fixture(scope="module")
def begun(world: InfluenceWorld) -> InfluenceState:
    return eqx.filter_jit(world.init)(jax.random.key(0), actors())


@eqx.filter_jit
def fitted(world: InfluenceWorld, state: InfluenceState) -> tuple:
    state = world.fit(jax.random.key(1), state, actors(), 10)
    return state, world.log(state)


@eqx.filter_jit
def practised(world: InfluenceWorld, state: InfluenceState) -> tuple:
    return world.rollout(jax.random.key(2), state, actors(), 25)


# Predictors


def synthetic(episodes: int = 40, steps: int = 12) -> Histories:
    """The first source repeats the sign of the feature one step ago; the second has two classes, 1 in a quarter."""
    random = np.random.default_rng(0)
    features = random.choice([-1.0, 1.0], (episodes, steps, 1))
    before = np.concatenate([np.ones((episodes, 1, 1)), features[:, :-1]], 1)
    second = random.random((episodes, steps, 1)) < 0.25
    sources = np.concatenate([np.where(before > 0, 2, 0), second], -1)
    return Histories(
        jnp.asarray(features, jnp.float32), jnp.asarray(sources, jnp.int32), jnp.ones((episodes, steps), bool)
    )


@pytest.mark.parametrize("kind, first", [("gru", 0.02), ("mlp", np.log(2)), ("marginal", np.log(2))])
def test_only_a_predictor_with_memory_knows_what_the_past_decides(kind: str, first: float) -> None:
    """Cross-entropies by hand: 0 or log 2 for the first source, the entropy of a quarter for the second."""
    options = Influence(
        predictor="gru" if kind == "marginal" else kind, predictor_hidden=8, predictor_epochs=150, predictor_batch=20
    )
    world = InfluenceWorld(SYSTEM, B, dataclasses.replace(options, predictor_learning_rate=1e-2))
    histories = synthetic()
    predictor = Predictor(kind, 1, 8, (3, 2), key=jax.random.key(3))
    if kind == "marginal":
        predictor = eqx.tree_at(lambda p: p.constant, predictor, frequencies(histories, (3, 2)))
    else:
        dynamic, static = eqx.partition(predictor, eqx.is_array)
        learned = jax.jit(lambda dynamic: world._learned(jax.random.key(4), dynamic, static, histories))
        predictor = eqx.combine(learned(dynamic), static)
    share = float(histories.sources[..., 1].mean())
    second = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert float(cross_entropy(predictor, histories)) == pytest.approx((first + second) / 2, abs=0.03)


def test_steps_after_the_end_of_an_episode_count_for_nothing() -> None:
    histories = synthetic()
    cut = dataclasses.replace(histories, valid=histories.valid.at[:, 6:].set(False))
    other = dataclasses.replace(cut, sources=cut.sources.at[:, 6:].set(1))
    predictor = Predictor("gru", 1, 8, (3, 2), key=jax.random.key(3))
    assert cross_entropy(predictor, cut) == cross_entropy(predictor, other) != cross_entropy(predictor, histories)
    np.testing.assert_array_equal(frequencies(cut, (3, 2)), frequencies(other, (3, 2)))


def test_classes_are_drawn_with_their_probabilities_and_no_others() -> None:
    probability = np.array([[0.5, 0.2, 0.3], [0.9, 0.1, 0.0]])
    log_probs = jnp.broadcast_to(jnp.log(jnp.maximum(probability, 1e-30)), (20_000, 2, 3))
    found = np.asarray(drawn(jax.random.key(5), log_probs, (3, 2)))
    shares = (found[..., None] == np.arange(3)).mean(0)
    np.testing.assert_allclose(shares, probability, atol=4 * (0.25 / 20_000) ** 0.5)
    assert found[:, 1].max() == 1
    assert abs(np.corrcoef(found.T)[0, 1]) < 0.03


# Fit


def test_predictors_are_refreshed_when_it_is_time(world: InfluenceWorld, begun: InfluenceState) -> None:
    """Every 1000 steps of practice, of which a rollout takes 50: at the start, and not again until then."""
    for steps, due in ((0, True), (50, False), (950, False), (1000, True), (1050, False)):
        at = eqx.tree_at(lambda s: s.steps, begun, jnp.asarray(steps))
        state, metrics = fitted(world, at)
        assert metrics["real_steps"] == (20 * 10 if due else 0)
        changed = np.any(state.predictors.constant != begun.predictors.constant)
        assert changed == due


def test_marginal_predictors_know_the_frequencies_of_the_real_system(world: InfluenceWorld, begun: object) -> None:
    """Of all but the held-out episodes, of which there are two."""
    state, metrics = fitted(world, begun)
    collect_key, _ = jax.random.split(jax.random.key(1))
    histories = eqx.filter_jit(world.collect)(collect_key, actors())
    assert histories.sources.shape == (N, 20, 10, 4)
    counts = (np.asarray(histories.sources)[:, :-2, ..., None] == np.arange(4)).sum((1, 2))
    np.testing.assert_allclose(np.exp(state.predictors.constant), counts + 1, rtol=1e-4)
    assert metrics["influence_loss"] == metrics["influence_loss_marginal"] < metrics["influence_loss_before"]
    assert float(metrics["influence_loss_before"]) == pytest.approx(np.log(4), abs=1e-5)


# Practise


def test_every_agent_in_every_environment_has_chance_of_its_own(world: InfluenceWorld, begun: object) -> None:
    """Simulators of identical agents, who act at random, go different ways."""
    alike = jax.tree.map(lambda x: 0 * x if eqx.is_array(x) else x, actors())
    rollout = eqx.filter_jit(lambda state: world.rollout(jax.random.key(2), state, alike, 9)[1])
    trajectory = rollout(eqx.tree_at(lambda s: s.clock, begun, jnp.zeros(B, jnp.int32)))
    paths = np.asarray(trajectory.next_obs).transpose(1, 2, 0, 3).reshape(B * N, -1)
    assert len(np.unique(paths, axis=0)) == B * N


def test_local_episodes_end_at_the_horizon_and_start_anew(world: InfluenceWorld, begun: object) -> None:
    """The first ones after 2, 4, … 10 steps, so that the environments are spread over all phases."""
    state, trajectory = practised(world, begun)
    ends = [np.flatnonzero(row) + 1 for row in np.asarray(trajectory.truncated).T]
    for first, found in zip((2, 4, 6, 8, 10), ends, strict=True):
        np.testing.assert_array_equal(found, np.arange(first, 26, 10))
    fresh = np.asarray(trajectory.obs)[1:][np.asarray(trajectory.truncated)[:-1]]
    assert np.all(fresh[..., 12] == 1)  # in the middle of the region
    assert state.steps == 25 * B
    assert not np.any(trajectory.terminated)


# Methods


def test_dials_trains_is_kept_and_plays_the_real_system(tmp_path: Path) -> None:
    small = {"recurrent": 4, "hidden": (4,), "environments": 2, "rollout": 16, "minibatches": 2, "epochs": 1}
    few = {"steps": 64, "episodes": 2, "collected": 4, "predictor_epochs": 1, "refresh": 32}
    run = khop.train(SYSTEM, "dials", out=tmp_path / "run", **small, **few)
    table = khop.load(tmp_path / "run").final_table()
    assert {"learned", "learned-sampled", "random", "oldest", "closest"} == table.keys()
    assert 0 <= table["learned-sampled"]["episode_return"].mean < 10
    with pytest.raises(InputError, match="remember"):
        run.policy(jnp.zeros((N, 37)))


def test_a_system_without_regions_and_neighbours_in_local_simulators_are_refused() -> None:
    with pytest.raises(InputError, match="CatchUp has no regions"):
        Training(khop.make("platoon-catchup"), METHODS["dials"], 1000)
    with pytest.raises(InputError, match="agents are alone"):
        dataclasses.replace(METHODS["dials"], kappa_actor=1)
