"""Loops drawn over time: the space–time diagram, speeds, gaps; and an animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from khop.report.style import COLOURS
from khop.system import Episode

SPEEDS = "RdYlGn"  # standing traffic is red
MOST_VEHICLES = 12  # whose profiles are drawn
EVERY = 5  # steps between two points of a trajectory
WIDEST_GAP = 40.0  # m, beyond which a profile tells nothing more


def loop_figure(episodes: dict[str, Episode], interval: float) -> Figure:
    """Positions coloured by speed, then speeds and gaps, one column per controller.

    Args:
        episodes: by the controller's name.
        interval: seconds between two steps.
    """
    figure = Figure(figsize=(1.5 + 4 * len(episodes), 8), layout="constrained")
    grid = figure.subplots(3, len(episodes), sharex=True, sharey="row", squeeze=False)
    fastest = max(float(np.max(episode.info["speed"])) for episode in episodes.values())
    for column, (name, episode) in zip(grid.T, episodes.items(), strict=True):
        speed, gap = np.asarray(episode.info["speed"]), np.asarray(episode.info["gap"])
        time = np.arange(1, len(speed) + 1) * interval
        length = float(episode.info["length"][0])
        column[0].set_title(f"{name}\n{speed.mean():.2f} m/s on {length:.0f} m")
        lines = space_time(column[0], time, np.asarray(episode.info["position"]), speed, length, fastest)
        shown = range(0, speed.shape[1], -(-speed.shape[1] // MOST_VEHICLES))
        column[1].plot(time, speed[:, shown], color="#767676", linewidth=0.4)
        column[1].plot(time, speed.mean(1), color=COLOURS[0], linewidth=1.6)
        column[2].plot(time, np.minimum(gap[:, shown], WIDEST_GAP), color="#767676", linewidth=0.4)
        column[2].plot(time, gap.min(1), color=COLOURS[1], linewidth=1.2)
        column[2].set_xlabel("time [s]")
        crashed = np.asarray(episode.info["crashed"])
        if crashed.any():
            for axes in column:
                axes.axvline(time[np.argmax(crashed)], color="black", linestyle="--", linewidth=1)
            column[0].annotate(" collision", (time[np.argmax(crashed)], 0), rotation=90, va="bottom")
    for axes, label in zip(grid[:, 0], ("position [m]", "speed [m/s], blue: mean", "gap [m], red: least"), strict=True):
        axes.set_ylabel(label)
    figure.colorbar(lines, ax=grid[0], label="speed [m/s]", aspect=20)
    return figure


def space_time(
    axes: Axes, time: np.ndarray, position: np.ndarray, speed: np.ndarray, length: float, fastest: float
) -> LineCollection:
    """Every vehicle's way over time, coloured by its speed.

    Args:
        axes: where to draw.
        time: (T,) s.
        position, speed: (T, V) m and m/s.
        length: of the loop, in m.
        fastest: the speed at the colours' end.
    """
    t, x, v = time[::EVERY], position[::EVERY], speed[::EVERY]
    start = np.stack([np.broadcast_to(t[:-1, None], x[:-1].shape), x[:-1]], -1)
    end = np.stack([np.broadcast_to(t[1:, None], x[1:].shape), x[1:]], -1)
    same_lap = np.abs(x[1:] - x[:-1]) < length / 2
    segments = np.stack([start, end], axis=-2)[same_lap]
    lines = LineCollection(segments.tolist(), cmap=SPEEDS, norm=Normalize(0, fastest), linewidths=0.8, rasterized=True)
    lines.set_array(v[1:][same_lap])
    axes.add_collection(lines)
    axes.set(xlim=(0, time[-1]), ylim=(0, length))
    axes.grid(visible=False)
    return lines


def animate(
    episodes: dict[str, Episode], course: dict[str, np.ndarray], out: Path, interval: float, every: int = 10
) -> Path:
    """Vehicles as dots on their loop, coloured by speed, as a GIF.

    Args:
        episodes: by the controller's name, shown side by side.
        course: by the same names, (P, 2) points in m along each loop, evenly spaced and starting at position 0.
        out: the file to write.
        interval: seconds between two steps.
        every: steps between two frames.
    """
    figure = Figure(figsize=(3.6 * len(episodes), 3.9), layout="constrained")
    grid = figure.subplots(1, len(episodes), squeeze=False)[0]
    fastest = max(float(np.max(episode.info["speed"])) for episode in episodes.values())
    frames = range(0, len(next(iter(episodes.values())).reward), every)
    dots = []
    for axes, (name, episode) in zip(grid, episodes.items(), strict=True):
        points = course[name]
        axes.plot(*np.concatenate([points, points[:1]]).T, color="#D0D0D0", linewidth=5, zorder=0)
        at = np.asarray(episode.info["position"]) / float(episode.info["length"][0]) * len(points)
        where = points[at.astype(int) % len(points)]
        colours = {"c": episode.info["speed"][0], "cmap": SPEEDS, "vmin": 0, "vmax": fastest, "edgecolors": "black"}
        dots.append((axes.scatter(*where[0].T, s=28, **colours), where))
        axes.set_aspect("equal")
        axes.set_axis_off()

    def draw(step: int) -> list:
        for axes, (name, episode), (scatter, where) in zip(grid, episodes.items(), dots, strict=True):
            scatter.set_offsets(where[step])
            scatter.set_array(np.asarray(episode.info["speed"])[step])
            axes.set_title(f"{name}, {step * interval:.0f} s, {np.mean(episode.info['speed'][step]):.1f} m/s")
        return [scatter for scatter, _ in dots]

    out.parent.mkdir(parents=True, exist_ok=True)
    FuncAnimation(figure, draw, frames, blit=False).save(out, writer=PillowWriter(fps=10), dpi=60)
    return out
