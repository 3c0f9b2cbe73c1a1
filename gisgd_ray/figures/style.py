"""The look of every figure, and saving them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from gisgd_ray.numbers import format_noise_std, format_number
from gisgd_ray.results.whole_files import replace_by

# Sweeps take matplotlib's classes from here: see MPLBACKEND in gisgd_ray/__init__.py.
__all__ = [
    "COLOURS",
    "MARKERS",
    "STYLE",
    "Axes",
    "Figure",
    "Line2D",
    "curve",
    "hollow_below_zero",
    "log_scale",
    "new_figure",
    "panel_grid",
    "save_figures",
    "style",
]

# Okabe and Ito's colours, distinguishable with any colour vision; markers repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # fonts as text, which journals ask for
    "svg.fonttype": "path",  # the page must look the same where the font is missing
    "svg.hashsalt": "gisgd_ray",  # same tables, same file
}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in the common style, sizes in inches; no global state, no display."""
    return Figure(figsize=(width, height), layout="constrained")


def panel_grid(
    count: int, *, height: float, extra: float = 0.0, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, two a row, and their axes; call it within :func:`style`.

    Args:
        count: of the panels, at least 1.
        height: of a row, inches; ``extra`` is for what all panels share, a legend say.
        subplots: further arguments of ``Figure.subplots``.
    """
    rows = (count + 1) // 2
    figure = new_figure(6.8, height * rows + extra)
    axes = list(figure.subplots(rows, 2, squeeze=False, **subplots).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def style() -> Any:
    """Context in which axes are made and drawn."""
    return mpl.rc_context(STYLE)


def log_scale(axis: Axes) -> None:
    """Logarithmic y-axis with ticks as plain numbers: the more, the fewer decades there are."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps: tuple[float, ...] = (1.0,)  # over many decades the powers of ten are enough
    if high / low < 1e3:
        steps = (1.0, 2.0, 5.0) if high / low > 10 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    # All powers of ten of an axis alike; 100000 and 1e-05 read badly.
    extreme = low < 1e-4 or high > 1e5
    powers = extreme and len(steps) == 1
    named = format_noise_std if powers else format_number if extreme else "{:g}".format
    axis.yaxis.set_major_locator(LogLocator(subs=steps))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: named(value)))


def curve(
    axis: Axes, points: pd.DataFrame, x: str, y: str, *, label: str, place: int
) -> list[Line2D]:
    """Column ``y`` against ``x``: mean over the rows of equal x (the seeds), one std shaded.

    ``place`` chooses colour and marker. Rows where y is NaN are left out.

    Returns:
        The line of the mean, for what else it is to look like; none where no y is known.
    """
    known = points.dropna(subset=[y])
    if known.empty:
        return []
    by_x = known.groupby(x)[y]
    mean, std = by_x.mean(), by_x.std()
    colour = COLOURS[place % len(COLOURS)]
    lines = axis.plot(
        mean.index,
        mean,
        color=colour,
        marker=MARKERS[place % len(MARKERS)],
        markevery=max(1, len(mean) // 12),
        label=label,
    )
    if std.notna().any():
        # On a log axis a band that reaches zero has no lower end to draw.
        low = (mean - std).where(mean - std > 0, mean) if axis.get_yscale() == "log" else mean - std
        axis.fill_between(mean.index, low, mean + std, color=colour, alpha=0.2, linewidth=0)
    return lines


def hollow_below_zero(axis: Axes, points: pd.DataFrame, x: str, y: str, *, place: int) -> None:
    """Where the mean of ``y`` is below zero, its size as a hollow mark: a log axis has no more."""
    mean = points.dropna(subset=[y]).groupby(x)[y].mean()
    below = mean[mean < 0]
    if len(below):
        axis.plot(
            below.index,
            below.abs(),
            linestyle="none",
            marker="o",
            markersize=3,
            markerfacecolor="white",
            color=COLOURS[place % len(COLOURS)],
            label="gap below 0 (size)",
        )


def save_figures(figures: Mapping[str, Figure], folder: Path) -> dict[str, Path]:
    """Each figure as PDF and SVG in ``folder``; the SVG paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, figure in figures.items():
        for kind, date in (("pdf", "CreationDate"), ("svg", "Date")):
            save = partial(figure.savefig, format=kind, metadata={date: None})
            paths[name] = folder / f"{name}.{kind}"
            with style():
                replace_by(paths[name], save)
    return paths
