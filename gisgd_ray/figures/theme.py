"""How every figure looks: width, fonts, colours that any colour vision tells apart, ticks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gisgd_ray.numbers import format_noise_std, format_number

WIDTH = 624
"""Of a figure in print: 6.5 in, with 96 pixels an inch as everywhere here."""

SPACING = 18
"""Between panels."""

# Okabe and Ito's; shapes repeat the distinction.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-left")
GREY = "#555555"

ON_DARK = {
    "#0072B2": "#4FA6DA",
    "#D55E00": "#F0813A",
    "#009E73": "#2FBF94",
    "#CC79A7": "#DB98BE",
    "#E69F00": "#EBB13A",
    "#56B4E9": "#7CC6F0",
    "#000000": "#EBEBEB",
    GREY: "#B4B8C0",
}
"""The colours as they stand out from a dark page."""

VARIABLES = {colour: f"var(--series-{i})" for i, colour in enumerate(ON_DARK)}
"""The page's name of each colour, which is another one on a dark screen."""

FONT = "DejaVu Sans, Liberation Sans, sans-serif"
"""The first has raised minus signs; the second is part of what draws the files."""

PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"


def config(
    *,
    ink: str = "#1b1d21",
    line: str = "#e2e4e8",
    grey: str = GREY,
    font: str = FONT,
    small: float = 10.67,
    normal: float = 12,
    background: str | None = "#ffffff",
) -> dict[str, Any]:
    """Vega-Lite's configuration: text of 9 points, legends of 8."""
    text = {"labelColor": ink, "titleColor": ink, "titleFontWeight": "normal"}
    return {
        "background": background,
        "font": font,
        "view": {"stroke": None},
        "axis": {
            **text,
            "labelFontSize": small,
            "labelSeparation": 5,
            "titleFontSize": normal,
            "titlePadding": 6,
            "domainColor": ink,
            "tickColor": ink,
            "gridColor": line,
            "labelOverlap": True,
        },
        "axisY": {"minExtent": 30},
        "axisRight": {"grid": False},
        "title": {"color": ink, "fontSize": small, "fontWeight": "normal", "anchor": "middle"},
        "legend": {
            **text,
            "orient": "top",
            "offset": 6,
            "direction": "horizontal",
            "labelFontSize": small,
            "labelLimit": 0,
            "symbolStrokeWidth": 2,
            "symbolSize": 90,
            "symbolBaseFillColor": grey,
            "symbolBaseStrokeColor": grey,
        },
        "concat": {"spacing": SPACING},
        "line": {"strokeWidth": 1.9, "strokeCap": "butt"},
        "rule": {"strokeWidth": 1.6},
        "point": {"filled": True, "size": 42, "opacity": 1},
    }


PAGE = config(
    ink="var(--ink)",
    line="var(--line)",
    grey=VARIABLES[GREY],
    font=PAGE_FONT,
    small=12,
    normal=13,
    background=None,
)
"""The configuration in the page's colours."""


def on_page(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A chart's specification in the page's colours: light or dark is then the style sheet's."""
    shown: dict[str, Any] = _recoloured({k: v for k, v in spec.items() if k != "config"})
    return shown


def _recoloured(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: v if k == "datasets" else _recoloured(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_recoloured(each) for each in value]
    return VARIABLES.get(value, value) if isinstance(value, str) else value


def css() -> str:
    """The page's colours: light, dark, and light in print."""
    light, dark = (
        "".join(f"--series-{i}:{colour};" for i, colour in enumerate(colours))
        for colours in (ON_DARK, ON_DARK.values())
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def log_ticks(low: float, high: float, *, beyond: float = 1) -> dict[str, Any]:
    """Ticks of a logarithmic axis and their labels: the more, the fewer decades there are.

    Over three decades and more the powers of ten alone; those of an axis are written alike. Of an
    axis that moves there are ticks ``beyond`` its ends, by that factor.

    >>> log_ticks(0.15, 1.2)["values"], log_ticks(2, 6.0)["values"], log_ticks(1e-9, 2)["values"]
    ([0.2, 0.5, 1.0], [2.0, 3.0, 4.0, 5.0, 6.0], [1e-09, 1e-07, 1e-05, 0.001, 0.1])
    """
    decades = math.log10(high / low)
    steps: Sequence[float] = (1.0,)
    if decades < 3:
        steps = (1.0, 2.0, 5.0) if decades > 0.8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    every = max(1, round(decades / 6)) if len(steps) == 1 else 1
    extreme = low < 1e-4 or high > 1e5
    low, high = low / beyond, high * beyond
    first = math.ceil(math.log10(low)) if len(steps) == 1 else math.floor(math.log10(low))
    powers = range(first, math.floor(math.log10(high)) + 1, every)
    ticks = [float(f"{step:g}e{power}") for power in powers for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    # 100000 and 1e-05 read badly.
    named = format_noise_std if len(steps) == 1 else format_number
    plain = [not extreme and 1e-4 <= tick <= 1e5 for tick in ticks]
    labels = [f"{t:,g}" if p else named(t) for t, p in zip(ticks, plain, strict=True)]
    return {"values": ticks, "labelExpr": f"{labels}[indexof({ticks}, datum.value)]"}
