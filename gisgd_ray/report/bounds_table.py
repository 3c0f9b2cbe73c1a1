"""The table of bounds: which columns of a sweep's trials it shows, and their values as text.

One row per trial, and one per swept combination with mean and std over its seeds. What depends on
the noise std (``name@0.01``) has a table of its own: :mod:`gisgd_ray.report.comparison`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np
import pandas as pd

from gisgd_ray.numbers import (
    DASH,
    Cell,
    counted,
    field_name,
    format_mean_std,
    format_number,
    format_setting,
    is_missing,
    known,
)
from gisgd_ray.report.premises import (
    AT_OPTIMUM,
    EXCEEDED,
    exceeded_sentence,
    is_exceeded,
    times_exceeded,
)
from gisgd_ray.results.tables import records
from gisgd_ray.theory.quantities import QUANTITIES, Group, quantity
from gisgd_ray.training.terms import UNDEFINED_REASON

DISPERSIONS = ("measure/gradient_dispersion", "measure/gradient_dispersion_neu")
"""Of a single run the two are the same."""

FIELD_HEADINGS = {
    "training.learning_rate": "learning rate λ",
    "training.batch_size": "batch size b",
    "model.name": "model",
    "scheme.name": "scheme",
}

ALWAYS = ("bound/theorem2_closed_form", "bound/lemma7")
"""Shown even where no trial has a value: its row says why."""

STOP_REASONS = {
    "stop_loss": "loss threshold",
    "full_accuracy": "full accuracy",
    "max_steps": "step limit",
    "max_epochs": "epoch limit",
}


@dataclass(frozen=True)
class TableColumn:
    """One measured column."""

    name: str
    group: Group
    heading: str
    detail: str
    """Second line of the heading."""

    def number(self, row: Mapping[str, Any]) -> Any:
        """The value shown, None where there is none; accuracies are in percent."""
        value = known(row, self.name)
        if value is None or self.name == "steps":
            return value if value is None else int(value)  # a float where another trial has none
        return 100 * value if self.detail == "%" else value

    def cell(self, row: Mapping[str, Any]) -> Cell:
        """The value as text; an estimated Tr H with its standard error, a bound with its mark."""
        value = self.number(row)
        if value is None:
            return Cell(DASH, None)
        text = self.marked(format_number(value), [row])
        if self.name == "term/flatness_factor":
            standard_error = known(row, "measure/hessian_trace_stderr")
            if standard_error:
                text = format_mean_std(value, standard_error)
        return Cell(text, value)

    def marked(self, text: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """The text, of a bound of these trials, with a mark where R at sigma* is larger than R.

        Of a bound that the user has added it is not known whether it takes R.
        """
        takes_r = self.group == Group.BOUND and self.name in QUANTITIES
        exceeds = takes_r and any(is_exceeded(row, AT_OPTIMUM) for row in rows)
        return f"{text}\N{NO-BREAK SPACE}{EXCEEDED}" if exceeds else text


@dataclass(frozen=True)
class KeyColumn:
    """One swept field; its column stays in sight while the others scroll."""

    path: str
    heading: str
    width: float
    """In em (not ch, which differs between bold headings and cells), padding included."""
    left: float
    """Sum of the widths before it: where it sticks."""


@dataclass(frozen=True)
class TrialRow:
    """One trial as the table shows it."""

    trial_id: str
    keys: list[Cell | str]
    status: str
    stop_reason: str
    flags: list[str]
    """What a reader must know before using the row; explained further down the page."""
    cells: list[Cell]
    reason: str
    """Why cells hold a dash; empty where none does, unless the trial failed."""


@dataclass(frozen=True)
class SeedRow:
    """One swept combination: ``mean ± std`` over the seeds that finished."""

    keys: list[Cell | str]
    seeds: Cell
    cells: list[Cell]


def table_columns(trials: pd.DataFrame) -> list[TableColumn]:
    """The columns that a table shows, in its order; a bound of the user's own by its raw name.

    Those at a noise std are left to the comparison, V and V~ to where replicas part them, and what
    no trial has is left out.
    """
    filled = trials.columns[trials.notna().any() | trials.columns.isin(ALWAYS)]
    names = [name for name in map(str, filled) if "@" not in name]
    if "replicas" not in names:
        names = [name for name in names if name not in DISPERSIONS]
    columns = [
        TableColumn(q.name, q.group, q.symbol, q.detail)
        for q in QUANTITIES.values()
        if q.group is not None and q.name in names
    ]
    columns += [
        TableColumn(name, Group.BOUND, name.removeprefix("bound/"), "")
        for name in sorted(names)
        if name.startswith("bound/") and quantity(name) is None
    ]
    return sorted(columns, key=lambda column: list(Group).index(column.group))


class Grouped(Protocol):
    """A column of either table, under its group's heading."""

    @property
    def group(self) -> Group: ...


def column_groups(columns: Sequence[Grouped]) -> list[tuple[str, int]]:
    """Group headings with the number of columns under each."""
    names = dict.fromkeys(column.group for column in columns)
    return [(name, sum(column.group == name for column in columns)) for name in names]


def key_columns(trials: pd.DataFrame, paths: Sequence[str]) -> list[KeyColumn]:
    """The columns of the swept fields."""
    columns: list[KeyColumn] = []
    left = 0.0
    for path in paths:
        heading = FIELD_HEADINGS.get(path, path.rpartition(".")[2].replace("_", " "))
        words = [*heading.split(), *(key_text(value) for value in trials[path])]
        width = round(0.65 * max(map(len, words)) + 1.5, 2)
        columns.append(KeyColumn(path, heading, width, round(left, 2)))
        left += width
    return columns


def key_text(value: Any) -> str:
    """A swept value; a field that the trial's model or scheme does not have is a dash."""
    if is_missing(value):
        return DASH
    drawn = isinstance(value, float) and not value.is_integer()
    return f"{value:g}" if drawn else format_setting(value)


def _key(value: Any) -> Cell | str:
    """A swept value as it is shown and sorted: words by themselves."""
    if is_missing(value):
        return Cell(DASH, None)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return Cell(key_text(value), float(value)) if is_number else key_text(value)


def trial_label(row: Mapping[str, Any], paths: Sequence[str]) -> str:
    """A trial in words: ``learning_rate=0.1 batch_size=60``, or its id where nothing is swept."""
    parts = [
        f"{field_name(path)}={key_text(row[path])}"
        for path in paths
        # A setting that only some schemes or models have is none of the others'.
        if not (path.startswith(("scheme.", "model.")) and is_missing(row[path]))
    ]
    return " ".join(parts) or str(row["trial_id"])


def trial_rows(
    trials: pd.DataFrame, columns: Sequence[TableColumn], paths: Sequence[str]
) -> list[TrialRow]:
    """Every trial that ended, however it ended."""
    return [
        TrialRow(
            trial_id=str(row["trial_id"]),
            keys=[_key(row[path]) for path in paths],
            status=str(row["status"]),
            stop_reason=_stop_reason(row),
            flags=row_flags(row),
            cells=(cells := [column.cell(row) for column in columns]),
            reason=row_reason(row) if _lacks(columns, cells) or row["status"] == "failed" else "",
        )
        for row in records(trials)
    ]


def _stop_reason(row: Mapping[str, Any]) -> str:
    reason = str(known(row, "stop_reason") or "")
    return STOP_REASONS.get(reason, reason)


def row_flags(row: Mapping[str, Any]) -> list[str]:
    """What a reader must know before using the row."""
    flags = []
    if known(row, "outside_theorem"):
        flags.append("outside the theorem")
    if steps := known(row, "measure/ill_conditioned_steps"):
        flags.append(f"{format_number(int(steps))} ill-conditioned steps")
    return flags


INAPPLICABLE = ("test/accuracy", "bound/theorem3", "bound/theorem4")
"""Columns that a regression, or another network, does not have: their dash needs no reason."""


def _lacks(columns: Sequence[TableColumn], cells: Sequence[Cell]) -> bool:
    """Whether a value is missing that the trial should have."""
    pairs = zip(columns, cells, strict=True)
    return any(cell.value is None and column.name not in INAPPLICABLE for column, cell in pairs)


def row_reason(row: Mapping[str, Any]) -> str:
    """Why the row has no value somewhere, as far as it says."""
    if reason := known(row, UNDEFINED_REASON):
        return str(reason)
    if row["status"] == "finished":
        return "not measured in this trial, and its row gives no reason"
    return f"the trial {row['status']}"


def seed_rows(
    trials: pd.DataFrame, columns: Sequence[TableColumn], paths: Sequence[str]
) -> list[SeedRow]:
    """Mean and sample std (n - 1) over the finished seeds of every swept combination.

    Where only some of them have a value, the cell says how many.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in records(trials):
        groups.setdefault(tuple(key_text(row[path]) for path in paths), []).append(row)
    rows = []
    for members in groups.values():
        done = [row for row in members if row["status"] == "finished"]
        seeds = str(len(done)) if len(done) == len(members) else f"{len(done)} of {len(members)}"
        keys = [_key(members[0][path]) for path in paths]
        cells = [_mean_std(column, done) for column in columns]
        rows.append(SeedRow(keys, Cell(seeds, len(done)), cells))
    return rows


def _mean_std(column: TableColumn, rows: Sequence[Mapping[str, Any]]) -> Cell:
    numbers = pd.Series([column.number(row) for row in rows], dtype="float64").dropna()
    if numbers.empty:
        return Cell(DASH, None)
    with np.errstate(invalid="ignore"):  # an infinite value has no scatter, and NaN says so
        mean = float(numbers.mean())
        text = format_mean_std(mean, float(numbers.std()))
    text = text if len(numbers) == len(rows) else f"{text} (n = {len(numbers)})"
    return Cell(column.marked(text, rows), mean)


def exceeded(trials: pd.DataFrame) -> str:
    """What the mark of a bound without a noise std means; "" where none has one."""
    done = [row for row in records(trials) if row["status"] == "finished"]
    return exceeded_sentence([], times_exceeded(done, AT_OPTIMUM))


def coverage(trials: pd.DataFrame) -> str:
    """In how many finished trials Eq. 3 lies above the measured gap, and how far; "" if unknown."""
    names = ["bound/theorem2_closed_form", "gap/loss"]
    if not set(names) <= set(trials.columns):
        return ""
    done = trials[trials["status"] == "finished"].dropna(subset=names)
    if done.empty:
        return ""
    bound, gap = (done[name].astype(float) for name in names)
    finite = np.isfinite(bound) & np.isfinite(gap)
    infinite = len(done) - int(finite.sum())
    done, bound, gap = done[finite], bound[finite], gap[finite]
    besides = (
        f" In {counted(infinite, 'more trial')} one of the two is infinite." if infinite else ""
    )
    if done.empty:
        return besides.strip()
    text = f"Eq. 3 lies above the measured gap in {int((bound >= gap).sum())} of {len(done)} trials"
    if (gap > 0).all():
        text += f", at the median {format_number((bound / gap).median(), digits=2)} times as large"
    return f"{text}.{besides}"
