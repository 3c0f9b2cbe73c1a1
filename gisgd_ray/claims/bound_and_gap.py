"""A bound against the generalization gap it bounds, point by point (Figures 2, 7 and 8)."""

import pandas as pd

from gisgd_ray.claims import Claim, count_below, count_verdict
from gisgd_ray.claims.points import numbers

GAP = "gap/loss"


def bound_above_gap(points: pd.DataFrame, bound: str, *, text: str, where: str) -> Claim:
    """Whether the bound lies above the gap at every point.

    Statistic: count of the points at which gen <= bound, gen = test - train loss with its sign, as
    the theorems state it; the smallest ratio bound / |gap|. n: points where both are defined.
    """
    gap, bounds = numbers(points, GAP), numbers(points, bound)
    signed = count_below(gap, bounds, strict=False)
    absolute = count_below(gap.abs(), bounds, strict=False)
    evidence = str(signed)
    if signed.n:
        evidence = (
            f"gap ≤ bound at {signed} (smallest bound / |gap|); |gap| ≤ bound at "
            f"{absolute.k} of {absolute.n}"
        )
    return Claim(
        text=text,
        test=f"gap ≤ bound {where}, a count; the gap is test − train loss with its sign, "
        "which is what the theorem bounds, and |gap| is counted beside it",
        evidence=evidence,
        verdict=count_verdict(signed),
    )
