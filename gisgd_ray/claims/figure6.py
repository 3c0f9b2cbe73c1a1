"""What the paper reads off Figure 6 (appendix E.3): learning rate and batch size in Eq. 3."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.points import finished, numbers, reading
from gisgd_ray.claims.statistics import (
    RatioInterval,
    all_of,
    opposite,
    stratified_rho,
    t_test,
    trend_ratio,
)
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables

RATE, BATCH = "training.learning_rate", "training.batch_size"
TRAJECTORY, FLATNESS = "term/trajectory_factor", "term/flatness_factor"


@reading("Figure 6", trials=[RATE, BATCH])
def claims(tables: ResultTables) -> list[Claim]:
    """Figure 6 for each model and dataset: two claims on the two factors.

    Statistic: by what factor each changes along one axis, the other axis fixed, in every seed by
    itself (:func:`gisgd_ray.claims.trend_ratio`, on the logarithm of the axis). n: seeds.
    """
    found = []
    for title, group in panels(finished(tables), [RATE, BATCH]).items():
        found += [_rate(group, str(title)), _batch(group, str(title))]
    return corrected_together(found)


def _rate(group: pd.DataFrame, where: str) -> Claim:
    trajectory, flatness = (_along(group, RATE, BATCH, name) for name in (TRAJECTORY, FLATNESS))
    return Claim(
        text=f"The learning rate moves the two factors in opposite directions ({where}).",
        test=_how("learning rate", "batch size", "both differ from 1, on opposite sides"),
        evidence=_words(group, RATE, trajectory, flatness),
        p_values=opposite(
            t_test(trajectory.ratio, 1.0, side="above"), t_test(flatness.ratio, 1.0, side="above")
        ),
    )


def _batch(group: pd.DataFrame, where: str) -> Claim:
    trajectory, flatness = (_along(group, BATCH, RATE, name) for name in (TRAJECTORY, FLATNESS))
    return Claim(
        text="The trajectory factor falls with batch size and the flatness factor rises: a smaller "
        f"batch finds a flatter minimum ({where}).",
        test=_how("batch size", "learning rate", "trajectory is below 1 and flatness above"),
        evidence=_words(group, BATCH, trajectory, flatness),
        p_values=all_of(
            t_test(trajectory.ratio, 1.0, side="below"), t_test(flatness.ratio, 1.0, side="above")
        ),
    )


def _how(axis: str, fixed: str, so: str) -> str:
    return (
        f"by what factor each changes from the smallest {axis} to the largest, {fixed} fixed "
        f"(least squares of the logarithms, one value per seed): by a t test over the seeds {so}. "
        "Spearman’s ρ, and one seed alone, describe the order of these runs"
    )


class _Along(NamedTuple):
    ratio: RatioInterval
    rho: float


def _along(group: pd.DataFrame, axis: str, fixed: str, factor: str) -> _Along:
    """How one factor changes along one axis with the other fixed."""
    frame = group.assign(axis=np.log(group[axis].astype(np.float64)), factor=numbers(group, factor))
    return _Along(
        trend_ratio(frame, "axis", "factor", strata=[fixed]),
        stratified_rho(frame, "axis", "factor", strata=["seed", fixed]),
    )


def _words(group: pd.DataFrame, axis: str, trajectory: _Along, flatness: _Along) -> str:
    if group[axis].nunique() < 2:
        return "not varied in this run (n = 0)"
    parts = [
        f"{name} {along.ratio}" + (f", ρ = {along.rho:+.2f}" if along.ratio.n else "")
        for name, along in (("trajectory", trajectory), ("flatness", flatness))
    ]
    return f"{'; '.join(parts)}; {len(group)} trials"
