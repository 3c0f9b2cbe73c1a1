"""The statistics that claims rest on, and the verdicts drawn from them.

Three kinds of evidence: a count of points (nothing random is left to infer), a rank correlation
with its permutation p-value, and a mean or ratio with its t interval over seeds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from gisgd_ray.randomness import derived_seed

Verdict = Literal["holds", "fails", "undecided", "single run"]
"""A single run shows what it shows, and nothing of what another seed would have done."""
Side = Literal["above", "below"]
Array = np.ndarray[Any, np.dtype[np.float64]]

LEVEL = 0.05
"""Of the permutation tests; the intervals cover with probability 1 - LEVEL."""
PERMUTATIONS = 19_999
NOT_MEASURED = "not measured in this run"


# ---------------------------------------------------------------- counts


@dataclass(frozen=True)
class Count:
    """At how many of n points one quantity lies below another."""

    k: int
    n: int
    """Points at which both are known."""
    missing: int
    """Points left out because either is NaN."""
    worst_ratio: float
    """Smallest upper / |lower| over the n points; NaN where none has lower other than 0."""

    def __str__(self) -> str:
        left_out = f", {self.missing} left out as NaN" if self.missing else ""
        if self.n == 0:
            return f"{NOT_MEASURED} (n = 0 points{left_out})"
        ratio = short_number(self.worst_ratio)
        worst = "" if math.isnan(self.worst_ratio) else f", worst ratio {ratio}"
        return f"{self.k} of {self.n} points{worst}{left_out}"


def count_below(lower: Iterable[float], upper: Iterable[float], *, strict: bool = True) -> Count:
    """Count the points where lower < upper, or lower <= upper unless ``strict``."""
    a, b = _floats(lower), _floats(upper)
    known = ~(np.isnan(a) | np.isnan(b))
    missing = int((~known).sum())
    a, b = a[known], b[known]
    is_below = a < b if strict else a <= b
    with np.errstate(invalid="ignore"):  # inf / inf is NaN
        ratios = b[a != 0] / np.abs(a[a != 0])
    ratios = ratios[~np.isnan(ratios)]
    worst = float(ratios.min()) if len(ratios) else math.nan
    return Count(int(is_below.sum()), len(a), missing, worst)


def count_verdict(count: Count) -> Verdict:
    """A claim about every point holds at n of n and fails otherwise; undecided at n = 0."""
    if count.n == 0:
        return "undecided"
    return "holds" if count.k == count.n else "fails"


# ---------------------------------------------------------------- rank correlations


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of y with x at fixed strata, its two-sided permutation p, and n points."""

    rho: float
    p_value: float
    n: int

    @property
    def sign(self) -> int:
        """+1 or -1 where the sign is established at :data:`LEVEL`, else 0."""
        return int(np.sign(self.rho)) if self.p_value < LEVEL else 0

    def __str__(self) -> str:
        if self.n == 0:
            return "not varied in this run (n = 0)"
        return f"ρ = {self.rho:+.2f} (n = {self.n}, p = {self.p_value:.2g})"


def stratified_rank_correlation(
    frame: pd.DataFrame, x: str, y: str, *, strata: Sequence[str]
) -> RankCorrelation:
    """Spearman's rho with everything else held fixed.

    Within each stratum (the rows that agree in all ``strata`` columns) x and y are ranked, ties
    sharing their mean rank, and centred; rho is the correlation of the pooled centred ranks. The
    p-value permutes y inside the strata. Rows where x or y is NaN are left out, and so are strata
    in which x takes one value. Without strata all rows are one.
    """
    ranked = _centred_ranks(frame, x, y, strata)
    n = sum(len(a) for a, _ in ranked)
    norm = _norm(ranked)
    if n == 0 or norm == 0:
        return RankCorrelation(0.0, 1.0, n)
    observed = float(sum((a * b).sum() for a, b in ranked))
    rng = np.random.default_rng(derived_seed(0, "permutation test"))
    permuted = np.zeros(PERMUTATIONS)
    for a, b in ranked:
        order = rng.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
        permuted += order @ a
    # The tolerance counts permutations that tie with the data, whatever the rounding.
    as_extreme = int((np.abs(permuted) >= abs(observed) - 1e-9).sum())
    return RankCorrelation(observed / norm, (1 + as_extreme) / (1 + PERMUTATIONS), n)


def stratified_rho(frame: pd.DataFrame, x: str, y: str, *, strata: Sequence[str]) -> float:
    """The rho of :func:`stratified_rank_correlation` alone, as a description; NaN if undefined.

    For series along training, whose neighbouring points depend on each other: no permutation of
    them is as likely as any other, so that a permutation p-value would mean nothing.
    """
    ranked = _centred_ranks(frame, x, y, strata)
    norm = _norm(ranked)
    return float(sum((a * b).sum() for a, b in ranked)) / norm if norm else math.nan


def _centred_ranks(
    frame: pd.DataFrame, x: str, y: str, strata: Sequence[str]
) -> list[tuple[Array, Array]]:
    known = frame.dropna(subset=[x, y])
    groups = [g for _, g in known.groupby(list(strata), dropna=False)] if strata else [known]
    ranked = []
    for group in groups:
        if group[x].nunique() > 1:
            ranks = (stats.rankdata(group[x]), stats.rankdata(group[y]))
            ranked.append((ranks[0] - ranks[0].mean(), ranks[1] - ranks[1].mean()))
    return ranked


def _norm(ranked: list[tuple[Array, Array]]) -> float:
    squares = [sum(float((pair[i] ** 2).sum()) for pair in ranked) for i in (0, 1)]
    return math.sqrt(squares[0] * squares[1])


def sign_verdict(correlation: RankCorrelation, *, expected: int) -> Verdict:
    """Holds when the sign is established and as expected, fails when established and opposite."""
    if correlation.sign == 0:
        return "undecided"
    return "holds" if correlation.sign == expected else "fails"


def opposite_verdict(first: RankCorrelation, second: RankCorrelation) -> Verdict:
    """Whether two quantities move in opposite directions, both signs established."""
    if 0 in (first.sign, second.sign):
        return "undecided"
    return "holds" if first.sign == -second.sign else "fails"


# ---------------------------------------------------------------- intervals over seeds


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its two-sided 95 % t interval; NaN ends where there is none."""

    center: float
    low: float
    high: float
    n: int
    missing: int = 0
    """Seeds left out because their value is not defined."""

    unit = ""

    def __str__(self) -> str:
        left_out = f", {self.missing} left out as undefined" if self.missing else ""
        if self.n == 0:
            return f"{NOT_MEASURED} (n = 0{left_out})"
        if self.n == 1:
            over = "one seed: no interval"
        elif math.isnan(self.low):
            over = f"no finite interval over n = {self.n} seeds"
        else:
            ends = f"{short_number(self.low)} to {short_number(self.high)}"
            over = f"{ends} over n = {self.n} seeds"
        return f"{short_number(self.center)}{self.unit} ({over}{left_out})"


class RatioInterval(Interval):
    """A geometric mean of ratios with the interval of the mean log ratio, taken back by exp."""

    unit = " ×"


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean +- t_{n-1}(1 - LEVEL/2) s / sqrt(n) over seeds, s with n - 1; n = 1 has no interval.

    NaN is left out and counted. An infinite value makes the mean infinite (or NaN) and leaves no
    interval.
    """
    given = _floats(values)
    known = given[~np.isnan(given)]
    n, missing = len(known), len(given) - len(known)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0, missing)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN
        mean = float(known.mean())
    if n == 1 or not np.isfinite(known).all():
        return Interval(mean, math.nan, math.nan, n, missing)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1) * known.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, missing)


def ratio_interval(numerators: Iterable[float], denominators: Iterable[float]) -> RatioInterval:
    """Geometric mean of a / b over seeds, with the t interval of the mean of log(a / b).

    Ratios are compared on the log scale, where twice and half are equally far from 1. A pair with
    a negative member, and 0 / 0, is left out and counted; 0 in one member alone gives 0 or inf.
    """
    a, b = _floats(numerators), _floats(denominators)
    with np.errstate(divide="ignore", invalid="ignore"):
        of_logs = mean_interval(np.log(a) - np.log(b))
        center, low, high = np.exp([of_logs.center, of_logs.low, of_logs.high]).tolist()
    return RatioInterval(center, low, high, of_logs.n, of_logs.missing)


def interval_verdict(interval: Interval, threshold: float, *, side: Side) -> Verdict:
    """Whether the mean lies on one side of a threshold.

    Holds when the whole interval is on that side, fails when it is on the other, undecided when it
    holds the threshold or there is no interval; of one seed, whichever side it is on, a single run.
    """
    low, high = interval.low, interval.high
    if interval.n == 1:
        return "single run"
    if math.isnan(low) or math.isnan(high) or low <= threshold <= high:
        return "undecided"
    return "holds" if (low > threshold) == (side == "above") else "fails"


def joint_verdict(*verdicts: Verdict) -> Verdict:
    """The worst of several: one that fails fails them all, and all must hold."""
    from_worst: tuple[Verdict, ...] = ("fails", "undecided", "single run", "holds")
    return min(verdicts, key=from_worst.index)


def short_number(value: float) -> str:
    """About two significant digits, more where a number is compared with 1.

    >>> short_number(3.4321), short_number(0.9481), short_number(1234.5), short_number(2.3e7)
    ('3.4', '0.95', '1,234', '2.3e+07')
    """
    size = abs(value)
    if math.isnan(value) or math.isinf(value) or value == 0:
        return f"{value:g}"
    if size < 1e-3 or size >= 1e5:
        return f"{value:.1e}"
    if size < 0.1:
        return f"{value:.2g}"
    if size < 2:
        return f"{value:.2f}"
    return f"{value:.1f}" if size < 10 else f"{value:,.0f}"


def _floats(values: Iterable[float]) -> Array:
    return np.asarray(list(values), dtype=np.float64)
