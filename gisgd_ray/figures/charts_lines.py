"""Lines and bands of matplotlib axes as plotly's traces; see :mod:`gisgd_ray.figures.charts`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D

from gisgd_ray.figures.charts_text import as_html

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
class Place:
    """Where traces go: axes, and which of plotly's they belong to."""

    axes: Axes
    second: bool
    listed: frozenset[str]
    """Labels in the panel's legend."""
    entries: Sequence[Entry] = field(default=())
    """The legend of the whole figure, for the names of lines without a label."""


def line_trace(
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
    dash, symbol = dash_of(line), symbol_of(line)
    for entry in place.entries:  # those in no line's colour are of styles
        if entry.colour not in drawn and (entry.dash, entry.symbol) == (dash, symbol):
            names.append(entry.label)
    return {"name": ", ".join(dict.fromkeys(names)), "showlegend": False}


def _strokes(line: Line2D, colour: str) -> dict[str, Any]:
    """Line, markers and opacity."""
    dash, symbol = dash_of(line), symbol_of(line)
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


def dash_of(line: Line2D) -> str:
    style = line.get_linestyle()
    if style in ("None", "none", "", " "):
        return ""
    return DASHES.get(str(style), "dash")


def symbol_of(line: Line2D) -> str:
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


def band_trace(
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
