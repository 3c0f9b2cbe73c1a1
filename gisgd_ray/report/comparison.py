"""The table that sets the paper's bounds against Neu et al.'s, at every noise std.

A block for every trial, or for every swept combination with means over its seeds; in it a line for
every noise std. ``name@0.01`` is the column of ``name`` at that std.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gisgd_ray.numbers import (
    DASH,
    Cell,
    format_mean_std,
    format_number,
    is_missing,
    known,
    suffixes,
)
from gisgd_ray.report.bounds_table import (
    KeyColumn,
    column_groups,
    key_columns,
    key_text,
    row_flags,
    row_reason,
)
from gisgd_ray.report.premises import (
    AT_OPTIMUM,
    EXCEEDED,
    GAP,
    MAY_BE_ZERO,
    excess,
    gap_may_be_zero,
    is_exceeded,
    marks_sentences,
    mean_half_width,
    premises_sentences,
)
from gisgd_ray.results.tables import records
from gisgd_ray.theory.quantities import NBSP, NEU, OURS, QUANTITIES, Group, symbol
from gisgd_ray.training.terms import LEMMA2, LEMMA2_FLOOR, PERTURBED_R, THEOREM1, THEOREM2

SENSITIVITY = "measure/local_gradient_sensitivity"
RATIO, EXCESS = "ratio", "excess"


@dataclass(frozen=True)
class Value:
    """A number, or one that it is at least."""

    number: float
    at_least: bool = False


def value_of(name: str, row: Mapping[str, Any], at: str) -> Value | None:
    """The row's value of a column at a noise std, None where it has none."""
    return DERIVED[name](row, at) if name in DERIVED else plain(name, row, at)


def plain(name: str, row: Mapping[str, Any], at: str) -> Value | None:
    if name in (THEOREM1, "bound/theorem1") and known(row, "replicas") is None:
        return None  # of one draw of W: what earlier versions called so is not Theorem 1
    value = known(row, name + at)
    return None if value is None else Value(float(value))


def lemma2_trajectory(row: Mapping[str, Any], at: str) -> Value | None:
    """Without Psi, the term's value at Psi = 0: it is at least that."""
    if found := plain(LEMMA2, row, at):
        return found
    floor = plain(LEMMA2_FLOOR, row, at)
    return floor and Value(floor.number, at_least=True)


def _lemma2(row: Mapping[str, Any], at: str) -> Value | None:
    if found := plain("bound/lemma2_neu", row, at):
        return found
    term, gap = lemma2_trajectory(row, at), plain(GAP, row, at)
    return term and gap and Value(term.number + abs(gap.number), term.at_least)


def _lemma2_perturbed_r(row: Mapping[str, Any], at: str) -> Value | None:
    if found := plain(f"bound/lemma2_neu{PERTURBED_R}", row, at):
        return found
    term, gap, times = lemma2_trajectory(row, at), plain(GAP, row, at), excess(row, at)
    if term is None or gap is None or times is None:
        return None
    return Value(term.number * times + abs(gap.number), term.at_least)


def _excess(row: Mapping[str, Any], at: str) -> Value | None:
    times = excess(row, at)
    return None if times is None else Value(times)


def ratio(row: Mapping[str, Any], at: str) -> Value | None:
    ours, neu = plain(THEOREM2, row, at), lemma2_trajectory(row, at)
    if ours is None or neu is None or ours.number <= 0:
        return None
    return Value(neu.number / ours.number, neu.at_least)


def _sensitivity(row: Mapping[str, Any], at: str) -> Value | None:
    """The mean over the steps, of which the row holds the sum."""
    total, steps = known(row, f"sum/sensitivity{at}"), known(row, "steps")
    return Value(float(total) / steps) if total and steps else plain(SENSITIVITY, row, at)


DERIVED: dict[str, Callable[[Mapping[str, Any], str], Value | None]] = {
    LEMMA2: lemma2_trajectory,
    "bound/lemma2_neu": _lemma2,
    f"bound/lemma2_neu{PERTURBED_R}": _lemma2_perturbed_r,
    RATIO: ratio,
    EXCESS: _excess,
    SENSITIVITY: _sensitivity,
}


@dataclass(frozen=True)
class ComparedColumn:
    """One column: ``name`` without its noise std."""

    name: str
    group: Group
    heading: str
    detail: str = ""
    """Second line of the heading."""

    @property
    def side(self) -> str:
        """ "ours" or "neu", of the two that are compared."""
        return {OURS: "ours", NEU: "neu"}.get(self.detail, "")


def _columns() -> Iterator[ComparedColumn]:
    """What the paper has at a noise std, and what is made of it here."""
    for q in QUANTITIES.values():
        if not q.at_noise_std or q.group is None:
            continue
        if q.name == f"bound/theorem2{PERTURBED_R}@":
            yield ComparedColumn(EXCESS, q.group, f"R{NBSP}at{NBSP}σ", f"÷{NBSP}R")
        yield ComparedColumn(q.name.removesuffix("@"), q.group, q.symbol, q.detail)
        if q.name == f"{LEMMA2}@":
            yield ComparedColumn(RATIO, q.group, "ratio", "Neu ÷ ours")


COLUMNS = tuple(_columns())

_OF_THEOREM2 = (THEOREM2, "bound/theorem2")
"""With one draw of W Theorem 1's as well."""

WITHOUT_NOISE_STD = (
    "gap/loss",
    *(q.name for q in QUANTITIES.values() if q.group is Group.BOUND),
    "term/optimal_noise_std",
)
"""What is shown once for a block."""


@dataclass(frozen=True)
class SigmaRow:
    """One noise std of a block."""

    noise_std: Cell
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """One trial, or the seeds of one swept combination."""

    settings: list[tuple[str, str]]
    status: str
    """"diverged" or "failed", or "2 of 3 seeds"; empty for a finished trial."""
    ended: bool
    """Whether a trial of it has finished."""
    flags: list[str]
    facts: list[tuple[str, str]]
    """The true gap and the bounds without a noise std: name and value."""
    lines: list[SigmaRow]
    reason: str
    """Why ours holds a dash in a trial that finished, as far as its row says."""


@dataclass(frozen=True)
class Comparison:
    """The table, and what is to be said above and below it."""

    columns: list[ComparedColumn]
    groups: list[tuple[str, int]]
    blocks: list[Block]
    summary: str
    lower_bounds: bool
    """Whether a cell of Lemma 2 holds a lower bound, Psi not being known there."""
    decided: bool
    """Whether ours lies below Neu et al.'s wherever that is only a lower bound."""
    one_draw: bool
    """Whether every trial is one draw of W, so that V = V~ and Theorem 1 is Eq. 2."""
    premises: str
    """Where R is exceeded and the flatness gap may be zero; empty where it is not known."""
    notes: list[str]
    """What the marks and the ± in the cells mean, as far as there are any."""


def compare(
    trials: pd.DataFrame, points: Sequence[str], *, over_seeds: bool = False
) -> Comparison | None:
    """The table of these trials, None where none of its columns has a value.

    Args:
        trials: one row each, however the trial ended.
        points: the swept fields; without the seed where the table is of means over seeds.
        over_seeds: a block is then the mean over a combination's finished seeds, not a trial.
    """
    noise_stds = suffixes(trials)
    rows = list(records(trials))
    done = [row for row in rows if row["status"] == "finished"]
    columns = [
        column
        for column in [*COLUMNS, *_other_bounds(trials)]
        if any(value_of(column.name, row, at) for row in done for at in noise_stds)
    ]
    if not columns:
        return None
    one_draw = all(known(row, "replicas") is None for row in done)
    if one_draw:
        columns = [
            replace(c, heading=f"{c.heading} = Thm.{NBSP}1") if c.name in _OF_THEOREM2 else c
            for c in columns
        ]
    keys = key_columns(trials, points)
    facts = [name for name in WITHOUT_NOISE_STD if _numbers(name, done)]
    members: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        named = tuple(key_text(row[path]) for path in points)
        members.setdefault(named if over_seeds else (str(row["trial_id"]),), []).append(row)
    blocks = [
        _block(group, keys, columns, noise_stds, facts, over_seeds=over_seeds)
        for group in members.values()
    ]
    pairs = list(_pairs(done, noise_stds))
    return Comparison(
        columns=columns,
        groups=column_groups(columns),
        blocks=blocks,
        summary=_summary(pairs),
        lower_bounds=any(neu.at_least for _, neu in pairs),
        decided=all(ours < neu.number for ours, neu in pairs if neu.at_least),
        one_draw=one_draw,
        premises=premises_sentences(done, list(noise_stds)),
        notes=marks_sentences(done, list(noise_stds), over_seeds=over_seeds),
    )


def _other_bounds(trials: pd.DataFrame) -> list[ComparedColumn]:
    """Bounds at a noise std that the paper does not have, by their raw names."""
    names = dict.fromkeys(
        name.partition("@")[0] for name in map(str, trials.columns) if "@" in name
    )
    return [
        ComparedColumn(name, Group.SUM, name.removeprefix("bound/"))
        for name in names
        if name.startswith("bound/") and f"{name}@" not in QUANTITIES
    ]


def _block(
    rows: Sequence[dict[str, Any]],
    keys: Sequence[KeyColumn],
    columns: Sequence[ComparedColumn],
    noise_stds: Mapping[str, Cell],
    facts: Sequence[str],
    *,
    over_seeds: bool,
) -> Block:
    done = [row for row in rows if row["status"] == "finished"]
    lines = []
    for at, noise_std in noise_stds.items():
        cells = [_cell(column, done, at) for column in columns]
        if any(cell.value is not None for cell in cells):  # else a std that only other trials have
            lines.append(SigmaRow(noise_std, cells))
    nothing = Cell(DASH, None)
    lines = lines or [SigmaRow(nothing, [nothing] * len(columns))]
    if over_seeds:
        of = "" if len(done) == len(rows) else f"{len(done)} of "
        status = f"{of}{len(rows)} seed{'s' if len(rows) > 1 else ''}"
    else:
        status = "" if done else str(rows[0]["status"])
    first = rows[0]
    unmeasured = not any(plain(THEOREM2, first, at) for at in noise_stds)
    return Block(
        # A setting that the trial's model or scheme does not have is no setting of it.
        settings=[
            (key.heading, key_text(first[key.path]))
            for key in keys
            if not is_missing(first[key.path])
        ],
        status=status,
        ended=bool(done),
        flags=list(dict.fromkeys(flag for row in done for flag in row_flags(row))),
        facts=[(symbol(name), _fact(name, done)) for name in facts],
        lines=lines,
        reason=row_reason(first) if done and unmeasured and not over_seeds else "",
    )


def _numbers(name: str, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(value) for row in rows if (value := known(row, name)) is not None]


def _fact(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = _numbers(name, rows)
    if not numbers:
        return DASH
    text = _counted(format_number(statistics.fmean(numbers)), numbers, rows)
    exceeds = name.startswith("bound/") and any(is_exceeded(row, AT_OPTIMUM) for row in rows)
    return _marked(text, EXCEEDED if exceeds else "")


def _cell(column: ComparedColumn, rows: Sequence[Mapping[str, Any]], at: str) -> Cell:
    """The mean over the rows; where only some have a value, with their number."""
    name, digits = column.name, 4
    if name == RATIO:  # of the two cells beside it, which a reader can check
        both = [row for row in rows if ratio(row, at)]
        ours, neu = _mean(THEOREM2, both, at), _mean(LEMMA2, both, at)
        mean = ours and neu and Value(neu.number / ours.number, neu.at_least)
    else:
        mean = _mean(name, rows, at)
    if mean is None:
        return Cell(DASH, None)
    if name in (RATIO, EXCESS):
        digits = 3
    text = format_number(mean.number, digits=digits)
    values = [value for row in rows if (value := value_of(name, row, at))]
    mark = ""
    if name == GAP:
        measured = [row for row in rows if plain(GAP, row, at)]
        if (width := mean_half_width(measured, at)) is not None:
            text = format_mean_std(mean.number, width)
        mark = MAY_BE_ZERO if any(gap_may_be_zero(row, at) for row in rows) else ""
    if (
        column.group is Group.SUM
        and f"{name}@" in QUANTITIES
        and any(is_exceeded(row, at) for row in rows)
    ):
        mark = EXCEEDED
    text = _counted(f"≥{NBSP}{text}" if mean.at_least else text, values, rows)
    return Cell(_marked(text, mark), mean.number)


def _marked(text: str, mark: str) -> str:
    return f"{text}{NBSP}{mark}" if mark else text


def _mean(name: str, rows: Sequence[Mapping[str, Any]], at: str) -> Value | None:
    """Mean of the rows that have a value: at least that where one of them is at least."""
    values = [value for row in rows if (value := value_of(name, row, at))]
    if not values:
        return None
    mean = statistics.fmean(value.number for value in values)
    return Value(mean, any(value.at_least for value in values))


def _counted(text: str, values: Sequence[Any], rows: Sequence[Any]) -> str:
    return text if len(values) == len(rows) else f"{text} (n = {len(values)})"


def _pairs(
    rows: Sequence[Mapping[str, Any]], noise_stds: Mapping[str, Cell]
) -> Iterator[tuple[float, Value]]:
    """The trajectory terms of every trial at every noise std: ours, and Neu et al.'s."""
    for row in rows:
        for at in noise_stds:
            ours, neu = plain(THEOREM2, row, at), lemma2_trajectory(row, at)
            if ours and neu:
                yield ours.number, neu


def _summary(pairs: Sequence[tuple[float, Value]]) -> str:
    """In how many comparisons ours is the smaller trajectory term, and by how much."""
    if not pairs:
        return ""
    below = [neu for ours, neu in pairs if ours < neu.number]
    floors = sum(neu.at_least for neu in below)
    open_ = sum(neu.at_least and ours >= neu.number for ours, neu in pairs)
    text = "Theorem 2’s trajectory term lies below Lemma 2’s (Neu et al.)"
    if floors and floors == len(below):
        text += ", even without its sensitivity term,"
    text += f" in {len(below)} of {len(pairs)} comparisons"
    if 0 < floors < len(below):
        text += f" ({floors} of them even without its sensitivity term)"
    if open_:
        text += f", {open_} being undecided while the sensitivity is not measured"
    ratios = [neu.number / ours for ours, neu in pairs if ours > 0]
    ratios = [each for each in ratios if math.isfinite(each)]
    if ratios:
        middle, least = statistics.median(ratios), any(neu.at_least for _, neu in pairs)
        if middle >= 1:
            times = format_number(middle, digits=2)
            text += f"; at the median it is {'at least ' if least else ''}{times} times smaller"
        elif not least:
            text += f"; at the median it is {format_number(1 / middle, digits=2)} times larger"
    return text + "."
