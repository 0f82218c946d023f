"""Distribution grids drawn over a day."""

from __future__ import annotations

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from scipy.sparse import csgraph

from khop.report.style import COLOURS, MUTED
from khop.system import Episode
from khop.systems.distribution_grid.grid import Grid

MOST_BUSES = 40  # lines in one panel that can still be told apart


def grid_figure(grid: Grid, episodes: dict[str, Episode], band: tuple[float, float]) -> Figure:
    """Voltages with the band, the worst voltage of every bus on the grid, losses and reactive power over the day.

    Args:
        grid: what is drawn.
        episodes: by the controller's name, one column each.
        band: lowest and highest allowed voltage, pu.
    """
    figure = Figure(figsize=(1.5 + 3.6 * len(episodes), 11), layout="constrained")
    panels = figure.subplots(
        4, len(episodes), squeeze=False, sharey="row", gridspec_kw={"height_ratios": [2, 2.6, 1, 1]}
    )
    voltages = {name: played(episode, "voltage") for name, episode in episodes.items()}
    furthest = max(0.06, *(np.max(abs(voltage - 1)) for voltage in voltages.values()))
    norm = TwoSlopeNorm(1, 1 - furthest, 1 + furthest)
    place = layout(grid)
    for (top, tree, loss, reactive), (name, episode) in zip(panels.T, episodes.items(), strict=True):
        hours, voltage = played(episode, "hour"), voltages[name]
        inside = np.mean(np.all((voltage >= band[0]) & (voltage <= band[1]), 1))
        top.set_title(f"{name}: {inside:.0%} in band")
        draw_voltages(top, hours, voltage, band)
        draw_grid(tree, grid, place, voltage[worst_moment(voltage)], norm)
        loss.plot(hours, played(episode, "total_loss"), color=COLOURS[1])
        loss.plot(hours, played(episode, "line_loss"), color=COLOURS[1], linestyle="--", linewidth=1)
        reactive.plot(hours, abs(played(episode, "reactive")).mean(1), color=COLOURS[2])
        for axes in (loss, reactive):
            axes.set_xlim(hours[0], hours[-1])
        reactive.set_xlabel("hour of the day")
    for axes in panels[2:, 0]:
        axes.set_ylim(bottom=0)
    panels[0, 0].set_ylabel("voltage [pu]")
    panels[1, 0].set_ylabel("worst moment")
    panels[2, 0].set_ylabel("losses [MW]\nall, lines alone dashed")
    panels[3, 0].set_ylabel("|q| [Mvar/inverter]")
    scale = matplotlib.cm.ScalarMappable(norm, "RdBu_r")
    figure.colorbar(scale, ax=panels[1], label="voltage [pu]", aspect=25)
    return figure


def played(episode: Episode, quantity: str) -> Float[np.ndarray, "T ..."]:
    """What ``info`` says of a quantity, up to the episode's end."""
    return np.asarray(episode.info[quantity])[: int(np.sum(episode.valid))]


def worst_moment(voltage: Float[np.ndarray, "T N"]) -> int:
    """The step at which some bus is furthest off 1 pu."""
    return int(np.argmax(np.max(abs(voltage - 1), 1)))


def draw_voltages(axes: Axes, hours: np.ndarray, voltage: Float[np.ndarray, "T N"], band: tuple[float, float]) -> None:
    """Voltages over time, of a part of the buses and of the two extremes, and the band."""
    axes.axhspan(*band, color=COLOURS[2], alpha=0.12, linewidth=0)
    shown = voltage[:, :: -(-voltage.shape[1] // MOST_BUSES)]
    axes.plot(hours, shown, color=MUTED, linewidth=0.5, alpha=0.6)
    axes.plot(hours, voltage.max(1), color=COLOURS[1], linewidth=1.4)
    axes.plot(hours, voltage.min(1), color=COLOURS[0], linewidth=1.4)
    axes.set_xlim(hours[0], hours[-1])


def draw_grid(axes: Axes, grid: Grid, place: Float[np.ndarray, "N 2"], voltage: np.ndarray, norm: Normalize) -> None:
    """Buses coloured by voltage, inverters as squares, the slack bus as a star."""
    segments = place[np.stack([grid.from_bus, grid.to_bus], 1)]
    axes.add_collection(LineCollection(list(segments), colors=MUTED, linewidths=0.7, zorder=1))
    own = np.zeros(grid.buses, bool)
    own[grid.inverter_bus] = True
    size = float(np.clip(3000 / grid.buses, 6, 45))
    for chosen, marker, factor in ((~own, "o", 1.0), (own, "s", 1.3)):
        axes.scatter(
            place[chosen, 0],
            place[chosen, 1],
            s=factor * size,
            c=voltage[chosen],
            cmap="RdBu_r",
            norm=norm,
            marker=marker,
            zorder=2,
            edgecolors=MUTED,
            linewidths=0.4,
        )
    axes.scatter(place[:1, 0], place[:1, 1], s=90, c="black", marker="*", zorder=3)
    axes.set_axis_off()


def layout(grid: Grid) -> Float[np.ndarray, "N 2"]:
    """A place for every bus: hops from the slack bus to the right, branches of the tree side by side."""
    order, parent = csgraph.breadth_first_order(grid.connections, 0, directed=False)
    children: dict[int, list[int]] = {}
    for bus in order[1:]:
        children.setdefault(int(parent[bus]), []).append(int(bus))
    leaves = np.zeros(grid.buses)
    for bus in order[::-1]:
        leaves[bus] = max(1, sum(leaves[child] for child in children.get(int(bus), [])))
    place = np.zeros((grid.buses, 2))
    for bus in order:  # the largest branch goes straight on; the others, smaller and smaller, above and below
        low = place[bus, 1] - leaves[bus] / 2
        around = sorted(children.get(int(bus), []), key=lambda child: leaves[child])
        for child in around[::2] + around[1::2][::-1]:
            place[child] = place[bus, 0] + 1, low + leaves[child] / 2
            low += leaves[child]
    return place
