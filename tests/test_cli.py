"""The command line: as processes that are run, stopped and killed, and inside this one for all that it refuses."""

from __future__ import annotations

import csv
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
from toys import TOYS

import khop
from khop import experiment, system
from khop.cli import COMMANDS, main
from khop.experiment import Diverged, Progress, Stopped
from khop.run import EVALUATION, METRICS, RunFolder

SIZES = ["--vehicles", "3", "--horizon", "50", "--hidden", "8", "--environments", "4", "--rollout", "32"]
TRAIN = ["train", "platoon-catchup", "dppo", *SIZES, "--minibatches", "2", "--episodes", "2", "--steps", "2560"]
ITERATION, LAST = 128, 2560  # environment steps; each iteration ends in an evaluation and a checkpoint
METRIC_NAMES = {"return", "collision_rate", "headway_rmse", "speed_rmse", "settling_time"}


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that came no further than its first checkpoint."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    sizes = {"hidden": (8,), "environments": 4, "rollout": 32, "minibatches": 2}
    platoon = khop.make("platoon-catchup", vehicles=3, horizon=50)
    with pytest.raises(Stopped):
        khop.train(platoon, "dppo", steps=LAST, episodes=2, out=folder, watchers=[stop_at(1)], **sizes)
    return folder


def stop_at(env_steps: int, how: Callable[[], None] | None = None) -> Callable[[Progress], None]:
    """A watcher that does something, or else stops, once a run has come that far."""

    def watch(progress: Progress) -> None:
        if progress.env_steps >= env_steps:
            if how is None:
                raise Stopped("enough", signal.SIGTERM)
            how()

    return watch


def signals(*numbers: int) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def rows(folder: Path, table: str) -> list[dict[str, str]]:
    """A table of a run, without what time it took."""
    with (folder / table).open(newline="") as stream:
        return [{name: value for name, value in row.items() if name != "wall_s"} for row in csv.DictReader(stream)]


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


def assert_is_a_table(file: Path, controllers: set[str], n: int) -> None:
    table = json.loads(file.read_text())
    assert table.keys() == controllers
    for metrics in table.values():
        assert metrics.keys() == METRIC_NAMES
        for summary in metrics.values():
            assert summary.keys() == {"mean", "std", "n"}
            assert summary["n"] == n


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


# Commands, in this process --------------------------------------------------------------------------------------------


def test_no_command_shows_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        assert all(f"  khop {name}" in shown for name in COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "list"])
def test_help_explains_every_option(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    expected = {"train": ("--steps", "--kappa-critic", "--clip", "--vehicles"), "resume": ("--steps",)}
    for option in expected.get(name, ()):
        assert option in shown


def test_list_shows_systems_and_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*khop.registered(), *khop.METHODS])


def test_info_shows_spec_graph_and_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "graph.png"
    assert main(["info", "platoon-catchup", "--figure", str(figure)]) == 0
    shown = capsys.readouterr().out
    for text in (
        "speed error [15 m/s]",
        "600 steps of 0.1 s",
        "γ 0.99",
        "best-constant-pair",
        "edges 7",
        "8.75",
        "25.0%",
    ):
        assert text in shown
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_baselines_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.json"
    arguments = ["baselines", "platoon-catchup", "--vehicles", "3", "--horizon", "50", "--episodes", "2"]
    assert main([*arguments, "--json", str(file)]) == 0
    assert_is_a_table(file, {"random", *khop.make("platoon-catchup").spec.baselines}, n=2)
    shown = capsys.readouterr().out
    assert "constant-0.5-0.5" in shown
    assert str(file) in shown


def test_evaluate_shows_everyone_by_default(uninterrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(uninterrupted), "--episodes", "2"]) == 0
    shown = capsys.readouterr().out
    for name in ("learned", "learned-sampled", "random", *khop.make("platoon-catchup").spec.baselines):
        assert name in shown
    assert "LOSES to" in shown or "beats the best other controller" in shown


@pytest.mark.parametrize(("gate", "said"), [("1e-9", True), ("10", False)])
def test_models_that_nobody_trusted_are_said_to_be_unused(
    gate: str, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--ensemble", "1", "--model-hidden", "4", "--fit-rounds", "1", "--branches", "2", "--branch-length", "2"]
    sizes = ["--vehicles", "3", "--horizon", "50", "--hidden", "8", "--rollout", "32", "--minibatches", "2"]
    budget = ["--rounds", "1", "--steps", "96", "--episodes", "1", "--gate", gate, "--out", str(tmp_path / "run")]
    assert main(["train", "platoon-catchup", "mdpo", *sizes, *models, *budget]) == 0
    assert ("Nothing was imagined" in capsys.readouterr().out) == said


def test_a_learned_controller_that_loses_is_said_to_lose(
    uninterrupted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rigged(self: khop.Run, *arguments: object) -> dict:
        summary = {metric: experiment.Summary(-2.0, 0.0, 1) for metric in METRIC_NAMES}
        better = summary | {"return": experiment.Summary(-1.0, 0.0, 1)}
        return {"learned": summary, "constant-0-0": better}

    monkeypatch.setattr(khop.Run, "evaluate", rigged)
    assert main(["evaluate", str(uninterrupted)]) == 0
    assert "learned (-2) LOSES to constant-0-0 (-1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Stopped("stopped", signal.SIGINT), 130),
        (Stopped("stopped", signal.SIGTERM), 143),
        (Diverged("diverged"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_statuses(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(experiment, "train", fail)
    assert main(TRAIN) == status


# Refusals -------------------------------------------------------------------------------------------------------------


def refusal(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence of a refusal, which left the folder as it was."""
    before = content(folder)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("khop: ")
    assert said.err.count("\n") == 1
    assert content(folder) == before
    return said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "Unknown command 'trian': did you mean 'train'?"),
        (["train"], "khop train SYSTEM METHOD is incomplete"),
        (["train", "platoon-catchup"], "khop train SYSTEM METHOD is incomplete"),
        (["train", "platon-catchup", "dppo"], "Unknown system 'platon-catchup': did you mean 'platoon-catchup'?"),
        (["train", "platoon-catchup", "ippp"], "Unknown method 'ippp': did you mean 'ippo'?"),
        (["train", "platoon-catchup", "dppo", "--step", "9"], "Unknown option of khop train '--step'"),
        (["train", "platoon-catchup", "dppo", "--vehicle", "9"], "did you mean '--vehicles'?"),
        (["train", "platoon-catchup", "dppo", "--cap-initial-speed"], "Unknown option of khop train"),
        (["train", "platoon-catchup", "dppo", "--steps", "0"], "steps must be at least 1, not 0"),
        (["train", "platoon-catchup", "dppo", "--steps", "-5"], "steps must be at least 1, not -5"),
        (["train", "platoon-catchup", "dppo", "--episodes", "0"], "episodes must be at least 1, not 0"),
        (["train", "platoon-catchup", "dppo", "--kappa-actor", "-1"], "Kappa must be an integer of at least 0"),
        (["train", "platoon-catchup", "dppo", "--kappa-critic", "-1"], "Kappa must be an integer of at least 0"),
        (["train", "platoon-catchup", "dppo", "--seeds", "1", "2", "1"], "seeds must differ from each other"),
        (["train", "platoon-catchup", "dppo", "--seeds", "-1"], "seeds must be one or more whole numbers"),
        (["train", "platoon-catchup", "dppo", "--minibatches", "9999"], "9999 minibatches do not fit"),
        (["train", "platoon-catchup", "dppo", "--discount", "1.5"], "discount must lie between 0 and 1"),
        (["train", "platoon-catchup", "dppo", "--vehicles", "0"], "whole number of at least 1"),
        (["info", "platoon-catchup", "--figure", "nowhere/graph.png"], "does not exist"),
        (["baselines", "platon-catchup"], "did you mean 'platoon-catchup'?"),
        (["baselines", "platoon-catchup", "--episodes", "0"], "episodes must be at least 1, not 0"),
        (["resume"], "khop resume wants a run's folder"),
        (["resume", "nothing-here"], "nothing-here holds no run"),
        (["evaluate", "nothing-here"], "nothing-here holds no run"),
        (["plot"], "khop plot wants one or more run folders"),
        (["plot", "nothing-here", "--out", "curves.png"], "nothing-here holds no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(arguments, tmp_path, capsys)


def test_a_folder_that_holds_a_run_is_never_written_over(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal([*TRAIN, "--out", str(begun)], begun, capsys)
    assert f"{begun} already holds a run: continue it with `khop resume {begun}`" in said


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    assert "is not an empty folder" in refusal([*TRAIN, "--out", str(tmp_path)], tmp_path, capsys)


def test_an_unknown_controller_is_refused(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(["evaluate", str(begun), "--controllers", "randon"], begun, capsys)
    assert "Unknown controller 'randon': did you mean 'random'?" in said


@pytest.mark.parametrize("name", ["resume", "evaluate"])
@pytest.mark.parametrize("size", [0, 40, -1])
def test_a_truncated_checkpoint_is_refused(
    name: str, size: int, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    (newest,) = RunFolder(tmp_path / "run").saved()
    newest.write_bytes(newest.read_bytes()[:size])
    assert f"{newest} is truncated or damaged" in refusal([name, str(tmp_path / "run")], tmp_path, capsys)


@pytest.mark.parametrize("name", ["resume", "evaluate"])
def test_a_checkpoint_of_another_system_is_refused(
    name: str, begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    own = khop.load(begun)
    state, _ = own._newest
    foreign = own.origin | {"system": {"name": "platoon-slowdown", "parameters": own.origin["system"]["parameters"]}}
    RunFolder(tmp_path / "run").save(state, ITERATION, foreign)
    said = refusal([name, str(tmp_path / "run")], tmp_path, capsys)
    assert "belongs to system" in said
    assert "platoon-slowdown" in said


def test_a_run_is_not_plotted_before_its_first_evaluation(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no evaluation yet" in refusal(["plot", str(begun)], begun, capsys)


def test_a_run_without_models_has_no_model_error(begun: Path) -> None:
    with pytest.raises(khop.InputError, match="dppo learns no models"):
        khop.load(begun).model_error()
