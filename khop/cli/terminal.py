"""What the terminal shows: progress, tables, and how a run ended."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from khop import experiment, theory
from khop.evaluation import Table
from khop.experiment import LEARNED, SAMPLED, Run
from khop.methods import communication
from khop.report.tensorboard import TensorBoard, require
from khop.run import METRICS
from khop.system import System, name_of

console = Console(width=None if sys.stdout.isatty() else 120)
WIDEST_TABLE = 6  # metrics side by side


class Bar:
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

    def __enter__(self) -> Bar:
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


def conclude(run: Run) -> None:
    """The table that ends a run, its figures, and where everything is."""
    from khop.evaluation import controller
    from khop.report.curves import learning_curves
    from khop.report.episode import episode_figure

    table = run.final_table()
    report(run.system, table, None)
    costs = communication(run.method, run.system)
    console.print(
        f"Messages per agent and step: {costs.acting.per_agent:.1f} scalars to act ({costs.acting.share:.0%} of a "
        f"centralised controller's), {costs.training.per_agent:.1f} to train ({costs.training.share:.0%})."
    )
    _say_if_nothing_was_imagined(run)
    best = max(run.system.spec.baselines, key=lambda name: table[name]["return"].mean, default="random")
    shown = {LEARNED: run.controller(), best: controller(run.system, best)}
    curves = learning_curves([run.path], run.folder.figures / "learning.png")
    episode = episode_figure(run.system, shown, 0, run.folder.figures / "episode.png")
    console.print(f"Figures: {curves}\n         {episode}\nRun:     {run.path}")


def _say_if_nothing_was_imagined(run: Run) -> None:
    """Models that nobody trusted leave a method that learns in them with real experience alone."""
    options, log = run.method.imagination, run.folder.read(METRICS)
    if options is None or not log or any(float(row["imagined_share"]) for row in log):
        return
    error = min(float(row["model_error_1"]) for row in log)
    console.print(
        f"[bold]Nothing was imagined[/bold]: the models' error one step ahead, at best {error:.2f}, never fell below "
        f"the gate of {options.gate:g}. More --steps improve models; a higher --gate trusts worse ones."
    )


def show_bounds(run: Run, settings: dict[str, Any], found: tuple[theory.Bound, ...]) -> None:
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


def report(system: System, table: Table, file: Path | None) -> None:
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


def with_units(names: tuple[str, ...], units: tuple[str, ...]) -> str:
    return escape(", ".join(f"{name} [{unit}]" for name, unit in zip(names, units, strict=True)))


def first_line(text: str | None) -> str:
    return (text or "").strip().splitlines()[0] if text else ""


def complain(message: str, status: int) -> int:
    Console(stderr=True).print(f"khop: {message}", highlight=False, markup=False, soft_wrap=True)
    return status
