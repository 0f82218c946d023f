"""Microgrids drawn over time."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from khop.system import Episode


def microgrid_figure(episodes: dict[str, Episode], interval: float, band: float) -> Figure:
    """Terminal voltage and set-point of every inverter over time, one column per controller.

    Args:
        episodes: by the controller's name.
        interval: seconds between two steps.
        band: half the width of the permitted band around 1 pu, drawn grey.
    """
    figure = Figure(figsize=(1.5 + 3.2 * len(episodes), 5), layout="constrained")
    grid = figure.subplots(2, len(episodes), sharex=True, sharey="row", squeeze=False)
    inverters = next(iter(episodes.values())).reward.shape[1]
    colours = matplotlib.colormaps["viridis"]
    for (voltages, set_points), (name, episode) in zip(grid.T, episodes.items(), strict=True):
        voltage = np.asarray(episode.info["voltage"])
        time = np.arange(1, len(voltage) + 1) * interval
        inside = np.mean(abs(voltage - 1) <= band)
        voltages.set_title(f"{name}: {100 * inside:.1f} % in band")
        voltages.axhspan(1 - band, 1 + band, color="#E6E6E6", zorder=0)
        for inverter in range(inverters):
            style = {"color": colours(inverter / max(inverters - 1, 1) * 0.9), "linewidth": 1}
            voltages.plot(time, voltage[:, inverter], **style)
            set_points.step(time, episode.info["set_point"][:, inverter], where="pre", **style)
        set_points.set_xlabel("time [s]")
    grid[0, 0].set_ylabel("terminal voltage [pu]")
    grid[1, 0].set_ylabel("set-point [V]")
    scale = matplotlib.cm.ScalarMappable(Normalize(0, max(inverters - 1, 1) / 0.9), colours)
    bar = figure.colorbar(scale, ax=grid, label="inverter", boundaries=np.arange(inverters + 1) - 0.5, aspect=40)
    bar.set_ticks([0, inverters - 1])
    return figure
