"""What a cell of the table against Neu et al. holds: a row's value at a noise std, or what follows
from several of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gisgd_ray.numbers import known
from gisgd_ray.report.premises import GAP, excess
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
