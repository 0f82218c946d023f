"""A system's graph, drawn, with what its messages cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy import sparse
from scipy.sparse import csgraph, linalg

from khop.report.style import COLOURS, MUTED, checked, save, styled
from khop.topology import Kappa, Topology

LABELLED = 30  # agents that can still be told apart by a number
DENSE = 400  # agents up to which all eigenvectors are computed at once


def draw_topology(topology: Topology, title: str, out: str | Path, sizes: Float[np.ndarray, " n"]) -> Path:
    """Draw nodes and edges, and beside them the share of a centralised controller's messages at every κ.

    Args:
        topology: the graph.
        title: above the drawing.
        out: the file to write; its ending says the format.
        sizes: (n,) scalars that each agent sends.
    """
    out = checked(Path(out))
    place = topology.positions if topology.positions is not None else spectral_layout(topology)
    with styled():
        figure = Figure(figsize=(9, 4.5))
        graph, costs = figure.subplots(1, 2, width_ratios=[3, 1])
        width = float(np.clip(30 / np.sqrt(len(topology.edges) + 1), 0.2, 1.5))
        graph.add_collection(LineCollection(place[topology.edges], colors=MUTED, linewidths=width, zorder=1))
        if topology.directed and len(topology.edges) <= 200:
            for source, target in topology.edges:
                arrow = {"arrowstyle": "-|>", "color": MUTED, "shrinkB": 7}
                graph.annotate("", xy=place[target], xytext=place[source], arrowprops=arrow)
        size = float(np.clip(6000 / topology.n, 1.5, 220))
        graph.scatter(*place.T, s=size, color=COLOURS[0], zorder=2, linewidths=0)
        if topology.n <= LABELLED:
            for agent, point in enumerate(place):
                graph.annotate(str(agent), point, color="white", ha="center", va="center", fontsize=8)
        graph.set(title=title, aspect="equal" if np.ptp(place, axis=0).min() > 0 else "auto")
        graph.margins(0.06)
        graph.axis("off")
        kappas: list[Kappa] = [0, 1, 2, 3, 4]
        shares = [topology.message_cost(kappa, sizes).share for kappa in kappas]
        bars = costs.barh([str(kappa) for kappa in kappas], shares, color=COLOURS[0], height=0.6)
        costs.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
        costs.set(title="share of all messages", ylabel="κ [hops]", xlim=(0, 1.25 * max(*shares, 0.01)))
        costs.invert_yaxis()
        costs.grid(visible=False)
        costs.xaxis.set_visible(False)
        return save(figure, out)


def spectral_layout(topology: Topology) -> Float[np.ndarray, "n 2"]:
    """Places from the two smoothest vectors on the graph; connected parts side by side."""
    i, j = topology.edges.reshape(-1, 2).T
    one_way = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(topology.n, topology.n))
    adjacency = sparse.csr_array(one_way + one_way.T)
    count, part = csgraph.connected_components(adjacency, directed=False)
    place = np.zeros((topology.n, 2))
    for index in range(count):
        members = np.flatnonzero(part == index)
        place[members] = _connected_layout(adjacency[members][:, members]) + np.array([2.5 * index, 0.0])
    return place


def _connected_layout(adjacency: sparse.csr_array) -> Float[np.ndarray, "n 2"]:
    """A connected graph within the unit circle."""
    n = adjacency.shape[0]
    if n < 4:
        return np.array([(0.0, 0.0), (1.0, 0.0), (0.5, 0.8)])[:n]
    laplacian: Any = csgraph.laplacian(adjacency, normed=True)
    if n <= DENSE:
        vectors = np.linalg.eigh(laplacian.toarray())[1][:, 1:3]
    else:
        start = np.random.default_rng(0).normal(size=n)
        values, vectors = linalg.eigsh(sparse.csc_array(laplacian), k=3, sigma=-1e-3, v0=start)
        vectors = vectors[:, np.argsort(values)[1:3]]
    return vectors / np.abs(vectors).max()
