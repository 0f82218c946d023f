"""The command line: what its commands show, and all that it refuses."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
from small_run import ITERATION, METRIC_NAMES, TRAIN, assert_is_a_table, content

import khop
from khop import experiment
from khop.cli import COMMANDS, main
from khop.experiment import Diverged, Stopped
from khop.run import RunFolder

pytestmark = pytest.mark.usefixtures("wide_terminal")

# Commands -------------------------------------------------------------------------------------------------------------


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
