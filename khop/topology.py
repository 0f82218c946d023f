"""The graph of a networked system: who hears whom within κ hops, and what that costs in messages.

Everything here is built once, in NumPy, and is static to JAX; only the three reductions of `Neighbourhood` run on
JAX arrays. Shape letters: n agents, E edges, K padded neighbourhood size, d features.
"""

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped
from scipy import sparse
from scipy.sparse import csgraph

from khop.errors import InputError

Kappa = int | Literal["all"]


@dataclass(frozen=True, eq=False, repr=False)
class Neighbourhood:
    """The κ-hop neighbourhoods N_i^κ of all agents, padded to the largest, K.

    Slot 0 is the agent itself and the others follow by distance. A padded slot holds the agent's own id, mask False
    and distance -1. The arrays become read-only. Compared and hashed by identity, so that it can be a static field
    of an Equinox module.

    Attributes:
        index: agent in each slot, (n, K).
        mask: whether the slot is a real member, (n, K).
        distance: hops from that member to the agent, (n, K); n for a member that cannot reach it (κ = "all").
    """

    index: Int32[np.ndarray, "n K"]
    mask: Bool[np.ndarray, "n K"]
    distance: Int32[np.ndarray, "n K"]

    def __post_init__(self) -> None:
        for values in (self.index, self.mask, self.distance):
            values.setflags(write=False)

    def __repr__(self) -> str:
        return f"Neighbourhood(n={self.n}, width={self.width})"

    @property
    def n(self) -> int:
        """Agents."""
        return self.index.shape[0]

    @property
    def width(self) -> int:
        """K, slots per agent."""
        return self.index.shape[1]

    @cached_property
    def size(self) -> Int32[np.ndarray, " n"]:
        """|N_i^κ|, real members including the agent itself, (n,)."""
        return _frozen(self.mask.sum(axis=1, dtype=np.int32))

    @cached_property
    def _complete(self) -> bool:
        return bool(self.mask.all())

    def gather(self, x: Shaped[ArrayLike, "*batch n d"]) -> Shaped[Array, "*batch n K d"]:
        """What every agent hears: the rows of `x` of its members, exact zeros in padded slots (whatever x holds).

        Raises:
            ValueError: if the last axis but one of `x` is not the n agents.
        """
        return self._heard(self._checked(x, axis=-2), axis=-2)

    def sum(self, x: Shaped[ArrayLike, "*batch n"]) -> Shaped[Array, "*batch n"]:
        """Σ_{j ∈ N_i^κ} x_j for every agent i, itself included.

        Raises:
            ValueError: if the last axis of `x` is not the n agents.
        """
        x = self._checked(x, axis=-1)
        if self._complete and self.width == self.n:  # everyone hears everyone: one sum, not n of them
            return jnp.broadcast_to(x.sum(axis=-1, keepdims=True), x.shape)
        return self._heard(x, axis=-1).sum(axis=-1)

    def mean(self, x: Shaped[ArrayLike, "*batch n"]) -> Shaped[Array, "*batch n"]:
        """Mean of x_j over the real members j ∈ N_i^κ for every agent i; raises as `sum` does."""
        return self.sum(x) / self.size

    def _checked(self, x: ArrayLike, axis: int) -> Array:
        x = jnp.asarray(x)
        if x.ndim < -axis or x.shape[axis] != self.n:
            expected = f"(..., {self.n}, d)" if axis == -2 else f"(..., {self.n})"
            raise ValueError(f"A neighbourhood of {self.n} agents expects shape {expected}, got {x.shape}.")
        return x

    def _heard(self, x: Array, axis: int) -> Array:
        heard = jnp.take(x, self.index, axis=axis, mode="clip")
        if self._complete:
            return heard
        # A select, not a product: 0 · NaN is NaN, and a padded slot must not spread a broken agent's numbers.
        mask = self.mask[..., None] if axis == -2 else self.mask
        return jnp.where(mask, heard, jnp.zeros((), x.dtype))


@dataclass(frozen=True)
class MessageCost:
    """Scalars received per agent and step: within κ hops, by a centralised controller, and the ratio of the two."""

    per_agent: float
    centralised: float
    share: float


@dataclass(frozen=True, eq=False)
class Topology:
    """A graph of n agents. Edge (i, j) means that j hears i; an undirected edge goes both ways.

    Neighbours at equal distance come in the order a breadth-first search discovers them: from each node first along
    the edges as given, in the order of the list, then (undirected) against them, in the same order. No node id
    enters, so relabelling the agents relabels every neighbourhood exactly, and on a ring every agent hears its
    predecessor before its successor. Repeated edges keep their first occurrence; undirected, (i, j) and (j, i) are
    the same edge. Compared and hashed by identity. Start from `from_edges`, which takes any iterable of pairs.

    Attributes:
        n: number of agents, at least 1.
        edges: distinct edges in the order given, (E, 2).
        directed: whether an edge goes one way only.
        positions: where to draw the agents, (n, 2), or None. Distances are always counted in hops.

    Raises:
        InputError: if there is no agent, if an edge is a self-loop or holds anything but integers in 0..n-1, or if
            the positions are not (n, 2).
    """

    n: int
    edges: Int[np.ndarray, "E 2"] = field(repr=False)
    directed: bool = False
    positions: Float[np.ndarray, "n 2"] | None = field(default=None, repr=False)
    _neighbourhoods: dict[Kappa, Neighbourhood] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", _integer("The number of agents", self.n, least=1))
        object.__setattr__(self, "edges", _frozen(_distinct(self.edges, self.n, self.directed)))
        if self.positions is not None:
            if self.positions.shape != (self.n, 2):
                raise InputError(f"Positions must have shape ({self.n}, 2), got {self.positions.shape}.")
            object.__setattr__(self, "positions", _frozen(self.positions.copy()))

    @classmethod
    def from_edges(cls, n: int, edges: Any, directed: bool = False, positions: Any = None) -> "Topology":
        """From pairs (i, j) of node ids in 0..n-1: an (E, 2) array or any iterable; no pair at all is legal."""
        return cls(n, _pairs(edges), directed, None if positions is None else np.asarray(positions, dtype=float))

    @classmethod
    def from_adjacency(cls, matrix: Any) -> "Topology":
        """From an (n, n) matrix, dense or SciPy-sparse: a non-zero entry at [i, j] means that j hears i.

        Edges are taken row by row. A symmetric pattern of non-zeros gives an undirected graph, any other a directed
        one; the weights are not kept.

        Raises:
            InputError: if the matrix is not square, has a non-zero diagonal, or an entry is NaN or infinite.
        """
        weights: Any = matrix if sparse.issparse(matrix) else np.asarray(matrix)
        if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or weights.dtype.kind not in "biuf":
            raise InputError(f"An adjacency matrix must be square and numeric, got {weights.dtype} {weights.shape}.")
        n = _integer("The number of agents", weights.shape[0], least=1)
        table = sparse.coo_array(weights)
        sender, receiver = (ids.astype(np.int64) for ids in table.coords)
        broken = ~np.isfinite(table.data)
        if broken.any():
            i, j, value = sender[broken][0], receiver[broken][0], table.data[broken][0]
            raise InputError(f"Adjacency entry [{i}, {j}] must be finite (0 where there is no edge), got {value}.")
        entries = np.unique((n * sender + receiver)[table.data != 0])
        edges = np.stack(np.divmod(entries, n), axis=1)
        symmetric = np.array_equal(entries, np.sort(edges @ [1, n]))
        return cls(n, edges, directed=not symmetric)

    @classmethod
    def from_networkx(cls, graph: Any) -> "Topology":
        """From a networkx graph of any kind: agent k is the k-th node of `graph.nodes`, whatever its name."""
        ids = {node: k for k, node in enumerate(graph.nodes)}
        return cls.from_edges(len(ids), [(ids[i], ids[j]) for i, j, *_ in graph.edges], graph.is_directed())

    @classmethod
    def line(cls, n: int) -> "Topology":
        """Agents 0 - 1 - … - n-1 in a row."""
        nodes = np.arange(_integer("The number of agents", n, least=1))
        return cls(n, np.stack([nodes[:-1], nodes[1:]], axis=1), positions=np.stack([nodes, 0.0 * nodes], axis=1))

    @classmethod
    def ring(cls, n: int) -> "Topology":
        """Agents 0 - 1 - … - n-1 - 0 on a circle; n is at least 3."""
        nodes = np.arange(_integer("The number of agents on a ring", n, least=3))
        angle = 2 * np.pi * nodes / n
        edges = np.stack([nodes, (nodes + 1) % n], axis=1)
        return cls(n, edges, positions=np.stack([np.cos(angle), np.sin(angle)], axis=1))

    @classmethod
    def grid(cls, rows: int, columns: int) -> "Topology":
        """Agent row · columns + column hears left, up, right, down, in that order; row 0 is drawn on top."""
        rows, columns = _integer("Grid rows", rows, least=1), _integer("Grid columns", columns, least=1)
        node = np.arange(rows * columns).reshape(rows, columns)
        along = np.stack([node[:, :-1].ravel(), node[:, 1:].ravel()], axis=1)
        down = np.stack([node[:-1].ravel(), node[1:].ravel()], axis=1)
        row, column = np.divmod(node.ravel(), columns)
        return cls(node.size, np.concatenate([along, down]), positions=np.stack([column, -row], axis=1).astype(float))

    @classmethod
    def random_geometric(cls, n: int, radius: float, seed: int) -> "Topology":
        """Agents uniform on the unit square, an edge wherever two are at most `radius` apart."""
        n = _integer("The number of agents", n, least=1)
        if not radius >= 0:
            raise InputError(f"Radius must be a number of at least 0, got {radius}.")
        from scipy.spatial import cKDTree  # a tenth of a second to import, which no other graph should wait for

        positions = np.random.default_rng(seed).random((n, 2))
        pairs = cKDTree(positions).query_pairs(radius, output_type="ndarray")
        return cls(n, pairs[np.lexsort(pairs.T[::-1])], positions=positions)  # the tree promises no order

    def neighbourhood(self, kappa: Kappa) -> Neighbourhood:
        """Everyone whose information reaches agent i within κ hops, for all i; built once per κ.

        κ beyond the diameter gives all that can ever reach i. κ = "all" gives everyone, K = n: those that cannot
        reach i come last, at distance n, in order of first mention in the edge list (never mentioned: by id).

        Raises:
            InputError: if κ is neither an integer of at least 0 nor "all".
        """
        if kappa != "all":
            kappa = _integer("Kappa", kappa, least=0, otherwise=" or 'all'")
        if kappa not in self._neighbourhoods:
            self._neighbourhoods[kappa] = self._search(kappa)
        return self._neighbourhoods[kappa]

    def message_cost(self, kappa: Kappa, scalars: ArrayLike = 1.0) -> MessageCost:
        """Scalars an agent receives per step, averaged over agents, when all within κ hops send to it.

        Args:
            kappa: hops, or "all".
            scalars: what each agent sends to each listener per step; one number, or (n,).

        Returns:
            The mean over i of Σ_{j ∈ N_i^κ, j ≠ i} scalars_j, the same over all j ≠ i, and their ratio (0 of nothing).

        Raises:
            InputError: if κ is invalid, or scalars are not one or n finite numbers of at least 0.
        """
        sent = np.asarray(scalars, dtype=float)
        if sent.shape not in ((), (self.n,)) or not (np.isfinite(sent) & (sent >= 0)).all():
            raise InputError(f"Scalars must be one finite number of at least 0, or {self.n} of them, got {scalars}.")
        centralised = per_agent = (self.n - 1) * float(np.mean(sent))
        if kappa != "all":
            members = self.neighbourhood(kappa)
            listeners = np.bincount(members.index[members.mask], minlength=self.n) - 1
            per_agent = float(np.sum(listeners * sent)) / self.n
        return MessageCost(per_agent, centralised, per_agent / centralised if centralised else 0.0)

    def statistics(self) -> dict[str, int | float | None]:
        """Counts for a report: n, edges, mean_degree, max_degree, components, diameter.

        Degrees count the distinct neighbours an agent hears. Components ignore direction. The diameter is the
        longest finite hop count inside the largest component; None above 2000 agents, where it would take long.
        """
        sender, receiver = self._arcs
        graph = sparse.csr_array((np.ones(len(sender)), (sender, receiver)), shape=(self.n, self.n))
        degree = np.bincount(receiver, minlength=self.n)
        components, label = csgraph.connected_components(graph, directed=True, connection="weak")
        diameter = None
        if self.n <= 2000:
            sizes = np.bincount(label)[label]
            largest = np.flatnonzero(sizes == sizes.max())
            hops = csgraph.shortest_path(graph, method="D", unweighted=True, indices=largest)
            diameter = int(hops[np.isfinite(hops)].max())
        degrees = {"mean_degree": float(degree.mean()), "max_degree": int(degree.max())}
        return {"n": self.n, "edges": len(self.edges), **degrees, "components": int(components), "diameter": diameter}

    @property
    def _arcs(self) -> tuple[np.ndarray, np.ndarray]:
        """Sender and receiver of every one-way link: the edges as given, then (undirected) reversed."""
        arcs = self.edges if self.directed else np.concatenate([self.edges, self.edges[:, ::-1]])
        return arcs[:, 0], arcs[:, 1]

    def _search(self, kappa: Kappa) -> Neighbourhood:
        """Breadth-first search from every agent, at most κ deep; its cost is the neighbourhoods it finds."""
        sender, receiver = self._arcs
        ends = np.cumsum(np.bincount(receiver, minlength=self.n))[:-1]
        heard = [part.tolist() for part in np.split(sender[np.argsort(receiver, kind="stable")], ends)]
        mentioned = dict.fromkeys([*self.edges.ravel().tolist(), *range(self.n)])

        members, hops, sizes = array("i"), array("i"), array("i")
        for agent in range(self.n):
            found = _discover(heard, agent, self.n if kappa == "all" else kappa)
            if kappa == "all":
                found |= {node: self.n for node in mentioned if node not in found}
            members.extend(found)
            hops.extend(found.values())
            sizes.append(len(found))

        mask = np.arange(max(sizes)) < np.asarray(sizes)[:, None]
        index = np.repeat(np.arange(self.n, dtype=np.int32)[:, None], mask.shape[1], axis=1)
        distance = np.full(mask.shape, -1, dtype=np.int32)
        index[mask], distance[mask] = members, hops
        return Neighbourhood(index, mask, distance)


def _discover(heard: list[list[int]], agent: int, depth: int) -> dict[int, int]:
    """Hops from each node to `agent`, up to `depth`, in order of discovery; heard[j] lists whom j hears."""
    hops = {agent: 0}
    queue = [agent]
    for node in queue:  # grows as it is read
        if hops[node] == depth:
            break
        for other in heard[node]:
            if other not in hops:
                hops[other] = hops[node] + 1
                queue.append(other)
    return hops


def _pairs(edges: Any) -> Int[np.ndarray, "E 2"]:
    """Edges in any form as an array of whole numbers."""
    try:
        pairs = np.asarray(edges if hasattr(edges, "__array__") else list(edges))
    except ValueError:
        raise InputError("Edges must be pairs (i, j) of node ids, got entries of different lengths.") from None
    if pairs.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iuf":
        raise InputError(f"Edges must be integer node ids of shape (E, 2), got {pairs.dtype} {pairs.shape}.")
    with np.errstate(invalid="ignore"):  # NaN becomes some integer, and differs from it
        whole = pairs.astype(np.int64)
    _refuse(pairs, whole != pairs, "has a node id that is not an integer")
    return whole


def _distinct(edges: Int[np.ndarray, "E 2"], n: int, directed: bool) -> Int[np.ndarray, "D 2"]:
    """The first occurrence of each edge, in the order given, once all are known to join two of the n agents."""
    _refuse(edges, (edges < 0) | (edges >= n), f"names a node outside 0..{n - 1}")
    _refuse(edges, edges[:, :1] == edges[:, 1:], "is a self-loop, but every agent hears itself without one")
    ends = edges.astype(np.int64) if directed else np.sort(edges.astype(np.int64), axis=1)
    _, first = np.unique(ends @ [n, 1], return_index=True)
    return edges[np.sort(first)].astype(np.int32)


def _refuse(edges: np.ndarray, wrong: np.ndarray, fault: str) -> None:
    if wrong.any():
        i, j = edges[wrong.any(axis=1)][0].tolist()
        raise InputError(f"Edge ({i}, {j}) {fault}.")


def _integer(name: str, value: Any, least: int, otherwise: str = "") -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InputError(f"{name} must be an integer of at least {least}{otherwise}, got {value!r}.")
    return int(value)


def _frozen(values: np.ndarray) -> np.ndarray:
    values.setflags(write=False)
    return values
