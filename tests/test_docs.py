"""The documentation: its code runs, its commands parse, its links lead somewhere, its numbers are those of the code."""

from __future__ import annotations

import csv
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import test_system as conformance

import khop
from khop import experiment, system
from khop.cli import COMMANDS, main
from khop.methods import METHODS, communication, configured
from khop.system import System

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_SYSTEM = (ROOT / "docs" / "own_system.md").read_text()
QUICK = {r"rooms=\d+": "rooms=6", r"steps=[\d_]+": "steps=10240", r"episodes=\d+": "episodes=20"}
QUICK_OPTIONS = {r"--steps \d+": "--steps 10240", r"--episodes \d+": "--episodes 20"}  # the same programs as QUICK


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def quick(code: str, changes: dict[str, str]) -> str:
    """The same with small numbers."""
    for pattern, replacement in changes.items():
        code = re.sub(pattern, replacement, code)
    return code


# How to add your own system -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader has written ``rooms.py``."""
    folder = tmp_path_factory.mktemp("reader")
    before_use = OWN_SYSTEM[: OWN_SYSTEM.index("## Look at it")]
    (folder / "rooms.py").write_text("\n\n".join(blocks(before_use, "python")))
    return folder


@pytest.fixture(autouse=True)
def registry_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_REGISTRY", dict(system._REGISTRY))


def test_the_rooms_keep_what_khop_relies_on(folder: Path) -> None:
    """Everything that the conformance suite checks of every registered system."""
    rooms = khop.make(f"{folder / 'rooms.py'}:rooms", rooms=4)
    known = {
        "system": rooms,
        "played": conformance.play_alone(rooms, jax.random.key(0), 3 * rooms.spec.horizon),
        "start": conformance.reset(rooms, jax.random.key(1)),
    }
    checks = [
        check
        for name, check in vars(conformance).items()
        if name.startswith("test_") and set(inspect.signature(check).parameters) & known.keys()
    ]
    assert len(checks) > 10
    for check in checks:
        check(**{name: known[name] for name in inspect.signature(check).parameters})


def test_the_commands_of_the_page_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And with a fifth of the steps the rooms already learn much better than random."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line for block in blocks(OWN_SYSTEM, "sh") for line in block.splitlines()]
    for line in lines:
        program, *arguments = shlex.split(quick(line, QUICK_OPTIONS))
        assert program == "khop"
        assert main(arguments) == 0, line
    assert {line.split()[1] for line in lines} == {"info", "baselines", "train", "evaluate"}
    assert "thermostat" in capsys.readouterr().out

    run = khop.load(folder / "runs" / "rooms")
    table = run.final_table()
    assert table["learned"]["return"].mean > table["random"]["return"].mean / 3
    with (run.path / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    concepts = (ROOT / "docs" / "concepts.md").read_text()
    section = concepts[concepts.index("Columns of `metrics.csv`") : concepts.index("Columns of `evaluation.csv`")]
    section = section[: section.index("Methods that learn models add")]
    described = [name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in row.split(", ")]
    assert sorted(name.strip("`") for name in described) == sorted(columns)


def test_the_page_from_python(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (code,) = blocks(OWN_SYSTEM[OWN_SYSTEM.index("## From Python") :], "python")
    names: dict[str, object] = {}
    exec(compile(quick(code, QUICK), "own_system.md", "exec"), names)
    run = names["run"]
    assert isinstance(run, khop.Run)
    assert run.system.spec.n == 6
    assert khop.load(run.path).system_name == "rooms"


# All pages ------------------------------------------------------------------------------------------------------------


def snippets() -> Iterator[pytest.param]:
    for page in PAGES:
        if page.name != "own_system.md":
            for number, code in enumerate(blocks(page.read_text(), "python")):
                yield pytest.param(code, id=f"{page.name}-{number}")


@pytest.mark.parametrize("code", [*snippets()])
def test_python_snippets_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that train do so as the tests of the command line do, whose programs have been compiled already."""

    def train(name: str, method: str, **options: object) -> khop.Run:
        sizes = {"hidden": (8,), "environments": 4, "rollout": 32, "minibatches": 2}
        few = {"steps": 2560, "seeds": (0,), "episodes": 2}
        return experiment.train(khop.make(name, vehicles=3, horizon=50), method, **{**options, **sizes, **few})

    monkeypatch.setattr(khop, "train", train)
    monkeypatch.chdir(tmp_path)
    exec(compile(quick(code, QUICK), "snippet", "exec"), {})


def test_printed_results_are_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the first snippet of the concepts says in its comments."""
    (code,) = blocks((ROOT / "docs" / "concepts.md").read_text(), "python")
    exec(compile(code, "concepts.md", "exec"), {})
    index, cost = capsys.readouterr().out.splitlines()
    assert f"# {index}:" in code
    assert "per_agent=8.75, centralised=35.0, share=0.25" in cost


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"\w+:", target):
            file, _, heading = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.exists(), f"{page.name} links to {target}"
            assert not heading or heading in anchors(linked), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_can_be_found_from_the_readme() -> None:
    found, new = set(), {ROOT / "README.md"}
    while new:
        page = new.pop()
        found.add(page)
        targets = re.findall(r"\]\(([^)\s:#]+\.md)", page.read_text())
        new |= {(page.parent / target).resolve() for target in targets} - found
    assert set(PAGES) <= found


# Commands -------------------------------------------------------------------------------------------------------------

PLACEHOLDERS = {
    "SYSTEM": "platoon-catchup",
    "METHOD": "dppo",
    "DIR": "runs/run",
    "FILE": "file.png",
    "N": "9",
    "S": "0",
    "NAME": "random",
    "COMMAND": "train",
}


def command_lines() -> Iterator[tuple[str, str]]:
    """Page and command of every ``khop …`` in a shell block or between backticks, its placeholders filled in."""
    for page in PAGES:
        text = page.read_text()
        shell = [line for block in blocks(text, "sh") for line in block.splitlines()]
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]
        for line in dict.fromkeys([*shell, *inline]):
            words = re.sub(r"[][…]", " ", line).split("#")[0].split()
            if len(words) == 2 and words[0] == "khop":
                assert words[1] in COMMANDS, f"{page.name} speaks of {line}"
            elif words[:1] == ["khop"] and len(words) > 1:
                yield page.name, " ".join(PLACEHOLDERS.get(word, word) for word in words[1:])


class Parsed(Exception):
    """A command was understood and would now do its work."""


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_commands_parse(page: str, line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsed(*arguments: object, **options: object) -> None:
        raise Parsed

    monkeypatch.chdir(folder)
    for work in (
        "khop.experiment.train",
        "khop.experiment.resume",
        "khop.experiment.load",
        "khop.cli.commands.evaluate_baselines",
        "khop.report.graph.draw_topology",
        "khop.report.curves.learning_curves",
    ):
        monkeypatch.setattr(work, parsed)
    (folder / "runs" / "run" / "figures").mkdir(parents=True, exist_ok=True)
    arguments = shlex.split(line)
    try:
        assert main(arguments) == 0
        assert arguments[0] in ("list", "info")
    except Parsed:
        pass
    except SystemExit as done:
        assert done.code == 0
        assert "--help" in arguments


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS.values():
        usage = (command.__doc__ or "").partition(" — ")[0]
        assert f"| `khop {usage}` |" in readme


# Numbers --------------------------------------------------------------------------------------------------------------


def test_the_table_of_messages_is_what_khop_counts() -> None:
    pages = [(ROOT / "docs" / "methods" / name).read_text() for name in ("dppo.md", "mdpo.md", "dials.md")]
    named = rf"^\| `((?:{'|'.join(METHODS)})[^`]*)` \| ([0-9].*) \|$"
    rows = dict(re.findall(named, "\n".join(pages), re.MULTILINE))
    platoon = khop.make("platoon-catchup")
    assert set(METHODS) <= rows.keys()
    for name, row in rows.items():
        method, _, kappa = name.partition(" --kappa-critic ")
        chosen = configured(METHODS[method], **({"kappa_critic": int(kappa)} if kappa else {}))
        cost = communication(chosen, platoon)
        expected = [str(kappa) for kappa in chosen.kappas(platoon.spec)]
        if chosen.imagination is not None:
            expected.append(str(chosen.imagination.kappa_model))
        for part in (cost.acting, cost.training):
            expected += [f"{part.per_agent:g}", f"{100 * part.share:.0f} %"]
        assert row == " | ".join(expected), name


def test_the_parameters_of_platoons_are_documented() -> None:
    page = (ROOT / "docs" / "systems" / "platoon.md").read_text()
    section = page[page.index("## Parameters") : page.index("## Metrics")]
    documented = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE))
    slowdown = khop.make("platoon-slowdown")
    assert {name: float(value == "true" or value) for name, value in documented.items()} == parameters(slowdown)
    for name in itertools.chain(slowdown.spec.metrics, slowdown.spec.baselines):
        assert f"`{name}`" in page


def parameters(of: System) -> dict[str, float]:
    return {name: float(value) for name, value in vars(of).items()}
