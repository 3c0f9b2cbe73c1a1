"""The sweep's HTML page: one self-contained file, to be put in front of a co-author.

What the page says of this sweep is decided here and by the two tables of bounds, as plain strings;
``page.html`` places and escapes them, ``page.css`` and ``page*.js`` are put into it. Figures are
drawn by Vega-Lite, whose scripts are part of the page, from the specifications of Altair's charts;
the SVG files go in as ``<img>`` data URIs, for print and where no script runs.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import vl_convert
from latex2mathml.converter import convert as mathml
from markupsafe import Markup, escape

from gisgd_ray.claims.claim import HOW_JUDGED
from gisgd_ray.claims.statistics import Verdict
from gisgd_ray.figures import theme
from gisgd_ray.figures.charts import Chart
from gisgd_ray.report.bounds_table import (
    column_groups,
    coverage,
    exceeded,
    key_columns,
    seed_rows,
    table_columns,
    trial_label,
    trial_rows,
)
from gisgd_ray.report.comparison import compare
from gisgd_ray.report.contents import Report
from gisgd_ray.report.page_cautions import find_cautions, without_machine
from gisgd_ray.report.page_curves import Curves, listed_trials, panels, read_curves
from gisgd_ray.report.page_facts import (
    configuration,
    cost_facts,
    data_facts,
    distinct,
    first,
    nowhere,
    present,
)
from gisgd_ray.results.tables import records
from gisgd_ray.results.whole_files import replace_file
from gisgd_ray.theory.quantities import NOTATION, QUANTITIES

HERE = Path(__file__).parent

VERDICTS: dict[Verdict, tuple[str, str]] = {
    "holds": ("hold", "✓"),
    "undecided": ("undecided", "?"),
    "single run": ("single runs", "•"),
    "fails": ("fail", "✗"),
}
"""Each verdict, as it is said of several claims, and its mark."""


@dataclass(frozen=True)
class Shown:
    """A figure of the page."""

    name: str
    uri: str
    """The static picture."""
    caption: str
    spec: dict[str, Any] | None
    """Vega-Lite's; None where only the static picture is shown."""


def write_page(
    report: Report, charts: Mapping[str, Chart], *, price_per_hour: float | None = None
) -> None:
    """Write ``report.html`` beside the tables, replacing it as a whole.

    Args:
        charts: the figures themselves, by the names of the report's: the page shows those
            interactively.
        price_per_hour: of one trial's share of a machine, for every hour that the trial trains or
            measures, in whatever money; without it the page tells no cost.
    """
    shown = _figures(report, charts)
    text = (
        _environment()
        .get_template("page.html")
        .render(
            **_what_was_run(report),
            **_bounds(report),
            **_curves(report, shown),
            cost=cost_facts(report.trials, price_per_hour),
            figures=shown,
            paper_tables=report.tables,
            claims=report.claims,
            own=report.sweep.own,
            verdicts=VERDICTS,
            how_judged=HOW_JUDGED,
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            style=_part("page.css") + theme.css(),
        )
    )
    # A surrogate in an error message must not cost the page.
    replace_file(report.page, text.encode(errors="backslashreplace"))


def _paths(report: Report) -> list[str]:
    """The fields that tell the trials apart."""
    return [*report.points, "seed"] if report.over_seeds else report.points


def _what_was_run(report: Report) -> dict[str, Any]:
    facts = {key: _shareable(text) for key, text in report.facts.items()}
    return {
        "item": report.sweep.item,
        "name": report.sweep.name,
        "lead": report.sweep.description,
        "status": status_line(report.trials, report.planned),
        "scale": facts.get("scale", ""),
        "command": facts.pop("command", "").replace("…/", ""),  # to be typed
        "facts": facts,
        "seeds": first(distinct(report.trials, "seed"), 12),
        "configuration": configuration(report.trials, report.swept),
        "data": data_facts(report.trials),
        "versions": report.versions,
        "cautions": find_cautions(report.trials, _paths(report)),
    }


def _bounds(report: Report) -> dict[str, Any]:
    """What was measured: ours against Neu et al.'s, and trial by trial."""
    trials, points, paths = report.trials, report.points, _paths(report)
    columns, measured = table_columns(trials), present(trials)
    known = [q for q in QUANTITIES.values() if q.name in measured]
    return {
        "dispersion_off": nowhere(trials, "measurement.dispersion"),
        "columns": columns,
        "groups": column_groups(columns),
        "present": measured,
        "notation": NOTATION,
        "explained": [q for q in known if q.latex],
        "methods": [
            (q, first(distinct(trials, q.name), 3))
            for q in known
            if q.kind == "text" and q.name.startswith("measure/")
        ],
        "comparison": compare(trials, points, over_seeds=report.over_seeds),
        "keys": key_columns(trials, paths),
        "rows": trial_rows(trials, columns, paths),
        "point_keys": key_columns(trials, points),
        "seed_rows": seed_rows(trials, columns, points) if report.over_seeds else [],
        "coverage": coverage(trials),
        "exceeded": exceeded(trials),
        "estimators": distinct(trials, "measure/hessian_trace_estimator"),
    }


def _curves(report: Report, figures: Sequence[Shown]) -> dict[str, Any]:
    """The trials' curves, and what draws them and the figures."""
    curves, listed = read_curves(report.results, report.trials), []
    if curves is not None:
        labels = [trial_label(row, _paths(report)) for row in records(report.trials)]
        listed = listed_trials(report.trials, labels, curves)
    return {
        "curves": curves,
        "listed": listed,
        "open_at": {trial.trial_id: trial.place for trial in listed if trial.place is not None},
        "scripts": _scripts(figures, curves),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = tight
    environment.filters["subscripts"] = subscripts
    environment.filters["mathml"] = lambda latex: Markup(mathml(latex, display="block"))
    environment.filters["sort_key"] = sort_key
    environment.filters["script_json"] = script_json
    return environment


def _figures(report: Report, charts: Mapping[str, Chart]) -> list[Shown]:
    finished = int((report.trials["status"] == "finished").sum())
    rest = f"{report.sweep.item} as measured by this run, from {finished} finished trials."
    found = []
    for name, path in report.figures.items():
        spec = theme.on_page(charts[name].to_dict()) if name in charts else None
        found.append(Shown(name, _data_uri(path), report.sweep.captions.get(name, rest), spec))
    return found


def _scripts(figures: Sequence[Shown], curves: Curves | None) -> list[tuple[str, Markup]]:
    """What the page runs and draws from, in its order: type and text of each script."""
    scripts = [("text/javascript", _part("page.js"))]
    specs = {figure.name: figure.spec for figure in figures if figure.spec is not None}
    if specs or curves is not None:
        data: dict[str, Any] = {
            "figures": specs,
            "config": theme.PAGE,
            "colours": [theme.VARIABLES[colour] for colour in theme.COLOURS],
            "curves": None,
        }
        if curves is not None:
            data["curves"] = {
                "columns": [asdict(column) for column in curves.columns],
                "panels": panels(curves),
                "trials": curves.trials,
            }
        # Modules, for the names in them are their own. The library's text closes no script.
        scripts += [
            ("application/json", script_json(data)),
            ("module", Markup(library())),
            ("module", _part("page_charts.js")),
            ("module", _part("page_curves.js")),
        ]
    return scripts


@lru_cache(maxsize=1)
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets ``vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _part(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _shareable(text: str) -> str:
    """A fact without this machine's folders; a script of the checkout keeps its folder there.

    >>> _shareable("python /home/ada/gisgd-ray/sweeps/clipping.py --out /data/x --seeds 2")
    'python sweeps/clipping.py --out …/x --seeds 2'
    """
    return without_machine(re.sub(r"(?<![\w/])/[^\s'\"]*/(?=sweeps/\w+\.py)", "", text))


def tight(text: str) -> str:
    """A sentence with numbers in it, so spaced that no line ends inside ``n = 12`` or ``1e−05``."""
    text = re.sub(r" = | %", lambda match: match.group().replace(" ", "\N{NO-BREAK SPACE}"), text)
    return re.sub(r"(?<=[ e(=\N{NO-BREAK SPACE}])-(?=\d)", "−", text)


def sort_key(value: float | None) -> str:
    """A cell's number for the page's script, to nine digits; empty where it has none.

    >>> sort_key(0.1 + 0.2), sort_key(float("-inf")), sort_key(None)
    ('0.3', '-Infinity', '')
    """
    if value is None:
        return ""
    return f"{value:.9g}".replace("inf", "Infinity")


def subscripts(text: str) -> Markup:
    """A sentence with its subscripts set as such.

    >>> str(subscripts("W_{t-1} & L_μ of term/x_y"))
    'W<sub>t-1</sub> &amp; L<sub>μ</sub> of term/x_y'
    """
    return Markup(
        re.sub(r"(?<![\w/])([^\W_])_(?:\{([^}]*)\}|(\w)\b)", _subscript, str(escape(text)))
    )


def _subscript(match: re.Match[str]) -> str:
    return f"{match[1]}<sub>{match[2] or match[3]}</sub>"


def status_line(trials: pd.DataFrame, planned: int) -> str:
    """How the trials ended, in one line: "11 of 12 trials finished, 1 diverged"."""
    counts = trials["status"].value_counts()
    parts = [f"{counts.get('finished', 0)} of {planned} trials finished"]
    parts += [f"{counts[s]} {s}" for s in ("diverged", "failed") if s in counts]
    if len(trials) < planned:
        parts.append(f"stopped early: {planned - len(trials)} have not run to their end")
    return ", ".join(parts)


def _data_uri(svg: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def script_json(value: Any) -> Markup:
    r"""Compact ASCII JSON in which nothing can end the script; NaN and infinities are null.

    >>> print(script_json({"a": [1.5, float("nan"), "</script>\u2028"]}))
    {"a":[1.5,null,"\u003c/script\u003e\u2028"]}
    """
    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
