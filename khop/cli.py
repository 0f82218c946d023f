"""The command line: ``khop COMMAND …``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import tyro
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from khop import experiment, theory
from khop.errors import InputError, unknown
from khop.evaluation import Table, evaluate_baselines
from khop.experiment import LEARNED, SAMPLED, Diverged, Run, Stopped
from khop.methods import SUMMARIES, communication, method
from khop.report.tensorboard import TensorBoard, require
from khop.run import METRICS
from khop.system import System, make, name_of, registered, system_class
from khop.topology import Kappa

console = Console(width=None if sys.stdout.isatty() else 120)
Arguments = list[str]
WIDEST_TABLE = 6  # metrics side by side


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
        return _complain(str(error), 2)
    except Diverged as error:
        return _complain(str(error), 1)
    except Stopped as error:
        return _complain(str(error), 128 + error.signal_number)
    except OSError as error:
        return _complain(f"{error.filename}: {error.strerror}; choose another file or folder.", 2)
    except KeyboardInterrupt:
        return _complain("Interrupted.", 130)
    return 0


def list_everything(arguments: Arguments) -> None:
    """list — the systems and methods there are"""
    _options("list", arguments, {})
    for title, entries in (
        ("Systems", {name: _first_line(cls.__doc__) for name, cls in registered().items()}),
        ("Methods", SUMMARIES),
    ):
        table = RichTable("name", "what it is", title=title, title_justify="left")
        for name, text in entries.items():
            table.add_row(name, text)
        console.print(table)


def info(arguments: Arguments) -> None:
    """info SYSTEM [--figure FILE] — its spec, baselines, graph and message costs"""
    system, _, options = _system_and_options("info", arguments, InfoOptions)
    spec, topology = system.spec, system.topology
    _writable(options.figure)
    facts = RichTable(title=f"{name_of(system)}: {_first_line(type(system).__doc__)}", show_header=False)
    facts.add_row("agents", str(spec.n))
    facts.add_row("observation", _with_units(spec.observation_names, spec.observation_units))
    facts.add_row("action", ", ".join(spec.action.names))
    facts.add_row("episode", f"{spec.horizon} steps of {spec.control_interval_s:g} s")
    facts.add_row("metrics", _with_units(tuple(spec.metrics), tuple(spec.metrics.values())))
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
    system, _, options = _system_and_options("baselines", arguments, BaselineOptions)
    _writable(options.json)
    if options.episodes < 1:
        raise InputError(f"episodes must be at least 1, not {options.episodes}.")
    with console.status("simulating"):
        table = evaluate_baselines(system, ["random", *system.spec.baselines], options.episodes, options.seed)
    _report(system, table, options.json)


def train(arguments: Arguments) -> None:
    """train SYSTEM METHOD [--steps N] [--seeds S …] [--out DIR] … — train agents and keep the run"""
    system, chosen, options = _system_and_options("train", arguments, TrainOptions, with_method=True)
    with _Bar(options.tensorboard) as bar:
        run = experiment.train(
            system,
            chosen,
            steps=options.steps,
            seeds=options.seeds,
            out=options.out,
            episodes=options.episodes,
            watchers=[bar],
        )
    _conclude(run)


def resume(arguments: Arguments) -> None:
    """resume DIR — continue to the same result as an uninterrupted run"""
    folder, options = _folder_and_options("resume", arguments, ResumeOptions)
    with _Bar(options.tensorboard) as bar:
        run = experiment.resume(folder, options.steps, watchers=[bar])
    _conclude(run)


def evaluate(arguments: Arguments) -> None:
    """evaluate DIR [--episodes N] [--controllers NAME …] [--json FILE] — learned beside classical controllers"""
    folder, options = _folder_and_options("evaluate", arguments, EvaluateOptions)
    run = experiment.load(folder)
    _writable(options.json)
    with console.status("simulating"):
        table = run.evaluate(options.episodes, options.controllers or None, options.seed)
    _report(run.system, table, options.json)


def plot(arguments: Arguments) -> None:
    """plot DIR [DIR …] [--out FILE] — learning curves with intervals over seeds, against baselines"""
    folders = [Path(argument) for argument in _leading_words(arguments)]
    if not folders and not _asks_for_help(arguments):
        raise InputError("khop plot wants one or more run folders, e.g. `khop plot runs/a runs/b --out curves.png`.")
    options = _options("plot DIR [DIR …]", arguments[len(folders) :], {"options": PlotOptions()})["options"]
    from khop.report.curves import learning_curves

    out = options.out or folders[0] / "figures" / "learning.png"
    _writable(out)
    console.print(f"Learning curves drawn to {learning_curves(folders, out)}")


def bounds(arguments: Arguments) -> None:
    """bounds DIR [--r-max N] [--model-error N] [--xi N] … — what the theory guarantees for a run, as numbers"""
    folder, options = _folder_and_options("bounds", arguments, BoundsOptions)
    run = experiment.load(folder)
    if run.method.graph != "topology":
        raise InputError(f"The bounds are about hops of the system's own graph, but {run.method.name} hears strangers.")
    learner, imagination = run.method.learner, run.method.imagination
    r_max = learner.reward_limit if options.r_max is None else options.r_max
    if r_max is None or r_max == float("inf"):
        raise InputError("This run limits no rewards: give the largest size of one as --r-max.")
    settings: dict[str, Any] = {
        "gamma": learner.discount,
        "r_max": r_max,
        "kappa": run.method.kappas(run.system.spec)[1],
        "branch_length": imagination.branch_length if imagination else 0,
        "model_error": options.model_error,
        "policy_shift": _logged_shift(run) if options.policy_shift is None else options.policy_shift,
        "xi": options.xi,
        "g_max": options.g_max,
    }
    _show_bounds(run, settings, theory.bounds(run.system.topology, **settings))


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


# Arguments ------------------------------------------------------------------------------------------------------------


def _system_and_options(
    command: str, arguments: Arguments, options: type, with_method: bool = False
) -> tuple[System, Any, Any]:
    """SYSTEM [METHOD] and the typed options of both and of the command."""
    wanted = 2 if with_method else 1
    words = _leading_words(arguments)[:wanted]
    usage = f"khop {command} SYSTEM" + (" METHOD" if with_method else "")
    if len(words) < wanted:
        if _asks_for_help(arguments):
            words, arguments = [*words, *["platoon-catchup", "dppo"][len(words) :]][:wanted], ["--help"] * (wanted + 1)
        else:
            raise InputError(f"{usage} is incomplete: `khop list` shows the systems and methods to choose from.")
    cls = system_class(words[0])
    groups: dict[str, Any] = {"options": options()}
    if with_method:
        groups["method"] = method(words[1])
    groups["system"] = make(words[0])
    parsed = _options(f"{command} {' '.join(words)}", arguments[len(words) :], groups)
    assert isinstance(parsed["system"], cls)
    chosen = parsed.get("method")
    return parsed["system"], chosen, parsed["options"]


def _folder_and_options(command: str, arguments: Arguments, options: type) -> tuple[Path, Any]:
    """DIR and the command's typed options."""
    words = _leading_words(arguments)[:1]
    if not words and not _asks_for_help(arguments):
        raise InputError(f"khop {command} wants a run's folder, e.g. `khop {command} runs/my-run`.")
    parsed = _options(f"{command} DIR", arguments[len(words) :], {"options": options()})
    return Path(words[0]), parsed["options"]


def _asks_for_help(arguments: Arguments) -> bool:
    return "--help" in arguments or "-h" in arguments


def _leading_words(arguments: Arguments) -> list[str]:
    """The arguments before the first option."""
    words = []
    for argument in arguments:
        if argument.startswith("-"):
            break
        words.append(argument)
    return words


def _options(usage: str, arguments: Arguments, defaults: dict[str, Any]) -> dict[str, Any]:
    """Typed options from the command line; every field of the given dataclass instances is a flag of its own."""
    flags = {flag for default in defaults.values() for flag in _flags(default)} | {"--help", "-h"}
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag.replace("_", "-") not in flags:
            raise unknown(f"option of khop {usage.split()[0]}", flag, flags)
    shape = dataclasses.make_dataclass(
        "Options",
        [
            (name, type(default), dataclasses.field(default_factory=_constantly(default)))
            for name, default in defaults.items()
        ],
        frozen=True,
    )
    parsed: Any = tyro.cli(
        shape,
        args=arguments,
        prog=f"khop {usage}",
        description="",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
    )
    return {name: getattr(parsed, name) for name in defaults}


def _constantly(value: Any) -> Callable[[], Any]:
    return lambda: value


def _flags(default: Any) -> list[str]:
    """The command-line flags of a dataclass instance, nested ones included."""
    flags = []
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += _flags(value)
        else:
            flags += [f"--{name}", f"--no-{name}"] if isinstance(value, bool) else [f"--{name}"]
    return flags


def _writable(file: Path | None) -> None:
    if file is not None and file.is_dir():
        raise InputError(f"{file} is a folder: name a file in it.")
    if file is not None and not file.absolute().parent.is_dir():
        raise InputError(
            f"The folder {file.absolute().parent} does not exist: create it, or name a file in another one."
        )


# Output ---------------------------------------------------------------------------------------------------------------


class _Bar:
    """A progress bar that watches a run."""

    def __init__(self, tensorboard: bool):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("compiling", total=None, note="")
        self._tensorboard: TensorBoard | None = None
        self._wants_tensorboard = tensorboard
        if tensorboard:
            require()

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
        if self._tensorboard:
            self._tensorboard.close()

    def __call__(self, progress: experiment.Progress) -> None:
        if self._wants_tensorboard:
            self._tensorboard = self._tensorboard or TensorBoard(progress.folder, progress.seeds)
            self._tensorboard.write(progress.env_steps, progress.metrics)
        done = progress.env_steps >= progress.total
        rate = progress.env_steps * len(progress.metrics["return"]) / progress.wall_s
        mean_return = progress.metrics["return"].mean()
        self._progress.update(
            self._task,
            description="evaluating" if done else "training",
            completed=progress.env_steps,
            total=max(progress.total, progress.env_steps),
            note=f"{progress.env_steps:,} of {progress.total:,} steps   {rate:,.0f}/s   return {mean_return:.1f}",
        )


def _conclude(run: Run) -> None:
    """The table that ends a run, its figures, and where everything is."""
    from khop.evaluation import controller
    from khop.report.curves import learning_curves
    from khop.report.episode import episode_figure

    table = run.final_table()
    _report(run.system, table, None)
    costs = communication(run.method, run.system)
    console.print(
        f"Messages per agent and step: {costs.acting.per_agent:.1f} scalars to act ({costs.acting.share:.0%} of a "
        f"centralised controller's), {costs.training.per_agent:.1f} to train ({costs.training.share:.0%})."
    )
    best = max(run.system.spec.baselines, key=lambda name: table[name]["return"].mean, default="random")
    shown = {LEARNED: run.controller(), best: controller(run.system, best)}
    curves = learning_curves([run.path], run.folder.figures / "learning.png")
    episode = episode_figure(run.system, shown, 0, run.folder.figures / "episode.png")
    console.print(f"Figures: {curves}\n         {episode}\nRun:     {run.path}")


def _logged_shift(run: Run) -> float:
    """The policies' total variation by Pinsker's inequality, from the largest divergence that a run logged."""
    logged = [float(row["kl"]) for row in run.folder.read(METRICS)]
    if not logged:
        raise InputError(f"{run.path} has logged no divergence yet: train it first, or give --policy-shift.")
    return theory.pinsker(max(logged))


def _show_bounds(run: Run, settings: dict[str, Any], found: tuple[theory.Bound, ...]) -> None:
    """A table of bounds, what they assume, and which say nothing."""
    table = RichTable(title=f"{run.system_name}, {run.method.name}", title_justify="left")
    table.add_column("")
    table.add_column("real against")
    for column in ("bound", "largest possible", "share", ""):
        table.add_column(column, justify="right")
    for bound in found:
        verdict = "[bold]vacuous[/bold]" if bound.vacuous else "not vacuous"
        table.add_row(
            bound.name, bound.of, f"{bound.value:,.4g}", f"{bound.largest:,.4g}", f"{bound.share:.3g}", verdict
        )
    console.print(table)
    symbols = ("γ", "r_max", "κ", "T", "ε_m", "ε_π", "ξ", "g_max")
    values = (value if isinstance(value, str) else f"{value:.4g}" for value in settings.values())
    console.print(", ".join(f"{symbol} = {value}" for symbol, value in zip(symbols, values, strict=True)))
    empty = ", ".join(bound.name for bound in found if bound.vacuous)
    console.print(f"Vacuous, as large as any difference can be: {empty}." if empty else "No bound is vacuous.")


def _report(system: System, table: Table, file: Path | None) -> None:
    """Print a table of controllers, best return first, and say whether the learned one earns its keep."""
    units = system.spec.metrics
    episodes = next(iter(next(iter(table.values())).values())).n
    ranked = sorted(table.items(), key=lambda entry: -entry[1]["return"].mean)
    for first in range(0, len(units), WIDEST_TABLE):
        metrics = list(units)[first : first + WIDEST_TABLE]
        title = f"{name_of(system)}: mean ± standard deviation" if first == 0 else ""
        shown = RichTable(title=title, title_justify="left")
        shown.add_column("controller", no_wrap=True)
        for metric in metrics:
            shown.add_column(escape(f"{metric}\n[{units[metric]}]"), justify="right")
        shown.add_column("episodes", justify="right")
        for name, summaries in ranked:
            cells = [f"{summaries[metric].mean:.3g} ± {summaries[metric].std:.2g}" for metric in metrics]
            style = "bold" if name in (LEARNED, SAMPLED) else None
            shown.add_row(name, *cells, str(summaries["return"].n), style=style)
        console.print(shown)
    _verdict(table)
    if file is not None:
        plain = {name: {m: dataclasses.asdict(s) for m, s in row.items()} for name, row in table.items()}
        file.write_text(json.dumps(plain, indent=2) + "\n")
        console.print(f"{episodes} episodes per controller written to {file}")


def _verdict(table: Table) -> None:
    """A learned controller that loses is said to lose."""
    learned = max((name for name in table if name in (LEARNED, SAMPLED)), key=_return_in(table), default=None)
    others = [name for name in table if name not in (LEARNED, SAMPLED)]
    if learned is None or not others:
        return
    rival = max(others, key=_return_in(table))
    mine, theirs = table[learned]["return"].mean, table[rival]["return"].mean
    if mine > theirs:
        console.print(f"{learned} ({mine:.4g}) beats the best other controller, {rival} ({theirs:.4g}).")
    else:
        console.print(f"[bold]{learned} ({mine:.4g}) LOSES to {rival} ({theirs:.4g}).[/bold]")


def _return_in(table: Table) -> Callable[[str], float]:
    return lambda name: table[name]["return"].mean


def _overview() -> None:
    console.print("khop — decentralised reinforcement learning for networked systems\n", highlight=False)
    for command in COMMANDS.values():
        usage, _, text = (command.__doc__ or "").partition(" — ")
        console.print(f"  khop {usage}", highlight=False, markup=False)
        console.print(f"      {text}", highlight=False, markup=False)
    console.print("\nkhop COMMAND --help explains every option.", highlight=False)


def _with_units(names: tuple[str, ...], units: tuple[str, ...]) -> str:
    return escape(", ".join(f"{name} [{unit}]" for name, unit in zip(names, units, strict=True)))


def _first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""


def _complain(message: str, status: int) -> int:
    Console(stderr=True).print(f"khop: {message}", highlight=False, markup=False, soft_wrap=True)
    return status


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
