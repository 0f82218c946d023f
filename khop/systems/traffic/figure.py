"""Traffic drawn: where vehicles queue, and the course of an episode."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from khop.report.style import COLOURS
from khop.system import Episode
from khop.systems.traffic.network import Network
from khop.systems.traffic.simulator import NETWORK

SMOOTH_S = 120.0  # over which arrivals are counted


def traffic_figure(episodes: dict[str, Episode], network: Network, interval: float) -> Figure:
    """A map for each controller, lanes coloured by their mean queue, and below it all of them over time.

    Args:
        episodes: by the controller's name.
        network: what to draw.
        interval: seconds between two steps.
    """
    figure = Figure(figsize=(15, 9), layout="constrained")
    parts = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    above, below = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
    queues = {name: np.asarray(episode.info["halting"]).mean(0) for name, episode in episodes.items()}
    scale = matplotlib.cm.ScalarMappable(
        Normalize(0, max(np.quantile(np.concatenate(list(queues.values())), 0.98), 1.0)), "inferno_r"
    )
    maps = above.subplots(1, len(episodes), squeeze=False)[0]
    for axes, (name, queue) in zip(maps, queues.items(), strict=True):
        axes.add_collection(LineCollection(network.streets, colors="#dddddd", linewidths=0.8))
        order = np.argsort(queue)  # the longest queues on top
        lanes = [network.shapes[lane] for lane in order]
        axes.add_collection(LineCollection(lanes, colors=scale.to_rgba(queue[order]), linewidths=2.0))
        axes.set(title=name, aspect="equal", xticks=[], yticks=[])
        axes.set_axis_off()
        axes.autoscale_view()
    above.colorbar(scale, ax=maps, label="mean queue [veh/lane]", extend="max")

    panels = below.subplots(1, 5)
    labels = ("queue [veh/lane]", "waiting [s/veh]", "speed [m/s]", "arrived [veh/min]", "pending [veh]")
    for colour, (name, episode) in zip(COLOURS, episodes.items(), strict=False):
        whole = dict(zip(NETWORK, np.asarray(episode.info["network"]).T, strict=True))
        time = np.arange(1, len(whole["arrived"]) + 1) * interval / 60
        steps = max(round(SMOOTH_S / interval), 1)
        before = np.concatenate([np.zeros(steps), whole["arrived"]])[: len(time)]
        rate = (whole["arrived"] - before) / np.minimum(np.arange(1, len(time) + 1), steps) / interval * 60
        queue = np.asarray(episode.info["halting"]).mean(1)
        courses = (queue, whole["waiting"], whole["speed"], rate, whole["pending"])
        for axes, course, label in zip(panels, courses, labels, strict=True):
            axes.plot(time, course, color=colour, label=name, linewidth=1.2)
            axes.set(xlabel="time [min]", title=label)
    for axes in panels:
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize="small")
    return figure
