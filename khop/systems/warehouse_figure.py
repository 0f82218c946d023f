"""Warehouses drawn from above."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from khop.report.style import COLOURS
from khop.system import Episode

FLOOR, SHELF, SCRIPTED = "#ffffff", "#e4e4e4", "#9a9a9a"
OLD = 40  # steps; older items are not drawn any darker


def floor_plan(axes: Axes, regions: int) -> None:
    """Shelves and corners of N × N regions, the first row on top."""
    size = 4 * regions + 1
    lines = np.arange(size) % 4 == 0
    shelf, corner = lines[:, None] ^ lines, lines[:, None] & lines
    colours = np.ones((size, size, 3))
    colours[shelf] = int(SHELF[1:3], 16) / 255
    colours[corner] = 0.55
    axes.imshow(colours, interpolation="nearest")
    axes.set_axis_off()


def moment(axes: Axes, episode: Episode, step: int) -> list:
    """Robots and items after one step; returns what was drawn."""
    info = {name: np.asarray(values[step]) for name, values in episode.info.items()}
    regions = info["row"].shape[0]
    i, j = np.indices((regions, regions))
    learns = (i > 0) & (i < regions - 1) & (j > 0) & (j < regions - 1)
    colours = np.where(learns.ravel(), COLOURS[0], SCRIPTED)
    place, line, other = np.nonzero(info["across"] >= 0)
    x, y, age = 4 * other + 1 + place, 4 * line, info["across"][place, line, other]
    place, line, other = np.nonzero(info["along"] >= 0)
    x, y = np.append(x, 4 * other), np.append(y, 4 * line + 1 + place)
    age = np.append(age, info["along"][place, line, other])
    area = (200 / regions) / 4
    items = axes.scatter(
        x, y, c=age, cmap="YlOrRd", vmin=0, vmax=OLD, marker="s", s=area, ec="#777777", lw=0.4, zorder=2
    )
    robots = axes.scatter((4 * j + info["column"]).ravel(), (4 * i + info["row"]).ravel(), c=colours, s=area, zorder=3)
    return [items, robots]


def warehouse_figure(episodes: dict[str, Episode]) -> Figure:
    """One column per controller: the warehouse after the last step, and reward per robot collected so far."""
    figure = Figure(figsize=(0.5 + 3.6 * len(episodes), 5.6), layout="constrained")
    grid = figure.subplots(2, len(episodes), squeeze=False, height_ratios=(2.2, 1), sharey="row")
    for (above, below), (name, episode) in zip(grid.T, episodes.items(), strict=True):
        floor_plan(above, np.shape(episode.info["row"])[1])
        items, _ = moment(above, episode, -1)
        total = np.cumsum(np.asarray(episode.reward), 0)
        below.plot(np.arange(1, len(total) + 1), total.mean(1), color=COLOURS[0], linewidth=2)
        if total.shape[1] <= 16:
            below.plot(np.arange(1, len(total) + 1), total, color=COLOURS[0], linewidth=0.6, alpha=0.5)
        above.set_title(f"{name}: {total[-1].mean():.1f} per robot")
        below.set_xlabel("step")
    figure.colorbar(items, ax=grid[0].tolist(), label="age of items [steps]", shrink=0.8)
    grid[1, 0].set_ylabel("reward so far")
    return figure


def animation(episode: Episode, file: Path) -> Path:
    """All steps of an episode, five a second."""
    figure = Figure(figsize=(5, 5.3), layout="constrained")
    axes = figure.subplots()
    floor_plan(axes, np.shape(episode.info["row"])[1])
    total = np.cumsum(np.asarray(episode.reward), 0).mean(1)

    def draw(step: int) -> list:
        for old in list(axes.collections):
            old.remove()
        axes.set_title(f"step {step + 1}: {total[step]:.1f} per robot")
        return moment(axes, episode, step)

    FuncAnimation(figure, draw, frames=len(total)).save(file, PillowWriter(fps=5))
    return file
