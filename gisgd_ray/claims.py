"""The paper's claims, put to the test on a sweep's own rows.

A claim holds or fails only when the data say so at a stated level; otherwise it is undecided, and
the report says that too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from gisgd_ray.randomness import derived_seed

Verdict = Literal["holds", "fails", "undecided"]

LEVEL = 0.05
PERMUTATIONS = 19_999


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


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rho of y with x at fixed strata, its two-sided permutation p, and n points."""

    rho: float
    p_value: float
    n: int

    @property
    def sign(self) -> int:
        """+1 or -1 where the sign is established at :data:`LEVEL`, else 0."""
        return int(np.sign(self.rho)) if self.p_value < LEVEL else 0

    def __str__(self) -> str:
        if self.n == 0:
            return "not varied in this run (n = 0)"
        return f"ρ = {self.rho:+.2f} (n = {self.n}, p = {self.p_value:.2g})"


def stratified_rank_correlation(
    frame: pd.DataFrame, x: str, y: str, *, strata: Sequence[str]
) -> RankCorrelation:
    """Spearman's rho with everything else held fixed.

    Within each stratum (the rows that agree in all ``strata`` columns) x and y are ranked, ties
    sharing their mean rank, and centred; rho is the correlation of the pooled centred ranks. The
    p-value permutes y inside the strata. Rows where x or y is NaN are left out, and so are strata
    in which x takes one value.
    """
    ranked: list[tuple[np.ndarray, np.ndarray]] = []
    known = frame.dropna(subset=[x, y])
    for _, group in known.groupby(list(strata), dropna=False):
        if group[x].nunique() > 1:
            ranks = (rankdata(group[x]), rankdata(group[y]))
            ranked.append((ranks[0] - ranks[0].mean(), ranks[1] - ranks[1].mean()))
    n = sum(len(a) for a, _ in ranked)
    norm = np.sqrt(sum((a**2).sum() for a, _ in ranked) * sum((b**2).sum() for _, b in ranked))
    if n == 0 or norm == 0:
        return RankCorrelation(0.0, 1.0, n)
    observed = float(sum((a * b).sum() for a, b in ranked))
    rng = np.random.default_rng(derived_seed(0, "permutation test"))
    permuted = np.zeros(PERMUTATIONS)
    for a, b in ranked:
        order = rng.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1)
        permuted += order @ a
    # The tolerance counts permutations that tie with the data, whatever the rounding.
    as_extreme = int((np.abs(permuted) >= abs(observed) - 1e-9).sum())
    return RankCorrelation(observed / norm, (1 + as_extreme) / (1 + PERMUTATIONS), n)


def sign_verdict(correlation: RankCorrelation, *, expected: int) -> Verdict:
    """Holds when the sign is established and as expected, fails when established and opposite."""
    if correlation.sign == 0:
        return "undecided"
    return "holds" if correlation.sign == expected else "fails"


def opposite_verdict(first: RankCorrelation, second: RankCorrelation) -> Verdict:
    """Whether two quantities move in opposite directions, both signs established."""
    if 0 in (first.sign, second.sign):
        return "undecided"
    return "holds" if first.sign == -second.sign else "fails"


def joint_verdict(*verdicts: Verdict) -> Verdict:
    """All must hold; one that fails fails them all."""
    if "fails" in verdicts:
        return "fails"
    return "undecided" if "undecided" in verdicts else "holds"
