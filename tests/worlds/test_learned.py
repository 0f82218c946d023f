"""Local models: local in what they read and in what they learn from; and the rollouts imagined in them."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import with_random_weights

import khop
from khop import Topology
from khop.agents.dynamics import LocalModels, Outcome, Scales
from khop.errors import InputError
from khop.methods import METHODS, displaced
from khop.run import RunFolder
from khop.training import Training, TrainingState
from khop.trajectory import Trajectory
from khop.worlds.imagination import Imagination
from khop.worlds.learned import LearnedWorld, measured
from khop.worlds.memory import Windows
from khop.worlds.model_error import errors_ahead

VEHICLES = 4
PLATOON = khop.make("platoon-catchup", vehicles=VEHICLES)
SMALL = Imagination(
    ensemble=2,
    model_hidden=(32,),
    branches=40,
    branch_length=10,
    rounds=2,
    fit_rounds=40,
    gate=0.2,
    memory=1600,
    model_batch=32,
)
LEARNER = dataclasses.replace(METHODS["mdpo"].learner, epochs=2, minibatches=16)
MDPO = dataclasses.replace(
    METHODS["mdpo"], hidden=(16,), environments=2, rollout=200, imagination=SMALL, learner=LEARNER
)


def models_and_scales(kappa: int | str) -> tuple[LocalModels, Scales]:
    hood = PLATOON.topology.neighbourhood(kappa)
    models = with_random_weights(lambda key: LocalModels(PLATOON.spec, hood, (8,), False, False, key=key))
    return models, Scales.unknown(VEHICLES, PLATOON.spec.d)


@pytest.mark.parametrize("kappa", [0, 1, 2, "all"])
def test_a_model_reads_its_neighbourhood_and_nothing_else(kappa: int | str) -> None:
    models, scales = models_and_scales(kappa)
    random = np.random.default_rng(0)
    obs = jnp.asarray(random.normal(size=(VEHICLES, 5)), jnp.float32)
    action = jnp.zeros(VEHICLES, int)

    def predicted(obs: jax.Array, action: jax.Array) -> np.ndarray:
        inputs = models.inputs(scales, obs, action)
        outcome = models.judge(scales, inputs, obs * 0)
        return np.concatenate([models.next_obs(scales, obs * 0, inputs), jnp.stack(outcome, -1)], -1)

    before = predicted(obs, action)
    hops = abs(np.arange(VEHICLES) - np.arange(VEHICLES)[:, None])
    for changed in range(VEHICLES):
        within = np.full(VEHICLES, True) if kappa == "all" else hops[changed] <= kappa
        for after in (predicted(obs.at[changed].add(1.0), action), predicted(obs, action.at[changed].set(2))):
            np.testing.assert_array_equal(abs(after - before).max(-1) > 1e-4, within)


def windows_of(steps: int) -> Windows:
    random = np.random.default_rng(1)
    shape = (6, steps, VEHICLES)
    return Windows(
        obs=jnp.asarray(random.normal(size=(6, VEHICLES, 5)), jnp.float32),
        action=jnp.asarray(random.integers(0, 4, shape)),
        next_obs=jnp.asarray(random.normal(size=(*shape, 5)), jnp.float32),
        reward=jnp.asarray(random.normal(size=shape), jnp.float32),
        terminated=jnp.zeros(shape, bool),
        lost=jnp.zeros(shape, bool),
        weight=jnp.ones((6, steps)),
    )


def endings_of(agents: int) -> Windows:
    """Steps that end the episodes of the first few agents."""
    return windows_of(1)._replace(terminated=jnp.broadcast_to(jnp.arange(VEHICLES) < agents, (6, 1, VEHICLES)))


def test_a_loss_sends_no_gradient_into_the_neighbours_parameters() -> None:
    """Although over three steps every prediction depends on the neighbours' predictions."""
    models, scales = models_and_scales(1)
    world = LearnedWorld(PLATOON, SMALL, PLATOON.topology.neighbourhood(1), False, 2, 200, 1)

    def loss(models: LocalModels, agent: int) -> jax.Array:
        return world.loss(models, scales, windows_of(3), endings_of(3))[agent]

    for agent in range(VEHICLES):
        gradient = eqx.filter_grad(loss)(models, agent)
        size = sum(np.abs(leaf).reshape(VEHICLES, -1).max(-1) for leaf in jax.tree.leaves(gradient))
        np.testing.assert_array_equal(size > 0, np.arange(VEHICLES) == agent)


def test_weights_of_zero_take_steps_out_of_the_loss() -> None:
    models, scales = models_and_scales(1)
    world = LearnedWorld(PLATOON, SMALL, PLATOON.topology.neighbourhood(1), False, 2, 200, 1)
    windows = windows_of(3)
    cut = windows._replace(weight=windows.weight.at[:, 1:].set(0.0))
    spoilt = cut._replace(next_obs=cut.next_obs.at[:, 1:].set(1e3))
    losses = [world.loss(models, scales, windows, endings_of(0)) for windows in (cut, spoilt)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_only_agents_whose_episode_ended_learn_from_an_ending() -> None:
    models, scales = models_and_scales(1)
    world = LearnedWorld(PLATOON, SMALL, PLATOON.topology.neighbourhood(1), False, 2, 200, 1)
    ended = endings_of(2)
    none = ended._replace(weight=ended.weight * 0)
    losses = [np.asarray(world.loss(models, scales, windows_of(3), endings)) for endings in (none, ended)]
    np.testing.assert_array_equal(losses[1] > losses[0], np.arange(VEHICLES) < 2)


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_an_ending_is_predicted_where_it_is_more_likely_than_not(rate: float) -> None:
    """Bayes' rule on what may be seen in 7 ways, and the logits of a perfect classifier of the mixture trained on."""
    random = np.random.default_rng(3)
    if_ending, otherwise = random.dirichlet(np.full(7, 0.3)), random.dirichlet(np.full(7, 0.3))
    posterior = rate * if_ending / (rate * if_ending + (1 - rate) * otherwise)
    logits = jnp.asarray(np.log((rate * if_ending + if_ending) / ((1 - rate) * otherwise)))[:, None]
    scales = eqx.tree_at(lambda s: (s.terminated_rate, s.lost_rate), Scales.unknown(1, 1), (jnp.array([rate]),) * 2)
    terminated, lost = Outcome(logits, logits, logits, logits).endings(scales)
    assert 0 < (posterior > 0.5).sum() < 7
    np.testing.assert_array_equal(terminated[:, 0], posterior > 0.5)
    np.testing.assert_array_equal(lost, terminated)


def real_experience(training: Training, state: TrainingState) -> Trajectory:
    return training.real.rollout(jax.random.key(9), state.real, state.learner.actors, 200)[1]


@functools.cache
def compiled() -> tuple[Training, Callable]:
    """A small mdpo on four vehicles, and its iteration."""
    training = Training(PLATOON, MDPO, 4000)
    return training, training.compiled()


@functools.cache
def practised() -> tuple[Training, TrainingState, list[dict[str, float]]]:
    """Three iterations of it."""
    training, iterate = compiled()
    state = training.init_seeds([0])
    log = []
    for _ in range(3):
        state, metrics = iterate(state)
        log.append({name: float(value[0]) for name, value in metrics.items()})
    single = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, state)
    return training, single, log


def test_models_learn_what_they_have_not_seen() -> None:
    """The share of the variance of the change that stays unexplained, on held-out experience: of 1 to begin with."""
    _, _, log = practised()
    assert log[-1]["model_error_1"] < 0.25
    assert log[-1]["model_error_5"] < 0.25
    assert 0 < log[-1]["model_disagreement"] < 0.5


def test_the_reported_error_is_that_of_predictions_on_held_out_experience() -> None:
    """Against NumPy, agent by agent, one step ahead, on every held-out moment."""
    _, state, _ = practised()
    learned = state.learned
    kept = learned.memory.moments
    rows = np.arange(learned.memory.capacity) % 5 == 1
    rows &= np.arange(learned.memory.capacity) < int(learned.memory.filled)
    obs, action, next_obs = (x[rows].reshape(-1, *x.shape[2:]) for x in (kept.obs, kept.action, kept.next_obs))
    predicted = eqx.filter_vmap(lambda m: m.next_obs(learned.scales, obs, m.inputs(learned.scales, obs, action)))(
        learned.models
    )
    predicted = np.clip(predicted, learned.scales.low, learned.scales.high)  # as in imagination
    unexplained = np.square(predicted - next_obs).mean((0, 1))
    share = (unexplained / np.var(next_obs - obs, axis=0)).mean(-1)
    np.testing.assert_allclose(learned.error[0], share, rtol=0.25)  # 1024 windows drawn with replacement, of 200


def test_entries_that_never_change_say_nothing_of_the_models() -> None:
    """Padding, say: the error is that of the others, against NumPy on the same windows."""
    _, state, _ = practised()
    kept = state.learned.memory.moments
    frozen = kept._replace(obs=kept.obs.at[..., 4].set(7.0), next_obs=kept.next_obs.at[..., 4].set(7.0))
    memory = eqx.tree_at(lambda m: m.moments, state.learned.memory, frozen)
    scales, models = measured(memory, share=False), state.learned.models
    found = errors_ahead(jax.random.key(0), memory, scales, models, 1, stay_in_range=False)
    windows = memory.windows(jax.random.key(0), 128, 1, held_out=True)
    obs, action, next_obs = windows.obs, windows.action[:, 0], windows.next_obs[:, 0]
    predicted = eqx.filter_vmap(lambda m: m.next_obs(scales, obs, m.inputs(scales, obs, action)))(models)
    unexplained = np.square(predicted - next_obs).mean((0, 1))[:, :4]
    expected = (unexplained / np.var(next_obs - obs, axis=0)[:, :4]).mean(-1)
    np.testing.assert_allclose(found.of_change[0], expected, rtol=0.02)
    expected = (unexplained / np.square(scales.obs_spread[:, :4])).mean(-1)
    np.testing.assert_allclose(found.of_state[0], expected, rtol=1e-3)


def test_predictions_that_run_away_are_held_where_imagination_holds_them() -> None:
    """Models that quadruple the observation at every step: without bounds the error exceeds all numbers."""
    _, state, _ = practised()
    memory, scales = state.learned.memory, measured(state.learned.memory, share=False)
    wild = jax.tree.map(lambda leaf: 1e4 * leaf + 1e4 if eqx.is_inexact_array(leaf) else leaf, state.learned.models)
    free, held = (
        errors_ahead(jax.random.key(0), memory, scales, wild, 100, bounded).of_state for bounded in (False, True)
    )
    assert not np.isfinite(free[-1]).all()
    width = np.square((scales.high - scales.low) / scales.obs_spread).mean(-1)
    assert np.all(held <= width)


def test_agents_that_share_weights_share_models_and_scales() -> None:
    """Two that see the same predict the same."""
    training = Training(PLATOON, dataclasses.replace(MDPO, share=True), 4000)
    state, metrics = training.compiled()(training.init_seeds([0]))
    learned = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, state.learned)
    assert metrics["model_gradient_steps"][0] > 0
    rows = np.asarray(learned.memory.training)
    obs = np.asarray(learned.memory.moments.obs, float)[rows].reshape(-1, 5)
    np.testing.assert_allclose(learned.scales.obs_mean, np.tile(obs.mean(0), (VEHICLES, 1)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(learned.scales.obs_spread, np.tile(obs.std(0), (VEHICLES, 1)), rtol=1e-3, atol=1e-4)
    models = jax.tree.map(lambda leaf: leaf[0] if eqx.is_inexact_array(leaf) else leaf, learned.models)
    alike, action = jnp.ones((VEHICLES, 5)) * jnp.arange(5), jnp.ones(VEHICLES, int)
    predicted = models.next_obs(learned.scales, alike, models.inputs(learned.scales, alike, action))
    np.testing.assert_allclose(predicted[1], predicted[2], rtol=1e-5)  # in the middle: the same neighbours
    assert abs(predicted[0] - predicted[1]).max() > 1e-4  # vehicle 0 has none ahead


def test_predictions_are_near_what_really_happens() -> None:
    """From the same states, under the same actions: single steps of the models against those of the platoon."""
    training, state, _ = practised()
    real = real_experience(training, state)
    learned = state.learned
    obs, action, next_obs = (x.reshape(-1, *x.shape[2:]) for x in (real.obs, real.action, real.next_obs))
    models = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, learned.models)
    predicted = models.next_obs(learned.scales, obs, models.inputs(learned.scales, obs, action))
    assert np.abs(predicted - next_obs).mean() < 0.25 * np.abs(next_obs - obs).mean()


def test_what_never_changes_is_predicted_exactly() -> None:
    """However wrong the networks are: an imagined state must not drift away from what a system never does."""
    _, state, _ = practised()
    learned = state.learned
    models = jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, learned.models)
    memory = learned.memory
    moments = memory.moments._replace(
        obs=memory.moments.obs.at[..., 2].set(0.7), next_obs=memory.moments.next_obs.at[..., 2].set(0.7)
    )
    scales = measured(eqx.tree_at(lambda m: m.moments, memory, moments), share=False)
    obs = moments.obs[0, :5]
    predicted = models.next_obs(scales, obs, models.inputs(scales, obs, moments.action[0, :5]))
    np.testing.assert_array_equal(predicted[..., 2], obs[..., 2])
    assert np.all(predicted[..., 0] != obs[..., 0])


def test_branches_end_when_trust_does() -> None:
    training, state, _ = practised()
    assert training.learned is not None
    state = eqx.tree_at(lambda s: s.learned.error, state, state.learned.error.at[:4].set(0.01).at[4:].set(0.9))
    assert int(training.learned.trusted(state.learned)) == 0  # with γ = 0.99 a branch must have ten steps
    world = dataclasses.replace(training.learned, shortest=4)
    assert int(world.trusted(state.learned)) == 4
    imagined = world.rollout(jax.random.key(0), state.learned, state.learner.actors)
    assert imagined.obs.shape == (10, 40, VEHICLES, 5)
    age = np.zeros(40, int)
    for truncated, ended in zip(imagined.truncated, (imagined.lost | imagined.terminated).any(-1), strict=True):
        age += 1
        np.testing.assert_array_equal(truncated, (age == 4) | np.asarray(ended))
        age[np.asarray(truncated)] = 0


def test_branches_go_on_from_what_was_imagined_and_begin_in_memory() -> None:
    training, state, _ = practised()
    imagined = training.learned.rollout(jax.random.key(1), state.learned, state.learner.actors)
    goes_on = ~np.asarray(imagined.truncated)[:-1]
    np.testing.assert_array_equal(np.asarray(imagined.obs)[1:][goes_on], np.asarray(imagined.next_obs)[:-1][goes_on])
    remembered = {row.tobytes() for row in np.asarray(state.learned.memory.moments.obs).reshape(-1, VEHICLES * 5)}
    begun = np.concatenate([np.asarray(imagined.obs)[:1][0], np.asarray(imagined.obs)[1:][~goes_on]])
    assert all(row.tobytes() in remembered for row in begun.reshape(-1, VEHICLES * 5))


@pytest.mark.parametrize("kept", [True, False])
def test_what_wild_models_imagine_stays_within_the_range_seen(kept: bool) -> None:
    training, state, _ = practised()
    world = training.learned
    world = dataclasses.replace(world, options=dataclasses.replace(world.options, stay_in_range=kept))
    wild = jax.tree.map(lambda leaf: 30 * leaf if eqx.is_inexact_array(leaf) else leaf, state.learned.models)
    learned = eqx.tree_at(lambda s: s.models, state.learned, wild)
    imagined = world.rollout(jax.random.key(2), learned, state.learner.actors)
    seen = jax.tree.map(lambda leaf: np.asarray(leaf[: int(learned.memory.filled)]), learned.memory.moments)
    obs = np.concatenate([seen.obs, seen.next_obs])
    for found, known in ((imagined.next_obs, obs), (imagined.reward, seen.reward)):
        inside = (found >= known.min((0, 1)) - 1e-6) & (found <= known.max((0, 1)) + 1e-6)
        assert np.all(inside) == kept


def test_nothing_is_imagined_before_models_are_trusted() -> None:
    """Models that begin with huge weights are not to be trusted for long."""
    training, iterate = compiled()
    state = training.init_seeds([0])
    hopeless = jax.tree.map(lambda leaf: 1e4 * leaf + 1e4 if eqx.is_inexact_array(leaf) else leaf, state.learned.models)
    state = eqx.tree_at(lambda s: s.learned.models, state, hopeless)
    for _ in range(2):
        state, metrics = iterate(state)
        assert metrics["imagined_share"][0] == 0
        assert metrics["branch_length"][0] == 0


def test_the_log_tells_what_was_used() -> None:
    _, _, log = practised()
    assert log[-1]["branch_length"] == 10
    assert 0 < log[-1]["imagined_share"] <= 1
    assert log[-1]["gradient_steps_per_real_step"] == pytest.approx(2 * 2 * 16 / 400)


def test_memory_and_models_survive_a_checkpoint(tmp_path: Path) -> None:
    """From disk the same state comes back, and what follows is the same to the bit."""
    training, iterate = compiled()
    state, _ = iterate(training.init_seeds([3]))
    folder = RunFolder.create(tmp_path / "run", {})
    folder.save(state, 400, {})
    like = training.like([3])
    restored, env_steps = folder.load(folder.newest({}), like)
    assert env_steps == 400
    (expected, log), (found, other) = iterate(state), iterate(restored)
    assert eqx.tree_equal(expected, found)
    assert eqx.tree_equal(log, other)


def test_scales_are_those_of_the_experience_that_may_be_trained_on() -> None:
    _, state, _ = practised()
    memory = state.learned.memory
    rows = np.asarray(memory.training)
    obs = np.asarray(memory.moments.obs, float)[rows].reshape(-1, VEHICLES, 5)
    scales = measured(memory, share=False)
    np.testing.assert_allclose(scales.obs_mean, obs.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scales.obs_spread, obs.std(0), rtol=1e-3, atol=1e-4)


def test_the_known_reward_is_the_reward() -> None:
    training, state, _ = practised()
    real = real_experience(training, state)
    known = jax.vmap(jax.vmap(PLATOON.known_reward))(real.obs, real.action, real.next_obs)
    slow = np.abs(real.next_obs[..., 1]) < 2  # m/s / 5; beyond, the observation is clipped
    np.testing.assert_allclose(known[slow], real.reward[slow], rtol=1e-3, atol=1e-2)


def test_a_system_without_a_known_reward_is_refused(registered_toys: list[str]) -> None:
    known = dataclasses.replace(MDPO, imagination=dataclasses.replace(SMALL, model_reward="known"))
    with pytest.raises(InputError, match="known_reward"):
        Training(khop.make("toy-rooms"), known, 100)


@pytest.mark.parametrize(
    ("discount", "share", "steps"),
    [(0.0, 0.1, 1), (0.5, 0.1, 1), (0.95, 0.1, 2), (0.99, 0.1, 10), (1.0, 0.1, 10), (0.9, 0.6, 6), (0.9, 1.0, 10)],
)
def test_a_branch_must_cover_a_share_of_the_horizon_that_counts(discount: float, share: float, steps: int) -> None:
    learner = dataclasses.replace(MDPO.learner, discount=discount)
    imagination = dataclasses.replace(SMALL, shortest_branch=share)
    method = dataclasses.replace(MDPO, learner=learner, imagination=imagination)
    assert Training(PLATOON, method, 1000).learned.shortest == steps


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"branches": 41}, "multiple of the ensemble of 2, e.g. 40"),
        ({"ensemble": 0}, "ensemble must be at least 1"),
        ({"imagined_share": 1.5}, "imagined_share must lie between 0 and 1"),
        ({"gate": 0.0}, "above 0"),
        ({"shortest_branch": 0.0}, "shortest_branch must lie above 0"),
        ({"shortest_branch": 1.5}, "be at most 1, not 1.5"),
        ({"input_noise": float("nan")}, "input_noise must be finite"),
    ],
)
def test_impossible_options_are_refused(changes: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(SMALL, **changes)


def test_a_gate_left_open_is_the_one_that_suits_the_system() -> None:
    spec = dataclasses.replace(khop.make("platoon-catchup").spec, gate=0.7)
    assert dataclasses.replace(MDPO, imagination=Imagination()).resolved(spec).imagination.gate == 0.7
    assert dataclasses.replace(MDPO, imagination=Imagination(gate=0.1)).resolved(spec).imagination.gate == 0.1


def test_a_rollout_too_short_for_branches_is_refused() -> None:
    with pytest.raises(InputError, match="too short"):
        dataclasses.replace(MDPO, rollout=9, learner=dataclasses.replace(MDPO.learner, minibatches=1))


def test_strangers_are_half_the_system_away() -> None:
    graph = displaced(Topology.line(6))
    assert sorted(map(tuple, graph.edges.tolist())) == [(0, 3), (1, 4), (2, 5)]
