"""Agents with memory: their network, and sequences that know what the agents knew when they acted."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import with_random_weights

import khop
from khop.agents.recurrent import RecurrentActors
from khop.learners.ppo import PPO
from khop.learners.recurrent import RecurrentPPO, RecurrentState, Sequences
from khop.trajectory import Trajectory
from khop.worlds.real import RealWorld

B, T, L, H = 3, 12, 4, 6
SYSTEM = khop.make("warehouse", horizon=5)  # no multiple of L: episodes end inside sequences
OPTIONS = PPO(discount=0.99, sequence=L, minibatches=3, epochs=1, entropy=0.0, anneal=False)
HOOD = SYSTEM.topology.neighbourhood(0)


def actors(share: bool = False, pass_memory: bool = False) -> RecurrentActors:
    drawn = with_random_weights(lambda key: RecurrentActors(SYSTEM.spec, HOOD, H, (5,), share, pass_memory, key=key))
    return jax.tree.map(lambda x: x / 2 if eqx.is_array(x) else x, drawn)


@eqx.filter_jit
def acted(actors: RecurrentActors) -> Trajectory:
    world = RealWorld(SYSTEM, B)
    return world.rollout(jax.random.key(1), world.init(jax.random.key(0), actors), actors, T)[1]


@eqx.filter_jit
def prepared(state: RecurrentState, trajectory: Trajectory) -> Sequences:
    return RecurrentPPO(OPTIONS).prepare(state, trajectory)[1]


@eqx.filter_jit
def divergence(state: RecurrentState, sequences: Sequences) -> jax.Array:
    """(n,): KL between the policy that acted and the one that goes through the sequences."""

    def of_one(dynamic: object, sequences: Sequences) -> jax.Array:
        return RecurrentPPO(OPTIONS).loss(dynamic, static, sequences, jnp.ones(()))[1]["kl"]

    dynamic, static = eqx.partition(state.networks, eqx.is_array)
    return jax.vmap(of_one)(dynamic, sequences)


@pytest.fixture(scope="module", params=[False, True], ids=["own weights", "shared weights"])
def experience(request: pytest.FixtureRequest) -> tuple[RecurrentState, Trajectory]:
    state = RecurrentPPO(OPTIONS).init(actors(request.param), HOOD)
    return state, acted(state.actors)


def test_sequences_lead_to_the_very_policy_that_acted(experience: tuple) -> None:
    """From the stored memory, emptied where episodes ended; without that, policies would differ."""
    state, trajectory = experience
    assert trajectory.ended.any()
    sequences = prepared(state, trajectory)
    np.testing.assert_allclose(divergence(state, sequences), 0, atol=1e-6)
    assert np.all(divergence(state, sequences._replace(emptied=jnp.zeros_like(sequences.emptied))) > 1e-5)
    assert np.all(divergence(state, sequences._replace(memory=jnp.zeros_like(sequences.memory))) > 1e-5)


def test_memory_is_empty_after_an_end_and_only_then(experience: tuple) -> None:
    _, trajectory = experience
    empty = np.all(np.asarray(trajectory.carry) == 0, -1)
    np.testing.assert_array_equal(empty[1:], trajectory.ended[:-1])


def test_the_network_is_a_gated_recurrent_unit_with_dense_layers(experience: tuple) -> None:
    """Against the equations of Cho et al. (2014) in the form of PyTorch, in NumPy."""
    state, trajectory = experience
    networks = jax.tree.map(lambda x: np.asarray(x) if eqx.is_array(x) else x, state.networks)
    agent = len(networks.log_scale) - 1
    cell = networks.cell
    x, h = (np.asarray(leaf)[2, 1, agent] for leaf in (trajectory.obs, trajectory.carry))
    own = np.split(cell.weight_ih[agent] @ x + cell.bias[agent], 3)
    past = np.split(cell.weight_hh[agent] @ h, 3)
    reset, update = (1 / (1 + np.exp(-own[gate] - past[gate])) for gate in (0, 1))
    new = np.tanh(own[2] + reset * (past[2] + cell.bias_n[agent]))
    memory = (1 - update) * new + update * h

    def dense(layer: eqx.nn.Linear, x: np.ndarray) -> np.ndarray:
        return layer.weight[agent] @ x + layer.bias[agent]

    features = np.maximum(dense(networks.body.layers[0], memory), 0)
    found = state.actors.apply(trajectory.carry[2], trajectory.obs[2])
    np.testing.assert_allclose(found[0][1, agent], memory, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1][1, agent], dense(networks.policy.layers[0], features), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2][1, agent], dense(networks.value.layers[0], features)[0], rtol=1e-4, atol=1e-5)


def test_the_value_of_what_follows_is_the_next_value_until_an_end(experience: tuple) -> None:
    state, trajectory = experience
    value, following = RecurrentPPO(OPTIONS)._values(state.actors, trajectory, trajectory.obs)
    going_on = ~np.asarray(trajectory.ended[:-1])
    np.testing.assert_allclose(following[:-1][going_on], value[1:][going_on], rtol=1e-4, atol=1e-5)
    assert np.all(abs(following[:-1] - value[1:])[~going_on] > 1e-6)


def test_agents_learn_alone(experience: tuple) -> None:
    """Another reward for agent 2 changes agent 2's weights alone, unless weights are shared."""
    state, trajectory = experience
    other = eqx.tree_at(lambda t: t.reward, trajectory, trajectory.reward.at[::2, :, 2].add(1.0))
    learner = RecurrentPPO(dataclasses.replace(OPTIONS, target_kl=1e6))
    update = eqx.filter_jit(learner.update)
    after, otherwise = (update(jax.random.key(2), state, each, jnp.ones(()))[0] for each in (trajectory, other))
    change = np.max(
        [
            abs(np.asarray(a - b)).reshape(len(a), -1).max(-1)
            for a, b in zip(jax.tree.leaves(after.networks), jax.tree.leaves(otherwise.networks), strict=True)
            if eqx.is_array(a) and a.size
        ],
        axis=0,
    )
    expected = [True] if state.actors.share else [False, False, True, False]
    np.testing.assert_array_equal(change > 1e-6, expected)


# A single memory for all


@pytest.fixture(scope="module")
def passing() -> RecurrentActors:
    return actors(share=True, pass_memory=True)


def test_a_memory_that_is_passed_on_goes_from_agent_to_agent_and_step_to_step(passing: RecurrentActors) -> None:
    """Against the same network in a plain loop, which never sees an axis of agents."""
    trajectory = acted(passing)
    network = eqx.filter_jit(jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, passing.networks))
    memory = jnp.zeros(H)
    for t in range(T):
        for agent in range(SYSTEM.spec.n):
            np.testing.assert_allclose(trajectory.carry[t, 0, agent], memory, rtol=1e-5, atol=1e-6)
            memory, output, _ = network(memory, trajectory.obs[t, 0, agent])
            log_prob = jax.nn.log_softmax(output)[trajectory.action[t, 0, agent]]
            np.testing.assert_allclose(trajectory.log_prob[t, 0, agent], log_prob, rtol=1e-5, atol=1e-6)
        if trajectory.ended[t, 0].any():
            memory = jnp.zeros(H)


def test_what_follows_is_valued_with_the_memory_that_is_read_next(passing: RecurrentActors) -> None:
    """Not with the one that the agent left: values fed with what no agent ever reads run away."""
    trajectory = acted(passing)
    _, following = RecurrentPPO(OPTIONS)._values(passing, trajectory, trajectory.obs)
    network = eqx.filter_jit(jax.tree.map(lambda x: x[0] if eqx.is_array(x) else x, passing.networks))
    going_on = ~np.asarray(trajectory.ended[:-1])
    assert going_on.any()
    for t, row, agent in np.argwhere(going_on):
        value = network(trajectory.carry[t + 1, row, agent], trajectory.obs[t + 1, row, agent])[2]
        np.testing.assert_allclose(following[t, row, agent], value, rtol=1e-4, atol=1e-5)


def test_what_is_passed_on_can_be_learned_from(passing: RecurrentActors) -> None:
    state = RecurrentPPO(OPTIONS).init(passing, HOOD)
    trajectory = acted(passing)
    update = eqx.filter_jit(RecurrentPPO(OPTIONS).update)
    after, metrics = update(jax.random.key(2), state, trajectory, jnp.ones(()))
    assert all(np.isfinite(value) for value in metrics.values())
    assert not np.allclose(after.networks.cell.weight_hh, state.networks.cell.weight_hh)


@pytest.mark.parametrize("others", [{"share": False}, {"recurrent": 0, "share": True}])
def test_only_agents_that_share_everything_pass_memory_on(others: dict) -> None:
    with pytest.raises(khop.InputError, match=r"Agents can pass memory on if they have memory, share weights"):
        dataclasses.replace(khop.METHODS["ippo-memory"], pass_memory=True, **others)


def test_alone_in_a_simulator_no_memory_is_passed_on() -> None:
    with pytest.raises(khop.InputError, match=r"act in the whole system"):
        dataclasses.replace(khop.METHODS["dials"], pass_memory=True, share=True)
