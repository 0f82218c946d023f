"""Agents learn on SUMO through the same commands as everywhere else."""

import os
import signal
from pathlib import Path

import pytest

import khop
from khop.cli import main
from khop.experiment import Progress

ROADS = Path(__file__).parents[2] / "data" / "roads"
TWO = {"net": f"{ROADS}/two.net.xml", "routes": f"{ROADS}/two.rou.xml", "duration": 120}
SMALL = {"hidden": (8,), "environments": 2, "rollout": 12, "minibatches": 2, "episodes": 2}


def test_a_run_survives_the_death_of_a_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which says so, counts the episode that was lost, and ends as any run."""
    system = khop.make("traffic-net", **TWO)

    def kill(progress: Progress) -> None:
        if progress.env_steps == 24:
            os.kill(system.pool(2).process_ids[1], signal.SIGKILL)

    run = khop.train(system, "dppo", steps=72, out=tmp_path / "run", watchers=[kill], **SMALL)
    rows = run.folder.read("metrics.csv")
    assert [row["dropped"] for row in rows] == ["0", "1", "0"]
    assert all(float(row["arrived"]) > 0 and float(row["delay"]) > 0 for row in rows)
    assert "killed by signal 9" in caplog.text
    table = run.final_table()
    assert {"learned", "random", "own-programme", "fixed-cycle", "actuated", "max-pressure"} <= table.keys()
    shown = run.system.spec.metrics
    assert list(shown)[:4] == ["return", "delay", "arrived", "pending"]


def test_the_command_line_shows_arrivals_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    options = [word for name, value in TWO.items() for word in (f"--{name}", str(value))]
    small = ["--hidden", "8", "--environments", "2", "--rollout", "12", "--minibatches", "2", "--episodes", "2"]
    run = tmp_path / "run"
    assert main(["train", "traffic-net", "ippo", *options, *small, "--steps", "24", "--out", str(run)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("arrived", "pending", "delay", "own-programme"))
    assert (run / "figures" / "episode.png").stat().st_size > 10_000
    assert (run / "figures" / "learning.png").exists()


def test_lights_learn_in_models_of_their_traffic(tmp_path: Path) -> None:
    """Two hours of traffic, twelve episodes: untrained lights lose some 50 s per vehicle, fixed cycles 37 s."""
    system = khop.make("traffic-net", **TWO | {"duration": 600})
    small = {"environments": 2, "rollout": 60, "branch_length": 20, "branches": 50, "ensemble": 2, "rounds": 10}
    run = khop.train(system, "mdpo", steps=720, episodes=4, minibatches=8, out=tmp_path / "run", **small)
    table = run.final_table()
    assert float(run.folder.read("metrics.csv")[-1]["branch_length"]) > 0
    assert table["learned"]["delay"].mean < 0.6 * table["fixed-cycle"]["delay"].mean
    assert table["learned"]["arrived"].mean > table["fixed-cycle"]["arrived"].mean


def test_discount_looks_as_far_ahead_in_seconds_whatever_the_interval() -> None:
    """γ per second is the same: e⁻¹ over 200 s."""
    for interval in (5, 10, 20):
        spec = khop.make("traffic-net", **TWO, interval=interval).spec
        assert spec.discount ** (200 / interval) == pytest.approx(0.36788, abs=1e-4)


@pytest.mark.parametrize(("steps", "on_the_way"), [(96, []), (192, ["96"])])
def test_evaluations_on_the_way_take_a_quarter_of_the_steps(tmp_path: Path, steps: int, on_the_way: list[str]) -> None:
    """Each plays two episodes of twelve steps, greedy and sampling: 24 steps with one episode of either."""
    small = SMALL | {"episodes": 1}
    run = khop.train(khop.make("traffic-net", **TWO), "ippo", steps=steps, out=tmp_path / "run", **small)
    evaluated = {row["env_steps"] for row in run.folder.read("evaluation.csv")}
    assert evaluated == {*on_the_way, str(steps)}
