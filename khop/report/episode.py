"""What one episode looks like under several controllers."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from khop.evaluation import episode_keys, record
from khop.report.style import COLOURS, checked, save, styled
from khop.system import Controller, Episode, System


def episode_figure(system: System, controllers: dict[str, Controller], seed: int, out: str | Path) -> Path:
    """Play one episode with every controller, all from the same start, and draw them side by side.

    A system that can ``render`` draws itself; any other is shown by its rewards.

    Args:
        system: the real system.
        controllers: by the name to show.
        seed: which episode.
        out: the file to write; its ending says the format.
    """
    out = checked(Path(out))
    key = episode_keys(seed, 1)[0]
    system = system.held_out
    episodes = {name: jax.tree.map(np.asarray, record(system, chosen, key)) for name, chosen in controllers.items()}
    with styled():
        render = getattr(system, "render", None)
        return save(render(episodes) if render else rewards_figure(system, episodes), out)


def rewards_figure(system: System, episodes: dict[str, Episode]) -> Figure:
    """Reward over time, summed over agents, and each agent's own as a map."""
    figure = Figure(figsize=(1 + 4 * len(episodes), 5))
    grid = figure.subplots(2, len(episodes), sharex=True, sharey="row", squeeze=False)
    interval = system.spec.control_interval_s
    for (total, each), (name, episode) in zip(grid.T, episodes.items(), strict=True):
        steps = int(episode.valid.sum())
        reward = np.asarray(episode.reward)[:steps]
        time = np.arange(1, steps + 1) * interval
        total.plot(time, reward.sum(1), color=COLOURS[0])
        total.set_title(name)
        image = each.imshow(
            reward.T, aspect="auto", origin="lower", extent=(0, steps * interval, -0.5, reward.shape[1] - 0.5)
        )
        each.set_xlabel("time [s]")
        each.grid(visible=False)
        figure.colorbar(image, ax=each, label="reward of one agent")
    grid[0, 0].set_ylabel("reward, summed over agents")
    grid[1, 0].set_ylabel("agent")
    return figure
