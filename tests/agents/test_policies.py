"""What makes actors and critics decentralised: locality, padding that does not matter, labels that do not matter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Queues, Rooms, with_random_weights

from khop.agents.distribution import Categorical
from khop.agents.policies import Actors, Critics
from khop.methods import METHODS
from khop.system import ContinuousActions, DiscreteActions, Spec
from khop.topology import Topology

N, D = 6, 3
SIZES, CHOICES = np.array([3, 1, 2, 3, 2, 1]), np.array([4, 2, 3, 1, 4, 2])
BRANCHED = Topology.from_edges(N, [(0, 1), (1, 2), (1, 3), (3, 4), (4, 5)])
ONE_WAY = Topology.from_edges(N, [(0, 1), (1, 2), (2, 0), (2, 3), (4, 3)], directed=True)
KINDS = ["discrete", "continuous", "values"]


def spec_of(kind: str, order: np.ndarray | None = None) -> Spec:
    """Agents of different observation and action sets; ``order`` says which of them stands where."""
    order = np.arange(N) if order is None else order
    low = np.stack([-1.0 - np.arange(N), np.zeros(N)], -1)[order]
    continuous = ContinuousActions(low, low + 2 + np.arange(N)[order, None], ("push", "turn"), ("1", "1"))
    return Spec(
        n=N,
        observation_sizes=SIZES[order],
        observation_names=("x", "y", "z"),
        observation_units=("1", "1", "1"),
        action=continuous if kind == "continuous" else DiscreteActions(CHOICES[order], ("a", "b", "c", "d")),
        horizon=10,
        control_interval_s=1.0,
        metrics={"return": "1"},
    )


def agents_of(
    kind: str, topology: Topology, kappa: int | str, share: bool = False, order: np.ndarray | None = None
) -> Actors | Critics:
    cls = Critics if kind == "values" else Actors
    hood = topology.neighbourhood(kappa)
    agents = with_random_weights(lambda key: cls(spec_of(kind, order), hood, (8,), share, key=key))
    # Small enough that hidden units are not saturated and probabilities stay away from 0 and 1.
    layers = (first_weight(agents) / 4, *(x / 4 for x in last_layer(agents)))
    return eqx.tree_at(lambda a: (first_weight(a), *last_layer(a)), agents, layers)


def with_parameters(agents: Actors | Critics, parameters: Actors | Critics) -> Actors | Critics:
    """``agents`` holding the arrays of ``parameters``, whose graph may be another."""
    arrays, rest = eqx.partition(agents, eqx.is_array)
    leaves = jax.tree.leaves(eqx.filter(parameters, eqx.is_array))
    return eqx.combine(jax.tree.unflatten(jax.tree.structure(arrays), leaves), rest)


def first_weight(agents: Actors | Critics) -> jax.Array:
    return agents.networks.network.layers[0].weight  # (n, hidden, K d)


def last_layer(agents: Actors | Critics) -> tuple[jax.Array, jax.Array]:
    last = agents.networks.network.layers[-1]
    return last.weight, last.bias  # (n, actions, hidden), (n, actions)


def output(agents: Actors | Critics, obs: jax.Array) -> jax.Array:
    """What each agent says, (…, n, numbers): its value, its action probabilities, or its means and scales."""
    if isinstance(agents, Critics):
        return agents(obs)[..., None]
    _, distribution = agents((), obs)
    if isinstance(distribution, Categorical):
        return jnp.exp(distribution.log_probs)
    return jnp.concatenate([distribution.mean, distribution.scale], -1)


def observations(seed: int = 0, order: np.ndarray | None = None) -> jax.Array:
    obs = np.random.default_rng(seed).normal(size=(N, D)) * (np.arange(D) < SIZES[:, None])
    return jnp.asarray(obs if order is None else obs[order], jnp.float32)


def influence(agents: Actors | Critics) -> np.ndarray:
    """(i, j): does anything that j observes change what agent i says?"""
    obs = observations()
    real = jnp.asarray(np.arange(D) < SIZES[:, None])
    changed = obs + jnp.eye(N)[:, :, None] * jnp.where(real, 2.0, 0.0)
    difference = abs(np.asarray(output(agents, changed)) - np.asarray(output(agents, obs))).max(-1)
    assert not np.any((difference > 1e-6) & (difference < 1e-4))  # between rounding and what is heard
    return (difference > 1e-5).T


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kappa", [0, 1, 2, "all"])
@pytest.mark.parametrize("topology", [BRANCHED, ONE_WAY], ids=["branched", "one-way"])
@pytest.mark.parametrize("kind", KINDS)
def test_agents_hear_their_neighbourhood_and_nobody_else(
    kind: str, topology: Topology, kappa: int | str, share: bool
) -> None:
    hood = topology.neighbourhood(kappa)
    expected = np.zeros((N, N), bool)
    for agent in range(N):
        expected[agent, hood.index[agent, hood.mask[agent]]] = True
    heard = influence(agents_of(kind, topology, kappa, share))
    if kind == "discrete":
        expected[CHOICES == 1] = False  # who has no choice has nothing to change
    np.testing.assert_array_equal(heard, expected)


@pytest.mark.parametrize("name", METHODS)
def test_actors_of_every_method_stay_within_their_hops(name: str) -> None:
    method = METHODS[name].resolved(spec_of("discrete"))
    heard = influence(agents_of("discrete", BRANCHED, method.kappa_actor))
    hops = BRANCHED.neighbourhood("all")
    distance = np.empty((N, N), int)
    np.put_along_axis(distance, hops.index, hops.distance, axis=1)
    assert not heard[distance > method.kappa_actor].any()


# Padding


def with_other_padding(agents: Actors | Critics, kappa: int) -> Actors | Critics:
    """The same agents with other weights wherever an absent neighbour, feature or action would enter."""
    hood = BRANCHED.neighbourhood(kappa)
    real = hood.mask[:, :, None] & (np.arange(D) < SIZES[hood.index][:, :, None])
    agents = eqx.tree_at(first_weight, agents, jnp.where(real.reshape(N, 1, -1), first_weight(agents), 1e3))
    if isinstance(agents, Actors) and isinstance(agents.action, DiscreteActions):
        weight, bias = last_layer(agents)
        mask = agents.action.mask
        last = jnp.where(mask[..., None], weight, 1e3), jnp.where(mask, bias, 1e3)
        agents = eqx.tree_at(last_layer, agents, last)
    return agents


@pytest.mark.parametrize("kappa", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_absent_neighbours_features_and_actions_change_nothing(kind: str, kappa: int) -> None:
    agents = agents_of(kind, BRANCHED, kappa)
    other = with_other_padding(agents, kappa)
    assert not np.array_equal(first_weight(other), first_weight(agents))
    np.testing.assert_allclose(output(other, observations()), output(agents, observations()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbourhood_padded_wider_changes_nothing(kind: str) -> None:
    """One more edge, between 1 and 4, makes theirs the largest neighbourhoods and pads all others."""
    agents = agents_of(kind, Topology.line(N), 1)
    wider = Topology.from_edges(N, [*Topology.line(N).edges.tolist(), (1, 4)], directed=False)
    padded = agents_of(kind, wider, 1)
    weight = first_weight(padded).at[..., : agents.neighbourhood.width * D].set(first_weight(agents))
    padded = with_parameters(padded, eqx.tree_at(first_weight, agents, weight))
    assert padded.neighbourhood.width > agents.neighbourhood.width
    apart = np.array([0, 2, 3, 5])
    obs = observations()
    np.testing.assert_allclose(output(padded, obs)[apart], output(agents, obs)[apart], rtol=1e-5, atol=1e-6)


def test_absent_actions_have_no_probability() -> None:
    probability = np.asarray(output(agents_of("discrete", BRANCHED, 1), observations()))
    absent = np.arange(4) >= CHOICES[:, None]
    assert np.all(probability[absent] == 0)
    assert np.all(probability[~absent] > 0)
    np.testing.assert_allclose(probability.sum(-1), 1, rtol=1e-6)


# Labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kappa", [1, 2])
@pytest.mark.parametrize("topology", [BRANCHED, ONE_WAY], ids=["branched", "one-way"])
@settings(max_examples=5, deadline=None)
@given(label=st.permutations(range(N)))
def test_relabelling_the_agents_relabels_what_they_say(
    kind: str, kappa: int, topology: Topology, label: list[int]
) -> None:
    """Agent i becomes label[i], with its parameters, its action set and its observations."""
    order = np.argsort(label)  # who stands where
    relabelled = Topology.from_edges(N, np.asarray(label)[topology.edges], topology.directed)
    agents = agents_of(kind, topology, kappa)
    moved = jax.tree.map(lambda leaf: leaf[order], eqx.filter(agents, eqx.is_array))
    said = output(with_parameters(agents_of(kind, relabelled, kappa, order=order), moved), observations(order=order))
    np.testing.assert_allclose(said[jnp.asarray(label)], output(agents, observations()), rtol=1e-5, atol=1e-6)


# Parameters


@pytest.mark.parametrize("kind", KINDS)
def test_an_agents_loss_reaches_its_own_parameters_alone(kind: str) -> None:
    agents = agents_of(kind, BRANCHED, 2)
    for agent in range(N):

        def loss(agents: Actors | Critics, agent: int = agent) -> jax.Array:
            said = output(agents, observations())[agent]
            return (said * jnp.arange(1, said.size + 1)).sum()

        gradient = eqx.filter_grad(loss)(agents)
        for leaf in filter(np.size, jax.tree.leaves(gradient)):
            reached = np.any(np.asarray(leaf).reshape(N, -1) != 0, axis=-1)
            assert not np.delete(reached, agent).any()
            assert reached[agent] or (kind == "discrete" and CHOICES[agent] == 1)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_agents_hold_one_set_of_weights(kind: str) -> None:
    own, shared = agents_of(kind, BRANCHED, 1), agents_of(kind, BRANCHED, 1, share=True)
    count = [sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(x, eqx.is_array))) for x in (own, shared)]
    assert count[0] == N * count[1]
    assert all(leaf.shape[0] == N for leaf in jax.tree.leaves(eqx.filter(own, eqx.is_array)))


def test_shared_agents_who_see_the_same_say_the_same() -> None:
    ring = Topology.ring(N)
    critics = agents_of("values", ring, 1, share=True)
    np.testing.assert_allclose(critics(jnp.ones((N, D))), critics(jnp.ones((N, D)))[0], rtol=1e-6)
    own = agents_of("values", ring, 1)(jnp.ones((N, D)))
    assert len(np.unique(np.asarray(own))) == N


# Shapes


@pytest.mark.parametrize(("system", "share"), [(Rooms(), False), (Queues(), True)], ids=["rooms", "queues-shared"])
def test_agents_of_different_sizes_act_within_their_own_sets(system: Rooms | Queues, share: bool) -> None:
    spec, hood = system.spec, system.topology.neighbourhood(1)
    actors = with_random_weights(lambda key: Actors(spec, hood, (8,), share, key=key))
    critics = with_random_weights(lambda key: Critics(spec, hood, (8,), share, key=key))
    obs = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5, spec.n, spec.d)), jnp.float32)
    carry, distribution = actors(actors.initial(5), obs)
    action = distribution.sample(jax.random.key(0))
    assert carry == actors.initial(5)
    assert critics(obs).shape == distribution.log_prob(action).shape == distribution.entropy().shape == (7, 5, spec.n)
    assert np.all(np.isfinite(distribution.log_prob(action)))
    if isinstance(spec.action, DiscreteActions):
        assert action.shape == (7, 5, spec.n)
        assert np.all(action < spec.action.sizes)
    else:
        assert action.shape == (7, 5, spec.n, spec.action.width)
        assert np.all((action >= spec.action.low) & (action <= spec.action.high))
        assert np.all((distribution.mode() >= spec.action.low) & (distribution.mode() <= spec.action.high))


def test_fresh_policies_are_nearly_uniform_and_values_near_zero() -> None:
    """So that learning starts without a preference."""
    spec, hood = spec_of("discrete"), BRANCHED.neighbourhood(1)
    actors = eqx.filter_jit(lambda key: Actors(spec, hood, (16,), False, key=key))(jax.random.key(0))
    np.testing.assert_allclose(
        output(actors, observations()), (np.arange(4) < CHOICES[:, None]) / CHOICES[:, None], atol=0.02
    )
