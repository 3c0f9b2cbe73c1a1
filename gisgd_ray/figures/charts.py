"""Figures as Altair charts: panels of curves from tables, and the files they are kept in.

A series looks the same in all panels of a figure, so that one legend stands above them; a click
there shows a series alone, further ones add to it. A chart displays itself in a notebook.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal, TypeAlias

import altair as alt
import numpy as np
import pandas as pd
import vl_convert

from gisgd_ray.figures import theme
from gisgd_ray.numbers import counted
from gisgd_ray.results.whole_files import replace_file

Chart: TypeAlias = alt.ConcatChart

SOLID, DASHED, DOTTED = (1, 0), (5, 3), (1.5, 2.5)
MOST_MARKS = 12
"""Of a curve, about: where it has more points, some have none."""
DIGITS = ".10~g"
"""Of a number under the pointer."""
ROOM = 62
"""What of a panel's width its axes take, in pixels; the legend begins where the axis stands."""
SYMBOL_WIDTH = 28.0
"""Of a legend's symbol with what is left free about it, in pixels."""
LETTER_WIDTHS = {**dict.fromkeys("fijlrtI.,:;|!'()[] -/", 4.2), **dict.fromkeys("mwMW%@", 10.5)}
"""Of letters in a legend that are narrower or wider than most, which take 7 pixels."""


@dataclass(frozen=True)
class Look:
    """How a series is drawn.

    Attributes:
        colour: one of the theme's, which the page knows to lighten.
        shape: of the marks at its points.
        dash: lengths of strokes and gaps in pixels.
        drawn: a ``line`` through all points, with the deviation, and a thin one for every ``run``
            that the rows name; ``marks``, filled or ``hollow``; or an upright ``rule`` at x.
        right: whether it goes by the axis at the right.
    """

    colour: str
    shape: str = "stroke"
    dash: tuple[float, float] = SOLID
    drawn: Literal["line", "marks", "hollow", "rule"] = "line"
    right: bool = False

    @property
    def kind(self) -> str:
        """What of the layers draw it: as ``drawn``, but ``bare`` a line without marks."""
        return "bare" if (self.drawn, self.shape) == ("line", "stroke") else self.drawn


def marked(place: int, **changes: Any) -> Look:
    """A line with marks, in the theme's colour and shape of this place.

    Once all colours are taken they come again, each with the next shape: 49 pairs.
    """
    again, colour = divmod(place, len(theme.COLOURS))
    shape = theme.SHAPES[(place + again) % len(theme.SHAPES)]
    return Look(theme.COLOURS[colour], shape, **changes)


BELOW_ZERO = "{} below 0 (size)"
"""Names what there is below zero of a series, on a logarithmic axis."""


def mean_over_seeds(points: pd.DataFrame, x: str, y: str, series: str) -> pd.DataFrame:
    """Column ``y`` against ``x``: mean and standard deviation over the rows of equal x.

    Returns:
        Columns ``x``, ``y``, ``std`` (NaN of a single seed), ``series`` and ``marked``, whether
        the point has a mark. Rows where y is NaN are left out.
    """
    by_x = points.dropna(subset=[y]).groupby(x)[y]
    mean = by_x.mean()
    rows = pd.DataFrame({"x": mean.index, "y": mean.to_numpy(), "std": by_x.std().to_numpy()})
    has_mark = np.arange(len(rows)) % max(1, len(rows) // MOST_MARKS) == 0
    return rows.assign(series=series, marked=has_mark)


def below_zero(rows: pd.DataFrame) -> pd.DataFrame:
    """The size of what lies below zero, for a logarithmic axis, which has no more of it."""
    below = rows[rows["y"] < 0]
    names = below["series"].map(BELOW_ZERO.format)
    return below.assign(y=below["y"].abs(), std=np.nan, series=names, marked=True)


def hollow(look: Look) -> Look:
    """How the size of what a series has below zero is drawn."""
    return Look(look.colour, "circle" if look.shape == "stroke" else look.shape, drawn="hollow")


@dataclass(frozen=True)
class Panel:
    """One panel of a figure.

    Attributes:
        rows: ``x``, ``y``, ``series`` and, where there are any, ``std``, ``marked`` and ``run``.
        title: is wrapped; ``more`` are lines of their own.
        x: title of that axis; ``y`` likewise.
    """

    rows: pd.DataFrame
    title: str
    x: str
    y: str
    more: Sequence[str] = ()


def on_log_axis(panel: Panel, looks: Mapping[str, Look]) -> Panel:
    """The panel as a logarithmic axis at the left can show it: no point is left out unsaid.

    What lies below zero is shown by its size, as a series of its own (:func:`below_zero`). Zero
    has no place; a line below the title says how many points are there.
    """
    by_axis = [name for name, look in looks.items() if look.drawn != "rule" and not look.right]
    its, y = panel.rows["series"].isin(by_axis), panel.rows["y"]
    rows = panel.rows.assign(y=y.where(~its | (y > 0)))
    if len(below := below_zero(panel.rows[its])):
        rows = pd.concat([rows, below.assign(run=None) if "run" in rows else below])
    zeros = int((its & (y == 0)).sum())
    told = [f"not shown: {counted(zeros, 'point')} at 0"] if zeros else []
    return replace(panel, rows=rows, more=[*panel.more, *told])


def legend_columns(names: Iterable[str], width: float) -> int:
    """Of a legend in as few rows as such a width has room for, going by the names' letters.

    >>> legend_columns(["a", "b", "c"], 624), legend_columns(["gap" * 25, "b", "c", "d"], 600)
    (3, 2)
    """
    wide = [SYMBOL_WIDTH + sum(LETTER_WIDTHS.get(each, 7.0) for each in name) for name in names]
    for rows in range(1, len(wide)):
        columns = math.ceil(len(wide) / rows)
        if sum(max(wide[place::columns]) for place in range(columns)) <= width:
            return columns
    return 1


def letter(place: int) -> str:
    """Of a panel.

    >>> letter(0), letter(25), letter(26), letter(27 * 26)
    ('a', 'z', 'aa', 'aaa')
    """
    before = letter(place // 26 - 1) if place >= 26 else ""
    return before + ascii_lowercase[place % 26]


def lettered(place: int, title: str, *more: str) -> list[str]:
    """A panel's title with its letter, wrapped, and lines of their own."""
    return [*textwrap.wrap(f"({letter(place)}) {title}", 46), *more]


def figure(
    panels: Sequence[Panel],
    looks: Mapping[str, Look],
    *,
    log: bool = False,
    bars: bool = False,
    right: str = "",
    domain: tuple[float, float] | None = None,
    schemes: Mapping[str, str] | None = None,
    letters: bool = True,
    moves: bool = False,
    height: int = 150,
    width: int = theme.WIDTH,
    **placed: Any,
) -> Chart:
    """Panels of curves, marks and upright lines, each by its series' look.

    Args:
        panels: at least one.
        looks: of every series by its name, in the legend's order; it has those that are there.
        log: whether y at the left is on a logarithmic axis (:func:`on_log_axis`).
        bars: deviations as bars, not as bands.
        right: title of the axis at the right.
        domain: of y; without it that of a panel's rows.
        schemes: where the rows' ``scheme`` has the colours: those, by name.
        letters: whether the titles have them.
        moves: whether a panel can be dragged and enlarged: its y-axis is then that of what it
            shows, ``domain`` what its ticks are for, and the schemes have no legend.
        height: of a panel, in pixels.
        width: of all, into which the legend is wrapped.
        placed: as of :func:`grid`.
    """
    listed = dict(looks)
    if log:
        panels = [on_log_axis(each, looks) for each in panels]
        below = {BELOW_ZERO.format(name): hollow(look) for name, look in looks.items()}
        listed = {**looks, **below, **looks}
    names = {name for each in panels for name in each.rows["series"]}
    looks = {name: look for name, look in listed.items() if name in names} or looks
    drawn = []
    for place, each in enumerate(panels):
        lines = lettered(place, each.title, *each.more) if letters else [each.title, *each.more]
        layers = _Layers(each, looks, schemes, bars=bars, log=log, moves=moves, width=width)
        chart = layers.panel(each.y, right, domain)
        named = {"title": alt.Title(lines)} if any(lines) else {}
        drawn.append(chart.properties(height=height, **named))
    if right:
        placed = {"room": 100, **placed}
    switches = [_SERIES, *([_MOVED] if moves else [_SCHEME] if schemes else [])]
    return grid(drawn, switches=switches, width=width, **placed)


_SERIES = alt.selection_point(name="shown", fields=["series"], bind="legend", toggle="true")
# A page is to be scrolled: nothing but a pinch, or the wheel with Ctrl, enlarges.
_MOVED = alt.selection_interval(name="moved", bind="scales", zoom="wheel![event.ctrlKey]")
_SCHEME = alt.selection_point(name="scheme", fields=["scheme"], bind="legend", toggle="true")


class _Layers:
    """The layers of one panel, and what they share."""

    def __init__(
        self,
        panel: Panel,
        looks: Mapping[str, Look],
        schemes: Mapping[str, str] | None,
        *,
        bars: bool,
        log: bool,
        moves: bool,
        width: int,
    ):
        self.looks, self.bars, self.log, self.moves = looks, bars, log, moves
        columns = ["x", "y", "std", "series", "scheme", "marked", "run"]
        always = ("y", "std", "marked")
        rows = panel.rows.reindex(columns=[c for c in columns if c in panel.rows or c in always])
        # Layers go by kinds, not by names: those may be anything, and a filter is an expression.
        kinds = {name: _side(look.kind, right=look.right) for name, look in looks.items()}
        self.rows = rows.assign(drawn=rows["series"].map(kinds))
        self.spread, self.runs = bool(rows["std"].notna().any()), "run" in rows
        self.x = alt.X("x:Q", title=panel.x, scale=alt.Scale(zero=False, nice=False, padding=8))
        self.shown: Any = _SERIES & _SCHEME if schemes and not moves else _SERIES
        legend = alt.Legend(
            title=None, columns=1 if schemes else legend_columns(looks, width - ROOM)
        )

        def by(channel: Any, field: str, values: Mapping[str, Any]) -> Any:
            scale = alt.Scale(domain=list(values), range=list(values.values()))
            listed = not moves or (field == "series" and len(looks) > 1)
            return channel(f"{field}:N", scale=scale, legend=legend if listed else None)

        self.of = "scheme" if schemes else "series"
        strokes = schemes or {name: look.colour for name, look in looks.items()}
        hollow = {name: "transparent" for name, look in looks.items() if look.drawn == "hollow"}
        self.stroke = by(alt.Stroke, self.of, strokes)
        self.fill = by(alt.Fill, self.of, schemes or {**strokes, **hollow})
        self.dash = by(alt.StrokeDash, "series", {k: list(v.dash) for k, v in looks.items()})
        self.shape = by(alt.Shape, "series", {k: v.shape for k, v in looks.items()})

    def panel(self, y: str, right: str, domain: tuple[float, float] | None) -> alt.LayerChart:
        """All layers, by the axis at the left and the one at the right if there is one."""
        scale: dict[str, Any] = {"type": "log"} if self.log else {"zero": False}
        ticks = alt.Axis()
        if self.log and (domain := domain or _log_domain(self.rows)):
            ticks = alt.Axis(**theme.log_ticks(*domain, beyond=100 if self.moves else 1))
        if self.moves:
            scale |= {"padding": 6, "nice": False}
        elif domain:
            scale |= {"domain": domain, "nice": False}
        chart = self.layers(alt.Y("y:Q", title=y, axis=ticks, scale=alt.Scale(**scale)))
        if right:
            ticks = alt.Axis(orient="right", grid=False, titleAngle=-90)
            other = alt.Y("y:Q", title=right, axis=ticks, scale=alt.Scale(domainMin=0))
            sides = [chart, self.layers(other, right=True)]
            chart = alt.LayerChart(layer=sides).resolve_scale(y="independent")
        return chart.properties(data=inline(self.rows))

    def if_shown(self, value: float, *, marked: bool = False) -> Any:
        """An opacity where the legend has the series switched on."""
        shown = self.shown & alt.datum.marked if marked else self.shown
        return alt.when(shown).then(alt.value(value)).otherwise(alt.value(0 if marked else 0.05))

    def layers(self, y: alt.Y, *, right: bool = False) -> alt.LayerChart:
        """All that goes by this y-axis."""
        there = set(self.rows["series"])
        looks = {name: look for name, look in self.looks.items() if look.right == right}
        # A layer of nothing has no extent, of which Vega complains; all layers of a chart whose
        # rows are still to come.
        present = {look.kind for name, look in looks.items() if name in there}
        present = present or {look.kind for look in looks.values()}

        def of(*kinds: str, runs: bool = False) -> alt.Chart | None:
            """Of the rows those of these kinds, where there are any."""
            its = [_side(kind, right=right) for kind in kinds if kind in present]
            found = alt.Chart().transform_filter(alt.FieldOneOfPredicate("drawn", its))
            found = found.transform_filter(f"isValid(datum.run) == {str(runs).lower()}")
            return found.encode(x=self.x) if its else None

        told = [alt.Tooltip(f"{name}:N") for name in dict.fromkeys((self.of, "series"))]
        told.append(alt.Tooltip("x:Q", title=self.x["title"], format=DIGITS))
        height = alt.Tooltip("y:Q", title=y["title"], format=DIGITS)
        layers: list[alt.Chart] = []
        if self.spread and (lines := of("line", "bare")):
            layers += self._spread(lines, y)
        if rules := of("rule"):
            rule = rules.mark_rule().encode(self.stroke, self.dash, opacity=self.if_shown(1))
            layers.append(rule.encode(tooltip=told))
        if self.runs and (each := of("line", "bare", runs=True)):
            each = each.encode(y=y, detail="run:N")
            thin = each.mark_line(strokeWidth=0.9).encode(self.stroke, opacity=self.if_shown(0.35))
            layers.append(thin)
            layers.append(_unseen(each).encode(tooltip=[*told, height, alt.Tooltip("run:N")]))
        told.append(height)
        if self.spread:
            told.append(alt.Tooltip("std:Q", title="one standard deviation", format=DIGITS))
        if lines := of("line", "bare"):
            line = lines.mark_line(clip=self.moves).encode(self.stroke, self.dash, y=y)
            layers.append(line.encode(opacity=self.if_shown(1)))
        if bare := of("bare"):
            layers.append(_unseen(bare).encode(y=y, tooltip=told))
        if points := of("line", "marks"):
            point = points.mark_point(filled=True, strokeWidth=0, clip=self.moves)
            point = point.encode(y=y, tooltip=told)
            opacity = self.if_shown(1, marked=True)
            layers.append(point.encode(self.fill, self.shape, opacity=opacity))
        if hollow := of("hollow"):
            point = hollow.mark_point(filled=False, size=30, strokeWidth=1.2)
            point = point.encode(y=y, tooltip=told)
            layers.append(point.encode(self.stroke, self.shape, opacity=self.if_shown(1)))
        return alt.LayerChart(layer=layers)

    def _spread(self, lines: alt.Chart, y: alt.Y) -> list[alt.Chart]:
        """Mean and one standard deviation at either side, as a band or as bars."""
        down = "datum.y - datum.std"
        ends = lines.transform_filter("isValid(datum.std)").transform_calculate(
            low=f"datum.std < datum.y ? {down} : datum.y" if self.log else down,
            high="datum.y + datum.std",
        )
        low, high = y.copy(), y.copy()
        low["shorthand"], high["shorthand"] = "low:Q", "high:Q"
        if not self.bars:
            ends = ends.encode(y=low, y2="high:Q", detail="series:N")
            band = ends.mark_area(opacity=1, clip=True).encode(fill=self.fill)
            return [band.encode(fillOpacity=self.if_shown(0.2))]
        ends = ends.encode(stroke=self.stroke, opacity=self.if_shown(1))
        # Without a lower half there is no end of it either.
        below = ends.transform_filter("datum.std < datum.y") if self.log else ends
        caps = [
            of.mark_tick(orient="horizontal", size=6, thickness=1.4).encode(y=end)
            for of, end in ((below, low), (ends, high))
        ]
        return [ends.mark_rule().encode(y=low, y2="high:Q"), *caps]


def _side(kind: str, *, right: bool) -> str:
    return f"{kind} right" if right else kind


def _unseen(points: alt.Chart) -> alt.Chart:
    """Marks that can only be pointed at."""
    shown: alt.Chart = points.mark_point(shape="circle", filled=True, opacity=0)
    return shown


def _log_domain(rows: pd.DataFrame) -> tuple[float, float] | None:
    """What the rows span with their deviations, and a twentieth more at either side."""
    std = rows["std"].fillna(0.0)
    low = float((rows["y"] - std).where(rows["y"] > std, rows["y"]).min())
    high = float((rows["y"] + std).max())
    if not 0 < low <= high < np.inf:
        return None
    margin = max(high / low, 1.5) ** 0.05
    return low / margin, high * margin


def grid(
    panels: Sequence[alt.LayerChart],
    *,
    columns: int = 2,
    title: str = "",
    room: int = ROOM,
    width: int = theme.WIDTH,
    switches: Sequence[alt.Parameter] = (),
) -> Chart:
    """The panels side by side in the width of a page.

    Args:
        panels: at least one.
        columns: that many a row.
        title: above all, if any.
        room: what of a panel's width its axes take, in pixels.
        width: of all.
        switches: selections that the legend makes.
    """
    inner = (width - theme.SPACING * (columns - 1)) / columns - room
    first, *rest = [each.properties(width=inner) for each in panels]
    shown = [first.add_params(*switches), *rest]
    # The page takes other widths.
    placed: dict[str, Any] = {"columns": columns, "usermeta": {"room": room, "width": width}}
    chart = alt.ConcatChart(concat=shown, config=theme.config(), **placed)
    if title:
        chart.title = title
    return chart


def inline(rows: pd.DataFrame) -> alt.InlineData:
    """The rows as data of a chart, all of them; missing and infinite ones as none."""
    found = [
        {str(name): value for name, value in row.items() if not _is_missing(value)}
        for row in rows.to_dict("records")
    ]
    return alt.InlineData(values=found)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not np.isfinite(value))


def save_charts(charts: Mapping[str, Chart], folder: Path) -> dict[str, Path]:
    """Each chart as PDF and SVG in ``folder``; the SVG paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, chart in charts.items():
        svg = _fitted_svg(chart)
        paths[name] = folder / f"{name}.svg"
        replace_file(paths[name], svg.encode())
        replace_file(folder / f"{name}.pdf", vl_convert.svg_to_pdf(svg))
    return paths


def _fitted_svg(chart: Chart) -> str:
    """The chart as wide as asked for: how wide the axes' numbers are shows where they are drawn."""
    svg = static_svg(chart)
    asked = chart.usermeta if isinstance(chart.usermeta, dict) else {}  # one of the user's own
    wide = re.search(r'width="([\d.]+)"', svg)
    over = float(wide[1]) - asked.get("width", theme.WIDTH) if wide else 0.0
    if over <= 0:
        return svg
    narrower = chart.copy()
    for panel in narrower.concat:
        panel.width -= over / min(chart.columns, len(narrower.concat))
    return static_svg(narrower)


def static_svg(chart: Chart) -> str:
    """The chart as a picture, without what only a pointer or a screen reader finds in it."""
    svg = vl_convert.vegalite_to_svg(chart.to_dict())
    svg = re.sub(r'<path [^>]*\bopacity="0"[^>]*>(</path>)?', "", svg)
    svg = re.sub(r' (?:role|aria-[a-z]+)="[^"]*"', "", svg)
    # Numbered on through all charts of a process: the same chart is to be the same file.
    clips: dict[str, str] = {}
    return re.sub(r"\bclip\d+\b", lambda m: clips.setdefault(m[0], f"clip{len(clips)}"), svg)
