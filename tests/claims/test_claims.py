"""Trends within seeds, tests over seeds and their correction, against brute force and scipy."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.stats import rankdata, spearmanr

from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.statistics import (
    LEVEL,
    Interval,
    PValues,
    RatioInterval,
    Side,
    Verdict,
    all_of,
    holm,
    mean_interval,
    opposite,
    ratio_interval,
    stratified_rho,
    t_test,
    trend_ratio,
)

NAN, INF = math.nan, math.inf

# ---------------------------------------------------------------- Spearman's rho


def one_stratum(x: Any, y: Any) -> pd.DataFrame:
    return pd.DataFrame({"x": x, "y": y, "s": 0})


def rho(frame: pd.DataFrame, *strata: str) -> float:
    return stratified_rho(frame, "x", "y", strata=strata)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_one_stratum_is_spearman(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 5, 30) if ties else rng.normal(size=30)
    y = 0.3 * x + (rng.integers(0, 4, 30) if ties else rng.normal(size=30))
    frame = one_stratum(x, y)
    assert rho(frame, "s") == pytest.approx(spearmanr(x, y).statistic, rel=1e-12)
    assert rho(frame) == rho(frame, "s")  # without strata all rows are one


def test_rho_is_that_of_pooled_centred_ranks() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"x": rng.normal(size=12), "y": rng.integers(0, 4, 12), "s": [0, 1, 2] * 4}
    )
    groups = [g for _, g in frame.groupby("s")]
    xs = np.concatenate([rankdata(g["x"]) - rankdata(g["x"]).mean() for g in groups])
    ys = np.concatenate([rankdata(g["y"]) - rankdata(g["y"]).mean() for g in groups])
    assert rho(frame, "s") == pytest.approx(xs @ ys / math.sqrt((xs @ xs) * (ys @ ys)), rel=1e-12)


def test_strata_take_away_what_they_explain() -> None:
    """Simpson's paradox: rising across strata, falling in each."""
    rows = [(x + 10 * s, 10 * s - x, s) for s in range(3) for x in range(4)]
    frame = pd.DataFrame(rows, columns=["x", "y", "s"])
    assert spearmanr(frame["x"], frame["y"]).statistic > 0.5
    assert rho(frame, "s") == pytest.approx(-1)


def test_what_has_no_rank_is_left_out() -> None:
    x = [1, 2, 3, 4, NAN, 6, 7]
    y = [2, 1, NAN, 5, 5, 9, 8]
    kept = [0, 1, 3, 5, 6]
    same = one_stratum([x[i] for i in kept], [y[i] for i in kept])
    assert rho(one_stratum(x, y), "s") == rho(same, "s")
    # A stratum with one x says nothing; None is a stratum of its own.
    frame = pd.DataFrame({"x": [1, 2, 3, 5, 5], "y": [1, 2, 3, 9, 1], "s": [None] * 3 + [1, 1]})
    assert rho(frame, "s") == pytest.approx(1)
    for nothing in (frame.head(0), frame.tail(2), frame.assign(y=1.0)):
        assert math.isnan(rho(nothing, "s"))


# ---------------------------------------------------------------- trends within seeds


def grid(seeds: int = 3, **columns: Any) -> pd.DataFrame:
    """4 values of x at each of 3 values of s, for every seed."""
    rows = itertools.product([0.0, 1.0, 2.0, 4.0], range(3), range(seeds))
    return pd.DataFrame(rows, columns=["x", "s", "seed"]).assign(**columns)


def brute_force(frame: pd.DataFrame) -> list[float]:
    """Of each seed, exp(slope x range) by least squares with an intercept for every stratum."""
    width = frame["x"].max() - frame["x"].min()
    found = []
    for _, rows in frame.groupby("seed"):
        dummies = pd.get_dummies(rows["s"]).to_numpy(float)
        design = np.column_stack([rows["x"], dummies])
        solution, *_ = np.linalg.lstsq(design, np.log(rows["y"]), rcond=None)
        found.append(math.exp(solution[0] * width))
    return found


@pytest.mark.parametrize("rows", [36, 29])  # whole, and with cells missing
def test_the_trend_is_least_squares_with_a_level_for_every_stratum(rows: int) -> None:
    rng = np.random.default_rng(rows)
    frame = grid(y=rng.lognormal(size=36)).sample(rows, random_state=0)
    found = trend_ratio(frame, "x", "y", strata=["s"])
    reference = ratio_interval(brute_force(frame), 1.0)
    assert (found.mean, found.error) == pytest.approx((reference.mean, reference.error), rel=1e-9)
    assert found.n == 3


def test_a_power_law_has_its_factor_in_every_seed() -> None:
    frame = grid()
    frame["y"] = 5.0 ** (frame["x"] / 4) * (1 + frame["s"]) * 10.0 ** frame["seed"]
    found = trend_ratio(frame, "x", "y", strata=["s"])
    assert found.center == pytest.approx(5)
    assert found.error == pytest.approx(0, abs=1e-12)
    assert isinstance(found, RatioInterval)


def test_rows_without_a_logarithm_and_seeds_with_one_x_are_left_out() -> None:
    rng = np.random.default_rng(1)
    frame = grid(y=rng.lognormal(size=36))
    bad = frame.assign(y=frame["y"].where(frame.index != 5, -1.0), x=frame["x"])
    bad.loc[7, "y"], bad.loc[9, "y"], bad.loc[11, "x"] = 0.0, INF, NAN
    kept = frame.drop(index=[5, 7, 9, 11])
    assert trend_ratio(bad, "x", "y", strata=["s"]) == trend_ratio(kept, "x", "y", strata=["s"])
    narrow = frame[(frame["seed"] > 0) | (frame["x"] == 1)]
    assert trend_ratio(narrow, "x", "y", strata=["s"]).n == 2
    for nothing in (frame.head(0), frame.assign(y=NAN), frame[frame["x"] == 1]):
        assert trend_ratio(nothing, "x", "y", strata=["s"]).n == 0


# ---------------------------------------------------------------- tests over seeds


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("side", ["above", "below"])
def test_a_mean_is_tested_by_t(n: int, side: Side) -> None:
    values = np.random.default_rng(n).normal(0.3, 1, n)
    found = t_test(mean_interval(values), 0.1, side=side)
    words = ("greater", "less") if side == "above" else ("less", "greater")
    reference = [stats.ttest_1samp(values, 0.1, alternative=word).pvalue for word in words]
    assert found == pytest.approx((*reference, n), rel=1e-10)


def test_a_ratio_is_tested_on_its_logarithm() -> None:
    a, b = [2.0, 3.0, 5.0], [1.0, 2.0, 2.0]
    found = t_test(ratio_interval(a, b), 1.5, side="above")
    logs = np.log(np.divide(a, b))
    reference = stats.ttest_1samp(logs, math.log(1.5), alternative="greater").pvalue
    assert found.p_holds == pytest.approx(reference, rel=1e-10)


@pytest.mark.parametrize(
    ("interval", "above"),
    [
        (Interval(3.0, NAN, 1), PValues(0, 1, 1)),  # one seed: on which side it is
        (Interval(1.0, NAN, 1), PValues(1, 0, 1)),  # "above" is strict
        (Interval(INF, NAN, 1), PValues(0, 1, 1)),
        (Interval(INF, NAN, 2), PValues(1, 1, 2)),  # no error to go by
        (Interval(NAN, NAN, 0), PValues(1, 1, 0)),
        (Interval(2.0, 0.0, 3), PValues(0, 1, 3)),
        (Interval(1.0, 0.0, 3), PValues(1, 1, 3)),
    ],
)
def test_what_has_no_t(interval: Interval, above: PValues) -> None:
    assert t_test(interval, 1.0, side="above") == above


def test_one_seed_is_tested_by_its_monte_carlo_error() -> None:
    one = Interval(2.0, 0.5, 1, degrees=12.0)
    assert t_test(one, 1.0, side="above").p_holds == pytest.approx(stats.t.sf(2, 12), rel=1e-12)
    assert one.low == pytest.approx(2 - stats.t.ppf(0.975, 12) / 2)


def test_all_parts_must_hold_and_one_of_several_fails_them() -> None:
    parts = PValues(0.01, 0.99, 5), PValues(0.2, 0.03, 4), PValues(0.5, 0.5, 3)
    assert all_of(*parts) == PValues(0.5, pytest.approx(0.09), 3)
    assert all_of(parts[0]) == parts[0]
    assert all_of(PValues(1.0, 0.9, 2), PValues(1.0, 0.8, 2)).p_fails == 1


def test_what_has_one_seed_is_not_tested_beside_what_has_several() -> None:
    """Three seeds say one part is so; one seed, that the other is: nothing is settled, and the
    evidence does not speak of one seed."""
    sure, one = PValues(0.001, 0.999, 3), PValues(0.0, 1.0, 1)
    assert all_of(sure, one) == all_of(one, sure) == PValues(1.0, 1.0, 3)
    (claim,) = corrected_together([Claim("", "", "seen", p_values=all_of(sure, one))])
    assert (claim.verdict, claim.evidence) == ("undecided", "seen; p = 1")
    # One part that three seeds deny fails the whole, whatever the one seed shows.
    assert all_of(PValues(0.999, 0.001, 3), one) == PValues(1.0, 0.002, 3)
    assert opposite(sure, PValues(1.0, 0.0, 1)) == PValues(1.0, 1.0, 3)
    # Of one seed everywhere it is a single run; of none, nothing.
    assert all_of(one, one) == one
    assert all_of(sure, PValues(1.0, 1.0, 0)).n == opposite(sure, PValues(1.0, 1.0, 0)).n == 0


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([3.0, 3.0], "undecided"),  # t is infinite
        ([3.0, 3.0 + 1e-3], "holds"),
        ([3.0, 3.0, 3.0], "holds"),
        ([0.0, 0.0, 0.0], "undecided"),
    ],
)
def test_two_equal_seeds_decide_nothing(values: list[float], verdict: Verdict) -> None:
    found = t_test(mean_interval(values), 0.0, side="above")
    (claim,) = corrected_together([Claim("", "", "", p_values=found)])
    assert (claim.verdict, found.n) == (verdict, len(values))


def test_opposite_directions() -> None:
    up, down = PValues(0.001, 0.999, 3), PValues(0.998, 0.002, 3)
    unsure = PValues(0.4, 0.6, 2)
    assert opposite(up, down) == opposite(down, up) == PValues(0.004, 1.0, 3)
    assert opposite(up, up) == PValues(1.0, 0.002, 3)
    assert opposite(down, down) == PValues(1.0, 0.004, 3)
    assert opposite(up, unsure).p_holds == 1
    assert opposite(up, unsure) == (1.0, 0.8, 2)


# ---------------------------------------------------------------- the correction


def closed_testing(p_values: list[float]) -> list[float]:
    """Of each hypothesis, the largest Bonferroni p of any set of hypotheses that it is in."""
    places = range(len(p_values))
    sets = [s for k in range(1, len(p_values) + 1) for s in itertools.combinations(places, k)]
    return [
        max(min(1, len(s) * min(p_values[i] for i in s)) for s in sets if j in s) for j in places
    ]


@pytest.mark.parametrize("seed", range(20))
def test_holm_is_closed_testing_by_bonferroni(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_values = np.round(rng.uniform(size=1 + seed % 7) ** 3, 2 if seed % 2 else 9)  # odd: ties
    assert holm(list(p_values)) == pytest.approx(closed_testing(list(p_values)), rel=1e-12)


def test_holm_of_nothing() -> None:
    assert holm([]) == []


def claim(p_holds: float, p_fails: float, n: int = 3) -> Claim:
    return Claim("It is so.", "a test", "the evidence", p_values=PValues(p_holds, p_fails, n))


def test_a_claim_alone_is_tested_on_both_sides() -> None:
    for p, verdict in ((0.0249, "holds"), (0.0251, "undecided")):
        (found,) = corrected_together([claim(p, 1 - p)])
        assert (found.verdict, found.evidence) == (verdict, f"the evidence; p = {2 * p:.2g}")
        (found,) = corrected_together([claim(1 - p, p)])
        assert found.verdict == ("fails" if verdict == "holds" else "undecided")


def test_claims_are_corrected_together() -> None:
    given = [claim(0.02, 0.98), claim(0.992, 0.008), claim(0.5, 0.5)]
    assert [corrected_together([c])[0].verdict for c in given] == ["holds", "fails", "undecided"]
    found = corrected_together(given)
    # Six p-values: 6 x 0.008, then 5 x 0.02.
    assert [c.verdict for c in found] == ["undecided", "fails", "undecided"]
    assert found[0].evidence == "the evidence; p = 0.1, corrected for 3 claims together"
    assert found[1].evidence == "the evidence; p = 0.048, corrected for 3 claims together"


def test_what_is_not_tested_costs_the_others_nothing() -> None:
    count = Claim("All are so.", "a count", "3 of 3", "holds")
    unmeasured = claim(1.0, 1.0, n=0)
    (alone,) = corrected_together([claim(0.02, 0.98)])
    given = [count, claim(0.0, 1.0, n=1), claim(0.02, 0.98), unmeasured]
    found = corrected_together(given)
    assert [c.verdict for c in found] == ["holds", "single run", "holds", "undecided"]
    assert (found[0], found[2], found[3]) == (count, alone, unmeasured)
    assert corrected_together([]) == []


@pytest.mark.parametrize(
    ("p_holds", "p_fails", "verdict", "words"),
    [
        (0.0, 1.0, "single run", "with the one seed it is so"),
        (1.0, 0.0, "single run", "with the one seed it is not so"),
        (0.0249, 0.9751, "single run", "with the one seed it is so"),
        (0.0251, 0.9749, "undecided", "the one seed leaves it open"),
        (0.9749, 0.0251, "undecided", "the one seed leaves it open"),
    ],
)
def test_one_seed_says_which_way_it_points(
    p_holds: float, p_fails: float, verdict: Verdict, words: str
) -> None:
    given = claim(p_holds, p_fails, n=1)
    (found,) = corrected_together([given])
    assert found == replace(given, verdict=verdict, evidence=f"the evidence; {words}")


@pytest.mark.parametrize("effects", [0, 3])
def test_any_wrong_verdict_is_as_rare_as_said(effects: int) -> None:
    """Of 6 claims on one set of 4 seeds, ``effects`` true and told easily; the rest are null."""
    rng = np.random.default_rng(effects)
    wrong = 0
    for values in rng.normal(size=(800, 4, 6)):
        values[:, :effects] += 30
        means = (mean_interval(column) for column in values.T)
        found = corrected_together(
            [Claim("", "", "", p_values=t_test(mean, 0.0, side="above")) for mean in means]
        )
        assert all(c.verdict == "holds" for c in found[:effects])
        wrong += any(c.verdict != "undecided" for c in found[effects:])
    assert wrong <= stats.binom.ppf(0.999, 800, LEVEL)
    assert wrong > 5  # nor is it too shy to say anything
