"""What the paper reads off Figure 3 (section 3, appendix E.6): V descends twice, epoch by epoch.

With noisy labels the gradient dispersion V falls quickly and stays low while train and test
accuracy rise together (phase 1); it rises to a peak while the noisy labels are memorised and the
accuracies part (phase 2); it falls again (phase 3). Its valley "appears to mark a great divide
between generalization and memorization".
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy

from gisgd_ray.claims.accuracies import (
    UNDEFINED,
    AccuracyInterval,
    HeldOut,
    Points,
    Z,
    accuracy_interval,
    accuracy_test,
    held_out,
    less_sure,
    lift_of_best,
)
from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.points import TEST, TRAIN, finished, not_measured, numbers, reading
from gisgd_ray.claims.statistics import (
    LEVEL,
    NOT_MEASURED,
    PValues,
    Side,
    all_of,
    enough_seeds,
    short_number,
)
from gisgd_ray.claims.valley import (
    AUTOCORRELATION,
    FACTOR,
    GROWTH,
    PEAK,
    WINDOW,
    Array,
    Excluded,
    Valley,
    excluded,
    find_valley,
    middle_of_equals,
    running_median,
)
from gisgd_ray.results.panels import Title, panels
from gisgd_ray.results.tables import ResultTables

NOISE = "data.label_noise"
DISPERSION = "measure/gradient_dispersion"

FITTED = 99.0
"""Training accuracy in % from which on the labels are fitted: of labels of which a fraction p was
redrawn, 1 % is a ninth of the wrong ones at p = 0.1 and a fiftieth at 0.6. V descends for the
second time only as the last of them are fitted, so that a run which stopped before shows neither
that it does not nor what is lost by then."""
TOLERANCE = 3.0
"""Percentage points of test accuracy that count as none. The test split's own error is 2 points
with the bundled digits' 1,000, so that less could never be seen there."""
SMALL_GAP = 0.2
"""A gap is small up to this share of the gap at the end."""
LEARNED = 0.5
"""Share of the rise of test accuracy that belongs to phase 1 at least; otherwise a network that
has learned nothing yet would have a small gap too."""
UNLIFTED = "and so with the best less what its choice among so many adds by their scatter"
ONLY_DECAYS_CLEAN = ("mlp",)
"""Models whose V only decays without label noise (Figure 3a); AlexNet's descends twice (3e)."""


@dataclass(frozen=True)
class Course:
    """What one trial shows; accuracies in %, running medians over the points."""

    points: int
    fitted: float
    """The highest training accuracy; NaN where it was not measured."""
    falls: float
    """V at the end over V at the start."""
    valley: Valley | None
    excluded: Excluded
    best_epoch: float = math.nan
    """Where test accuracy is highest: the first such point, of equal neighbours the middle one."""
    plateau: tuple[float, float] = (math.nan, math.nan)
    """First and last epoch at which the test split does not tell test accuracy from the best."""
    as_good: float = math.nan
    """Share of the points at which it does not."""
    below_best: Points = UNDEFINED
    """The best test accuracy minus that at the valley."""
    lost: Points = UNDEFINED
    """The best test accuracy minus that at the end."""
    lift: float = math.nan
    """What the choice of the best of so many points adds to it by their scatter."""
    gap: Points = UNDEFINED
    """Largest train - test accuracy up to the valley, minus ``SMALL_GAP`` of that at the end."""
    learned: Points = UNDEFINED
    """Test accuracy at the valley, minus that ``LEARNED`` of the way from W_0's to the best."""
    trained: Points = UNDEFINED
    """By how much training accuracy has risen at the valley, minus ``LEARNED`` of that way."""

    @property
    def is_fitted(self) -> bool:
        return self.fitted >= FITTED

    def unlifted(self, below_best: Points) -> Points:
        """A difference from the best test accuracy, less the lift of that."""
        return Points(below_best.value - self.lift, below_best.error)


def course(points: pd.DataFrame, split: HeldOut) -> Course:
    """One trial's course from its measuring points, W_0 at step 0 among them.

    Points at which an accuracy is not known are left out of what is about accuracies.
    """
    at_start = points[points["step"] == 0]
    start, untrained = (100 * numbers(at_start, name).max() for name in (TEST, TRAIN))
    known = points.assign(v=numbers(points, DISPERSION))
    known = known[np.isfinite(known["v"])]  # no step, and so no V, before W_0
    if not len(known):
        return Course(0, math.nan, math.nan, None, Excluded())
    dispersion = running_median(known["v"])
    tested = known[(numbers(known, TRAIN) + numbers(known, TEST)).notna()]
    epochs = tested["epoch"].to_numpy(np.float64)
    train, test = (running_median(100 * numbers(tested, name)) for name in (TRAIN, TEST))
    seen = Course(
        points=len(known),
        fitted=float(train.max()) if len(train) else math.nan,
        falls=float(dispersion[-1] / dispersion[0]),
        valley=find_valley(known["epoch"], known["v"]),
        excluded=excluded(known["v"]),
    )
    if len(tested) < WINDOW:
        return seen
    best = float(test.max())
    as_good = [
        best - each <= Z * split.difference_error(best, each) + split.resolution for each in test
    ]
    seen = replace(
        seen,
        best_epoch=float(epochs[middle_of_equals(test, int(test.argmax()))]),
        plateau=_ends(epochs[as_good]),
        as_good=float(np.mean(as_good)) if any(as_good) else math.nan,
        lost=split.difference(best, float(test[-1])),
        lift=lift_of_best(100 * numbers(tested, TEST)),
    )
    if seen.valley is None:
        return seen
    at = int(np.abs(epochs - seen.valley.epoch).argmin())  # or beside it, if not tested there
    seen = _up_to(at, seen, train=train, test=test, start=start, split=split)
    way = split.difference(best, start)
    trained = float(train[at]) - untrained - LEARNED * way.value
    return replace(seen, trained=Points(trained, LEARNED * way.error))


def _up_to(
    at: int, seen: Course, *, train: Array, test: Array, start: float, split: HeldOut
) -> Course:
    """The course with the accuracies at the valley against those before and after it.

    Their errors are sums of those of differences: the part of a split's error that all accuracies
    share falls out of them. A gap has the error of its test accuracy; that of training is known.
    """
    best, here, last = float(test.max()), float(test[at]), float(test[-1])
    gaps = train - test
    widest = int(gaps[: at + 1].argmax())
    before = float(test[widest])
    gap_error = SMALL_GAP * split.difference_error(before, last)
    gap_error += (1 - SMALL_GAP) * split.error(before)
    way_error = (1 - LEARNED) * split.difference_error(here, start)
    way_error += LEARNED * split.difference_error(here, best)
    return replace(
        seen,
        below_best=split.difference(best, here),
        gap=Points(float(gaps[widest] - SMALL_GAP * gaps[-1]), gap_error),
        learned=Points(here - (1 - LEARNED) * start - LEARNED * best, way_error),
    )


def _ends(epochs: Array) -> tuple[float, float]:
    return (float(epochs[0]), float(epochs[-1])) if len(epochs) else (math.nan, math.nan)


def courses(tables: ResultTables, trials: pd.DataFrame) -> list[Course]:
    """The courses of these trials of one panel along which V was measured."""
    history = tables.history
    mine = history[history["trial_id"].isin(trials["trial_id"])].sort_values("step")
    split = held_out(trials)
    found = [course(points, split) for _, points in mine.groupby("trial_id")]
    return [each for each in found if each.points]


def figure_panels(trials: pd.DataFrame) -> dict[Title, dict[float, pd.DataFrame]]:
    """By model, dataset and every other setting that varies: the trials at each label noise."""
    return {
        where: {cast(float, noise): part for noise, part in group.groupby(NOISE, dropna=False)}
        for where, group in panels(trials, [NOISE]).items()
    }


@reading("Figure 3", trials=[NOISE], history=["step", "epoch"])
def claims(tables: ResultTables) -> list[Claim]:
    """Figure 3 for each model, dataset and label noise: three claims, without noise two."""
    found = []
    for where, levels in figure_panels(finished(tables)).items():
        for noise, trials in levels.items():
            there = str(where.with_setting(NOISE, noise))
            if math.isnan(noise):
                why = f"{NOISE} is not known of {len(trials)} trials"
                found.append(not_measured(f"What the paper reads off Figure 3 ({there}).", why))
                continue
            seen, split = courses(tables, trials), held_out(trials)
            if noise == 0:
                decays = trials["model.name"].iloc[0] in ONLY_DECAYS_CLEAN
                shape = _only_decays(seen, there) if decays else _descends_twice(seen, there)
                found += [shape, _nothing_lost(seen, split, there)]
            else:
                found += [
                    _descends_twice(seen, there),
                    _valley_marks_best(seen, split, there),
                    _small_gap_before(seen, split, there),
                ]
    return corrected_together(found)


def shape_test(shown: Sequence[bool], denied: Sequence[bool]) -> PValues:
    """Whether runs have a shape that each shows, or denies, with chance LEVEL at most if not so.

    Of n runs that do not have it, k or more show it with the chance of a binomial distribution.
    Where some show it and some deny it, neither is established of them all.
    """
    n = len(shown)
    if n == 1:
        return PValues(float(not shown[0]), float(not denied[0]), 1)
    for_it, against = (float(scipy.stats.binom.sf(sum(k) - 1, n, LEVEL)) for k in (shown, denied))
    return enough_seeds(PValues(1.0 if any(denied) else for_it, 1.0 if any(shown) else against, n))


CHANCE = (
    f"of each run with a false-alarm rate of {LEVEL * 100:g} %, where its scatter grows {GROWTH:g} "
    f"times at most and correlates by {AUTOCORRELATION:g} at most from point to point; of all by "
    "the binomial chance"
)
IF_FITTED = f"a training accuracy of {FITTED:g} % counts as labels fitted"


def _descends_twice(seen: list[Course], where: str) -> Claim:
    """Statistic: how many trials show it, and how many exclude it. n: trials of WINDOW points."""
    long = [each for each in seen if each.points >= WINDOW]
    valleys = [each.valley for each in long if each.valley is not None]
    twice = [each.valley is not None and each.valley.descends_again for each in long]
    excludes = [each.is_fitted and each.excluded.second_descent for each in long]
    evidence = _counted(seen, long, f"descends twice in {sum(twice)}, excluded in {sum(excludes)}")
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
        f"factor of {FACTOR:g} and more than its scatter makes a curve do that only falls; against "
        f"it, with the labels fitted: a rise by {FACTOR:g} to a peak of at least {PEAK:g} of the "
        f"first V, and from there a last fall by {FACTOR:g}, are excluded together; {CHANCE}; "
        f"{IF_FITTED}",
        evidence=evidence,
        p_values=shape_test(twice, excludes) if long else None,
    )


def _only_decays(seen: list[Course], where: str) -> Claim:
    """Statistic: how many trials show it, and how many exclude it. n: trials of WINDOW points."""
    long = [each for each in seen if each.points >= WINDOW]
    decays = [
        each.is_fitted and each.valley is None and each.excluded.rise and each.falls < 0.5
        for each in long
    ]
    excludes = [
        each.valley is not None or (each.is_fitted and each.excluded.halving) for each in long
    ]
    evidence = _counted(seen, long, f"only decays in {sum(decays)}, excluded in {sum(excludes)}")
    if long:
        evidence += f"; V at the end is {_span(each.falls for each in long)} of V at the start"
    return Claim(
        text=f"Without label noise the gradient dispersion V only decays ({where}).",
        test=f"V, as a running median over {WINDOW} points, ends below half of where it started, "
        f"and a rise by {FACTOR:g} to a peak of at least {PEAK:g} of the first V is excluded, with "
        "the labels fitted; against it: a fall and a rise by more than its scatter makes a curve "
        f"do that only falls, or an end surely above half; {CHANCE}; {IF_FITTED}",
        evidence=evidence,
        p_values=shape_test(decays, excludes) if long else None,
    )


def _nothing_lost(seen: list[Course], split: HeldOut, where: str) -> Claim:
    """Statistic: mean over seeds of best - last test accuracy. n: trials that fitted the labels."""
    fitted = [each for each in seen if each.is_fitted]
    lost = accuracy_interval([each.lost for each in fitted], split)
    unlifted = accuracy_interval([each.unlifted(each.lost) for each in fitted], split)
    return Claim(
        text=f"Without label noise test accuracy does not fall in the end ({where}).",
        test=f"test accuracy at the end below the best of the run, both running medians over "
        f"{WINDOW} points: less than {TOLERANCE:g} percentage points, in the mean over seeds; "
        f"{UNLIFTED}; {split.in_words}; {IF_FITTED}",
        evidence=f"{lost} percentage points below{_unfitted(seen)}" if lost.n else _absent(seen),
        p_values=_all_tested(lost, unlifted, side="below"),
    )


def _valley_marks_best(seen: list[Course], split: HeldOut, where: str) -> Claim:
    """Statistics: means over seeds of best - test accuracy at the valley and at the end."""
    found = _with_valley(seen)
    below = accuracy_interval([each.below_best for each, _ in found], split)
    lost = accuracy_interval([each.lost for each, _ in found], split)
    below_unlifted = accuracy_interval([c.unlifted(c.below_best) for c, _ in found], split)
    lost_unlifted = accuracy_interval([c.unlifted(c.lost) for c, _ in found], split)
    evidence = _absent(seen)
    if below.n:
        evidence = (
            f"below the best at the valley by {below} percentage points, at the end by {lost}; "
            f"valley at epoch {_span(v.epoch for _, v in found)}, best at epoch "
            f"{_span(each.best_epoch for each, _ in found)}, "
            f"{_span(abs(each.best_epoch - v.epoch) for each, v in found)} epochs apart"
            f"{_plateaus(found)}{_without_valley(seen)}{_unfitted(seen)}"
        )
    return Claim(
        text=f"The valley of V marks where test accuracy peaks ({where}).",
        test=f"test accuracy at the valley less than {TOLERANCE:g} percentage points below the "
        "best of the run, and at the end more than that (so that there is a peak to mark), in the "
        f"mean over seeds with a valley; running medians over {WINDOW} points; {UNLIFTED}; "
        f"{split.in_words}; {IF_FITTED}",
        evidence=evidence,
        p_values=all_of(
            _all_tested(below, below_unlifted, side="below"),
            _all_tested(lost, lost_unlifted, side="above"),
        ),
    )


def _all_tested(*intervals: AccuracyInterval, side: Side) -> PValues:
    """The least sure of these, against ``TOLERANCE``."""
    return less_sure(*(accuracy_test(each, TOLERANCE, side=side) for each in intervals))


def _small_gap_before(seen: list[Course], split: HeldOut, where: str) -> Claim:
    """Statistics: means over seeds of how far either is on its side. n: trials with a valley."""
    found = _with_valley(seen)
    gap = accuracy_interval([each.gap for each, _ in found], split)
    learned = accuracy_interval([each.learned for each, _ in found], split)
    trained = accuracy_interval([each.trained for each, _ in found], split)
    evidence = _absent(seen)
    if gap.n:
        evidence = (
            f"largest gap up to the valley minus {SMALL_GAP:g} of that at the end {gap}; test "
            f"accuracy there minus that {LEARNED:g} of the way from W_0’s to its best {learned}; "
            f"rise of training accuracy there minus {LEARNED:g} of that way {trained}"
            f"{_without_valley(seen)}{_unfitted(seen)}"
        )
    return Claim(
        text=f"Up to the valley both accuracies rise with a small gap between them, which opens "
        f"after it ({where}).",
        test=f"largest train − test accuracy up to the valley below {SMALL_GAP:g} of that at the "
        f"end, more than {LEARNED:g} of the rise of test accuracy (from W_0 to its best) done, and "
        f"training accuracy risen by as much; as differences in percentage points, in the mean "
        f"over seeds with a valley; {split.in_words}; {IF_FITTED}",
        evidence=evidence,
        p_values=all_of(
            accuracy_test(gap, 0.0, side="below"),
            accuracy_test(learned, 0.0, side="above"),
            accuracy_test(trained, 0.0, side="above"),
        ),
    )


def _with_valley(seen: list[Course]) -> list[tuple[Course, Valley]]:
    return [(each, each.valley) for each in seen if each.valley is not None and each.is_fitted]


def _absent(seen: list[Course]) -> str:
    """Why there is nothing to count."""
    if not seen or all(math.isnan(each.lost.value) for each in seen):
        return NOT_MEASURED
    if not any(each.is_fitted for each in seen):
        return _stopped(seen)
    return "no valley in any trial that fitted the labels (n = 0)"


def _plateaus(found: list[tuple[Course, Valley]]) -> str:
    """How wide the best test accuracy is: what its sampling error does not tell from it."""
    known = [(each, v) for each, v in found if not math.isnan(each.as_good)]
    if not known:
        return ""
    inside = sum(each.plateau[0] <= v.epoch <= each.plateau[1] for each, v in known)
    first, last = (_span(each.plateau[i] for each, _ in known) for i in (0, 1))
    return (
        f"; the test samples do not tell epochs {first} to {last} from the best, "
        f"{_span(100 * each.as_good for each, _ in known)} % of all points, the valley among them "
        f"in {inside} of {len(known)} trials"
    )


def _without_valley(seen: list[Course]) -> str:
    without = sum(each.valley is None for each in seen)
    return f"; no valley found in {without} of {len(seen)} trials" if without else ""


def _unfitted(seen: list[Course]) -> str:
    return f"; {_stopped(seen)}" if any(each.fitted < FITTED for each in seen) else ""


def _stopped(seen: list[Course]) -> str:
    reached = [each.fitted for each in seen if each.fitted < FITTED]
    return (
        f"{len(reached)} of {len(seen)} trials stopped before the labels were fitted, at a "
        f"training accuracy of {_span(reached)} %"
    )


def _counted(seen: list[Course], long: list[Course], counts: str) -> str:
    if not seen:
        return NOT_MEASURED
    if not long:
        return f"measured at fewer than {WINDOW} points of each trial (n = 0)"
    return f"{counts} of {len(long)} trials{_unfitted(long)}"


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
