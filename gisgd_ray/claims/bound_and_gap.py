"""A bound against the generalization gap it bounds, point by point (Figures 2, 7 and 8)."""

import pandas as pd

from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.points import numbers
from gisgd_ray.claims.statistics import count_below, count_verdict

GAP = "gap/loss"


def bound_above_gap(
    points: pd.DataFrame,
    bound: str,
    *,
    text: str,
    where: str,
    at_start: "pd.Series[float] | None" = None,
) -> Claim:
    """Whether the bound lies above the gap at every point.

    Statistic: count of the points at which gen <= bound, gen = test - train loss with its sign, as
    the theorems state it; the smallest ratio bound / |gap|. n: points where both are defined. Where
    the gap is nowhere positive no bound could lie below it, and nothing is decided.

    Args:
        at_start: at each point, the gap at W_0 of its trial, which is taken off: W_0 knows nothing
            of the samples, so that this much is how the two sets differ.
    """
    gap, bounds = numbers(points, GAP), numbers(points, bound)
    less = gap if at_start is None else gap - at_start
    name = "gap" if at_start is None else "gap less its value at W_0"
    counted = count_below(less, bounds, strict=False)
    positive = int((less[bounds.notna()] > 0).sum())
    evidence = str(counted)
    if counted.n:
        evidence = (
            f"{name} ≤ bound at {counted} (smallest bound / |gap|); it was positive at {positive} "
            f"of {counted.n}"
        )
        if at_start is not None:
            whole = count_below(gap, bounds, strict=False)
            evidence += f"; the gap itself ≤ bound at {whole.k} of {whole.n}"
    return Claim(
        text=text,
        test=f"{name} ≤ bound {where}, a count; the gap is test − train loss with its sign, "
        "which is what the theorem bounds, and must be positive somewhere to test it",
        evidence=evidence,
        verdict=count_verdict(counted) if positive else "undecided",
    )
