"""Platoons drawn over time."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from khop.system import Episode

MOST_VEHICLES = 16  # lines that can still be told apart


def platoon_figure(episodes: dict[str, Episode], interval: float, targets: dict[str, float]) -> Figure:
    """Headway, speed and acceleration of every vehicle over time, one column per controller.

    Args:
        episodes: by the controller's name.
        interval: seconds between two steps.
        targets: the wanted value of ``headway`` and ``speed``, drawn dashed.
    """
    rows = {"headway": "headway [m]", "speed": "speed [m/s]", "acceleration": "acceleration [m/s²]"}
    figure = Figure(figsize=(1.5 + 4 * len(episodes), 6.5), layout="constrained")
    grid = figure.subplots(len(rows), len(episodes), sharex=True, sharey="row", squeeze=False)
    vehicles = next(iter(episodes.values())).reward.shape[1]
    shown = range(0, vehicles, -(-vehicles // MOST_VEHICLES))
    colours = matplotlib.colormaps["viridis"]
    for column, (name, episode) in zip(grid.T, episodes.items(), strict=True):
        column[0].set_title(f"{name}: return {np.mean(np.sum(episode.reward, -1)):.1f}")
        crashed = np.asarray(episode.info["crashed"])
        time = np.arange(1, len(crashed) + 1) * interval
        for axes, quantity in zip(column, rows, strict=True):
            for vehicle in shown:
                colour = colours(vehicle / max(vehicles - 1, 1) * 0.9)
                axes.plot(time, episode.info[quantity][:, vehicle], color=colour, linewidth=1)
            if quantity in targets:
                axes.axhline(targets[quantity], color="black", linestyle="--", linewidth=0.8)
            if crashed.any():
                axes.axvline(time[np.argmax(crashed)], color="#D55E00", linewidth=1.2)
        if crashed.any():
            column[0].annotate(
                "crash", (time[np.argmax(crashed)], 1), xycoords=("data", "axes fraction"), color="#D55E00", va="bottom"
            )
        column[-1].set_xlabel("time [s]")
    for axes, label in zip(grid[:, 0], rows.values(), strict=True):
        axes.set_ylabel(label)
    scale = matplotlib.cm.ScalarMappable(Normalize(0, max(vehicles - 1, 1) / 0.9), colours)
    bar = figure.colorbar(scale, ax=grid, label="vehicle", boundaries=np.arange(vehicles + 1) - 0.5, aspect=40)
    bar.set_ticks([0, vehicles - 1] if vehicles > 1 else [0])
    return figure
