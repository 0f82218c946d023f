"""Pictures of episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from toys import Rooms

import khop
from khop.evaluation import controller, episode_keys, play
from khop.report.episode import episode_figure, rewards_figure


def test_a_platoon_draws_itself(tmp_path: Path) -> None:
    system = khop.make("platoon-catchup", vehicles=20, horizon=150)
    controllers = {name: controller(system, name) for name in ("constant-0.5-0.5", "constant-0.5-0")}  # one crashes
    assert episode_figure(system, controllers, 0, tmp_path / "episode.png").stat().st_size > 20_000


def test_a_system_that_cannot_draw_itself_is_shown_by_its_rewards(tmp_path: Path) -> None:
    system = Rooms()
    dice = {"random": controller(system, "random")}
    assert episode_figure(system, dice, 0, tmp_path / "episode").suffix == ".png"


def test_rewards_are_drawn_up_to_the_end_of_the_episode() -> None:
    system = khop.make("platoon-catchup", vehicles=3, horizon=50)
    episode = play(system, controller(system, "random"), episode_keys(0, 1)[0])
    figure = rewards_figure(system, {"random": episode})
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata()[-1], 50 * system.spec.control_interval_s)
    np.testing.assert_allclose(line.get_ydata(), np.asarray(episode.reward).sum(1))
