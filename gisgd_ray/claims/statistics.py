"""The statistics that claims rest on, and how sure they are.

Two kinds of evidence: a count of points (nothing random is left to infer), and a mean or ratio over
seeds, with its t interval and its p-values. The unit is always the seed: what one seed determines
(its cells of a grid, the points of its course) depends on each other in ways that no table shows.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

Verdict = Literal["holds", "fails", "undecided", "single run"]
"""A single run shows what it shows, and nothing of what another seed would have done."""
Side = Literal["above", "below"]
Array = NDArray[np.float64]

LEVEL = 0.05
"""Chance of any wrong verdict among the claims of a sweep; intervals cover with 1 - LEVEL each."""
MIN_SEEDS = 3
"""Fewer establish nothing about accuracies, shapes and times: they agree by chance too easily."""
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


# ---------------------------------------------------------------- intervals over seeds


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its standard error, and the two-sided 95 % t interval of both."""

    mean: float
    error: float
    """Standard error over the seeds; NaN where there is none. Of one seed, its Monte-Carlo error
    where it has one."""
    n: int
    missing: int = 0
    """Seeds left out because their value is not defined."""
    degrees: float = math.nan
    """Of freedom of the error; NaN stands for n - 1."""

    unit = ""

    def _shown(self, value: float) -> float:
        """From the scale on which the mean is taken to that of the values."""
        return value

    @property
    def center(self) -> float:
        return self._shown(self.mean)

    @property
    def low(self) -> float:
        return self._shown(self.mean - self._half)

    @property
    def high(self) -> float:
        return self._shown(self.mean + self._half)

    @property
    def _degrees(self) -> float:
        return self.n - 1 if math.isnan(self.degrees) else self.degrees

    @property
    def _half(self) -> float:
        return float(scipy.stats.t.ppf(1 - LEVEL / 2, self._degrees)) * self.error

    def __str__(self) -> str:
        left_out = f", {self.missing} left out as undefined" if self.missing else ""
        if self.n == 0:
            return f"{NOT_MEASURED} (n = 0{left_out})"
        ends = f"{short_number(self.low)} to {short_number(self.high)}"
        if self.n == 1 and math.isnan(self.error):
            over = "one seed: no interval"
        elif self.n == 1:
            over = f"{ends} by the Monte-Carlo error of the one seed"
        elif math.isnan(self.error):
            over = f"no finite interval over n = {self.n} seeds"
        else:
            over = f"{ends} over n = {self.n} seeds"
        return f"{short_number(self.center)}{self.unit} ({over}{left_out})"


class RatioInterval(Interval):
    """A geometric mean of ratios: mean and error are of their logarithms."""

    unit = " ×"

    def _shown(self, value: float) -> float:
        return float(np.exp(value))


def mean_interval(values: Iterable[float]) -> Interval:
    """Mean +- t_{n-1}(1 - LEVEL/2) s / sqrt(n) over seeds, s with n - 1; n = 1 has no interval.

    NaN is left out and counted. An infinite value makes the mean infinite (or NaN) and leaves no
    interval.
    """
    given = _floats(values)
    known = given[~np.isnan(given)]
    n, missing = len(known), len(given) - len(known)
    if n == 0:
        return Interval(math.nan, math.nan, 0, missing)
    with np.errstate(invalid="ignore"):  # inf - inf is NaN
        mean = float(known.mean())
    if n == 1 or not np.isfinite(known).all():
        return Interval(mean, math.nan, n, missing)
    return Interval(mean, float(known.std(ddof=1)) / math.sqrt(n), n, missing)


def ratio_interval(
    numerators: Iterable[float], denominators: Iterable[float] | float = 1.0
) -> RatioInterval:
    """Geometric mean of a / b over seeds, with the t interval of the mean of log(a / b).

    Ratios are compared on the log scale, where twice and half are equally far from 1. A pair with
    a negative member, and 0 / 0, is left out and counted; 0 in one member alone gives 0 or inf.
    """
    a = _floats(numerators)
    b = _floats(denominators) if isinstance(denominators, Iterable) else denominators
    with np.errstate(divide="ignore", invalid="ignore"):
        of_logs = mean_interval(np.log(a) - np.log(b))
    return RatioInterval(of_logs.mean, of_logs.error, of_logs.n, of_logs.missing)


def trend_ratio(
    frame: pd.DataFrame, x: str, y: str, *, strata: Sequence[str] = ()
) -> RatioInterval:
    """By what factor y changes along x, in each seed by itself: geometric mean over the seeds.

    For each seed the least-squares slope of log y on x, x and log y centred within the strata (rows
    of the seed that agree in all ``strata`` columns), times the range of x in the whole frame. It
    is linear in log y, so that its t interval is right whatever the rows of one seed have in
    common, a seed's own effect of every x among it. That does not hold of rank correlations: over
    3 seeds they tie, or pile up at +-1, and a t test of them at 5 % finds a trend in 20 % of
    unrelated smooth curves. Rows where x is not finite or y has no logarithm are left out, and so
    are seeds in which x takes one value.
    """
    values = frame[y].astype(np.float64)
    logs = np.log(values.where((values > 0) & (values < math.inf)))
    along = frame[x].astype(np.float64)
    known = frame.assign(x=along.where(np.isfinite(along)), log_y=logs)
    known = known.dropna(subset=["x", "log_y"])
    stratum = known.groupby(["seed", *strata], dropna=False).ngroup().to_numpy()
    dx, dy = (_centred(known[name].to_numpy(), stratum) for name in ("x", "log_y"))
    sums = pd.DataFrame({"xx": dx * dx, "xy": dx * dy}).groupby(known["seed"].to_numpy()).sum()
    slopes = (sums["xy"] / sums["xx"])[sums["xx"] > 0]
    return ratio_interval(np.exp(slopes * (known["x"].max() - known["x"].min())))


def _centred(values: Array, stratum: NDArray[np.integer[Any]]) -> Array:
    """The values less the mean of their stratum."""
    means = np.bincount(stratum, values) / np.bincount(stratum)
    return values - means[stratum] if len(values) else values


def stratified_rho(frame: pd.DataFrame, x: str, y: str, *, strata: Sequence[str]) -> float:
    """Spearman's rho of y with x at fixed strata, as a description; NaN if undefined.

    Within each stratum (the rows that agree in all ``strata`` columns) x and y are ranked, ties
    sharing their mean rank, and centred; rho is the correlation of the pooled centred ranks. Rows
    where x or y is NaN are left out, and so are strata in which x takes one value. Without strata
    all rows are one. There is no p-value: the rows depend on each other, along training and in the
    cells of one seed, so that no permutation of them is as likely as any other.
    """
    known = frame.dropna(subset=[x, y])
    groups = known.groupby(list(strata), dropna=False) if strata else known.groupby(lambda _: 0)
    ranks = groups[[x, y]].rank()
    stratum = groups.ngroup().to_numpy()
    a, b = (_centred(ranks[name].to_numpy(), stratum) for name in (x, y))
    b = np.where(np.bincount(stratum, a * a)[stratum] > 0, b, 0.0)  # where x takes one value
    norm = math.sqrt((a @ a) * (b @ b))
    return float(a @ b) / norm if norm else math.nan


# ---------------------------------------------------------------- tests


class PValues(NamedTuple):
    """How well the data go with a claim that is not so, and with one that is: a p-value each.

    Either is valid by itself, whatever else is tested: under its null it is below a with chance a
    at most. They are put together for all claims of a sweep by
    :func:`gisgd_ray.claims.corrected_together`, which alone gives verdicts.
    """

    p_holds: float
    """Small where the data speak for the claim."""
    p_fails: float
    """Small where they speak against it."""
    n: int
    """Seeds, the fewest of its parts. One seed gives 0 and 1, whichever side it is on, or what its
    own Monte-Carlo error leaves of that: about this one run alone."""


def t_test(interval: Interval, threshold: float, *, side: Side) -> PValues:
    """Whether the mean lies on one side of a threshold, by a t test over the seeds.

    Its level is right for values about normal, which slopes, and means over many points, are. It
    takes two seeds at least; with two, t must be beyond 12.7 at 5 %, and more when corrected, so
    that three are the fewest that decide much. Two that are equal to the bit, with which t would be
    infinite, decide nothing: values that differ as normal ones do are never equal, and what takes
    few values, as a count of epochs does, is equal by chance too easily. Three or more that are
    equal are what does not depend on the seed.
    """
    with np.errstate(divide="ignore"):  # log 0
        at = float(np.log(threshold)) if isinstance(interval, RatioInterval) else threshold
    above = interval.mean - at if side == "above" else at - interval.mean
    if interval.n == 1 and math.isnan(interval.error) and not math.isnan(above):
        return PValues(float(above <= 0), float(above > 0), 1)
    no_spread = interval.error == 0 and (above == 0 or interval.n < MIN_SEEDS)
    if math.isnan(interval.error) or no_spread:
        return PValues(1.0, 1.0, interval.n)
    with np.errstate(divide="ignore"):
        t = np.float64(above) / interval.error
    p_holds, p_fails = (float(scipy.stats.t.sf(s * t, interval._degrees)) for s in (1, -1))
    return PValues(p_holds, p_fails, interval.n)


def enough_seeds(found: PValues) -> PValues:
    """These, or of two seeds nothing; one shows what it shows."""
    return found if found.n < 2 or found.n >= MIN_SEEDS else PValues(1.0, 1.0, found.n)


def tested(parts: Sequence[PValues]) -> tuple[list[PValues], int]:
    """The parts of a claim, and the fewest seeds that any of them is tested over.

    What has one seed, or none, is not tested beside what has several: it says nothing either way.
    """
    fewest = min((part.n for part in parts if part.n > 1), default=min(part.n for part in parts))
    if fewest < 2:
        return list(parts), fewest
    return [part if part.n > 1 else PValues(1.0, 1.0, part.n) for part in parts], fewest


def all_of(*parts: PValues) -> PValues:
    """All must hold, each at the level asked; one that fails, among so many, fails them all.

    Where one was not measured with any seed, nothing is tested.
    """
    each, n = tested(parts)
    fails = min(1.0, len(each) * min(part.p_fails for part in each))
    measured = all(part.n for part in parts)
    return PValues(max(part.p_holds for part in each), fails, n if measured else 0)


def opposite(first: PValues, second: PValues) -> PValues:
    """Whether one of two holds and the other fails, whichever: both have to be established."""
    measured = first.n and second.n
    (first, second), n = tested([first, second])
    apart = min(max(first.p_holds, second.p_fails), max(first.p_fails, second.p_holds))
    alike = min(max(first.p_holds, second.p_holds), max(first.p_fails, second.p_fails))
    # Twice: there are two ways to be apart, and two to be alike.
    return PValues(min(1.0, 2 * apart), min(1.0, 2 * alike), n if measured else 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the chance of any false one at or below a is a at most.

    Whatever depends on what. The k-th smallest of m is multiplied by m - k + 1, and none is below a
    smaller one's.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for k, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - k) * p_values[place]))
        adjusted[place] = largest
    return adjusted


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
