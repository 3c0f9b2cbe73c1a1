"""What test accuracies tell of the population's: the sampling error of the test split, and seeds.

Every trial of a panel is tested on the same m samples, so that their sampling error is in all seeds
alike: it does not show in the spread over seeds, and no number of seeds makes it less.

**The difference of two accuracies on the same samples.** Per sample it is d = 1{f_1(x) = y} -
1{f_2(x) = y}, and Var(mean d) <= E[d^2] / m, where E[d^2] is the chance that just one of the two is
right. A table of accuracies does not have it, but bounds it: of true labels it is at most the
chance that either is wrong, E = (1 - c_1) + (1 - c_2), with c the accuracy on true labels. Where a
fraction p of the test labels is redrawn uniformly over K classes, whatever the networks,

    a = (1 - p) c + p / K                   any network is right of a redrawn label with chance 1/K
    E[d^2] <= (1 - p) E + p (2/K) E         two that differ, with chance E at most, are with 2/K

so that c = (a - p/K) / (1 - p) comes from the accuracy a itself. Nothing is assumed of how the two
networks depend on each other. Networks that agree more than they must have a smaller error.

**A mean over n seeds** then has two errors, a = s / sqrt(n) of the seeds and b of the split, which
is that of the difference and one sample, the resolution, in quadrature. Its interval is

    mean +- sqrt((t_{n-1} a)^2 + (z b)^2)        t and z at the level asked

never narrower than by either alone, and its p-value the level at which it meets the threshold. Two
seeds establish nothing: they agree by chance too easily.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

from gisgd_ray.claims.points import numbers
from gisgd_ray.claims.statistics import (
    LEVEL,
    MIN_SEEDS,
    Interval,
    PValues,
    Side,
    mean_interval,
    t_test,
)

Z = 1.96
"""Normal quantile of 95 % either way."""


class Points(NamedTuple):
    """Something about one seed's accuracies, in percentage points."""

    value: float
    error: float
    """Bound on its standard error over draws of the test split."""


LEAST = 1e-15
"""P-values are not told apart below."""
UNDEFINED = Points(math.nan, math.nan)


@dataclass(frozen=True)
class HeldOut:
    """What the trials of a panel are tested on; NaN where the rows do not say."""

    samples: float
    """m."""
    classes: float
    """K."""
    label_noise: float
    """p: fraction of the labels that is redrawn."""

    @property
    def resolution(self) -> float:
        """One sample, in percentage points."""
        return 100 / self.samples

    @property
    def in_words(self) -> str:
        """What an interval takes into account, for a claim's test."""
        return f"with the sampling error of {_whole(self.samples)} test samples"

    def difference_error(self, first: float, second: float) -> float:
        """Bound on the standard error of the difference of two accuracies, all in %.

        See the module's text.
        """
        p, m = self.label_noise, self.samples
        by_chance = p / self.classes if p else 0.0
        if p == 1:  # nothing is known of true labels, nor asked
            return 100 * math.sqrt(2 * by_chance / m)
        of_true = np.clip((np.array([first, second]) / 100 - by_chance) / (1 - p), 0, 1)
        wrong = np.minimum(1, (1 - of_true).sum())
        return float(100 * np.sqrt(wrong * (1 - p + 2 * by_chance) / m))

    def error(self, accuracy: float) -> float:
        """Standard error of one accuracy, both in %: binomial."""
        return math.sqrt(max(0.0, accuracy * (100 - accuracy)) / self.samples)

    def difference(self, first: float, second: float) -> Points:
        """first - second, accuracies in %."""
        return Points(first - second, self.difference_error(first, second))


def held_out(trials: pd.DataFrame) -> HeldOut:
    """Of the trials of one panel, which are tested alike."""
    noise = numbers(trials, "data.label_noise").fillna(0.0)
    sizes = (numbers(trials, name) for name in ("num_test_samples", "num_classes"))
    samples, classes = (_common(size) for size in sizes)
    return HeldOut(samples, classes, _common(noise))


def _whole(number: float) -> str:
    return "an unknown number of" if math.isnan(number) else f"{number:,.0f}"


def _common(values: "pd.Series[float]") -> float:
    return float(values.iloc[0]) if values.nunique(dropna=False) == 1 else math.nan


@dataclass(frozen=True)
class AccuracyInterval(Interval):
    """A mean over seeds in percentage points; ``error`` is the seeds'."""

    split_error: float = math.nan
    """Of the test split, in all seeds alike."""

    def half_at(self, level: float) -> float:
        """Half the width of the interval that leaves out ``level`` on either side."""
        t, z = scipy.stats.t.isf(level, self.n - 1), scipy.stats.norm.isf(level)
        return math.hypot(t * self.error, z * self.split_error)

    @property
    def _half(self) -> float:
        return self.half_at(LEVEL / 2)


def accuracy_interval(seeds: Iterable[Points], split: HeldOut) -> AccuracyInterval:
    """Mean over seeds in percentage points, with the errors of the module's text.

    The test split's error of the mean is at most the mean of the seeds', as it is common to them.
    Seeds without a value are left out and counted; without the size of the test split there is no
    interval.
    """
    given = list(seeds)
    over = mean_interval(value for value, _ in given)
    known = [error for value, error in given if not math.isnan(value)]
    of_split = math.hypot(float(np.mean(known)), split.resolution) if known else math.nan
    error = over.error + 0 * of_split  # neither known without the other
    return AccuracyInterval(over.mean, error, over.n, over.missing, split_error=of_split)


def accuracy_test(interval: AccuracyInterval, threshold: float, *, side: Side) -> PValues:
    """Whether the mean lies on one side of a threshold; two seeds do not tell.

    Of one seed, whether that run's own accuracies do, by the test split's error alone.
    """
    n, above = interval.n, interval.mean - threshold
    if n == 1 and interval.split_error > 0:
        side_p = float(
            scipy.stats.norm.sf((1 if side == "above" else -1) * above / interval.split_error)
        )
        return PValues(side_p, 1 - side_p, 1)
    if n < MIN_SEEDS - 1:
        return t_test(interval, threshold, side=side)
    if n < MIN_SEEDS or math.isnan(interval.error):
        return PValues(1.0, 1.0, n)
    p = _level_reached(interval, abs(above))
    is_so = (above > 0) == (side == "above")
    return PValues(p, 1 - p, n) if is_so else PValues(1 - p, p, n)


def less_sure(*each: PValues) -> PValues:
    """Of several ways to measure the same, whichever says less."""
    return PValues(
        max(p.p_holds for p in each), max(p.p_fails for p in each), min(p.n for p in each)
    )


def lift_of_best(values: ArrayLike) -> float:
    """How far the best of so many points lies above them by chance, where none is better.

    The expected maximum of as many normals (Blom 1958), of the scatter that neighbours show: their
    differences' median size, which steps and short peaks do not move.
    """
    given = np.asarray(values, dtype=np.float64)
    if len(given) < 3:
        return 0.0
    scatter = float(np.median(np.abs(np.diff(given)))) / scipy.stats.norm.ppf(0.75) / math.sqrt(2)
    return float(scatter * scipy.stats.norm.ppf((len(given) - 0.375) / (len(given) + 0.25)))


def _level_reached(interval: AccuracyInterval, distance: float) -> float:
    """The level at which half the interval is so wide, from 0.5 (of no width) down to LEAST."""
    least = math.log(LEAST)

    def over(log_level: float) -> float:
        return interval.half_at(math.exp(log_level)) - distance

    if over(least) < 0:
        return LEAST
    return math.exp(scipy.optimize.brentq(over, least, math.log(0.5)))


def sign_test(seeds: Iterable[bool]) -> PValues:
    """Whether something is so with most seeds: a sign test, which takes 6 seeds or more to say so.

    Holds of it: the chance that so many of n fair coins show heads. Epochs are few and whole, so
    that a t test of them says "holds" too often where they agree by chance.
    """
    given = list(map(bool, seeds))
    n, k = len(given), sum(given)
    if n == 1:
        return PValues(float(k == 0), float(k == 1), 1)
    p_holds, p_fails = (float(scipy.stats.binom.sf(count - 1, n, 0.5)) for count in (k, n - k))
    return PValues(p_holds, p_fails, n)
