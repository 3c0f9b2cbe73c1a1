"""A claim of the paper, and the verdicts of those of one sweep, corrected together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gisgd_ray.claims.statistics import LEVEL, PValues, Verdict, holm

HOW_JUDGED = (
    "Claims that are tested over seeds are corrected together (Holm): the chance that even one of "
    f"them is wrongly said to hold or to fail is {LEVEL * 100:g} % at most. What is not "
    "established so is undecided, which is no evidence against it; an interval under Evidence is "
    f"at {100 - LEVEL * 100:g} % by itself, and may decide less than it seems to. With one seed "
    "nothing is tested: a single run shows what it shows; two decide nothing about accuracies, "
    "times and the course of V. A count of these trials’ points decides by itself."
)
"""How verdicts are reached, for those who read them."""


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper and what this sweep makes of it."""

    text: str
    """What the paper says."""
    test: str
    """How it is tested here."""
    evidence: str
    """The statistics, with their n."""
    verdict: Verdict = "undecided"
    """Of a claim that is tested, undecided until it is corrected together with the others."""
    p_values: PValues | None = None
    """None where nothing is tested: a count, or what was not measured."""


def corrected_together(claims: Sequence[Claim]) -> list[Claim]:
    """The claims of a sweep with the verdicts of those that are tested.

    Holm's correction over both p-values of every claim tested over two seeds or more, 2m in all, so
    that the chance of any wrong "holds" or "fails" among them is :data:`LEVEL` at most. One seed's
    claim is a single run, or undecided where its own Monte-Carlo error at :data:`LEVEL` leaves open
    on which side it is; its evidence says on which. Other claims stay as they are.
    """
    over_seeds = [c.p_values for c in claims if c.p_values is not None and c.p_values.n > 1]
    adjusted = iter(holm([p for each in over_seeds for p in (each.p_holds, each.p_fails)]))
    judged = []
    for claim in claims:
        if claim.p_values is None or claim.p_values.n == 0:
            judged.append(claim)
        elif claim.p_values.n == 1:
            judged.append(_single_run(claim, claim.p_values))
        else:
            judged.append(_established(claim, next(adjusted), next(adjusted), len(over_seeds)))
    return judged


def _established(claim: Claim, p_holds: float, p_fails: float, together: int) -> Claim:
    verdict: Verdict = "undecided"
    if min(p_holds, p_fails) <= LEVEL:
        verdict = "holds" if p_holds < p_fails else "fails"
    others = f", corrected for {together} claims together" if together > 1 else ""
    evidence = f"{claim.evidence}; p = {min(p_holds, p_fails):.2g}{others}"
    return replace(claim, verdict=verdict, evidence=evidence)


def _single_run(claim: Claim, found: PValues) -> Claim:
    if min(found.p_holds, found.p_fails) > LEVEL / 2:
        return replace(claim, evidence=f"{claim.evidence}; the one seed leaves it open")
    so = "so" if found.p_holds < found.p_fails else "not so"
    evidence = f"{claim.evidence}; with the one seed it is {so}"
    return replace(claim, verdict="single run", evidence=evidence)
