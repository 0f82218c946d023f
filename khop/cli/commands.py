"""The commands of ``khop COMMAND …``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.table import Table as RichTable

from khop import experiment, theory
from khop.cli.arguments import (
    Arguments,
    asks_for_help,
    folder_and_options,
    leading_words,
    system_and_options,
    typed_options,
    writable,
)
from khop.cli.terminal import (
    Bar,
    complain,
    conclude,
    console,
    first_line,
    report,
    show_bounds,
    with_units,
)
from khop.errors import InputError, unknown
from khop.evaluation import evaluate_baselines
from khop.experiment import Diverged, Run, Stopped
from khop.methods import SUMMARIES
from khop.run import METRICS
from khop.system import name_of, registered
from khop.topology import Kappa


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How long to train, on which seeds, and where to keep it."""

    steps: int | None = None
    """Environment steps per seed; by default 600,000, 30,000 with learned models, 1,000,000 with memory."""
    seeds: tuple[int, ...] = (0,)
    """One independent learner per seed; all train in one program."""
    out: Path | None = None
    """The run's folder, new or empty; by default one under runs/."""
    episodes: int = 20
    """Episodes of each evaluation."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run's folder."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Continue a run to the same result as if it had never stopped."""

    steps: int | None = None
    """A larger budget than the run was started with."""
    tensorboard: bool = False
    """Also write TensorBoard files into the run's folder."""


@dataclasses.dataclass(frozen=True)
class BaselineOptions:
    """Play a system's own classical controllers and random."""

    episodes: int = 100
    """Episodes per controller, the same ones for each."""
    seed: int = 0
    """Which episodes."""
    json: Path | None = None
    """Also write the table to this file."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Play learned and classical controllers on the real system."""

    episodes: int = 20
    """Episodes per controller (and per seed, for the learned ones)."""
    controllers: tuple[str, ...] = ()
    """learned, learned-sampled, random or baselines; by default all."""
    seed: int = 0
    """Which episodes."""
    json: Path | None = None
    """Also write the table to this file."""


@dataclasses.dataclass(frozen=True)
class InfoOptions:
    """Describe a system: spec, baselines, graph and message costs."""

    figure: Path | None = None
    """Draw the graph into this file."""


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw learning curves of one or more runs against the baselines."""

    out: Path | None = None
    """The figure's file; by default figures/learning.png in the first run's folder."""


@dataclasses.dataclass(frozen=True)
class BoundsOptions:
    """What the theory guarantees for a run's system and settings, see docs/theory.md.

    By default models are exact and agents independent: a bound that is vacuous then is vacuous for any model.
    """

    r_max: float | None = None
    """Largest size of one agent's reward in one step; by default the learner's reward limit."""
    policy_shift: float | None = None
    """Total variation of a policy's update; by default by Pinsker's inequality from the largest KL the run logged."""
    model_error: float = 0.0
    """Total variation between an agent's true next state and its model's."""
    xi: float = 0.0
    """Total variation by which agents' next states fall short of being independent."""
    g_max: float = 1.0
    """Largest norm of a policy's score function; it scales the bound of the gradient alone."""


def main(arguments: Arguments | None = None) -> int:
    """Run a command and return the process's exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            _overview()
        elif arguments[0] not in COMMANDS:
            raise unknown("command", arguments[0], COMMANDS)
        else:
            COMMANDS[arguments[0]](arguments[1:])
    except InputError as error:
        return complain(str(error), 2)
    except Diverged as error:
        return complain(str(error), 1)
    except Stopped as error:
        return complain(str(error), 128 + error.signal_number)
    except OSError as error:
        return complain(f"{error.filename}: {error.strerror}; choose another file or folder.", 2)
    except KeyboardInterrupt:
        return complain("Interrupted.", 130)
    return 0


def list_everything(arguments: Arguments) -> None:
    """list — the systems and methods there are"""
    typed_options("list", arguments, {})
    for title, entries in (
        ("Systems", {name: first_line(cls.__doc__) for name, cls in registered().items()}),
        ("Methods", SUMMARIES),
    ):
        table = RichTable("name", "what it is", title=title, title_justify="left")
        for name, text in entries.items():
            table.add_row(name, text)
        console.print(table)


def info(arguments: Arguments) -> None:
    """info SYSTEM [--figure FILE] — its spec, baselines, graph and message costs"""
    system, _, options = system_and_options("info", arguments, InfoOptions)
    spec, topology = system.spec, system.topology
    writable(options.figure)
    facts = RichTable(title=f"{name_of(system)}: {first_line(type(system).__doc__)}", show_header=False)
    facts.add_row("agents", str(spec.n))
    facts.add_row("observation", with_units(spec.observation_names, spec.observation_units))
    facts.add_row("action", ", ".join(spec.action.names))
    facts.add_row("episode", f"{spec.horizon} steps of {spec.control_interval_s:g} s")
    suits = f"γ {spec.discount:g}, κ of actors {spec.kappa_actor}, of critics {spec.kappa_critic}, gate {spec.gate:g}"
    facts.add_row("suits it", suits + ("" if spec.reward_limit is None else f", rewards up to {spec.reward_limit:g}"))
    facts.add_row("metrics", with_units(tuple(spec.metrics), tuple(spec.metrics.values())))
    facts.add_row("baselines", ", ".join(["random", *spec.baselines]))
    facts.add_row("graph", ", ".join(f"{name} {value:g}" for name, value in topology.statistics().items() if value))
    console.print(facts)
    costs = RichTable("κ", "scalars per agent and step", "share of centralised", title="Messages to act on κ hops")
    sizes = spec.observation_sizes.astype(float)
    kappas: list[Kappa] = [0, 1, 2, 3, 4, "all"]
    for kappa in kappas:
        cost = topology.message_cost(kappa, sizes)
        costs.add_row(str(kappa), f"{cost.per_agent:.2f}", f"{cost.share:.1%}")
    console.print(costs)
    if options.figure:
        from khop.report.graph import draw_topology

        console.print(f"Graph drawn to {draw_topology(topology, name_of(system), options.figure, sizes)}")


def baselines(arguments: Arguments) -> None:
    """baselines SYSTEM [--episodes N] [--json FILE] — the system's own controllers and random"""
    system, _, options = system_and_options("baselines", arguments, BaselineOptions)
    writable(options.json)
    if options.episodes < 1:
        raise InputError(f"episodes must be at least 1, not {options.episodes}.")
    with console.status("simulating"):
        table = evaluate_baselines(system, ["random", *system.spec.baselines], options.episodes, options.seed)
    report(system, table, options.json)


def train(arguments: Arguments) -> None:
    """train SYSTEM METHOD [--steps N] [--seeds S …] [--out DIR] … — train agents and keep the run"""
    system, chosen, options = system_and_options("train", arguments, TrainOptions, with_method=True)
    with Bar(options.tensorboard) as bar:
        run = experiment.train(
            system,
            chosen,
            steps=options.steps,
            seeds=options.seeds,
            out=options.out,
            episodes=options.episodes,
            watchers=[bar],
        )
    conclude(run)


def resume(arguments: Arguments) -> None:
    """resume DIR — continue to the same result as an uninterrupted run"""
    folder, options = folder_and_options("resume", arguments, ResumeOptions)
    with Bar(options.tensorboard) as bar:
        run = experiment.resume(folder, options.steps, watchers=[bar])
    conclude(run)


def evaluate(arguments: Arguments) -> None:
    """evaluate DIR [--episodes N] [--controllers NAME …] [--json FILE] — learned beside classical controllers"""
    folder, options = folder_and_options("evaluate", arguments, EvaluateOptions)
    run = experiment.load(folder)
    writable(options.json)
    with console.status("simulating"):
        table = run.evaluate(options.episodes, options.controllers or None, options.seed)
    report(run.system, table, options.json)


def plot(arguments: Arguments) -> None:
    """plot DIR [DIR …] [--out FILE] — learning curves with intervals over seeds, against baselines"""
    folders = [Path(argument) for argument in leading_words(arguments)]
    if not folders and not asks_for_help(arguments):
        raise InputError("khop plot wants one or more run folders, e.g. `khop plot runs/a runs/b --out curves.png`.")
    options = typed_options("plot DIR [DIR …]", arguments[len(folders) :], {"options": PlotOptions()})["options"]
    from khop.report.curves import learning_curves

    out = options.out or folders[0] / "figures" / "learning.png"
    writable(out)
    console.print(f"Learning curves drawn to {learning_curves(folders, out)}")


def bounds(arguments: Arguments) -> None:
    """bounds DIR [--r-max N] [--model-error N] [--xi N] … — what the theory guarantees for a run, as numbers"""
    folder, options = folder_and_options("bounds", arguments, BoundsOptions)
    run = experiment.load(folder)
    if run.method.graph != "topology":
        raise InputError(f"The bounds are about hops of the system's own graph, but {run.method.name} hears strangers.")
    learner, imagination = run.method.learner, run.method.imagination
    r_max = learner.reward_limit if options.r_max is None else options.r_max
    if r_max is None or r_max == float("inf"):
        raise InputError("This run limits no rewards: give the largest size of one as --r-max.")
    settings: dict[str, Any] = {
        "gamma": learner.gamma,
        "r_max": r_max,
        "kappa": run.method.kappas(run.system.spec)[1],
        "branch_length": imagination.branch_length if imagination else 0,
        "model_error": options.model_error,
        "policy_shift": _logged_shift(run) if options.policy_shift is None else options.policy_shift,
        "xi": options.xi,
        "g_max": options.g_max,
    }
    show_bounds(run, settings, theory.bounds(run.system.topology, **settings))


COMMANDS: dict[str, Callable[[Arguments], None]] = {
    "list": list_everything,
    "info": info,
    "baselines": baselines,
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "plot": plot,
    "bounds": bounds,
}


def _overview() -> None:
    console.print("khop — decentralised reinforcement learning for networked systems\n", highlight=False)
    for command in COMMANDS.values():
        usage, _, text = (command.__doc__ or "").partition(" — ")
        console.print(f"  khop {usage}", highlight=False, markup=False)
        console.print(f"      {text}", highlight=False, markup=False)
    console.print("\nkhop COMMAND --help explains every option.", highlight=False)


def _logged_shift(run: Run) -> float:
    """The policies' total variation by Pinsker's inequality, from the largest divergence that a run logged."""
    logged = [float(row["kl"]) for row in run.folder.read(METRICS)]
    if not logged:
        raise InputError(f"{run.path} has logged no divergence yet: train it first, or give --policy-shift.")
    return theory.pinsker(max(logged))


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())
