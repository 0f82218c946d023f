"""How khop's figures look, once for all of them, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from khop.errors import InputError

# Okabe and Ito's colours, which colour-blind readers tell apart; their yellow is left out, too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MUTED = "#767676"  # for what is there for comparison

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.formatter.use_mathtext": True,
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",  # it comes with matplotlib
    "font.size": 9,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 100,
    "xtick.color": "#404040",
    "xtick.labelsize": 8,
    "ytick.color": "#404040",
    "ytick.labelsize": 8,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures made and saved inside look like khop's; matplotlib's own settings are as before afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc, or a notebook's, has no say
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        yield


def checked(out: Path) -> Path:
    """Where a figure will go: ``out``, as a PNG if it names no format.

    Raises:
        InputError: if its ending is no format for figures.
    """
    out = out if out.suffix else out.with_suffix(".png")
    formats = sorted(FigureCanvasAgg.get_supported_filetypes())
    if out.suffix[1:].lower() not in formats:
        raise InputError(f"{out} ends in no format for figures: choose .png, or another one of {', '.join(formats)}.")
    return out


def save(figure: Figure, out: Path) -> Path:
    """Write a figure, making its folder if need be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def number(value: float) -> str:
    """Three digits that matter, a true minus sign, and commas between thousands."""
    if abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")
