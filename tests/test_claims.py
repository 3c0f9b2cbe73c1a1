"""Rank correlations against scipy and full enumeration, and the verdicts drawn from them."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr

from gisgd_ray import claims
from gisgd_ray.claims import (
    RankCorrelation,
    Verdict,
    joint_verdict,
    opposite_verdict,
    sign_verdict,
    stratified_rank_correlation,
    stratified_rho,
)

UP = RankCorrelation(0.8, 0.01, 12)
DOWN = RankCorrelation(-0.8, 0.01, 12)
UNSURE = RankCorrelation(0.8, 0.06, 12)
NOTHING = RankCorrelation(0.0, 1.0, 0)


def correlation(frame: pd.DataFrame, *strata: str) -> RankCorrelation:
    return stratified_rank_correlation(frame, "x", "y", strata=strata)


def one_stratum(x: Any, y: Any) -> pd.DataFrame:
    return pd.DataFrame({"x": x, "y": y, "s": 0})


def exact(frame: pd.DataFrame) -> tuple[float, float]:
    """rho and p over every permutation of y inside the strata, by brute force."""
    groups = [g for _, g in frame.groupby("s")]
    xs = np.concatenate([rankdata(g["x"]) - rankdata(g["x"]).mean() for g in groups])
    ys = [rankdata(g["y"]) - rankdata(g["y"]).mean() for g in groups]
    everything = itertools.product(*(itertools.permutations(y) for y in ys))
    sums = np.array([xs @ np.concatenate(order) for order in everything])
    observed = xs @ np.concatenate(ys)
    rho = observed / math.sqrt((xs @ xs) * (np.concatenate(ys) @ np.concatenate(ys)))
    return rho, float(np.mean(np.abs(sums) >= abs(observed) - 1e-9))


# ---------------------------------------------------------------- the correlation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_one_stratum_is_spearman(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 5, 30) if ties else rng.normal(size=30)
    y = 0.3 * x + (rng.integers(0, 4, 30) if ties else rng.normal(size=30))
    found = correlation(one_stratum(x, y), "s")
    reference = spearmanr(x, y)
    assert found.rho == pytest.approx(reference.statistic, rel=1e-12)
    assert found.n == 30
    # scipy's p is a t approximation: near, not equal.
    assert found.p_value == pytest.approx(reference.pvalue, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_p_value_is_that_of_all_permutations(seed: int) -> None:
    """A 3 x 4 grid (rates x batch sizes): 6^4 = 1,296 permutations inside the batch sizes."""
    rng = np.random.default_rng(seed)
    grid = pd.DataFrame(itertools.product([0.1, 0.2, 0.4], [20, 40, 60, 80]), columns=["x", "s"])
    grid["y"] = np.round(rng.normal(size=12) + seed * grid["x"], 0 if seed % 2 else 3)  # odd: ties
    rho, p = exact(grid)
    found = correlation(grid, "s")
    assert found.rho == pytest.approx(rho, rel=1e-12)
    assert found.p_value == pytest.approx(p, abs=4 * math.sqrt(0.25 / claims.PERMUTATIONS))


def test_the_strongest_trend_of_the_small_grid() -> None:
    """All four strata rise together: 2 of 6^4 permutations are as extreme."""
    grid = pd.DataFrame(itertools.product([1, 2, 3], [20, 40, 60, 80]), columns=["x", "s"])
    grid["y"] = grid["x"] * 0.1 + grid["s"]
    found = correlation(grid, "s")
    assert found.rho == pytest.approx(1)
    assert found.p_value == pytest.approx(2 / 1296, abs=1e-3)
    assert found.sign == 1
    assert correlation(grid.assign(y=-grid["y"]), "s").sign == -1


def test_strata_take_away_what_they_explain() -> None:
    """Simpson's paradox: rising across strata, falling in each."""
    rows = [(x + 10 * s, 10 * s - x, s) for s in range(3) for x in range(4)]
    frame = pd.DataFrame(rows, columns=["x", "y", "s"])
    assert spearmanr(frame["x"], frame["y"]).statistic > 0.5
    assert correlation(frame, "s").rho == pytest.approx(-1)


def test_only_ranks_inside_the_stratum_count() -> None:
    frame = pd.DataFrame({"x": [1, 2, 3] * 2, "y": [1, 5, 3, -7, 100, 9], "s": [0] * 3 + [1] * 3})
    stretched = frame.assign(y=np.exp(frame["y"] / 10) + 1000 * frame["s"])
    assert correlation(stretched, "s") == correlation(frame, "s")
    assert correlation(frame.assign(x=frame["x"] ** 3), "s") == correlation(frame, "s")
    assert correlation(frame.sample(frac=1, random_state=3), "s").rho == correlation(frame, "s").rho


def test_several_strata_and_missing_strata() -> None:
    frame = pd.DataFrame({"x": [1, 2] * 4, "y": range(8), "s": [0, 0, 0, 0, 1, 1, 1, 1]})
    frame["t"] = [0, 0, 1, 1, 0, 0, None, None]  # None is a stratum of its own
    assert correlation(frame, "s", "t").rho == pytest.approx(1)
    assert correlation(frame, "s", "t").n == 8


def test_nan_rows_are_left_out() -> None:
    x = [1, 2, 3, 4, math.nan, 6, 7]
    y = [2, 1, math.nan, 5, 5, 9, 8]
    kept = [0, 1, 3, 5, 6]
    found = correlation(one_stratum(x, y), "s")
    assert found == correlation(one_stratum([x[i] for i in kept], [y[i] for i in kept]), "s")
    assert found.n == 5
    infinite = correlation(one_stratum([1, 2, 3], [math.inf, 1, -math.inf]), "s")
    assert infinite.rho == pytest.approx(-1)


def test_strata_with_one_x_say_nothing() -> None:
    frame = pd.DataFrame(
        {"x": [1, 2, 3, 5, 5, 5], "y": [1, 2, 3, 9, 1, 4], "s": [0, 0, 0, 1, 1, 1]}
    )
    assert correlation(frame, "s") == correlation(frame[frame["s"] == 0], "s")
    alone = correlation(pd.DataFrame({"x": [1, 2, 3], "y": [1, 2, 3], "s": [0, 1, 2]}), "s")
    assert alone == RankCorrelation(0.0, 1.0, 0)
    assert correlation(one_stratum([1, 2], [math.nan, 1]), "s").n == 0
    assert correlation(one_stratum([], []), "s").n == 0


def test_without_strata_all_rows_are_one() -> None:
    frame = one_stratum([1, 2, 3, 4], [2, 1, 3, 4])
    assert correlation(frame) == correlation(frame, "s")
    assert correlation(frame.head(0)).n == 0


def test_rho_as_a_description_is_the_same_rho() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=12), "y": rng.normal(size=12), "s": [0, 1, 2] * 4})
    described = stratified_rho(frame, "x", "y", strata=["s"])
    assert described == pytest.approx(correlation(frame, "s").rho, rel=1e-12)
    assert math.isnan(stratified_rho(frame.assign(y=1.0), "x", "y", strata=["s"]))
    assert math.isnan(stratified_rho(frame.head(0), "x", "y", strata=["s"]))


def test_constant_y_is_no_trend() -> None:
    assert correlation(one_stratum([1, 2, 3], [4, 4, 4]), "s") == RankCorrelation(0.0, 1.0, 3)


def test_the_p_value_never_reads_zero_and_repeats() -> None:
    frame = one_stratum(range(40), range(40))
    first, second = correlation(frame, "s"), correlation(frame, "s")
    assert first == second
    assert first.p_value == 1 / (1 + claims.PERMUTATIONS)


def test_the_level_is_kept() -> None:
    """Without any effect the sign is established in about 5 % of the tables."""
    rng = np.random.default_rng(1)
    grid = pd.DataFrame(itertools.product(range(4), range(3)), columns=["x", "s"])
    signs = [correlation(grid.assign(y=rng.normal(size=12)), "s").sign for _ in range(200)]
    assert 1 <= np.count_nonzero(signs) <= 22  # binomial(200, 0.05) at 1e-3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (RankCorrelation(-0.8675, 0.00012, 12), "ρ = -0.87 (n = 12, p = 0.00012)"),
        (RankCorrelation(1.0, 5e-5, 33), "ρ = +1.00 (n = 33, p = 5e-05)"),
        (RankCorrelation(0.0, 1.0, 3), "ρ = +0.00 (n = 3, p = 1)"),
        (NOTHING, "not varied in this run (n = 0)"),
    ],
)
def test_words(value: RankCorrelation, text: str) -> None:
    assert str(value) == text


# ---------------------------------------------------------------- verdicts


def test_a_sign_needs_its_level() -> None:
    signs = [RankCorrelation(0.9, p, 9).sign for p in (0.01, 0.0499, 0.05, 0.5)]
    assert signs == [1, 1, 0, 0]
    assert (UP.sign, DOWN.sign, UNSURE.sign, NOTHING.sign) == (1, -1, 0, 0)


@pytest.mark.parametrize(
    ("found", "expected", "verdict"),
    [
        (UP, 1, "holds"),
        (UP, -1, "fails"),
        (DOWN, -1, "holds"),
        (DOWN, 1, "fails"),
        (UNSURE, 1, "undecided"),
        (UNSURE, -1, "undecided"),
        (NOTHING, 1, "undecided"),
    ],
)
def test_sign_verdict(found: RankCorrelation, expected: int, verdict: Verdict) -> None:
    assert sign_verdict(found, expected=expected) == verdict


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (UP, DOWN, "holds"),
        (UP, UP, "fails"),
        (DOWN, DOWN, "fails"),
        (UP, UNSURE, "undecided"),
        (UNSURE, DOWN, "undecided"),
        (UNSURE, UNSURE, "undecided"),
        (NOTHING, UP, "undecided"),
    ],
)
def test_opposite_verdict(
    first: RankCorrelation, second: RankCorrelation, verdict: Verdict
) -> None:
    assert opposite_verdict(first, second) == opposite_verdict(second, first) == verdict


def test_joint_verdict() -> None:
    kinds: tuple[Verdict, ...] = ("holds", "single run", "undecided", "fails")  # from best to worst
    for several in itertools.product(kinds, repeat=3):
        assert joint_verdict(*several) == max(several, key=kinds.index)
    assert joint_verdict("holds") == "holds"
