"""Learning curves: what evaluation said of the learned policies during training, beside classical controllers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, NullLocator
from scipy.optimize import isotonic_regression

from khop.errors import InputError
from khop.report.history import LEARNED, SAMPLED, Line, Series, distinct, interval, read_lines
from khop.report.style import COLOURS, MUTED, checked, number, save, styled
from khop.system import make

DIAGNOSTICS = {"entropy": "entropy [nat]", "kl": "KL per update [nat]"}
SHOWN_BASELINES = 3
WIDE = 30.0  # how many times the smallest final return the largest one may be before the axis becomes logarithmic
POINTS = 200  # of a diagnostic; there is one per iteration


def learning_curves(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Draw evaluated returns, and the entropy and KL divergence of the updates, over real environment steps; where
    models were learned, their held-out error by horizon stands beside it.

    Runs that differ in nothing but their seeds are one line: the mean over seeds of the greedy policies' evaluated
    return, its 95 % bootstrap interval over seeds as a band, and the sampled policies' mean as thin dashes. A line
    ends where its slowest seed has come to. Every system, with its parameters, has a column of its own; the best of
    its classical controllers, and random where it fits, are dotted lines once a run has finished.

    Args:
        runs: run folders, finished or not.
        out: the file to write; its ending says the format.

    Returns:
        The file written.

    Raises:
        InputError: for a folder without a run, a run without an evaluation, or an unknown format.
    """
    out = checked(Path(out))
    lines = read_lines(runs)
    systems = [line.config["system"] for line in lines]
    columns = [system for index, system in enumerate(systems) if system not in systems[:index]]
    titles = distinct(
        [system["name"].rpartition("/")[2] for system in columns],
        [system["parameters"] for system in columns],
        [""] * len(columns),
    )
    shown = [name for name in DIAGNOSTICS if any(line.diagnostic(name) for line in lines)]
    by_column = [[line for line in lines if line.config["system"] == system] for system in columns]
    modelled = [any(line.model_errors for line in own) for own in by_column]
    with styled():
        figure = Figure(figsize=(1 + 5.8 * len(columns) + 3.2 * sum(modelled), 3.6 + 1.3 * len(shown)))
        grid = figure.subplots(
            1 + len(shown),
            len(columns) + sum(modelled),
            sharex="col",
            squeeze=False,
            height_ratios=[3.2] + [1.0] * len(shown),
            width_ratios=[width for models in modelled for width in ([1.0, 0.55] if models else [1.0])],
        )
        free = iter(grid.T)
        for own, title, models in zip(by_column, titles, modelled, strict=True):
            axes = list(next(free))
            axes[0].set_title(title)
            _draw_column(axes, own, shown)
            if models:
                beside, *unused = next(free)
                _draw_model_errors(beside, own)
                for empty in unused:
                    empty.remove()
        figure.align_ylabels(grid[:, 0])
        return save(figure, out)


def _draw_model_errors(axes: Axes, lines: list[Line]) -> None:
    """How much of the change h steps ahead the models left unexplained in the end."""
    horizons = sorted({horizon for line in lines for horizon in line.model_errors})
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        if errors := line.model_errors:
            last = np.stack([errors[horizon].values[:, -1] for horizon in sorted(errors)], axis=1)
            _draw(axes, Series(np.array(sorted(errors)), last), colour, marker="o")
    axes.set(xscale="log", yscale="log", title="models, at the end")
    axes.set_xticks(horizons, [str(horizon) for horizon in horizons])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("steps ahead")
    axes.set_ylabel("held-out error [share of the change's variance]")


def _draw_column(axes: Sequence[Axes], lines: list[Line], diagnostics: list[str]) -> None:
    """One system: returns on top, diagnostics below."""
    labels = distinct(
        [line.config["method"]["name"] for line in lines],
        [line.settings for line in lines],
        [line.folders[0].name for line in lines],
    )
    handles = []
    for line, label, colour in zip(lines, labels, _colours(len(lines)), strict=True):
        returns = line.returns(LEARNED)
        handles += _draw(axes[0], returns, colour)
        seeds = len(returns.values)
        handles[-1].set_label(f"{label}, {seeds} seed{'s' if seeds > 1 else ''}")
        for below, name in zip(axes[1:], diagnostics, strict=True):
            if (series := line.diagnostic(name)) is not None:
                _draw(below, series.thinned(POINTS), colour, width=1.0)
        if (sampled := line.sampled) is not None:
            axes[0].plot(sampled.x, sampled.mean, color=colour, linewidth=0.9, linestyle=(0, (5, 2.5)))
    _finish_returns(axes[0], lines)
    for below, name in zip(axes[1:], diagnostics, strict=True):
        below.set_ylabel(DIAGNOSTICS[name])
    axes[-1].set_xlabel("real environment steps per seed")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))
    _legend(axes[-1], handles, lines)


def _draw(axes: Axes, series: Series, colour: str, width: float = 1.6, marker: str = "") -> list[Line2D]:
    """The mean over seeds and, of several, its interval."""
    marker = marker or ("o" if len(series.x) == 1 else "")
    if len(series.values) > 1:
        axes.fill_between(series.x, *interval(series.values), color=colour, alpha=0.2, linewidth=0)
    return axes.plot(series.x, series.mean, color=colour, linewidth=width, marker=marker, markersize=4)


def _finish_returns(axes: Axes, lines: list[Line]) -> None:
    """Scale, baselines, and what stands at the right edge."""
    final = [line.returns(LEARNED).mean[-1] for line in lines]
    drawn = [series for line in lines for series in (line.returns(LEARNED), line.sampled) if series is not None]
    everything = np.concatenate([series.mean for series in drawn])
    baselines = {name: value for line in lines for name, value in line.baselines.items()}
    chosen = _best(baselines)
    threshold = _threshold(everything, np.array([*final, *list(chosen.values())[:1]]))
    reach = np.ptp([*everything, *chosen.values()])
    if "random" in baselines and (threshold or baselines["random"] > min(everything) - reach):
        chosen.setdefault("random", baselines["random"])
    for value in chosen.values():
        axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=":")
    if threshold:
        axes.set_yscale("symlog", linthresh=threshold)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    if threshold:
        axes.set_yticks(_ticks(low, high, threshold))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.set_ylim(low, high)
    axes.set_ylabel(f"evaluated return{_unit(lines[0])}")
    _label_right_edge(
        axes,
        [*final, *chosen.values()],
        [number(value) for value in final] + [f"{number(value)}  {name}" for name, value in chosen.items()],
        [*_colours(len(lines)), *[MUTED] * len(chosen)],
    )


def _best(baselines: dict[str, float]) -> dict[str, float]:
    """The best few classical controllers; of those that cannot be told apart, the first."""
    best: dict[str, float] = {}
    for name, value in sorted(baselines.items(), key=lambda item: -item[1]):
        if len(best) < SHOWN_BASELINES and number(value) not in map(number, best.values()):
            best[name] = value
    return best


def _threshold(everything: Float[np.ndarray, " P"], final: Float[np.ndarray, " F"]) -> float:
    """Where a logarithmic axis should turn linear around 0; 0 if the whole axis should be linear.

    Early policies may be hundreds of times worse than final ones, among which differences must still be seen.
    """
    largest = np.abs(everything).max()
    smallest = max(np.abs(final).min(), largest / 1e4)
    return 10.0 ** np.floor(np.log10(smallest)) if largest > WIDE * smallest else 0.0


def _ticks(low: float, high: float, threshold: float) -> list[float]:
    """Round numbers for a symmetric logarithmic axis, as many as can be read."""
    decades = threshold * 10.0 ** np.arange(12)
    for mantissas in ((1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        size = np.outer(decades, mantissas).ravel()
        ticks = [float(tick) for tick in (*-size[::-1], 0.0, *size) if low <= tick <= high]
        if len(ticks) <= 10:
            break
    return ticks


def _label_right_edge(axes: Axes, values: list[float], texts: list[str], colours: list[str]) -> None:
    """Texts beside the right edge, each as near to its value as the others let it."""
    height = axes.transAxes.inverted().transform(axes.transData.transform([(0, value) for value in values]))[:, 1]
    order = np.argsort(height, kind="stable")
    gap = 0.052 * np.arange(len(order))
    spread = isotonic_regression(height[order] - gap).x
    spread = np.clip(spread, 0, 1 - gap[-1]) + gap
    for place, index in zip(spread, order, strict=True):
        axes.annotate(
            texts[index],
            xy=(1.0, height[index]),
            xytext=(1.035, place),
            xycoords="axes fraction",
            color=colours[index],
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colours[index], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _legend(axes: Axes, handles: list[Line2D], lines: list[Line]) -> None:
    """Below the column, where it hides nothing."""
    if any(line.has(SAMPLED) for line in lines):
        handles = [
            *handles,
            Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (5, 2.5)), label="sampling its actions"),
        ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.02, -0.45), ncols=2, borderaxespad=0)


def _unit(line: Line) -> str:
    """The unit of the return in brackets, if the system can be made here."""
    system = line.config["system"]
    try:
        return f" [{make(system['name'], **system['parameters']).spec.metrics['return']}]"
    except InputError:  # a system from a file that is not on this machine
        return ""


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
