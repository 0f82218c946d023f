"""Drawings of graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from khop.report.graph import draw_topology, spectral_layout
from khop.topology import Topology


def test_spectral_layout_keeps_neighbours_close() -> None:
    """On a long ring without given places, neighbours come to lie closer than other pairs do on average."""
    place = spectral_layout(Topology.from_edges(40, [(i, (i + 1) % 40) for i in range(40)]))
    neighbours = np.linalg.norm(place - np.roll(place, 1, axis=0), axis=1)
    pairs = np.linalg.norm(place[:, None] - place, axis=-1)
    assert neighbours.max() < 0.3 * pairs.mean()


def test_spectral_layout_sets_parts_apart() -> None:
    place = spectral_layout(Topology.from_edges(7, [(0, 1), (1, 2), (2, 3), (3, 0), (4, 5)]))
    assert np.isfinite(place).all()
    assert len(np.unique(place.round(6), axis=0)) == 7


@pytest.mark.parametrize(
    "topology",
    [
        Topology.from_edges(1, []),
        Topology.line(8),
        Topology.from_edges(4, [(0, 1), (1, 2), (2, 0), (2, 3)], directed=True),
        Topology.from_edges(600, [(i, i + 1) for i in range(599)]),
        Topology.random_geometric(2000, 0.05, 0),
    ],
    ids=["one", "line", "directed", "long", "geometric"],
)
def test_graphs_of_every_size_are_drawn(topology: Topology, tmp_path: Path) -> None:
    file = draw_topology(topology, "graph", tmp_path / "graph.png", np.full(topology.n, 5.0))
    assert file.stat().st_size > 5_000
