"""What the paper reads off Figure 3 (section 3, appendix E.6): V descends twice, epoch by epoch.

With noisy labels the gradient dispersion V falls quickly and stays low while train and test
accuracy rise together (phase 1); it rises to a peak while the noisy labels are memorised and the
accuracies part (phase 2); it falls again (phase 3). Its valley "appears to mark a great divide
between generalization and memorization".
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gisgd_ray.claims import (
    NOT_MEASURED,
    Claim,
    Count,
    Verdict,
    count_verdict,
    interval_verdict,
    joint_verdict,
    mean_interval,
)
from gisgd_ray.claims.points import TEST, TRAIN, finished, numbers
from gisgd_ray.claims.statistics import short_number
from gisgd_ray.panels import panels, setting_text
from gisgd_ray.results import ResultTables

Array = NDArray[np.float64]

NOISE = "data.label_noise"
DISPERSION = "measure/gradient_dispersion"

WINDOW = 5
"""Points of the running median."""
FACTOR = 1.05
"""By how much V must fall, rise and fall again. The mean of V over an epoch scatters by 2 to 3 %.
Of 24 runs of the MLP on mnist5k (6 seeds, label noise 0, 0.2, 0.4, 0.6), smoothed, V never rose
above its lowest value so far by more than 0.1 % without noise, and by at least 6, 42 and 75 %."""
TOLERANCE = 1.0
"""Percentage points of test accuracy that count as none: 10 of the bundled digits' 1,000."""
SMALL_GAP = 0.2
"""A gap is small up to this share of the gap at the end."""
LEARNED = 0.5
"""Share of the rise of test accuracy that belongs to phase 1 at least; otherwise a network that
has learned nothing yet would have a small gap too."""
ONLY_DECAYS_CLEAN = ("mlp",)
"""Models whose V only decays without label noise (Figure 3a); AlexNet's descends twice (3e)."""


@dataclass(frozen=True)
class Valley:
    """The lowest point of V between its two descents."""

    epoch: float
    dispersion: float
    peak_epoch: float
    peak: float
    end: float
    """V at the last point. All three values are running medians."""

    @property
    def descends_again(self) -> bool:
        """Whether V has come down from the peak by the end."""
        return self.peak > FACTOR * self.end


def running_median(values: Iterable[float]) -> Array:
    """Medians over ``WINDOW`` points about each; symmetric, so narrower towards the ends."""
    given = np.asarray(list(values), dtype=np.float64)
    last = len(given) - 1
    halves = [min(WINDOW // 2, j, last - j) for j in range(len(given))]
    medians = [np.median(given[j - half : j + half + 1]) for j, half in enumerate(halves)]
    return np.array(medians, dtype=np.float64)


def find_valley(epochs: Iterable[float], dispersion: Iterable[float]) -> Valley | None:
    """Where V, smoothed by :func:`running_median`, is lowest before its highest later peak.

    A point p is a peak above the valley v, the first lowest point before p, where both::

        max_{i <= v} V_i > FACTOR V_v      it has fallen to the valley
        V_p              > FACTOR V_v      it has risen again

    The highest p is the peak of the double descent. Medians next to a sharp extreme equal its own:
    of equal neighbours the middle one counts. None where there is no such p (V only falls, or only
    rises) or fewer than ``WINDOW`` points are known; points where V is not finite are left out.

    Args:
        epochs: in ascending order.
        dispersion: V at these epochs.
    """
    x = np.asarray(list(epochs), dtype=np.float64)
    v = np.asarray(list(dispersion), dtype=np.float64)
    known = np.isfinite(v)
    x, v = x[known], v[known]
    if len(v) < WINDOW:
        return None
    smooth = running_median(v)
    best: tuple[int, int] | None = None
    for peak in range(1, len(smooth)):
        low = int(smooth[:peak].argmin())
        rises = smooth[peak] > FACTOR * smooth[low]
        falls = smooth[: low + 1].max() > FACTOR * smooth[low]
        if rises and falls and (best is None or smooth[peak] > smooth[best[1]]):
            best = (low, peak)
    if best is None:
        return None
    low, peak = (_middle(smooth, place) for place in best)
    return Valley(*(float(n) for n in (x[low], smooth[low], x[peak], smooth[peak], smooth[-1])))


def _middle(values: Array, first: int) -> int:
    """The middle of the stretch of equal values that begins at ``first``."""
    last = first
    while last + 1 < len(values) and values[last + 1] == values[first]:
        last += 1
    return (first + last) // 2


@dataclass(frozen=True)
class Course:
    """What one trial shows; accuracies in %, running medians over the points."""

    points: int
    falls: float
    """V at the end over V at the start."""
    valley: Valley | None
    best_epoch: float
    """Where test accuracy is highest: the first such point, of equal neighbours the middle one."""
    below_best: float
    """Test accuracy at the valley below the best; percentage points, NaN without a valley."""
    lost: float
    """Test accuracy at the end below the best; percentage points."""
    as_good: float
    """Share of the points that are within TOLERANCE of the best."""
    gap: float
    """Largest train - test accuracy up to the valley as a share of that at the end."""
    learned: float
    """Rise of test accuracy from W_0 to the valley as a share of its rise to the best."""


def course(points: pd.DataFrame) -> Course:
    """One trial's course from its measuring points, W_0 at step 0 among them."""
    start = 100 * numbers(points[points["step"] == 0], TEST).max()
    known = points.assign(v=numbers(points, DISPERSION))
    known = known[np.isfinite(known["v"])]  # no step, and so no V, before W_0
    epochs = known["epoch"].to_numpy(np.float64)
    dispersion = running_median(known["v"])
    train, test = (running_median(100 * numbers(known, name)) for name in (TRAIN, TEST))
    valley = find_valley(epochs, known["v"])
    if not len(known) or np.isnan(test).any():
        nan = math.nan
        return Course(len(known), nan, valley, nan, nan, nan, nan, nan, nan)
    best, gaps = test.max(), train - test
    below_best = gap = learned = math.nan
    if valley is not None:
        at = int(np.flatnonzero(epochs == valley.epoch)[0])
        below_best = best - test[at]
        gap = gaps[: at + 1].max() / gaps[-1] if gaps[-1] > 0 else math.nan
        learned = (test[at] - start) / (best - start) if best > start else math.nan
    return Course(
        points=len(known),
        falls=float(dispersion[-1] / dispersion[0]),
        valley=valley,
        best_epoch=float(epochs[_middle(test, int(test.argmax()))]),
        below_best=float(below_best),
        lost=float(best - test[-1]),
        as_good=float((test >= best - TOLERANCE).mean()),
        gap=float(gap),
        learned=float(learned),
    )


def courses(tables: ResultTables, trials: pd.DataFrame) -> list[Course]:
    """The courses of these trials along which V was measured."""
    history = tables.history
    mine = history[history["trial_id"].isin(trials["trial_id"])].sort_values("step")
    found = [course(points) for _, points in mine.groupby("trial_id")]
    return [each for each in found if each.points]


def figure_panels(trials: pd.DataFrame) -> dict[str, dict[float, pd.DataFrame]]:
    """By model, dataset and every other setting that varies: the trials at each label noise."""
    return {
        where: {noise: group[group[NOISE] == noise] for noise in sorted(set(group[NOISE]))}
        for where, group in panels(trials, [NOISE]).items()
    }


def claims(tables: ResultTables) -> list[Claim]:
    """Figure 3 for each model, dataset and label noise: three claims, without noise two."""
    found = []
    for where, levels in figure_panels(finished(tables)).items():
        for noise, trials in levels.items():
            there = f"{where}, {setting_text(NOISE, noise)}"
            seen = courses(tables, trials)
            if noise == 0:
                decays = trials["model.name"].iloc[0] in ONLY_DECAYS_CLEAN
                shape = _only_decays(seen, there) if decays else _descends_twice(seen, there)
                found += [shape, _nothing_lost(seen, there)]
            else:
                found += [
                    _descends_twice(seen, there),
                    _valley_marks_best(seen, there),
                    _small_gap_before(seen, there),
                ]
    return found


def _descends_twice(seen: list[Course], where: str) -> Claim:
    """Statistic: count of trials. n: trials of at least WINDOW points."""
    long = [each for each in seen if each.points >= WINDOW]
    valleys = [each.valley for each in long if each.valley is not None]
    twice = sum(valley.descends_again for valley in valleys)
    evidence = _counted(twice, long, seen)
    if valleys:
        evidence += (
            f"; valley at epoch {_span(v.epoch for v in valleys)}, peak at epoch "
            f"{_span(v.peak_epoch for v in valleys)}, "
            f"{_span(v.peak / v.dispersion for v in valleys)} times as high"
        )
    return Claim(
        text=f"The gradient dispersion V descends twice: to a valley and, after a peak, again "
        f"({where}).",
        test=f"V, as a running median over {WINDOW} points, falls, rises and falls again by a "
        f"factor of at least {FACTOR:g} each; in every trial, a count",
        evidence=evidence,
        verdict=count_verdict(Count(twice, len(long), 0, math.nan)),
    )


def _only_decays(seen: list[Course], where: str) -> Claim:
    """Statistic: count of trials. n: trials of at least WINDOW points."""
    long = [each for each in seen if each.points >= WINDOW]
    decays = sum(each.valley is None and each.falls < 0.5 for each in long)
    evidence = _counted(decays, long, seen)
    if long:
        evidence += f"; V at the end is {_span(each.falls for each in long)} of V at the start"
    return Claim(
        text=f"Without label noise the gradient dispersion V only decays ({where}).",
        test=f"V, as a running median over {WINDOW} points, never rises by a factor of {FACTOR:g} "
        "after a fall, and ends below half of where it started; in every trial, a count",
        evidence=evidence,
        verdict=count_verdict(Count(decays, len(long), 0, math.nan)),
    )


def _nothing_lost(seen: list[Course], where: str) -> Claim:
    """Statistic: mean over seeds of best - last test accuracy. n: trials."""
    lost = mean_interval(each.lost for each in seen)
    return Claim(
        text=f"Without label noise test accuracy does not fall in the end ({where}).",
        test=f"test accuracy at the end below the best of the run, both running medians over "
        f"{WINDOW} points: less than {TOLERANCE:g} percentage point, with several seeds the whole "
        "95 % interval",
        evidence=f"{lost} percentage points below" if lost.n else str(lost),
        verdict=interval_verdict(lost, TOLERANCE, side="below"),
    )


def _valley_marks_best(seen: list[Course], where: str) -> Claim:
    """Statistics: means over seeds of best - test accuracy at the valley and at the end."""
    below = mean_interval(each.below_best for each in seen)
    lost = mean_interval(each.lost for each in seen)
    evidence = _no_valley(seen)
    if below.n:
        with_valley = [(each, each.valley) for each in seen if each.valley is not None]
        evidence = (
            f"below the best at the valley by {below} percentage points, at the end by {lost}; "
            f"valley at epoch {_span(v.epoch for _, v in with_valley)}, best at epoch "
            f"{_span(each.best_epoch for each, _ in with_valley)}, "
            f"{_span(abs(each.best_epoch - v.epoch) for each, v in with_valley)} epochs apart; "
            f"within {TOLERANCE:g} point of the best are "
            f"{_span(100 * each.as_good for each, _ in with_valley)} % of all points"
        )
    return Claim(
        text=f"The valley of V marks where test accuracy peaks ({where}).",
        test=f"test accuracy at the valley less than {TOLERANCE:g} percentage point below the best "
        "of the run, and at the end more than that (so that there is a peak to mark); running "
        f"medians over {WINDOW} points; with several seeds the whole 95 % intervals, and a valley "
        "in every trial",
        evidence=evidence,
        verdict=_unless_missing(
            below.missing,
            interval_verdict(below, TOLERANCE, side="below"),
            interval_verdict(lost, TOLERANCE, side="above"),
        ),
    )


def _small_gap_before(seen: list[Course], where: str) -> Claim:
    """Statistics: means over seeds of the two shares. n: trials with a valley."""
    gap = mean_interval(each.gap for each in seen)
    learned = mean_interval(each.learned for each in seen)
    evidence = _no_valley(seen)
    if gap.n:
        evidence = (
            f"largest gap up to the valley / gap at the end {gap}; share of the rise of test "
            f"accuracy by then {learned}"
        )
    return Claim(
        text=f"Up to the valley both accuracies rise with a small gap between them, which opens "
        f"after it ({where}).",
        test=f"largest train − test accuracy up to the valley below {SMALL_GAP:g} of that at the "
        f"end, and more than {LEARNED:g} of the rise of test accuracy (from W_0 to its best) done; "
        "with several seeds the whole 95 % intervals, and a valley in every trial",
        evidence=evidence,
        verdict=_unless_missing(
            gap.missing,
            interval_verdict(gap, SMALL_GAP, side="below"),
            interval_verdict(learned, LEARNED, side="above"),
        ),
    )


def _unless_missing(missing: int, *verdicts: Verdict) -> Verdict:
    """Nothing holds of the valley that is not there in every trial."""
    joint = joint_verdict(*verdicts)
    return "undecided" if missing and joint == "holds" else joint


def _no_valley(seen: list[Course]) -> str:
    return f"no valley in {len(seen)} of {len(seen)} trials (n = 0)" if seen else NOT_MEASURED


def _counted(k: int, long: list[Course], seen: list[Course]) -> str:
    if not seen:
        return NOT_MEASURED
    if not long:
        return f"measured at fewer than {WINDOW} points of each trial (n = 0)"
    return f"{k} of {len(long)} trials"


def _span(values: Iterable[float]) -> str:
    """The mean with the extremes, if they differ as shown.

    >>> _span([2.0, 2.0]), _span([2.0, 3.0])
    ('2', '2.5 (2 to 3)')
    """
    given = list(values)
    mean, low, high = (_plain(n) for n in (np.mean(given), min(given), max(given)))
    return mean if low == high else f"{mean} ({low} to {high})"


def _plain(value: Any) -> str:
    return f"{value:g}" if value == round(value) else short_number(float(value))
