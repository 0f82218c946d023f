"""What PPO promises each agent: its neighbours' advantages, its own step, its own stop."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import with_random_weights

from khop.agents.policies import Actors, Critics
from khop.errors import InputError
from khop.learners.losses import standardised
from khop.learners.ppo import PPO, LearnerState, Samples
from khop.system import DiscreteActions, Spec
from khop.topology import Topology
from khop.trajectory import Trajectory

N, T, B, D = 4, 8, 3, 2
LINE = Topology.line(N)
SPEC = Spec(
    n=N,
    observation_sizes=np.full(N, D),
    observation_names=("x", "y"),
    observation_units=("1", "1"),
    action=DiscreteActions(np.array([2, 3, 3, 2]), ("a", "b", "c")),
    horizon=T,
    control_interval_s=1.0,
    metrics={"return": "1"},
)
ONE_STEP = PPO(
    actor_learning_rate=0.02,
    epochs=1,
    minibatches=1,
    discount=0.9,
    trace=0.5,
    entropy=0.0,
    target_kl=1e-7,  # exceeded by every step but the first
    max_gradient_norm=0.5,
    anneal=False,
)


def learner_state(learner: PPO, share: bool = False) -> LearnerState:
    hood = LINE.neighbourhood(1)
    actors = with_random_weights(lambda key: Actors(SPEC, hood, (8,), share, key=key), 1)
    critics = with_random_weights(lambda key: Critics(SPEC, hood, (8,), share, key=key), 2)
    actors, critics = (jax.tree.map(lambda x: x / 3 if eqx.is_array(x) else x, agents) for agents in (actors, critics))
    return learner.init(actors, critics, hood)


def experience(state: LearnerState, steps: int = T, rows: int = B) -> Trajectory:
    """Random moments, with actions that the actors really took."""
    random = np.random.default_rng(3)
    obs, next_obs = jnp.asarray(random.normal(size=(2, steps, rows, N, D)), jnp.float32)
    _, distribution = state.actors((), obs)
    action = distribution.sample(jax.random.key(4))
    return Trajectory(
        obs=obs,
        action=action,
        log_prob=distribution.log_prob(action),
        reward=jnp.asarray(random.normal(size=(steps, rows, N)), jnp.float32),
        terminated=jnp.zeros((steps, rows, N), bool),
        truncated=jnp.zeros((steps, rows), bool),
        lost=jnp.zeros((steps, rows, N), bool),
        next_obs=next_obs,
        carry=(),
    )


def with_constant_values(state: LearnerState, value: float) -> LearnerState:
    critics = jax.tree.map(lambda x: 0 * x if eqx.is_array(x) else x, state.critics)
    critics = eqx.tree_at(lambda c: c.networks.network.layers[-1].bias, critics, jnp.full((N, 1), value))
    return eqx.tree_at(lambda s: s.critics, state, critics)


@eqx.filter_jit
def updated(learner: PPO, state: LearnerState, trajectory: Trajectory) -> tuple[LearnerState, dict]:
    return learner.update(jax.random.key(5), state, trajectory, jnp.ones(()))


@eqx.filter_jit
def prepared(learner: PPO, state: LearnerState, trajectory: Trajectory) -> Samples:
    return learner.prepare(state, trajectory)[1]


@eqx.filter_jit
def descended(state: LearnerState, gradient: Actors) -> tuple[Actors, optax.ScaleByAdamState]:
    return ONE_STEP.descend(state.actors, gradient, state.actor_moments, jnp.asarray(0.1), jnp.ones(N, bool))


def moved(before: Actors | Critics, after: Actors | Critics) -> np.ndarray:
    """(n,): how far each agent's parameters are from where they were."""
    pairs = zip(*(jax.tree.leaves(eqx.filter(agents, eqx.is_array)) for agents in (before, after)), strict=True)
    return np.max([abs(np.asarray(b - a)).reshape(N, -1).max(-1) for a, b in pairs if a.size], axis=0)


# Advantages and targets


def test_advantages_are_averaged_over_neighbours_and_standardised() -> None:
    """With values of 0, and every step the last of its episode, the advantage is the reward. On the line, κ = 1:

    agent 0 averages 0 and 1:     (8, 0, 0, 0, 0, 0) / 2
    agent 1 averages 0, 1 and 2:  (8, 0, 0, 0, 0, 4) / 3
    agent 2 averages 1, 2 and 3:  (0, 0, 0, 0, 0, 4) / 3
    agent 3 averages 2 and 3:     (0, 0, 0, 0, 0, 4) / 2
    """
    state = with_constant_values(learner_state(ONE_STEP), 0.0)
    trajectory = experience(state)
    reward = jnp.zeros((T, B, N)).at[0, 0, 0].set(8.0).at[-1, -1, 2].set(4.0)
    ends = (reward, jnp.ones((T, B, N), bool))
    samples = prepared(ONE_STEP, state, eqx.tree_at(lambda t: (t.reward, t.terminated), trajectory, ends))
    first, last = jnp.array([4, 8 / 3, 0, 0]), jnp.array([0, 4 / 3, 4 / 3, 2])
    averaged = jnp.zeros((N, T * B)).at[:, 0].set(first).at[:, -1].set(last)
    np.testing.assert_allclose(samples.advantage, standardised(averaged), rtol=1e-4, atol=1e-5)


def test_repeated_samples_are_the_same_moments_each_as_often() -> None:
    """Twice as many weigh all moments alike, so one gradient step on all of them is the same step."""
    learner = PPO(discount=0.99, epochs=1, minibatches=1, entropy=0.0)
    state = learner_state(learner)
    state, samples = eqx.filter_jit(learner.prepare)(state, experience(state))
    total = samples.log_prob.shape[1]
    assert samples.repeated(total) is samples
    again = samples.repeated(2 * total)
    np.testing.assert_array_equal(again.log_prob, np.tile(samples.log_prob, 2))
    np.testing.assert_array_equal(again.action[:, total + 3], samples.action[:, 3])
    learn = eqx.filter_jit(learner.learn)
    once, twice = (learn(jax.random.key(0), state, each, jnp.ones(()))[0] for each in (samples, again))
    for a, b in zip(jax.tree.leaves(once.networks), jax.tree.leaves(twice.networks), strict=True):
        if eqx.is_array(a):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_truncation_bootstraps_and_termination_does_not() -> None:
    """A reward of 3 and values of 10, γ = 0.9: targets of 12, 12 and 3; what comes after an end does not matter."""
    state = with_constant_values(learner_state(ONE_STEP), 10.0)
    trajectory = experience(state)
    reward = jnp.full((T, B, N), 1000.0).at[:, 0].set(1.0).at[0].set(3.0)  # 1 + 0.9·10 = 10: no surprise in row 0
    truncated = jnp.zeros((T, B), bool).at[0, 1].set(True)
    terminated = jnp.zeros((T, B, N), bool).at[0, 2].set(True)
    ends = (reward, truncated, terminated)
    trajectory = eqx.tree_at(lambda t: (t.reward, t.truncated, t.terminated), trajectory, ends)
    target = prepared(ONE_STEP, state, trajectory).target.T.reshape(T, B, N)[0]
    np.testing.assert_allclose(target / target[:1], np.array([12, 12, 3])[:, None] / 12 * np.ones(N), rtol=1e-4)


def test_no_gradient_flows_into_advantages_and_targets() -> None:
    state = learner_state(ONE_STEP)
    trajectory = experience(state)

    def total(critics: Critics) -> jax.Array:
        samples = prepared(ONE_STEP, eqx.tree_at(lambda s: s.critics, state, critics), trajectory)
        return (samples.target**2).sum() + (samples.advantage**3).sum()

    for leaf in jax.tree.leaves(eqx.filter_grad(total)(state.critics)):
        assert np.all(leaf == 0)


def test_a_reward_reaches_the_policies_of_its_neighbours_and_the_critic_of_its_own_agent() -> None:
    """Agent 3's rewards: policies 2 and 3 within one hop, critic 3."""
    state = learner_state(ONE_STEP)
    trajectory = experience(state)
    other = eqx.tree_at(lambda t: t.reward, trajectory, trajectory.reward.at[..., 3].multiply(-1.0))
    after, otherwise = (updated(ONE_STEP, state, each)[0] for each in (trajectory, other))
    np.testing.assert_array_equal(moved(after.actors, otherwise.actors) > 1e-6, [False, False, True, True])
    np.testing.assert_array_equal(moved(after.critics, otherwise.critics) > 1e-6, [False, False, False, True])


def test_advantages_come_from_those_whom_feedback_names() -> None:
    """Agent 0 alone hears how agent 1 fares, although agent 2's critic sees agent 1 as well."""
    state = learner_state(ONE_STEP)
    one_way = Topology.from_edges(N, [(1, 0)], directed=True).neighbourhood(1)
    state = ONE_STEP.init(state.actors, state.critics, one_way)
    trajectory = experience(state)
    other = eqx.tree_at(lambda t: t.reward, trajectory, trajectory.reward.at[..., 1].multiply(-1.0))
    after, otherwise = (updated(ONE_STEP, state, each)[0] for each in (trajectory, other))
    np.testing.assert_array_equal(moved(after.actors, otherwise.actors) > 1e-6, [True, True, False, False])


def test_rewards_beyond_the_limit_count_as_the_limit() -> None:
    state = learner_state(ONE_STEP)
    trajectory = experience(state)
    limited = dataclasses.replace(ONE_STEP, reward_limit=0.5)
    cut = eqx.tree_at(lambda t: t.reward, trajectory, jnp.clip(trajectory.reward, -0.5, 0.5))
    assert not np.allclose(cut.reward, trajectory.reward)
    left, right = prepared(limited, state, trajectory), prepared(ONE_STEP, state, cut)
    np.testing.assert_allclose(left.target, right.target, rtol=1e-6)
    np.testing.assert_allclose(left.advantage, right.advantage, rtol=1e-6)


def test_what_a_learner_leaves_open_is_as_the_system_suggests() -> None:
    spec = dataclasses.replace(SPEC, discount=0.5, reward_limit=3.0)
    assert (PPO().resolved(spec).gamma, PPO().resolved(spec).reward_limit) == (0.5, 3.0)
    assert (PPO(discount=0.0).resolved(spec).gamma, PPO(reward_limit=1.0).resolved(spec).reward_limit) == (0.0, 1.0)
    with pytest.raises(InputError, match="discount is open"):
        _ = PPO().gamma


def test_a_lost_episode_repeats_its_last_reward_for_ever() -> None:
    """A reward of −2 now and at every later step, γ = 0.9: −2 / (1 − 0.9) = −20, whatever the next value."""
    state = with_constant_values(learner_state(ONE_STEP), 10.0)
    trajectory = experience(state)
    reward = jnp.ones((T, B, N)).at[0].set(-2.0)
    lost = jnp.zeros((T, B, N), bool).at[0].set(True)
    trajectory = eqx.tree_at(lambda t: (t.reward, t.lost), trajectory, (reward, lost))
    target = prepared(ONE_STEP, state, trajectory).target.T.reshape(T, B, N)
    np.testing.assert_allclose(target[0] / target[1], np.full((B, N), -20 / 10), rtol=1e-4)  # 1 + 0.9 · 10 = 10


def test_policies_come_to_prefer_what_pays() -> None:
    """Each agent for itself: agent i is paid for action i mod 2."""
    learner = dataclasses.replace(ONE_STEP, epochs=10, target_kl=10.0, trace=0.0, discount=0.0)
    state = learner_state(learner)
    alone = LINE.neighbourhood(0)  # no neighbour's advantages
    critics = with_random_weights(lambda key: Critics(SPEC, alone, (8,), False, key=key))
    state = learner.init(state.actors, critics, alone)
    state = with_constant_values(state, 0.5)
    trajectory = experience(state, steps=32)
    paid = jnp.arange(N) % 2
    trajectory = eqx.tree_at(lambda t: t.reward, trajectory, (trajectory.action == paid).astype(float))
    after, _ = updated(learner, state, trajectory)
    before, now = (
        np.exp(s.actors((), trajectory.obs)[1].log_prob(jnp.broadcast_to(paid, trajectory.action.shape))).mean((0, 1))
        for s in (state, after)
    )
    assert np.all(now > before + 0.05)


# Steps


def test_the_kl_stop_stops_policies_and_lets_critics_learn_on() -> None:
    often = dataclasses.replace(ONE_STEP, epochs=6)
    state = learner_state(ONE_STEP)
    trajectory = experience(state)
    (first, at_first), (sixth, at_sixth) = (updated(learner, state, trajectory) for learner in (ONE_STEP, often))
    assert np.all(moved(state.actors, first.actors) > 0.01)
    assert np.all(moved(first.actors, sixth.actors) < 1e-4)
    assert np.all(moved(first.critics, sixth.critics) > 1e-3)
    assert (at_first["stopped"], at_sixth["stopped"]) == (0, 1)


def test_the_kl_stop_of_one_agent_stops_no_other() -> None:
    """Agent 1's policy is far from the one that acted: it alone stands still."""
    state = learner_state(ONE_STEP)
    trajectory = experience(state)
    strayed = eqx.tree_at(lambda t: t.log_prob, trajectory, trajectory.log_prob.at[..., 1].add(1.0))
    after, _ = updated(ONE_STEP, state, trajectory)
    otherwise, metrics = updated(ONE_STEP, state, strayed)
    np.testing.assert_array_equal(moved(state.actors, after.actors) > 0.01, [True, True, True, True])
    np.testing.assert_array_equal(moved(after.actors, otherwise.actors) > 1e-6, [False, True, False, False])
    assert moved(state.actors, otherwise.actors)[1] == 0
    assert np.all(moved(after.critics, otherwise.critics) < 1e-6)
    assert metrics["stopped"] == 0.25


def test_agents_that_share_weights_stop_together() -> None:
    state = learner_state(ONE_STEP, share=True)
    trajectory = experience(state)
    strayed = eqx.tree_at(lambda t: t.log_prob, trajectory, trajectory.log_prob.at[..., 1].add(1.0))
    after, metrics = updated(ONE_STEP, state, strayed)
    assert eqx.tree_equal(after.actors, state.actors)
    assert metrics["stopped"] == 1


def test_each_agents_gradient_is_clipped_by_its_own_norm() -> None:
    """To at most 0.5: agent 0's is huge, agent 1's too large, agents 2 and 3 keep theirs."""
    state = learner_state(ONE_STEP)
    actors = eqx.filter(state.actors, eqx.is_inexact_array)
    count = sum(leaf[0].size for leaf in jax.tree.leaves(actors))
    entry = np.array([1e6, 2.0, 0.3, 1e-3]) / count**0.5
    gradient = jax.tree.map(lambda x: jnp.asarray(np.ones(x.shape).T * entry, x.dtype).T, actors)
    _, moments = descended(state, gradient)
    squares = sum(np.square(leaf).reshape(N, -1).sum(-1) for leaf in jax.tree.leaves(moments.mu))
    clipped = np.sqrt(squares) / 0.1  # Adam's first moment is a tenth of the first gradient
    np.testing.assert_allclose(clipped, [0.5, 0.5, 0.3, 1e-3], rtol=1e-4)


def test_a_huge_gradient_leaves_the_other_agents_steps_alone() -> None:
    state = learner_state(ONE_STEP)
    gradient = jax.tree.map(lambda leaf: 1e-4 * jnp.ones_like(leaf), eqx.filter(state.actors, eqx.is_inexact_array))
    huge = jax.tree.map(lambda leaf: leaf.at[0].set(1e6), gradient)
    calm, wild = (descended(state, each)[0] for each in (gradient, huge))
    assert moved(state.actors, calm).min() > 0.05
    assert np.all(moved(calm, wild)[1:] == 0)


def test_the_reported_entropy_is_the_entropy() -> None:
    state = learner_state(ONE_STEP)
    trajectory = experience(state)
    log_prob = np.asarray(state.actors((), trajectory.obs)[1].log_probs, float)
    expected = -(np.exp(log_prob) * log_prob).sum(-1).mean()
    _, metrics = updated(ONE_STEP, state, trajectory)
    np.testing.assert_allclose(metrics["entropy"], expected, rtol=1e-5)


def test_the_entropy_bonus_raises_the_entropy() -> None:
    """Where nothing else pays."""
    learner = dataclasses.replace(ONE_STEP, entropy=1.0)
    state = learner_state(learner)
    trajectory = eqx.tree_at(lambda t: t.reward, experience(state), jnp.zeros((T, B, N)))
    state = with_constant_values(state, 0.0)
    after, _ = updated(learner, state, trajectory)
    before, now = (s.actors((), trajectory.obs)[1].entropy().mean((0, 1)) for s in (state, after))
    assert np.all(now > before)
