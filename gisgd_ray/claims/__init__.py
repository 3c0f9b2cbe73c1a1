"""The paper's claims, put to the test on a sweep's own tables.

One module per figure, each with ``claims(tables) -> list[Claim]`` over the finished trials; what
they count, correlate and compare is in :mod:`gisgd_ray.claims.statistics`. A claim holds or fails
only where the data say so, by a count of points or at :data:`LEVEL`; otherwise it is undecided, and
the report says that too. With one seed there is nothing to test it by: its evidence is then what
that one run shows, and its verdict "single run".
"""

from dataclasses import dataclass

from gisgd_ray.claims.statistics import (
    LEVEL,
    NOT_MEASURED,
    PERMUTATIONS,
    Count,
    Interval,
    RankCorrelation,
    RatioInterval,
    Verdict,
    count_below,
    count_verdict,
    interval_verdict,
    joint_verdict,
    mean_interval,
    opposite_verdict,
    ratio_interval,
    sign_verdict,
    stratified_rank_correlation,
    stratified_rho,
)

__all__ = [
    "LEVEL",
    "NOT_MEASURED",
    "PERMUTATIONS",
    "Claim",
    "Count",
    "Interval",
    "RankCorrelation",
    "RatioInterval",
    "Verdict",
    "count_below",
    "count_verdict",
    "interval_verdict",
    "joint_verdict",
    "mean_interval",
    "opposite_verdict",
    "ratio_interval",
    "sign_verdict",
    "stratified_rank_correlation",
    "stratified_rho",
]


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper and what this sweep makes of it."""

    text: str
    """What the paper says."""
    test: str
    """How it is tested here."""
    evidence: str
    """The statistics, with their n."""
    verdict: Verdict
