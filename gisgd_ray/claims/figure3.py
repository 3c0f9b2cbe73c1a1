"""What the paper reads off Figure 3 (section 5): epoch-wise double descent of the dispersion.

Per run, along its measured points: the gradient dispersion V falls, stays low, rises to a peak as
noisy labels are memorised, and falls again; the *valley* before the peak is said to divide
generalisation from memorisation. V and the test accuracy are taken as running medians of
:data:`WINDOW` points, since a point is the mean of few batches, and 1,000 test samples have a
standard error of 1.5 percentage points.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gisgd_ray.claims import (
    Claim,
    count_verdict,
    interval_verdict,
    mean_interval,
    ratio_interval,
)
from gisgd_ray.claims.points import finished, points_after_start
from gisgd_ray.claims.statistics import Count
from gisgd_ray.panels import panels
from gisgd_ray.results import ResultTables

NOISE, DISPERSION = "data.label_noise", "measure/gradient_dispersion"
TRAIN, TEST = "train/accuracy", "test/accuracy"

WINDOW = 9
"""Points of the running median; fewer at the ends of a curve."""
SMALLEST_RISE = 0.03
"""A rise from valley to peak counts from this share of the largest V on. Without label noise the
largest chance rise of the smoothed curve is below 0.01 of it (24 runs of the MLP on 4,000 digits);
at a noise level of 0.2, the smallest with a peak, rises are above 0.04."""
SHARE = 0.25
"""What counts as a small part: of the accuracy lost by the end, and of the final gap."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Valley:
    """Where V is lowest before its largest rise, and where that rise ends; indices of points."""

    valley: int
    peak: int


def running_median(values: ArrayLike, window: int = WINDOW) -> Array:
    """Median of the ``window`` points around each, of those there are at the ends; NaN is left
    out."""
    given, half = np.asarray(values, dtype=np.float64), window // 2
    pieces = [given[max(0, i - half) : i + half + 1] for i in range(len(given))]
    return np.array([np.nanmedian(p) if np.isfinite(p).any() else np.nan for p in pieces])


def find_valley(dispersions: ArrayLike) -> Valley | None:
    """The valley of a curve of V over training, or None if V has no second descent.

    With v the running median of V: the peak is where v stands highest above its lowest value so
    far, the valley that lowest value (the last point of it). It counts if the rise is at least
    :data:`SMALLEST_RISE` of the largest v and v falls again to less than half of the peak. Heights
    are compared as they are, not by ratio: late in training V is small and its noise relatively
    large. The place is known to within half the window.
    """
    v = running_median(dispersions)
    if len(v) < WINDOW or not np.isfinite(v).all():
        return None
    peak = int(np.argmax(v - np.minimum.accumulate(v)))
    before = v[: peak + 1]
    valley = int(np.flatnonzero(before == before.min())[-1])
    if v[peak] - v[valley] < SMALLEST_RISE * v.max() or v[peak:].min() >= v[peak] / 2:
        return None
    return Valley(valley, peak)


@dataclass(frozen=True)
class Facts:
    """One run. Epochs are NaN and accuracies NaN where it has no valley."""

    valley_epoch: float
    best_epoch: float
    """Where the smoothed test accuracy is largest."""
    best: float
    at_valley: float
    final: float
    """Smoothed test accuracies (fractions)."""
    gap_at_valley: float
    final_gap: float
    """Train minus test accuracy, both smoothed."""


def facts(points: pd.DataFrame) -> Facts:
    """Of one trial's measured points in order."""
    epochs = points["epoch"].to_numpy(dtype=np.float64)
    train, test = (running_median(points[name]) for name in (TRAIN, TEST))
    best = int(np.argmax(test))
    found = find_valley(points[DISPERSION])
    at: Any = np.nan
    gap = epoch = np.nan
    if found is not None:
        at, epoch = test[found.valley], epochs[found.valley]
        gap = train[found.valley] - at
    return Facts(epoch, epochs[best], test[best], at, test[-1], gap, train[-1] - test[-1])


def panel_facts(tables: ResultTables) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """By panel (model, dataset, noise level): its trials, and a row of :class:`Facts` for each."""
    found = {}
    trials = finished(tables)
    if trials.empty:
        return {}
    for title, group in panels(trials, []).items():
        points = points_after_start(tables, group)
        rows = [facts(points[points["trial_id"] == t]) for t in group["trial_id"]]
        found[title] = (group, pd.DataFrame([vars(row) for row in rows]))
    return found


def claims(tables: ResultTables) -> list[Claim]:
    """Figure 3, for each panel. n: runs (seeds)."""
    made = []
    for where, (trials, rows) in panel_facts(tables).items():
        clean = bool((trials[NOISE] == 0).all()) and bool((trials["model.name"] == "mlp").all())
        made.append(_only_decays(rows, where) if clean else _descends_twice(rows, where))
        if rows["valley_epoch"].notna().any():
            made += [_marks_the_best(rows, where), _divides(rows, where)]
    return made


def _count(k: int, n: int) -> Count:
    return Count(k, n, 0, float("nan"))


TWICE = (
    f"running median of V over {WINDOW} points: a rise of at least {SMALLEST_RISE:.0%} of its "
    "largest value after a valley, then a fall to less than half of the peak"
)


def _descends_twice(rows: pd.DataFrame, where: str) -> Claim:
    with_valley = rows["valley_epoch"].notna()
    count = _count(int(with_valley.sum()), len(rows))
    epochs = rows.loc[with_valley, "valley_epoch"]
    at = f"; valley at epoch {epochs.min():.3g} to {epochs.max():.3g}" if count.k else ""
    return Claim(
        text=f"The gradient dispersion descends, rises and descends again ({where}).",
        test=f"{TWICE}; in every run",
        evidence=f"{count.k} of {count.n} runs{at}",
        verdict=count_verdict(count),
    )


def _only_decays(rows: pd.DataFrame, where: str) -> Claim:
    count = _count(int(rows["valley_epoch"].isna().sum()), len(rows))
    return Claim(
        text=f"Without label noise the gradient dispersion only decays ({where}).",
        test=f"no second descent in any run ({TWICE})",
        evidence=f"{count.k} of {count.n} runs",
        verdict=count_verdict(count),
    )


def _marks_the_best(rows: pd.DataFrame, where: str) -> Claim:
    """Statistic: (best - at valley) / (best - final) test accuracy, mean over runs. n: runs."""
    known = rows.dropna(subset=["valley_epoch"])
    lost = (known["best"] - known["final"]).where(lambda drop: drop > 0)
    share = mean_interval((known["best"] - known["at_valley"]) / lost)
    points = 100 * (known["best"] - known["at_valley"])
    early = ratio_interval(known["valley_epoch"], known["best_epoch"])
    return Claim(
        text=f"The valley marks where test accuracy peaks ({where}).",
        test="test accuracy missing at the valley as a share of what is lost from its best to the "
        f"end, below {SHARE:g}; smoothed like V, mean over runs at 5 %",
        evidence=f"share {share}; {points.mean():.2g} percentage points below the best; epoch of "
        f"the valley / of the best {early}",
        verdict=interval_verdict(share, SHARE, side="below"),
    )


def _divides(rows: pd.DataFrame, where: str) -> Claim:
    """Statistic: gap at the valley / final gap (accuracies), geometric mean. n: runs."""
    known = rows.dropna(subset=["valley_epoch"])
    ratio = ratio_interval(known["gap_at_valley"], known["final_gap"])
    return Claim(
        text=f"Up to the valley the train-test gap stays small ({where}).",
        test=f"accuracy gap at the valley relative to that at the end, below {SHARE:g}; mean over "
        "runs at 5 %",
        evidence=f"{ratio}; at the end {100 * known['final_gap'].mean():.3g} percentage points",
        verdict=interval_verdict(ratio, SHARE, side="below"),
    )
