"""Neighbourhoods against networkx, reductions against loops, message costs against numbers worked out by hand."""

import re
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from khop.errors import InputError
from khop.topology import MessageCost, Neighbourhood, Topology

unhurried = settings(max_examples=100, deadline=None)


@st.composite
def topologies(draw, most=9):
    """Any graph: directed or not, disconnected, with repeated edges, in any order; n = 1 included."""
    n = draw(st.integers(1, most))
    size = draw(st.integers(0, 2 * n)) if n > 1 else 0
    senders = draw(st.lists(st.integers(0, n - 1), min_size=size, max_size=size))
    steps = draw(st.lists(st.integers(1, max(n - 1, 1)), min_size=size, max_size=size))
    edges = [(sender, (sender + step) % n) for sender, step in zip(senders, steps, strict=True)]
    return Topology.from_edges(n, edges, directed=draw(st.booleans()))


kappas = st.integers(0, 4) | st.just("all")


def as_networkx(topology):
    graph = nx.DiGraph() if topology.directed else nx.Graph()
    graph.add_nodes_from(range(topology.n))
    graph.add_edges_from(topology.edges.tolist())
    return graph


def members(topology, kappa):
    """For each agent, its real members in order, with their distances."""
    hood = topology.neighbourhood(kappa)
    return [
        list(zip(ids[real].tolist(), hops[real].tolist(), strict=True))
        for ids, real, hops in zip(hood.index, hood.mask, hood.distance, strict=True)
    ]


# Neighbourhoods


@unhurried
@given(topologies(), kappas)
def test_members_and_distances_are_those_of_networkx(topology, kappa):
    graph = as_networkx(topology)
    heard = graph.reverse() if topology.directed else graph
    for agent, found in enumerate(members(topology, kappa)):
        expected = nx.single_source_shortest_path_length(heard, agent, cutoff=None if kappa == "all" else kappa)
        if kappa == "all":
            expected = dict.fromkeys(range(topology.n), topology.n) | expected
        assert dict(found) == expected
        assert len(found) == len(expected)


@unhurried
@given(topologies(), kappas)
def test_slots_are_self_first_then_by_distance_then_padding(topology, kappa):
    hood = topology.neighbourhood(kappa)
    assert hood.index.shape == hood.mask.shape == hood.distance.shape == (hood.n, hood.width)
    assert hood.width == hood.size.max()
    assert (hood.index[:, 0] == np.arange(topology.n)).all() and (hood.distance[:, 0] == 0).all()
    assert (hood.mask == (np.arange(hood.width) < hood.size[:, None])).all()
    assert (np.diff(hood.distance, axis=1)[hood.mask[:, 1:]] >= 0).all()
    own = np.broadcast_to(np.arange(topology.n)[:, None], hood.index.shape)
    assert (hood.index[~hood.mask] == own[~hood.mask]).all() and (hood.distance[~hood.mask] == -1).all()


@unhurried
@given(topologies(), kappas, st.data())
def test_relabelling_the_agents_relabels_the_neighbourhoods(topology, kappa, data):
    mentioned = set(topology.edges.ravel().tolist())
    if kappa == "all" and len(mentioned) < topology.n:
        return  # two agents without any edge can be told apart by their id alone
    new = np.array(data.draw(st.permutations(range(topology.n))))
    relabelled = Topology.from_edges(topology.n, new[topology.edges], topology.directed)
    before, after = topology.neighbourhood(kappa), relabelled.neighbourhood(kappa)
    assert (after.index[new] == new[before.index]).all()
    assert (after.mask[new] == before.mask).all() and (after.distance[new] == before.distance).all()


def test_ties_follow_the_edge_list_first_along_then_against_the_edges():
    hood = Topology.from_edges(6, [(0, 3), (2, 0), (5, 0), (0, 1), (3, 4)]).neighbourhood(2)
    assert hood.index[0].tolist() == [0, 2, 5, 3, 1, 4]
    assert hood.distance[0].tolist() == [0, 1, 1, 1, 1, 2]
    directed = Topology.from_edges(4, [(3, 0), (1, 0), (0, 2), (2, 3)], directed=True).neighbourhood(2)
    assert directed.index[0].tolist() == [0, 3, 1, 2]
    assert directed.distance[0].tolist() == [0, 1, 1, 2]


def test_every_agent_of_a_ring_sees_the_same():
    hood = Topology.ring(7).neighbourhood(2)
    steps = (hood.index - np.arange(7)[:, None]) % 7
    assert (steps == [0, 6, 1, 5, 2]).all()


def test_unreachable_agents_come_last_under_all():
    topology = Topology.from_edges(5, [(3, 1), (4, 0)])
    hood = topology.neighbourhood("all")
    assert hood.index[1].tolist() == [1, 3, 4, 0, 2]
    assert hood.distance[1].tolist() == [0, 1, 5, 5, 5]
    assert members(topology, 99)[1] == [(1, 0), (3, 1)]


def test_neighbourhoods_are_read_only_and_keep_their_identity(unchecked):
    topology = Topology.line(5)
    hood = topology.neighbourhood(1)
    assert topology.neighbourhood(np.int64(1)) is hood and hash(hood) == hash(topology.neighbourhood(1))
    assert hood != Topology.line(5).neighbourhood(1)
    for values in (hood.index, hood.mask, hood.distance, hood.size, topology.edges, topology.positions):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def test_a_neighbourhood_is_a_static_field_that_never_retraces():
    class Total(eqx.Module):
        neighbourhood: Neighbourhood = eqx.field(static=True)

    traces = []

    @eqx.filter_jit
    def total(module, x):
        traces.append(x.shape)
        return module.neighbourhood.sum(x)

    topology = Topology.ring(5)
    for _ in range(2):
        np.testing.assert_array_equal(total(Total(topology.neighbourhood(1)), jnp.ones(5)), 3.0)
    assert len(traces) == 1 and jax.tree.leaves(Total(topology.neighbourhood(1))) == []


# Gathering


def brute_gather(hood, x):
    out = np.zeros((*x.shape[:-2], hood.n, hood.width, x.shape[-1]), x.dtype)
    for agent in range(hood.n):
        for slot in range(hood.width):
            if hood.mask[agent, slot]:
                out[..., agent, slot, :] = x[..., hood.index[agent, slot], :]
    return out


@settings(max_examples=12, deadline=None)
@given(topologies(most=6), kappas, st.sampled_from([(), (2,), (2, 3)]), st.integers(0, 99))
def test_gather_sum_and_mean_are_the_loops_they_replace(topology, kappa, lead, seed):
    hood = topology.neighbourhood(kappa)
    x = np.random.default_rng(seed).normal(size=(*lead, hood.n, 2)).astype(np.float32)
    gathered = brute_gather(hood, x)
    np.testing.assert_array_equal(hood.gather(x), gathered)
    sums = gathered[..., 0].sum(axis=-1)
    np.testing.assert_allclose(hood.sum(x[..., 0]), sums, atol=1e-5)
    np.testing.assert_allclose(hood.mean(x[..., 0]), sums / hood.size, atol=1e-5)


@pytest.mark.parametrize("kappa", [0, 1, "all"])
def test_jit_and_vmap_change_nothing(kappa):
    hood = Topology.line(4).neighbourhood(kappa)
    x = jax.random.normal(jax.random.key(0), (3, 5, 4, 2))
    for method, values in ((hood.gather, x), (hood.sum, x[..., 0]), (hood.mean, x[..., 0])):
        np.testing.assert_array_equal(jax.jit(method)(values), method(values))
        np.testing.assert_array_equal(jax.vmap(jax.vmap(method))(values), method(values))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_padding_reads_exact_zeros_whatever_the_payload(poison):
    hood = Topology.from_edges(4, [(0, 1), (0, 2)]).neighbourhood(1)  # agent 3 is alone; 1, 2 and 3 are padded
    gathered = np.asarray(hood.gather(jnp.full((4, 2), poison)))
    assert (gathered[~hood.mask] == 0).all() and not np.isfinite(gathered[hood.mask]).any()
    x = jnp.array([1.0, 2.0, 3.0, poison])
    np.testing.assert_array_equal(hood.sum(x)[:3], [6.0, 3.0, 4.0])
    np.testing.assert_array_equal(hood.mean(x)[:3], [2.0, 1.5, 2.0])
    gradient = jax.grad(lambda x: hood.sum(x)[:3].sum())(x)
    np.testing.assert_array_equal(gradient, [3.0, 2.0, 2.0, 0.0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_gather_keeps_the_type(dtype):
    x = jnp.ones((4, 2), dtype)
    for kappa in (0, 1, "all"):
        assert Topology.line(4).neighbourhood(kappa).gather(x).dtype == dtype


# Constructors


def test_repeated_edges_keep_their_first_occurrence():
    edges = [(2, 1), (0, 1), (1, 2), (2, 1), (1, 0)]
    assert Topology.from_edges(3, edges).edges.tolist() == [[2, 1], [0, 1]]
    assert Topology.from_edges(3, edges, directed=True).edges.tolist() == [[2, 1], [0, 1], [1, 2], [1, 0]]


def test_edges_may_be_any_iterable_of_pairs():
    expected = [[0, 1], [1, 2]]
    for edges in ([(0, 1), (1, 2)], zip([0, 1], [1, 2], strict=True), np.array(expected, float), jnp.array(expected)):
        assert Topology.from_edges(3, edges).edges.tolist() == expected
    for edges in ([], np.empty((0, 2)), iter(())):
        assert Topology.from_edges(3, edges).neighbourhood(2).width == 1


@unhurried
@given(topologies())
def test_networkx_graphs_come_back_as_they_went(topology):
    back = Topology.from_networkx(nx.relabel_nodes(as_networkx(topology), lambda node: f"bus {node}"))
    assert back.directed == topology.directed
    assert [set(found) for found in members(back, 2)] == [set(found) for found in members(topology, 2)]


def test_networkx_multigraphs_are_read_as_graphs():
    assert Topology.from_networkx(nx.MultiGraph([("a", "b"), ("a", "b"), ("b", "c")])).edges.tolist() == [
        [0, 1],
        [1, 2],
    ]


@unhurried
@given(topologies(), st.sampled_from([np.asarray, sparse.csr_array, sparse.coo_array, sparse.csc_matrix]))
def test_adjacency_matrices_give_the_same_neighbourhoods(topology, form):
    matrix = nx.to_numpy_array(as_networkx(topology), nodelist=range(topology.n))
    back = Topology.from_adjacency(form(matrix))
    assert back.directed == bool((matrix != matrix.T).any())
    assert [set(found) for found in members(back, 2)] == [set(found) for found in members(topology, 2)]


def test_stored_zeros_of_a_sparse_matrix_are_no_edges():
    matrix = sparse.coo_array(([1.0, 0.0, 0.0], ([0, 1, 2], [1, 2, 2])), shape=(3, 3))
    assert Topology.from_adjacency(matrix).edges.tolist() == [[0, 1]]


def test_generators_are_the_graphs_they_name():
    for topology, graph in (
        (Topology.line(1), nx.path_graph(1)),
        (Topology.line(6), nx.path_graph(6)),
        (Topology.ring(6), nx.cycle_graph(6)),
        (Topology.grid(3, 4), nx.convert_node_labels_to_integers(nx.grid_2d_graph(3, 4), ordering="sorted")),
    ):
        assert nx.utils.graphs_equal(as_networkx(topology), graph)
        assert topology.positions.shape == (topology.n, 2)
    for topology in (Topology.ring(6), Topology.grid(3, 4)):  # neighbours are drawn one unit apart
        ends = topology.positions[topology.edges]
        np.testing.assert_allclose(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1), 1.0)


def test_random_geometric_links_exactly_the_near_pairs():
    topology = Topology.random_geometric(60, 0.2, seed=3)
    apart = np.linalg.norm(topology.positions[:, None] - topology.positions, axis=-1)
    assert topology.edges.tolist() == np.argwhere(np.triu(apart <= 0.2, k=1)).tolist()
    assert (topology.edges == Topology.random_geometric(60, 0.2, seed=3).edges).all()
    assert (topology.positions != Topology.random_geometric(60, 0.2, seed=4).positions).any()


# Numbers for a report


@pytest.mark.parametrize(
    ("topology", "kappa", "share"),
    [
        (Topology.line(8), 0, 0.0),
        (Topology.line(8), 1, 0.25),
        (Topology.line(8), 2, 3.25 / 7),
        (Topology.line(8), "all", 1.0),
        (Topology.ring(22), 1, 2 / 21),
        (Topology.grid(5, 5), 1, 3.2 / 24),
        (Topology.line(1), "all", 0.0),
    ],
)
def test_message_cost(topology, kappa, share):
    cost = topology.message_cost(kappa, 5)
    assert cost.centralised == (topology.n - 1) * 5
    assert cost.per_agent == pytest.approx(share * cost.centralised)
    assert cost.share == pytest.approx(share)


def test_message_cost_counts_what_each_agent_sends_to_those_who_hear_it():
    topology = Topology.from_edges(3, [(0, 1), (0, 2), (1, 2)], directed=True)
    cost = topology.message_cost(1, np.array([10.0, 4.0, 1.0]))  # 1 hears 10, 2 hears 14
    assert cost == MessageCost(per_agent=8.0, centralised=10.0, share=0.8)
    assert topology.message_cost("all", np.array([10.0, 4.0, 1.0])) == MessageCost(10.0, 10.0, 1.0)
    assert topology.message_cost(1, 0.0) == MessageCost(0.0, 0.0, 0.0)


@unhurried
@given(topologies())
def test_statistics_are_those_of_networkx(topology):
    graph = as_networkx(topology)
    parts = list(nx.weakly_connected_components(graph) if topology.directed else nx.connected_components(graph))
    largest = [part for part in parts if len(part) == max(map(len, parts))]
    hops = dict(nx.all_pairs_shortest_path_length(graph))
    degree = [graph.in_degree(node) if topology.directed else graph.degree(node) for node in range(topology.n)]
    assert topology.statistics() == {
        "n": topology.n,
        "edges": graph.number_of_edges(),
        "mean_degree": pytest.approx(np.mean(degree)),
        "max_degree": max(degree),
        "components": len(parts),
        "diameter": max(max(hops[node].values()) for part in largest for node in part),
    }


def test_the_diameter_is_that_of_the_largest_component():
    complete = [(i, j) for j in range(4) for i in range(j)]
    assert Topology.from_edges(7, [*complete, (4, 5), (5, 6)]).statistics()["diameter"] == 1
    assert Topology.from_edges(8, [*complete, (4, 5), (5, 6), (6, 7)]).statistics()["diameter"] == 3  # equally large


@pytest.mark.parametrize("build", [Topology.line, lambda n: Topology.random_geometric(n, 0.015, seed=0)])
def test_ten_thousand_agents_need_no_square_memory(build):
    n = 10_000
    tracemalloc.start()
    topology = build(n)
    hood = topology.neighbourhood(2)
    cost = topology.message_cost(2)
    assert topology.message_cost("all").share == 1.0 and topology.statistics()["diameter"] is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6 < n * n
    assert cost.per_agent == pytest.approx(hood.size.mean() - 1)


# Refusals


@pytest.fixture
def unchecked(monkeypatch):
    """What a user meets: outside these tests nothing checks annotations before khop's own sentences."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


REFUSALS = [
    (lambda: Topology.from_edges(0, []), "number of agents must be an integer of at least 1, got 0."),
    (lambda: Topology.from_edges(2.5, []), "number of agents must be an integer of at least 1, got 2.5."),
    (lambda: Topology.from_edges(True, []), "number of agents must be an integer of at least 1, got True."),
    (lambda: Topology.from_networkx(nx.Graph()), "number of agents must be an integer of at least 1, got 0."),
    (lambda: Topology.from_adjacency(np.zeros((0, 0))), "number of agents must be an integer of at least 1, got 0."),
    (lambda: Topology.from_edges(4, [(0, 1), (2, 2)]), "Edge (2, 2) is a self-loop, but every agent hears"),
    (lambda: Topology.from_edges(4, [(0, 4)]), "Edge (0, 4) names a node outside 0..3"),
    (lambda: Topology.from_edges(4, [(0, 1), (-1, 2)]), "Edge (-1, 2) names a node outside 0..3"),
    (lambda: Topology.from_edges(4, [(0, np.inf)]), "Edge (0.0, inf) has a node id that is not an integer"),
    (lambda: Topology.from_edges(4, [(0, 1.5)]), "Edge (0.0, 1.5) has a node id that is not an integer"),
    (lambda: Topology.from_edges(4, [(np.nan, 1)]), "Edge (nan, 1.0) has a node id that is not an integer"),
    (lambda: Topology.from_edges(4, [("a", "b")]), "Edges must be integer node ids of shape (E, 2)"),
    (lambda: Topology.from_edges(4, [(0, 1, 2)]), "got int64 (1, 3)."),
    (lambda: Topology.from_edges(4, [(0, 1), (2,)]), "got entries of different lengths."),
    (lambda: Topology.from_edges(4, [], positions=np.zeros((3, 2))), "Positions must have shape (4, 2), got (3, 2)."),
    (lambda: Topology.from_adjacency(np.ones((2, 3))), "must be square and numeric, got float64 (2, 3)."),
    (lambda: Topology.from_adjacency([["a"]]), "must be square and numeric"),
    (lambda: Topology.from_adjacency([[0, np.nan], [1, 0]]), "Adjacency entry [0, 1] must be finite (0 where"),
    (lambda: Topology.from_adjacency([[0, 1], [np.inf, 0]]), "Adjacency entry [1, 0] must be finite (0 where"),
    (lambda: Topology.from_adjacency(np.eye(2)), "Edge (0, 0) is a self-loop"),
    (lambda: Topology.from_adjacency([[0, 1], [0, 1]]), "Edge (1, 1) is a self-loop"),
    (lambda: Topology.from_networkx(nx.Graph([("a", "b"), ("b", "b")])), "Edge (1, 1) is a self-loop"),
    (lambda: Topology.line(0), "number of agents must be an integer of at least 1, got 0."),
    (lambda: Topology.ring(2), "number of agents on a ring must be an integer of at least 3, got 2."),
    (lambda: Topology.grid(0, 3), "Grid rows must be an integer of at least 1, got 0."),
    (lambda: Topology.grid(3, 2.0), "Grid columns must be an integer of at least 1, got 2.0."),
    (lambda: Topology.random_geometric(0, 0.1, seed=0), "number of agents must be an integer of at least 1, got 0."),
    (lambda: Topology.random_geometric(5, np.nan, seed=0), "Radius must be a number of at least 0, got nan."),
    (lambda: Topology.line(3).neighbourhood(-1), "Kappa must be an integer of at least 0 or 'all', got -1."),
    (lambda: Topology.line(3).neighbourhood(1.0), "Kappa must be an integer of at least 0 or 'all', got 1.0."),
    (lambda: Topology.line(3).neighbourhood(np.nan), "Kappa must be an integer of at least 0 or 'all', got nan."),
    (lambda: Topology.line(3).neighbourhood(True), "Kappa must be an integer of at least 0 or 'all', got True."),
    (lambda: Topology.line(3).neighbourhood("each"), "Kappa must be an integer of at least 0 or 'all', got 'each'."),
    (lambda: Topology.line(3).message_cost(-1), "Kappa must be an integer of at least 0 or 'all', got -1."),
    (lambda: Topology.line(3).message_cost(1, [1.0, 2.0]), "Scalars must be one finite number of at least 0, or 3 of"),
    (lambda: Topology.line(3).message_cost("all", -1), "Scalars must be one finite number of at least 0, or 3 of them"),
    (lambda: Topology.line(3).message_cost(1, np.nan), "Scalars must be one finite number of at least 0, or 3 of them"),
]


@pytest.mark.parametrize(("build", "sentence"), REFUSALS)
def test_bad_input_is_refused_in_one_sentence(build, sentence, unchecked):
    with pytest.raises(InputError, match=re.escape(sentence)) as refusal:
        build()
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


@pytest.mark.parametrize("kappa", [1, "all"])
def test_arrays_of_other_sizes_are_refused(kappa, unchecked):
    hood = Topology.line(4).neighbourhood(kappa)
    for x in (jnp.zeros((3, 2)), jnp.zeros((4, 4, 1, 2)), jnp.zeros(4)):
        with pytest.raises(ValueError, match=r"of 4 agents expects shape \(\.\.\., 4, d\), got"):
            hood.gather(x)
    for method in (hood.sum, hood.mean):
        for x in (jnp.zeros(3), jnp.zeros((4, 1)), jnp.zeros(())):
            with pytest.raises(ValueError, match=r"of 4 agents expects shape \(\.\.\., 4\), got"):
                method(x)
