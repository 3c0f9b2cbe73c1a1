"""The curves of every trial along training, small enough to be part of a page."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from gisgd_ray.errors import UserError
from gisgd_ray.figures import charts, theme
from gisgd_ray.numbers import DASH, format_number, known, suffixes
from gisgd_ray.report.bounds_table import DISPERSIONS
from gisgd_ray.results.tables import ResultTables, records
from gisgd_ray.theory.quantities import QUANTITIES, Group, Panel, symbol
from gisgd_ray.training.terms import LEMMA2, LEMMA2_FLOOR, THEOREM2

MOST_POINTS = 200
"""Of a trial's curve."""
FEWEST_POINTS = 12
MOST_VALUES = 260_000
"""In the page: some nine bytes each."""

SPREAD = 30
"""Above this ratio of the largest to the smallest value of a panel its axis is logarithmic."""

DASHES = (charts.SOLID, (6, 3), (2, 2), (6, 2, 2, 2), (10, 3))

AT_NOISE = (THEOREM2, LEMMA2, LEMMA2_FLOOR)
"""Bounds' terms that have a panel for every noise std."""


@dataclass(frozen=True)
class Column:
    """One curve of every trial."""

    name: str
    label: str
    panel: str


@dataclass(frozen=True)
class Curves:
    """What the page draws from, and what is to be said of it."""

    columns: list[Column]
    trials: list[dict[str, Any]]
    """Of each: ``id``, ``x`` (steps) and ``y``, a list for each column: values at ``x``; ``[x, y]``
    where it is known at few steps; null where it is not known."""
    points: int
    """At most so many of a trial."""
    thinned: int
    """Trials of which points were left out."""
    omitted: int
    """Trials that have no place at all."""


def read_curves(tables: ResultTables, trials: pd.DataFrame) -> Curves | None:
    """The curves of the trials that have any; None without a history."""
    try:
        history = tables.history
    except UserError:
        return None
    if history.empty or not {"trial_id", "step"} <= set(history.columns):
        return None
    order = [str(trial_id) for trial_id in trials["trial_id"]]
    history = history[history["trial_id"].isin(set(order))]
    columns = curve_columns(history)
    if not columns:
        return None
    most = max(1, MOST_VALUES // (FEWEST_POINTS * (len(columns) + 1)))
    runs = {str(name): run for name, run in history.groupby("trial_id", sort=False)}
    shown = [name for name in order if name in runs][:most]
    points = min(MOST_POINTS, MOST_VALUES // (max(1, len(shown)) * (len(columns) + 1)))
    found = [_trial(name, runs[name].sort_values("step"), columns, points) for name in shown]
    return Curves(
        columns=columns,
        trials=found,
        points=points,
        thinned=sum(len(runs[name]) > points for name in shown),
        omitted=len(runs) - len(shown),
    )


def panels(curves: Curves) -> list[dict[str, Any]]:
    """The panels of the curves: title, places of the columns, and two charts without data.

    ``single`` is for one trial, a colour for each curve; ``several`` for more of them, a colour for
    each, which the page sets in the place of "".
    """
    places: dict[str, list[int]] = {}
    for place, column in enumerate(curves.columns):
        places.setdefault(column.panel, []).append(place)
    return [_panel(curves, name, its) for name, its in places.items()]


def _panel(curves: Curves, name: str, places: list[int]) -> dict[str, Any]:
    values: list[float] = []
    for trial in curves.trials:
        for found in filter(None, (trial["y"][place] for place in places)):
            values += [
                y for y in (found[1] if isinstance(found[0], list) else found) if y is not None
            ]
    ends = min(values, default=1.0), max(values, default=1.0)
    labels = tuple(curves.columns[place].label for place in places)
    log = bool(0 < ends[0] < ends[1] / SPREAD)
    unit = "%" if name == Panel.ACCURACY else ""
    return {"name": name, "places": places, **_specs(labels, unit, ends if log else None)}


@lru_cache
def _specs(
    labels: tuple[str, ...], unit: str, domain: tuple[float, float] | None
) -> dict[str, dict[str, Any]]:
    """Charts of so many curves, on a logarithmic axis for this domain if there is one.

    Altair takes a tenth of a second for each; pages share most of them.
    """
    empty = pd.DataFrame(columns=["x", "y", "series", "scheme", "marked"])
    panel = charts.Panel(empty, "", "step", unit)
    looks = {
        label: charts.marked(i, dash=DASHES[i % len(DASHES)]) for i, label in enumerate(labels)
    }
    given: dict[str, Any] = {"log": domain is not None, "domain": domain, "columns": 1}
    given |= {"letters": False, "moves": True, "height": 168, "room": 66}
    plain = {label: replace(look, dash=charts.SOLID) for label, look in looks.items()}
    single = charts.figure([panel], plain, **given)
    several = charts.figure([panel], looks, schemes={"": theme.GREY}, **given)
    both = {"single": single, "several": several}
    return {key: theme.on_page(chart.to_dict()) for key, chart in both.items()}


def curve_columns(history: pd.DataFrame) -> list[Column]:
    """The columns that some trial's curve can be drawn of, in the order of the panels."""
    names = set(map(str, history.columns))
    wanted = [
        Column(q.name, q.symbol, panel)
        for panel in Panel
        for q in QUANTITIES.values()
        if q.panel is panel or (panel is Panel.GAP and q.group is Group.BOUND)
    ]
    for at, std in suffixes(history).items():
        members = [name + at for name in AT_NOISE]
        if LEMMA2 + at in names:
            members.remove(LEMMA2_FLOOR + at)
        panel = f"trajectory term at σ = {std}"
        wanted += [Column(name, symbol(name), panel) for name in members]
    ours, neu = DISPERSIONS
    if {ours, neu} <= names and history[ours].equals(history[neu]):
        names.remove(neu)
    return [c for c in wanted if c.name in names and _moves(history, c.name)]


def _moves(history: pd.DataFrame, name: str) -> bool:
    """Whether a column changes within some trial; of a bound a single value is enough."""
    values = pd.to_numeric(history[name], errors="coerce").replace([np.inf, -np.inf], np.nan)
    counts = values.groupby(history["trial_id"]).nunique()
    return bool((counts > (0 if name.startswith("bound/") else 1)).any())


def _trial(name: str, run: pd.DataFrame, columns: Sequence[Column], points: int) -> dict[str, Any]:
    steps = run["step"].to_numpy()
    kept = even(len(steps), points)
    curves: list[Any] = []
    for column in columns:
        values = pd.to_numeric(run[column.name], errors="coerce").to_numpy(dtype=float)
        finite = np.flatnonzero(np.isfinite(values))
        if not len(finite):
            curves.append(None)
        elif len(finite) * 2 < len(values):  # measured now and then: its own points
            places = finite[even(len(finite), points)]
            curves.append([[int(s) for s in steps[places]], list(map(short, values[places]))])
        else:
            curves.append(list(map(short, values[kept])))
    return {"id": name, "x": [int(step) for step in steps[kept]], "y": curves}


def even(count: int, most: int) -> np.ndarray:
    """At most so many of ``count`` places, evenly spread, the first and last among them.

    >>> even(5, 9).tolist(), even(9, 3).tolist()
    ([0, 1, 2, 3, 4], [0, 4, 8])
    """
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def short(value: float) -> float | int | None:
    """To 6 significant digits; None where it is none.

    >>> short(0.123456789), short(2000.0), short(float("inf"))
    (0.123457, 2000, None)
    """
    if not np.isfinite(value):
        return None
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded


@dataclass(frozen=True)
class Listed:
    """A trial in the list of those whose curves can be shown."""

    trial_id: str
    label: str
    status: str
    told: str
    """Its last numbers."""
    place: int | None
    """Among the curves; None where it has none."""


def listed_trials(trials: pd.DataFrame, labels: Sequence[str], curves: Curves) -> list[Listed]:
    """Every trial, in the order of the table."""
    places = {trial["id"]: i for i, trial in enumerate(curves.trials)}
    found = []
    for row, label in zip(records(trials), labels, strict=True):
        told = []
        for name in ("test/accuracy", "gap/loss", "bound/theorem2_closed_form"):
            value = known(row, name)
            if value is not None:
                shown = format_number(100 * value) + " %" if name == "test/accuracy" else None
                told.append(f"{symbol(name)} {shown or format_number(value)}")
        trial_id = str(row["trial_id"])
        place = places.get(trial_id)
        found.append(Listed(trial_id, label, str(row["status"]), ", ".join(told) or DASH, place))
    return found
