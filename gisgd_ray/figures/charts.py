"""Matplotlib figures as interactive ones: the same artists and numbers, drawn by plotly as SVG.

A figure is defined once, in matplotlib; each of its panels becomes a plotly figure of its own, so
that a page can place them as its width allows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
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

from gisgd_ray.figures.charts_text import as_html

DIGITS = ".10~g"
"""Of a number under the pointer."""

PX = 4 / 3
"""Pixels of a point."""

DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
MARKERS = {
    "o": "circle",
    ".": "circle",
    ",": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "d": "diamond-tall",
    "P": "cross",
    "X": "x",
    "*": "star",
    "p": "pentagon",
    "h": "hexagon",
    "+": "cross-thin-open",
    "x": "x-thin-open",
    "|": "line-ns-open",
    "_": "line-ew-open",
}
STEPS = {"steps": "vh", "steps-pre": "vh", "steps-post": "hv", "steps-mid": "hvh"}


class UnsupportedError(Exception):
    """The figure holds something that has no counterpart here; it is shown as it is."""


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
class Entry:
    """A line of a legend that all panels share."""

    label: str
    """HTML."""
    colour: str
    dash: str
    """Empty where there is no line."""
    symbol: str
    """Plotly's; empty without a marker."""


@dataclass(frozen=True)
class Chart:
    """A figure: what stands above it, and its panels."""

    title: str
    legend: list[Entry]
    panels: list[Panel]


@dataclass(frozen=True)
class Place:
    """Where traces go: axes, and which of plotly's they belong to."""

    axes: Axes
    second: bool
    listed: frozenset[str]
    """Labels in the panel's legend."""
    entries: Sequence[Entry] = field(default=())
    """The legend of the whole figure, for the names of lines without a label."""


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
        trace, ends = _band_trace(collection, place)
        found.append((collection.get_zorder(), trace))
        bands.append((trace["fillcolor"]["rgb"], ends))
        trace["fillcolor"] = trace["fillcolor"]["rgba"]
    for line in axes.lines:
        if line in parts or not line.get_visible() or not np.size(line.get_xdata()):
            continue
        found.append((line.get_zorder(), _line_trace(line, place, bars.get(line), bands)))
    return found


def _entries(legend: Legend) -> list[Entry]:
    found = []
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        if not isinstance(handle, Line2D):
            raise UnsupportedError("a legend of something else than lines")
        colour = colors.to_hex(handle.get_color())
        found.append(Entry(as_html(text.get_text()), colour, _dash_of(handle), _symbol_of(handle)))
    return found


def _line_trace(
    line: Line2D,
    place: Place,
    bars: ErrorbarContainer | None,
    bands: Sequence[tuple[str, dict[float, tuple[float, float]]]],
) -> dict[str, Any]:
    colour = colors.to_hex(line.get_color())
    label = str((bars or line).get_label())
    x, y, pinned = _points(line, place.axes)
    trace: dict[str, Any] = {"type": "scatter", "x": _numbers(x), "y": _numbers(y)}
    trace |= _name(label, colour, line, place)
    trace |= _strokes(line, colour)
    notes = [""] * len(x)
    if bars is not None:
        for axis, ends in _bar_ends(bars, len(x)).items():
            values = x if axis == "x" else y
            trace[f"error_{axis}"] = {
                "type": "data",
                **_bar(ends[:, 1] - values, values - ends[:, 0]),
                "color": colour,
                "thickness": 1.4,
                "width": 3,
            }
    ends_of = [ends for of, ends in bands if of == colour]
    for i, (at, value) in enumerate(zip(x, y, strict=True)):
        between = next((e[at] for e in ends_of if at in e and e[at][0] <= value <= e[at][1]), None)
        if between is not None:
            notes[i] += f" (shaded: {between[0]:.6g} to {between[1]:.6g})".replace("-", "−")
    if any(notes):
        trace["customdata"] = notes
    trace["hovertemplate"] = _hover(place, trace, pinned)
    if place.second:
        trace["yaxis"] = "y2"
    return trace


def _points(line: Line2D, axes: Axes) -> tuple[np.ndarray, np.ndarray, str]:
    """The line's points in data coordinates, and along which axis it is tied to the panel.

    A line across the panel (``axvline``, ``axhline``) gets points all along, to be pointed at.
    """
    x, y = _values(line.get_xdata(orig=False)), _values(line.get_ydata(orig=False))
    in_data = line.get_transform().contains_branch_seperately(axes.transData)
    if not any(in_data):
        raise UnsupportedError("a line that is in no data coordinates")
    if all(in_data):
        return x, y, ""
    pinned = "y" if in_data[0] else "x"
    if len(x) == 2 and line.get_linestyle() in DASHES:
        x, y = np.linspace(x[0], x[1], 33), np.linspace(y[0], y[1], 33)
    low, high = axes.get_ylim() if pinned == "y" else axes.get_xlim()
    fractions = y if pinned == "y" else x
    if (axes.get_yscale() if pinned == "y" else axes.get_xscale()) == "log":
        along = low * (high / low) ** fractions
    else:
        along = low + (high - low) * fractions
    return (x, along, pinned) if pinned == "y" else (along, y, pinned)


def _name(label: str, colour: str, line: Line2D, place: Place) -> dict[str, Any]:
    """Its label; without one, what the figure's legend says of its colour and of its style."""
    if label and not label.startswith("_"):
        name = as_html(label)
        return {"name": name, "legendgroup": name, "showlegend": label in place.listed}
    drawn = {colors.to_hex(line.get_color()) for line in place.axes.lines}
    names = [entry.label for entry in place.entries if entry.colour == colour]
    dash, symbol = _dash_of(line), _symbol_of(line)
    for entry in place.entries:  # those in no line's colour are of styles
        if entry.colour not in drawn and (entry.dash, entry.symbol) == (dash, symbol):
            names.append(entry.label)
    return {"name": ", ".join(dict.fromkeys(names)), "showlegend": False}


def _strokes(line: Line2D, colour: str) -> dict[str, Any]:
    """Line, markers and opacity."""
    dash, symbol = _dash_of(line), _symbol_of(line)
    shown: dict[str, Any] = {"mode": "+".join(["lines"] * bool(dash) + ["markers"] * bool(symbol))}
    shown["mode"] = shown["mode"] or "none"
    if dash:
        shown["line"] = {
            "color": colour,
            "dash": dash,
            "width": round(line.get_linewidth() * PX, 2),
        }
        if (style := line.get_drawstyle()) in STEPS:
            shown["line"]["shape"] = STEPS[style]
    if symbol:
        size = line.get_markersize() * PX * (0.5 if line.get_marker() == "." else 1)
        shown["marker"] = {"color": colour, "symbol": symbol, "size": round(size, 2)}
        if symbol.endswith("-open"):
            shown["marker"]["line"] = {"width": 1.6, "color": colour}
        every = line.get_markevery()
        if isinstance(every, int) and every > 1:
            shown["marker"]["maxdisplayed"] = -(-np.size(line.get_xdata()) // every)
        elif every is not None and every != 1:
            raise UnsupportedError(f"markevery = {every!r}")
    if (alpha := line.get_alpha()) is not None:
        shown["opacity"] = float(alpha)
    return shown


def _dash_of(line: Line2D) -> str:
    style = line.get_linestyle()
    if style in ("None", "none", "", " "):
        return ""
    return DASHES.get(str(style), "dash")


def _symbol_of(line: Line2D) -> str:
    marker = line.get_marker()
    if marker in (None, "None", "none", "", " "):
        return ""
    if marker not in MARKERS:
        raise UnsupportedError(f"marker {marker!r}")
    symbol = MARKERS[marker]
    filling: Any = line.get_markerfacecolor()
    face = colors.to_rgba(filling)
    hollow = face[3] == 0 or face[:3] == (1.0, 1.0, 1.0)
    return f"{symbol}-open" if hollow and not symbol.endswith("-open") else symbol


def _bar_ends(bars: ErrorbarContainer, count: int) -> dict[str, np.ndarray]:
    """Both ends of every point's bar, NaN where it has none; by axis."""
    names = ["x"] * bool(bars.has_xerr) + ["y"] * bool(bars.has_yerr)
    found = {}
    for name, sticks in zip(names, bars.lines[2], strict=True):
        segments = sticks.get_segments()
        if len(segments) != count:
            raise UnsupportedError("bars of some points only")
        ends = np.full((count, 2), np.nan)
        for i, segment in enumerate(segments):
            if len(segment) == 2:
                ends[i] = np.sort(np.asarray(segment)[:, 0 if name == "x" else 1])
        found[name] = ends
    return found


def _bar(plus: np.ndarray, minus: np.ndarray) -> dict[str, Any]:
    """Lengths of the bars; where both sides are equal they are told as ±."""
    if np.allclose(plus, minus, rtol=1e-6, atol=1e-12, equal_nan=True):
        return {"symmetric": True, "array": _numbers(plus)}
    return {"symmetric": False, "array": _numbers(plus), "arrayminus": _numbers(minus)}


def _band_trace(
    collection: PolyCollection, place: Place
) -> tuple[dict[str, Any], dict[float, tuple[float, float]]]:
    """A shaded band: its outline, and its two ends at every x."""
    outline: list[np.ndarray] = []
    ends: dict[float, tuple[float, float]] = {}
    for path in collection.get_paths():
        points = np.asarray(path.vertices, dtype=float)
        outline += [points, np.full((1, 2), np.nan)]
        for x, y in points:
            low, high = ends.get(float(x), (float(y), float(y)))
            ends[float(x)] = (min(low, float(y)), max(high, float(y)))
    if collection.get_transform().contains_branch_seperately(place.axes.transData) != (True, True):
        raise UnsupportedError("a band that is not in data coordinates")
    every = np.concatenate(outline[:-1])
    shades: Any = collection.get_facecolor()
    red, green, blue, alpha = colors.to_rgba(shades[0])
    label = str(collection.get_label())
    trace = {
        "type": "scatter",
        "x": _numbers(every[:, 0]),
        "y": _numbers(every[:, 1]),
        "mode": "lines",
        "fill": "toself",
        "fillcolor": {
            "rgb": colors.to_hex((red, green, blue)),
            "rgba": f"rgba({red * 255:.0f},{green * 255:.0f},{blue * 255:.0f},{alpha:g})",
        },
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": label in place.listed,
    }
    if not label.startswith("_"):
        trace["name"] = as_html(label)
    if place.second:
        trace["yaxis"] = "y2"
    return trace, ends


def _hover(place: Place, trace: dict[str, Any], pinned: str) -> str:
    """Name, x and y in full; plotly adds the bar."""
    lines = ["<b>%{fullData.name}</b>"] if trace["name"] else []
    for name, axis in (("x", place.axes.xaxis), ("y", place.axes.yaxis)):
        if name == pinned:
            continue
        label = as_html(axis.get_label_text()).replace("<br>", " ")
        lines.append(f"{label or name}: %{{{name}}}")
    if "customdata" in trace:
        lines[-1] += "%{customdata}"
    return "<br>".join(lines) + "<extra></extra>"


def _values(values: Any) -> np.ndarray:
    """As floats; what is masked is NaN."""
    plain: np.ndarray = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan)
    return plain


def _numbers(values: np.ndarray) -> list[float | None]:
    """Exactly as drawn; null where nothing is."""
    return [float(value) if math.isfinite(value) else None for value in values]
