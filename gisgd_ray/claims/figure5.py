"""What the paper reads off Figure 5 (appendix E.2): the stochastic setting, E over W as well.

Every trial trains replicas that differ in their seed alone, from which E_{W,Z}[grad l] and every
expectation in Lemma 2 and Theorem 2 are averaged; further trials are further such averages. The
paper says "far", "much larger" and "very small" without a number; the thresholds here are ours.
"""

from collections.abc import Iterator

import pandas as pd

from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.points import finished, noise_stds, numbers, points_after_start, reading
from gisgd_ray.claims.statistics import NOT_MEASURED, RatioInterval, all_of, ratio_interval, t_test
from gisgd_ray.errors import UserError
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.theory.quantities import at
from gisgd_ray.training.terms import LEMMA2, THEOREM2

DISPERSION, DISPERSION_NEU = "gradient_dispersion", "gradient_dispersion_neu"
"""Of the steps: V_t and V~_t."""

SMALL_STD = 1e-3
"""Below it a noise std is small: the paper's 1e-4 and 1e-6 are, its 1e-2 is not."""
FAR = 10.0
"""Lemma 2 / Theorem 2 above which Theorem 2 is "far below"."""
MUCH_LARGER = 2.0
"""V / V~ above which V is "much larger"."""
ABOUT_EQUAL = 1.5
"""V / V~ within this factor of 1 is "about equal"."""
TENTH = 0.1
"""Fraction of the steps that counts as early, and as late."""


@reading("Figure 5", history=["step"])
def claims(tables: ResultTables) -> list[Claim]:
    """Figure 5 for each model and dataset: one claim per noise std, and two on V against V~."""
    found = []
    for title, group in panels(finished(tables), []).items():
        where = str(title)
        points = points_after_start(tables, group)
        replicas = _replicas(group)
        for std in noise_stds(group):
            compare = _far_below if std < SMALL_STD else _orders_swap
            found.append(compare(points, std, f"{where}, σ = {std:g}", replicas))
        found += _dispersions(tables, group, where, replicas)
    return corrected_together(found)


def _far_below(points: pd.DataFrame, std: float, where: str, replicas: str) -> Claim:
    """Statistic: Lemma 2's term / Theorem 2's at the last point. n: trials."""
    known = _both_terms(points, std)
    last = known.groupby("trial_id").last()
    ratio = ratio_interval(last["lemma2"], last["theorem2"])
    return Claim(
        text="For a small noise std the trajectory term of Theorem 2 is far below that of Lemma 2 "
        f"({where}).",
        test=f"Lemma 2 / Theorem 2 at the last measured point above {FAR:g}, which is what far "
        f"means here; {_on_seeds()}",
        evidence=f"{ratio} at {_steps(last)}{replicas}" if len(known) else NOT_MEASURED,
        p_values=t_test(ratio, FAR, side="above"),
    )


def _orders_swap(points: pd.DataFrame, std: float, where: str, replicas: str) -> Claim:
    """Statistic: Lemma 2's term / Theorem 2's at the first and the last point. n: trials."""
    known = _both_terms(points, std)
    by_trial = known[known.duplicated("trial_id", keep=False)].groupby("trial_id")
    first, last = by_trial.first(), by_trial.last()
    early = ratio_interval(first["lemma2"], first["theorem2"])
    late = ratio_interval(last["lemma2"], last["theorem2"])
    evidence = "measured at a single point of each trial" if len(known) else NOT_MEASURED
    if len(first):
        evidence = f"first {early} at {_steps(first)}; last {late} at {_steps(last)}{replicas}"
    return Claim(
        text="For a large noise std the trajectory term of Lemma 2 is smaller than that of "
        f"Theorem 2 at the beginning and greater later ({where}).",
        test="Lemma 2 / Theorem 2 below 1 at the first measured point after step 0 and above 1 at "
        f"the last; {_on_seeds()}",
        evidence=evidence,
        p_values=all_of(
            t_test(early, 1.0, side="below"),
            t_test(late, 1.0, side="above"),
        ),
    )


def _dispersions(
    tables: ResultTables, group: pd.DataFrame, where: str, replicas: str
) -> Iterator[Claim]:
    """Statistic: mean V / mean V~ over the first and the last tenth of the steps. n: trials."""
    early, late = [], []
    for trial_id in group["trial_id"]:
        steps = _dispersion_steps(tables, str(trial_id))
        if len(steps):
            size = max(1, round(TENTH * len(steps)))
            early.append(steps.iloc[:size].mean())
            late.append(steps.iloc[-size:].mean())
    first, last = _dispersion_ratio(early), _dispersion_ratio(late)
    asked = f"of the steps, means over those steps; {_on_seeds()}"
    yield Claim(
        text="At the beginning of training our gradient dispersion V is much larger than Ṽ of Neu "
        f"et al. ({where}).",
        test=f"V / Ṽ above {MUCH_LARGER:g} over the first {TENTH * 100:g} % {asked}",
        evidence=f"{first}{replicas}" if early else NOT_MEASURED,
        p_values=t_test(first, MUCH_LARGER, side="above"),
    )
    yield Claim(
        text=f"Later in training V and Ṽ are about equal ({where}).",
        test=f"V / Ṽ between 1/{ABOUT_EQUAL:g} and {ABOUT_EQUAL:g} over the last "
        f"{TENTH * 100:g} % {asked}",
        evidence=f"{last}{replicas}" if late else NOT_MEASURED,
        p_values=all_of(
            t_test(last, ABOUT_EQUAL, side="below"),
            t_test(last, 1 / ABOUT_EQUAL, side="above"),
        ),
    )


def _both_terms(points: pd.DataFrame, std: float) -> pd.DataFrame:
    """The points at which both trajectory terms are measured."""
    terms = points[["trial_id", "step"]].assign(
        lemma2=numbers(points, at(LEMMA2, std)),
        theorem2=numbers(points, at(THEOREM2, std)),
    )
    return terms.dropna()


def _dispersion_steps(tables: ResultTables, trial_id: str) -> pd.DataFrame:
    """V_t and V~_t at every step; no row where either was not measured."""
    try:
        steps = tables.steps(trial_id)
    except UserError:  # a trial without a table of steps
        steps = pd.DataFrame()
    return pd.DataFrame(
        {"ours": numbers(steps, DISPERSION), "neu": numbers(steps, DISPERSION_NEU)}
    ).dropna()


def _dispersion_ratio(means: list["pd.Series[float]"]) -> RatioInterval:
    return ratio_interval([m["ours"] for m in means], [m["neu"] for m in means])


def _replicas(group: pd.DataFrame) -> str:
    """How many replicas each trial averages over, where the table says."""
    counts = sorted(set(numbers(group, "replicas").dropna().astype(int)))
    return f"; averages over {' or '.join(map(str, counts))} replicas" if counts else ""


def _steps(points: pd.DataFrame) -> str:
    """At which step the points lie: one number, or a range over trials."""
    low, high = int(points["step"].min()), int(points["step"].max())
    return f"step {low}" if low == high else f"steps {low} to {high}"


def _on_seeds() -> str:
    return "a t test over the seeds, each an average over replicas of its own"
