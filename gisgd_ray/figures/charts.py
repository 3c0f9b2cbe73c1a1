"""Matplotlib figures as interactive ones: the same artists and numbers, drawn by plotly as SVG.

A figure is defined once, in matplotlib; each of its panels becomes a plotly figure of its own, so
that a page can place them as its width allows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

from gisgd_ray.figures.charts_lines import (
    Entry,
    Place,
    UnsupportedError,
    band_trace,
    dash_of,
    line_trace,
    symbol_of,
)
from gisgd_ray.figures.charts_text import as_html

DIGITS = ".10~g"
"""Of a number under the pointer."""


@dataclass(frozen=True)
class Panel:
    """One pair of axes, with its twin."""

    title: str
    """HTML."""
    height: int
    """Pixels."""
    figure: dict[str, Any]
    """Plotly's: ``data`` and ``layout``. Text in it is escaped."""


@dataclass(frozen=True)
class Chart:
    """A figure: what stands above it, and its panels."""

    title: str
    legend: list[Entry]
    panels: list[Panel]


def convert(figure: Figure) -> Chart:
    """The figure's visible axes, in their order.

    Raises:
        UnsupportedError: something in them has no counterpart here.
    """
    entries = [entry for legend in figure.legends for entry in _entries(legend)]
    groups: list[list[Axes]] = []
    for axes in figure.axes:
        if not axes.get_visible():
            continue
        base = next((group for group in groups if _twins(group[0], axes)), None)
        if base is None:
            groups.append([axes])
        else:
            base.append(axes)
    suptitle = figure.get_suptitle()
    return Chart(as_html(suptitle), entries, [_panel(group, entries) for group in groups])


def _twins(first: Axes, second: Axes) -> bool:
    where = first.get_subplotspec()
    if where is None or where != second.get_subplotspec():
        return False
    if not first.get_shared_x_axes().joined(first, second):
        raise UnsupportedError("axes that share a place, and not the x-axis")
    return True


def _panel(group: Sequence[Axes], entries: list[Entry]) -> Panel:
    if len(group) > 2:
        raise UnsupportedError("more than two axes in one place")
    first = group[0]
    legends = [legend for axes in group if (legend := axes.get_legend()) is not None]
    listed = frozenset(text.get_text() for legend in legends for text in legend.get_texts())
    traces: list[tuple[float, dict[str, Any]]] = []
    for i, axes in enumerate(group):
        found = _traces(Place(axes, bool(i), listed, entries))
        traces += [(i * 1000 + z, trace) for z, trace in found]
    layout: dict[str, Any] = {
        "xaxis": _axis(first.xaxis, first.get_xlim()),
        "yaxis": _axis(first.yaxis, first.get_ylim()),
        "showlegend": bool(listed),
        "hovermode": "closest",
    }
    if len(group) == 2:
        layout["yaxis2"] = _axis(group[1].yaxis, group[1].get_ylim()) | {
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "tickmode": "auto",
        }
    titles = [axes.get_title(loc) for axes in group for loc in ("left", "center", "right")]
    ordered = [trace for _, trace in sorted(traces, key=lambda pair: pair[0])]
    rows = len(layout["yaxis"].get("ticktext", ()))
    height = max(340 if listed else 300, 26 * rows + 90)
    return Panel(
        "<br>".join(as_html(t) for t in titles if t), height, {"data": ordered, "layout": layout}
    )


def _axis(axis: Axis, limits: tuple[float, float]) -> dict[str, Any]:
    """Scale, range as drawn (inverted where it is), title and ticks set by hand."""
    low, high = map(float, limits)
    scale = axis.get_scale()
    shown: dict[str, Any] = {
        "title": {"text": as_html(axis.get_label_text())},
        "hoverformat": DIGITS,
        "automargin": True,
        "zeroline": False,
    }
    if scale == "log":
        shown |= {"type": "log", "range": [math.log10(low), math.log10(high)]}
        decades = abs(math.log10(high / low))
        if decades > 3:
            shown |= {"dtick": max(1, round(decades / 6)), "exponentformat": "power"}
        else:
            # plotly's own would leave out the powers of ten: 1, 5, 2 for 1, 0.5, 0.2.
            ticks = _log_ticks(min(low, high), max(low, high), decades)
            shown |= {"tickmode": "array", "tickvals": ticks}
            shown["ticktext"] = [f"{tick:g}" for tick in ticks]
    elif scale == "linear":
        shown |= {"type": "linear", "range": [low, high]}
    else:
        raise UnsupportedError(f"an axis of scale {scale}")
    if texts := _fixed(axis):
        shown |= {"tickmode": "array", "tickvals": list(texts), "ticktext": list(texts.values())}
        del shown["hoverformat"]
    return shown


def _log_ticks(low: float, high: float, decades: float) -> list[float]:
    """The more, the fewer decades there are."""
    steps = (1.0, 2.0, 5.0) if decades >= 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _fixed(axis: Axis) -> dict[float, str]:
    """Tick labels set by hand, by their place."""
    locator = axis.get_major_locator()
    if not isinstance(locator, FixedLocator):
        return {}
    places = [float(place) for place in locator()]
    texts = axis.get_major_formatter().format_ticks(places)
    return dict(zip(places, map(as_html, texts), strict=True))


def _traces(place: Place) -> list[tuple[float, dict[str, Any]]]:
    """Everything drawn on one pair of axes, with its z-order."""
    axes = place.axes
    if axes.patches or axes.images or axes.texts or axes.tables or axes.artists:
        raise UnsupportedError("patches, images, texts or tables")
    bars: dict[Line2D, ErrorbarContainer] = {}
    parts: set[Any] = set()
    for container in axes.containers:
        if not isinstance(container, ErrorbarContainer) or container.lines[0] is None:
            raise UnsupportedError(type(container).__name__)
        line, caps, sticks = container.lines
        bars[line] = container
        parts |= {*caps, *sticks}
    found: list[tuple[float, dict[str, Any]]] = []
    bands: list[tuple[str, dict[float, tuple[float, float]]]] = []
    for collection in axes.collections:
        if collection in parts or not collection.get_visible():
            continue
        if isinstance(collection, LineCollection) or not isinstance(collection, PolyCollection):
            raise UnsupportedError(type(collection).__name__)
        if len(collection.get_paths()) == 0:
            continue
        trace, ends = band_trace(collection, place)
        found.append((collection.get_zorder(), trace))
        bands.append((trace["fillcolor"]["rgb"], ends))
        trace["fillcolor"] = trace["fillcolor"]["rgba"]
    for line in axes.lines:
        if line in parts or not line.get_visible() or not np.size(line.get_xdata()):
            continue
        found.append((line.get_zorder(), line_trace(line, place, bars.get(line), bands)))
    return found


def _entries(legend: Legend) -> list[Entry]:
    found = []
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        if not isinstance(handle, Line2D):
            raise UnsupportedError("a legend of something else than lines")
        colour = colors.to_hex(handle.get_color())
        found.append(Entry(as_html(text.get_text()), colour, dash_of(handle), symbol_of(handle)))
    return found
