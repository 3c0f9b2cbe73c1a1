"""Where a noisy curve falls, rises and falls again, at a stated rate of false alarms.

The curve is log V along training, V the mean over an epoch, as a running median. Its scatter about
a smooth course is far from even (1 to 3 % of V early on, 10 to 25 % once V is small), so that it is
measured where it is: from the second differences of neighbouring points,

    r_i = (y_i - (y_{i-1} + y_{i+1}) / 2) / sqrt(3/2)        y = log V,

sigma_i is 1.4826 times the median of |r| over the NEIGHBOURS nearest points. A change from point i
to point j is as many standard errors as

    t_ij = (s_j - s_i) / sqrt(sigma_i^2 / m_i + sigma_j^2 / m_j)

with s_i the median of m_i points. It is called a rise only if it is more than 95 % of flat curves
with scatter alone show *anywhere*: a curve that only falls shows less, since it takes something off
every rise. The 5 % hold for scatter of log V that is about normal, grows along the run by a factor
of GROWTH at most (on a short run the nearest points are of all its parts, and tell too little of
the last), and of which neighbouring points correlate by AUTOCORRELATION at most: the flat curves
that tell (:func:`null_changes`) have as much of both. Of steadier scatter there are fewer.

About a parabola through 11 points, the correlation of ten runs of the MLP on mnist5k (label noise
0.2 to 0.6, second halves) was -0.33 in the mean, where independent points have -0.28 and points
that correlate by 0.3 have -0.12. One run does not tell its own well enough to be refused by it.
Beyond AUTOCORRELATION the 5 % do not hold: of level curves of 60 points that correlate by 0.5 up to
a seventh has a valley, of those that correlate by 0.7 two fifths.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from gisgd_ray.claims.statistics import LEVEL
from gisgd_ray.seeds import derived_seed

Array = NDArray[np.float64]

WINDOW = 5
"""Points of the running median."""
NEIGHBOURS = 15
"""Second differences from which the scatter at a point is measured."""
AUTOCORRELATION = 0.3
"""Of neighbouring points' scatter, up to which false alarms are as rare as stated."""
GROWTH = 25.0
"""Of the scatter along a run, up to which they are: from 1 % of V to 25 %."""
DRAWS = 1_000
"""Flat curves from which quantiles are taken: 5 % are 5 +- 0.7 %."""
PAIRS = 100
"""Pairs of points of each of them, for the changes between two points given beforehand."""
FACTOR = 1.05
"""A change by less is none, however surely it is there."""
PEAK = 0.1
"""Share of the first V below which a later V is no peak."""


@dataclass(frozen=True)
class Valley:
    """The lowest point of V between its two descents."""

    epoch: float
    dispersion: float
    peak_epoch: float
    peak: float
    end: float
    """V at the last point. All three values are running medians."""
    descends_again: bool
    """Whether V has come down from the peak by the end, by FACTOR and more than its scatter."""


class NullChanges(NamedTuple):
    """What flat curves of n points with scatter alone show, in standard errors."""

    largest: float
    """The largest change of all pairs of points is below this in 1 - LEVEL of the curves."""
    single: float
    """The change between two points given beforehand, of the later half, where the scatter is the
    largest, is below this with chance 1 - LEVEL."""
    of_two: float
    """The same with chance 1 - LEVEL / 2."""


def running_median(values: ArrayLike) -> Array:
    """Medians over ``WINDOW`` points about each; symmetric, so narrower towards the ends.

    Args:
        values: ``(..., n)``; a curve in each row.
    """
    given = np.asarray(values, dtype=np.float64)
    medians, halves = np.empty_like(given), np.array(_halves(given.shape[-1]))
    for half in np.unique(halves):
        at = np.flatnonzero(halves == half)
        windows = sliding_window_view(given, 2 * half + 1, axis=-1)
        medians[..., at] = np.median(windows[..., at - half, :], axis=-1)
    return medians


def _halves(n: int) -> list[int]:
    return [min(WINDOW // 2, j, n - 1 - j) for j in range(n)]


def local_scatter(logs: Array) -> Array:
    """sigma_i of the module's text, ``(..., n)`` for curves ``(..., n)`` of at least 3 points."""
    bends = np.abs(logs[..., 1:-1] - (logs[..., 2:] + logs[..., :-2]) / 2) / math.sqrt(1.5)
    width = min(NEIGHBOURS, bends.shape[-1])
    windows = sliding_window_view(bends, width, axis=-1)
    first = np.clip(np.arange(logs.shape[-1]) - 1 - NEIGHBOURS // 2, 0, windows.shape[-2] - 1)
    scatter: Array = 1.4826 * np.median(windows[..., first, :], axis=-1)
    return scatter


@dataclass(frozen=True)
class MedianCurves:
    """Curves of log V as running medians, and the squares of their errors; ``(..., n)`` both."""

    smooth: Array
    variances: Array

    @classmethod
    def of(cls, logs: Array) -> "MedianCurves":
        widths = 2 * np.array(_halves(logs.shape[-1])) + 1
        return cls(running_median(logs), local_scatter(logs) ** 2 / widths)

    def change(self, i: Any, j: Any) -> Array:
        """s_j - s_i; indices or slices of the last axis."""
        return np.asarray(self.smooth[..., j] - self.smooth[..., i])

    def error(self, i: Any, j: Any) -> Array:
        return np.asarray(np.sqrt(self.variances[..., i] + self.variances[..., j]))

    def t(self, i: Any, j: Any) -> Array:
        """t_ij of the module's text; infinite where there is no scatter at all, 0 for no change."""
        change = self.change(i, j)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(change == 0, 0.0, change / self.error(i, j))


def null_changes(n: int) -> NullChanges:
    """Quantiles over ``DRAWS`` flat curves: the larger of those of a few points less and more."""
    below = size = WINDOW
    while size < n:
        below, size = size, math.ceil(1.25 * size)
    pairs = zip(_null_changes(below), _null_changes(size), strict=True)
    return NullChanges(*(max(pair) for pair in pairs))


@lru_cache
def _null_changes(n: int) -> NullChanges:
    rng = np.random.default_rng(derived_seed(0, "flat curves", n))
    even = correlated_scatter(rng, DRAWS, n, AUTOCORRELATION)
    # On long curves scatter that is everywhere the same shows as much: the more of both counts.
    pairs = zip(
        _quantiles(even, rng), _quantiles(even * np.geomspace(1, GROWTH, n), rng), strict=True
    )
    return NullChanges(*(max(pair) for pair in pairs))


def _quantiles(flat: Array, rng: np.random.Generator) -> NullChanges:
    curve, n = MedianCurves.of(flat), flat.shape[-1]
    largest = np.full(len(flat), -math.inf)
    for i in range(n - 1):
        largest = np.maximum(largest, curve.t([i], slice(i + 1, n)).max(axis=-1))
    pairs = [n // 2 + rng.choice(n - n // 2, 2, replace=False) for _ in range(PAIRS)]
    given = np.concatenate([curve.t(i, j) for i, j in pairs])
    levels = (largest, LEVEL), (given, LEVEL), (given, LEVEL / 2)
    return NullChanges(*(float(np.quantile(values, 1 - level)) for values, level in levels))


def correlated_scatter(
    rng: np.random.Generator, curves: int, n: int, autocorrelation: float
) -> Array:
    """Stationary normal scatter, std 1: x_t = rho x_{t-1} + sqrt(1 - rho^2) e_t. ``(curves, n)``"""
    scatter = rng.standard_normal((curves, n))
    for j in range(1, n):
        scatter[:, j] *= math.sqrt(1 - autocorrelation**2)
        scatter[:, j] += autocorrelation * scatter[:, j - 1]
    return scatter


def find_valley(epochs: Iterable[float], dispersion: Iterable[float]) -> Valley | None:
    """Where V, smoothed by :func:`running_median`, is lowest before its highest later peak.

    A point p is a peak above the valley v, the first lowest point before p, where V falls to v from
    its highest point before and rises from v to p, both by ``FACTOR`` and by more standard errors
    than :func:`null_changes` allows. The highest p is the peak of the double descent. Medians next
    to a sharp extreme equal its own: of equal neighbours the middle one counts. None where there
    is no such p, or fewer than ``WINDOW`` points are known; points where V is not positive and
    finite are left out. A curve that only falls has a valley with chance ``LEVEL`` at most, under
    the conditions of the module's text.

    Args:
        epochs: in ascending order.
        dispersion: V at these epochs.
    """
    x, curve = _known(epochs, dispersion)
    if curve is None:
        return None
    smooth, enough = curve.smooth, null_changes(len(x)).largest

    def goes(i: int, j: int, sign: int) -> bool:
        surely = sign * curve.t(i, j) > enough
        return bool(surely) and sign * float(curve.change(i, j)) > math.log(FACTOR)

    best: tuple[int, int] | None = None
    for peak in range(1, len(smooth)):
        low = int(smooth[:peak].argmin())
        high = int(smooth[: low + 1].argmax())
        higher = best is None or smooth[peak] > smooth[best[1]]
        if higher and goes(high, low, -1) and goes(low, peak, 1):
            best = (low, peak)
    if best is None:
        return None
    low, peak = (middle_of_equals(smooth, place) for place in best)
    at_valley, at_peak, at_end = (float(v) for v in np.exp(smooth[[low, peak, -1]]))
    return Valley(
        epoch=float(x[low]),
        dispersion=at_valley,
        peak_epoch=float(x[peak]),
        peak=at_peak,
        end=at_end,
        descends_again=goes(peak, len(smooth) - 1, -1),
    )


@dataclass(frozen=True)
class Excluded:
    """What a curve surely does not show, each at :data:`LEVEL`: nothing where all is left open."""

    rise: bool = False
    """A rise by ``FACTOR`` or more to a peak of at least ``PEAK`` of the first V."""
    second_descent: bool = False
    """Such a rise and, from its peak to the last V, a fall by ``FACTOR`` or more."""
    halving: bool = False
    """That the last V is below half of the first."""


def excluded(dispersion: Iterable[float]) -> Excluded:
    """What there is not: not having been found is no evidence of it.

    The upper end of the one-sided 95 % interval of every change is below ``FACTOR``, of the two
    changes of a second descent that of either's 97.5 %. No correction for the many pairs is due: if
    there is a rise, that between its own two points is within its interval in 95 % of runs. A rise
    takes at least half a window, which blurs any faster one.
    """
    x, curve = _known(None, dispersion)
    if curve is None:
        return Excluded()
    n, null, least = len(x), null_changes(len(x)), math.log(FACTOR)
    first, second = np.triu_indices(n, WINDOW // 2 + 1)
    start = curve.smooth[0] + math.log(PEAK)

    def may_rise(errors: float) -> NDArray[np.bool_]:
        matters = curve.smooth[second] + errors * np.sqrt(curve.variances[second]) >= start
        highest = curve.change(first, second) + errors * curve.error(first, second)
        return np.asarray(matters & (highest >= least), dtype=np.bool_)

    falls = null.of_two * curve.error(second, [n - 1]) - curve.change(second, [n - 1])
    halves = curve.change(0, n - 1) - null.single * curve.error(0, n - 1)
    return Excluded(
        rise=not bool(may_rise(null.single).any()),
        second_descent=not bool((may_rise(null.of_two) & (falls >= least)).any()),
        halving=bool(halves > math.log(0.5)),
    )


def _known(
    epochs: Iterable[float] | None, dispersion: Iterable[float]
) -> tuple[Array, MedianCurves | None]:
    v = np.asarray(list(dispersion), dtype=np.float64)
    x = (
        np.arange(len(v), dtype=np.float64)
        if epochs is None
        else np.asarray(list(epochs), dtype=np.float64)
    )
    known = np.isfinite(v) & (v > 0)
    return x[known], MedianCurves.of(np.log(v[known])) if known.sum() >= WINDOW else None


def middle_of_equals(values: Array, first: int) -> int:
    """The middle of the stretch of equal values that begins at ``first``."""
    last = first
    while last + 1 < len(values) and values[last + 1] == values[first]:
        last += 1
    return (first + last) // 2
