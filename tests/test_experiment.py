"""Runs: stopped, killed, resumed and read again, as processes and inside this one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_run import ITERATION, LAST, METRIC_NAMES, TRAIN, assert_is_a_table, content, rows, stop_at
from toys import TOYS

import khop
from khop import system
from khop.cli import main
from khop.experiment import Progress, Stopped
from khop.run import EVALUATION, METRICS, RunFolder

pytestmark = pytest.mark.usefixtures("wide_terminal")


def signals(*numbers: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


def assert_same_run(folder: Path, other: Path) -> None:
    """Every row and every bit of the final states agree."""
    for table in (METRICS, EVALUATION):
        assert rows(folder, table) == rows(other, table)
    mine, theirs = RunFolder(folder).saved()[-1], RunFolder(other).saved()[-1]
    assert mine.name == theirs.name
    assert mine.read_bytes() == theirs.read_bytes()


# Processes ------------------------------------------------------------------------------------------------------------


def command(*arguments: str | Path) -> list[str]:
    installed = Path(sys.executable).with_name("khop")
    program = [str(installed)] if installed.exists() else [sys.executable, "-m", "khop.cli"]
    return [*program, *map(str, arguments)]


def begin(folder: Path, reached: Callable[[Path], bool], **environment: str) -> subprocess.Popen[str]:
    """A training process that has just come to where ``reached`` is true of its folder."""
    process = subprocess.Popen(
        command(*TRAIN, "--out", folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    deadline = time.monotonic() + 240
    while not reached(folder):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the process came to nothing: {process.communicate()}")
        time.sleep(0.002)
    return process


def succeed(*arguments: str | Path) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_from_beginning_to_end(tmp_path: Path, uninterrupted: Path) -> None:
    """Train, stopped by SIGTERM; resume; evaluate; plot: each a process of its own."""
    folder = tmp_path / "run"
    process = begin(folder, lambda folder: (folder / METRICS).exists(), JAX_ENABLE_COMPILATION_CACHE="false")
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=240)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"continue with `khop resume {folder}`" in complaint
    assert 0 < khop.load(folder).env_steps < LAST

    shown = succeed("resume", folder)
    for name in ("learned", "learned-sampled", "random", "best-constant-pair", str(folder)):
        assert name in shown
    assert_same_run(folder, uninterrupted)

    table = tmp_path / "table.json"
    succeed("evaluate", folder, "--episodes", "3", "--controllers", "learned", "random", "--json", table)
    assert_is_a_table(table, {"learned", "random"}, n=3)

    figure = tmp_path / "curves.png"
    succeed("plot", folder, uninterrupted, "--out", figure)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_killed_run_can_be_resumed_to_the_same_result(tmp_path: Path, uninterrupted: Path) -> None:
    folder = tmp_path / "run"
    process = begin(folder, lambda folder: len(list(folder.glob("checkpoints/*.eqx"))) > 1)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert ITERATION <= khop.load(folder).env_steps < LAST
    khop.resume(folder)
    assert_same_run(folder, uninterrupted)


# Stopping and resuming, in this process -------------------------------------------------------------------------------


def train_rooms(folder: Path, **others: object) -> khop.Run:
    settings = {"steps": 320, "seeds": (0, 3), "environments": 4, "rollout": 8, "hidden": (8,), "minibatches": 2}
    return khop.train("toy-rooms", "dppo", out=folder, episodes=2, **{**settings, **others})


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a whole run on a system with noise, terminations and continuous actions; two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(system._REGISTRY, "toy-rooms", TOYS["toy-rooms"])
        yield train_rooms(tmp_path_factory.mktemp("rooms") / "whole").path


def test_stopping_anywhere_and_resuming_changes_nothing(rooms: Path, tmp_path: Path) -> None:
    """By an error that leaves the last checkpoint behind, then by a signal, which writes one."""
    folder = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train_rooms(folder, watchers=[stop_at(96)])
    assert khop.load(folder).env_steps == 64
    with pytest.raises(Stopped, match="Stopped at step 160 of 320; continue with `khop resume") as stopped:
        khop.resume(folder, watchers=[stop_at(160, signals(signal.SIGTERM))])
    assert stopped.value.signal_number == signal.SIGTERM
    assert khop.load(folder).env_steps == 160
    khop.resume(folder)
    assert_same_run(folder, rooms)


def test_a_run_is_trained_by_one_process_at_a_time(rooms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused = []

    def resumed_meanwhile(progress: Progress) -> None:
        if progress.env_steps == 160:
            before = content(folder)
            with pytest.raises(khop.InputError, match="is being trained by another process"):
                khop.resume(folder)
            refused.append(content(folder) == before)

    train_rooms(folder, watchers=[resumed_meanwhile])
    assert refused == [True]
    assert_same_run(folder, rooms)
    with RunFolder(folder).held():  # and was let go of
        pass


def test_a_second_interrupt_stops_at_once_and_loses_only_the_iteration(rooms: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train_rooms(folder, watchers=[stop_at(160, signals(signal.SIGINT, signal.SIGINT))])
    assert khop.load(folder).env_steps == 128
    khop.resume(folder)
    assert_same_run(folder, rooms)


def test_a_larger_budget_trains_further(rooms: Path, tmp_path: Path) -> None:
    """Without annealing, to the same weights as with that budget from the start."""
    short = train_rooms(tmp_path / "short", steps=160, anneal=False)
    longer = khop.resume(short.path, steps=320)
    assert longer.env_steps == longer.steps == 320
    at_once = train_rooms(tmp_path / "at once", anneal=False)
    assert longer.folder.saved()[-1].read_bytes() == at_once.folder.saved()[-1].read_bytes()
    with pytest.raises(khop.InputError, match="steps must be at least 320"):
        khop.resume(short.path, steps=200)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    assert main(["resume", str(folder)]) == 0
    before, after = content(uninterrupted), content(folder)
    assert {name for name in before if before[name] != after[name]} <= {"figures/learning.png", "figures/episode.png"}


def test_a_checkpoint_is_whole_or_not_there(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the process dies between writing and renaming."""
    folder = tmp_path / "run"
    shutil.copytree(begun, folder)
    run = khop.load(folder)
    state, _ = run._newest

    def die(*arguments: object) -> None:
        raise OSError("the power went out")

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(OSError, match="power"):
        run.folder.save(state, ITERATION, run.origin)
    monkeypatch.undo()
    assert khop.load(folder).env_steps == 0


# What a run leaves behind ---------------------------------------------------------------------------------------------


def test_the_files_of_a_run(uninterrupted: Path) -> None:
    config = json.loads((uninterrupted / "config.json").read_text())
    assert config["system"] == {
        "name": "platoon-catchup",
        "parameters": {"vehicles": 3, "collision_penalty": 1000.0, "horizon": 50},
    }
    assert config["method"]["name"] == "dppo"
    assert config["method"]["options"].items() >= {"kappa_actor": 1, "kappa_critic": 4, "hidden": [8]}.items()
    assert config["method"]["options"]["learner"]["minibatches"] == 2
    assert (config["seeds"], config["steps"], config["episodes"]) == ([0], LAST, 2)
    assert config["versions"].keys() >= {"khop", "jax", "python"}

    metrics = rows(uninterrupted, METRICS)
    assert [int(row["env_steps"]) for row in metrics] == list(range(ITERATION, LAST + 1, ITERATION))
    assert metrics[0].keys() >= {"seed", "actor_loss", "critic_loss", "kl", "entropy", "return"}

    evaluations = rows(uninterrupted, EVALUATION)
    assert list(evaluations[0]) == ["env_steps", "seed", "controller", "metric", "mean", "std", "n"]
    final = [row for row in evaluations if int(row["env_steps"]) == LAST]
    assert len({row["env_steps"] for row in evaluations}) == 20
    assert {row["metric"] for row in final} == METRIC_NAMES
    assert {row["controller"] for row in final if row["seed"] == ""} == {
        "random",
        *khop.make("platoon-catchup").spec.baselines,
    }
    assert {row["controller"] for row in final if row["seed"] == "0"} == {"learned", "learned-sampled"}

    kept = [f"step_{step:012d}.eqx" for step in (LAST - 2 * ITERATION, LAST - ITERATION, LAST)]
    assert sorted(os.listdir(uninterrupted / "checkpoints")) == kept
    assert {"learning.png", "episode.png"} <= set(os.listdir(uninterrupted / "figures"))


def test_a_run_without_models_has_no_model_error(begun: Path) -> None:
    with pytest.raises(khop.InputError, match="dppo learns no models"):
        khop.load(begun).model_error()
