"""The error of accuracies on a test split, against networks drawn sample by sample; and verdicts
under their null hypotheses."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gisgd_ray.claims.accuracies import (
    HeldOut,
    Points,
    accuracy_interval,
    accuracy_test,
    held_out,
    lift_of_best,
    sign_test,
)
from gisgd_ray.claims.statistics import LEVEL, mean_interval, t_test
from tests.support.tables import trial

NAN = math.nan

# ---------------------------------------------------------------- the bound


def outcomes(
    rng: np.random.Generator, samples: int, p: float, classes: int, right: Any, same: float
) -> Any:
    """Whether two networks are right, ``(2, samples)``, of labels a fraction p of which is redrawn.

    ``same``: how often both predict alike, or at least the second what the first does.
    """
    labels = rng.integers(classes, size=samples)
    predicted = np.array(
        [
            np.where(rng.random(samples) < c, labels, (labels + rng.integers(1, classes, samples)))
            % classes
            for c in right
        ]
    )
    predicted[1] = np.where(rng.random(samples) < same, predicted[0], predicted[1])
    redrawn = np.where(rng.random(samples) < p, rng.integers(classes, size=samples), labels)
    return predicted == redrawn


@pytest.mark.parametrize("p", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("right", "same"), [((0.95, 0.9), 0.0), ((0.8, 0.6), 0.5)])
def test_the_bound_is_above_the_error_of_networks_drawn(
    p: float, classes: int, right: Any, same: float
) -> None:
    """Their accuracies and how often just one is right, over a million samples."""
    found = outcomes(np.random.default_rng(0), 1_000_000, p, classes, right, same)
    error = (found[0].astype(float) - found[1]).std() / math.sqrt(1_000)
    split = HeldOut(samples=1_000, classes=classes, label_noise=p)
    bound = split.difference_error(*(100 * found.mean(axis=1)))
    assert 100 * error <= bound * 1.002
    if same == 0 and p < 1:  # independent networks, which are seldom wrong of the same
        assert bound < 100 * error * 1.25


def test_the_bound_is_reached_by_networks_that_are_never_wrong_together() -> None:
    """Of 1,000 true labels the first is wrong of 50, the second of 30 others: by enumeration."""
    wrong = np.zeros((2, 1_000))
    wrong[0, :50], wrong[1, 50:80] = 1, 1
    d = wrong[1] - wrong[0]
    split = HeldOut(samples=1_000, classes=10, label_noise=0.0)
    bound = split.difference_error(95.0, 97.0)
    assert bound == pytest.approx(100 * math.sqrt((d**2).mean() / 1_000))
    assert split.error(95.0) == pytest.approx(100 * wrong[0].std() / math.sqrt(1_000))


def test_known_values_of_the_bound() -> None:
    """p = 0.4, K = 10: 60 % is 56 of 60 true labels; either is wrong of 2/15, 0.68 of it tell."""
    noisy = HeldOut(samples=1_000, classes=10, label_noise=0.4)
    assert noisy.difference_error(60, 60) == pytest.approx(100 * math.sqrt(2 / 15 * 0.68 / 1_000))
    clean = HeldOut(samples=1_000, classes=10, label_noise=0.0)
    assert clean.difference_error(60, 60) == pytest.approx(100 * math.sqrt(0.8 / 1_000))
    assert clean.difference_error(10, 10) == pytest.approx(100 * math.sqrt(1 / 1_000))
    assert clean.difference_error(100, 100) == 0
    assert clean.difference(61, 60) == (1, clean.difference_error(61, 60))
    assert clean.resolution == pytest.approx(0.1)


def test_the_split_is_what_the_rows_say_if_they_agree() -> None:
    rows = [trial(str(s), seed=s, data__label_noise=0.2, num_test_samples=500) for s in range(3)]
    assert held_out(pd.DataFrame(rows)) == HeldOut(500, 10, 0.2)
    rows[0]["num_test_samples"] = 600
    assert math.isnan(held_out(pd.DataFrame(rows)).samples)
    unknown = held_out(pd.DataFrame(rows).drop(columns=["num_test_samples", "num_classes"]))
    assert math.isnan(unknown.difference_error(60, 60))
    assert "an unknown number of test samples" in unknown.in_words
    assert "1,000" in HeldOut(1_000, 10, 0.0).in_words


# ---------------------------------------------------------------- intervals and p-values

SPLIT = HeldOut(samples=1_000, classes=10, label_noise=0.0)


def test_the_interval_has_the_seeds_and_the_split_s_error_by_hand() -> None:
    """1, 2 and 3 points: s = 1, t_2 = 4.3027; the split's 0.5 and one sample, 0.1."""
    found = accuracy_interval([Points(value, 0.5) for value in (1.0, 2.0, 3.0)], SPLIT)
    half = math.hypot(4.302653 / math.sqrt(3), 1.959964 * math.hypot(0.5, 0.1))
    assert (found.center, found.n) == (2, 3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    # Seeds that agree to the last sample have the split's error left.
    alike = accuracy_interval([Points(2.0, 0.5)] * 3, SPLIT)
    assert alike.high - 2 == pytest.approx(1.959964 * math.hypot(0.5, 0.1), abs=1e-5)


def test_the_split_s_error_is_the_mean_of_the_seeds_and_an_accuracy_s_is_binomial() -> None:
    found = accuracy_interval([Points(2.0, error) for error in (0.2, 0.4, 0.9)], SPLIT)
    assert found.split_error == pytest.approx(math.hypot(0.5, 0.1))
    for accuracy in (0.0, 10.0, 50.0, 95.0, 100.0):
        samples = np.repeat([100.0, 0.0], [int(10 * accuracy), int(1_000 - 10 * accuracy)])
        assert SPLIT.error(accuracy) == pytest.approx(samples.std() / math.sqrt(1_000))


@pytest.mark.parametrize("values", [(1.0, 2.0, 3.0), (2.0, 2.0, 2.0), (0.1, 0.3, 0.1, 0.2)])
def test_a_p_value_is_the_level_at_which_the_interval_meets_the_threshold(values: Any) -> None:
    found = accuracy_interval([Points(value, 0.4) for value in values], SPLIT)
    for threshold in (found.mean - 1.1, found.mean - 0.1, found.mean + 0.7):
        above = accuracy_test(found, threshold, side="above")
        below = accuracy_test(found, threshold, side="below")
        assert (above.p_holds, above.p_fails) == pytest.approx((below.p_fails, below.p_holds))
        p = min(above.p_holds, above.p_fails)
        assert found.half_at(p) == pytest.approx(abs(found.mean - threshold))
        assert above.p_holds + above.p_fails == pytest.approx(1)
        assert (above.p_holds < 0.5) == (found.mean > threshold)
    ends = accuracy_test(found, found.low, side="above")
    assert ends.p_holds == pytest.approx(LEVEL / 2)
    assert accuracy_test(found, -1e9, side="above").p_holds < 1e-6


def test_without_a_split_s_error_it_is_the_t_test() -> None:
    exact = HeldOut(samples=math.inf, classes=10, label_noise=0.0)
    found = accuracy_interval([Points(v, 0.0) for v in (0.1, 0.5, 0.2)], exact)
    reference = t_test(mean_interval([0.1, 0.5, 0.2]), 0.05, side="above")
    assert accuracy_test(found, 0.05, side="above") == pytest.approx(reference)


def test_fewer_than_three_seeds_and_an_unknown_split() -> None:
    two = accuracy_interval([Points(9.0, 0.1)] * 2, SPLIT)
    assert accuracy_test(two, 0, side="above") == (1, 1, 2)
    one = accuracy_interval([Points(9.0, 0.1), Points(NAN, NAN)], SPLIT)
    assert (one.n, one.missing) == (1, 1)
    assert accuracy_test(one, 0, side="above") == pytest.approx((0, 1, 1))
    # One digit, of which the test split knows nothing.
    close = accuracy_interval([Points(0.01, 0.1)], SPLIT)
    assert 0.1 < accuracy_test(close, 0, side="above").p_holds < 0.5
    assert 0.1 < accuracy_test(close, 0, side="below").p_fails < 0.5
    assert accuracy_test(accuracy_interval([], SPLIT), 0, side="above") == (1, 1, 0)
    unknown = HeldOut(samples=NAN, classes=10, label_noise=0.0)
    three = accuracy_interval([unknown.difference(60, 50)] * 3, unknown)
    assert accuracy_test(three, 0, side="above") == (1, 1, 3)
    assert "no finite interval" in str(three)


# ---------------------------------------------------------------- rates

MANY = 400


def most(many: int, level: float = LEVEL) -> int:
    return int(stats.binom.ppf(0.999, many, level))


@pytest.mark.parametrize(
    ("seeds", "samples", "drop"),
    [(2, 100, 0.0), (2, 1_000, 0.0), (3, 100, 0.0), (3, 1_000, 3.0), (5, 1_000, 0.0)],
)
def test_a_difference_at_its_threshold_is_told_in_five_percent_at_most(
    seeds: int, samples: int, drop: float
) -> None:
    """Two schemes of each seed on one test split, drawn sample by sample; both ways together.

    What is hard about a sample is partly the same for all, partly for all seeds of a scheme, so
    that the split's error of the difference is in all seeds alike; a seed's own is the least.
    """
    rng = np.random.default_rng(seeds)
    split = HeldOut(samples=samples, classes=10, label_noise=0.0)
    parts = [(MANY, 1, 1, samples), (MANY, 2, 1, samples), (MANY, 2, seeds, samples)]
    weights = (1, 0.5, 0.2)
    hard = sum(w * rng.standard_normal(part) for w, part in zip(weights, parts, strict=True))
    true = np.array([70.0, 70.0 - drop])[:, None] + rng.normal(0, 0.3, (MANY, 2, seeds))
    least = stats.norm.ppf(true / 100) * math.hypot(*weights)
    right = 100 * (hard < least[..., None]).mean(axis=-1)
    told = alone = 0
    for first, second in right:
        found = accuracy_interval(map(split.difference, first, second), split)
        decided = 2 * min(accuracy_test(found, drop, side="above")[:2]) <= LEVEL
        told += decided
        interval = mean_interval(first - second)
        alone += not interval.low <= drop <= interval.high
    assert told <= most(MANY)
    assert alone > most(MANY)  # by the t interval over seeds alone


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("n", [3, 5])
def test_the_root_of_both_squares_is_wide_enough_at_every_level(n: int, share: float) -> None:
    """Normal values; ``share`` of the variance is the split's, which all seeds have in common."""
    rng = np.random.default_rng(0)
    many = 100_000
    seeds = math.sqrt((1 - share) * n) * rng.standard_normal((many, n))
    means = seeds.mean(axis=1) + math.sqrt(share) * rng.standard_normal(many)
    errors = seeds.std(axis=1, ddof=1) / math.sqrt(n)
    for level in (0.025, 0.0025):
        half = np.hypot(stats.t.isf(level, n - 1) * errors, stats.norm.isf(level) * share**0.5)
        assert (means > half).sum() <= most(many, level)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 8, 11])
def test_a_sign_test_is_right_of_coins(n: int) -> None:
    """Exactly, over all outcomes of n fair coins: with five seeds nothing is ever told."""
    told = 0.0
    for k in range(n + 1):
        found = sign_test([i < k for i in range(n)])
        assert found.n == n
        if n > 1:
            # By enumeration of the coins that show as many or more.
            more = sum(math.comb(n, j) for j in range(k, n + 1)) / 2**n
            assert found.p_holds == pytest.approx(more)
            told += math.comb(n, k) / 2**n * (2 * min(found.p_holds, found.p_fails) <= LEVEL)
    assert told <= LEVEL
    assert (told > 0) == (n >= 6)
    assert sign_test([True]) == (0, 1, 1)
    assert sign_test([False]) == (1, 0, 1)


# ---------------------------------------------------------------- the best of many


@pytest.mark.parametrize("points", [20, 60, 150])
def test_the_best_of_a_level_curve_less_its_lift_is_the_level(points: int) -> None:
    curves = 70 + 3 * np.random.default_rng(points).standard_normal((2000, points))
    lifts = np.array([lift_of_best(curve) for curve in curves])
    excess = curves.max(axis=1) - 70
    assert excess.mean() > 3  # points above a level that nothing is above
    error = 3 * np.std(excess - lifts) / math.sqrt(len(curves))
    assert abs((excess - lifts).mean()) < error + 0.15


def test_the_lift_by_hand() -> None:
    """Neighbours 1 apart: a scatter of 1 / (sqrt 2 x 0.6745), times Blom's scores of 3 and 9."""
    for points, blom in ((3, 0.8694), (9, 1.4942)):
        expected = blom / (math.sqrt(2) * 0.67449)
        assert lift_of_best(np.arange(points) % 2) == pytest.approx(expected, rel=1e-3)


def test_neither_a_step_nor_a_short_peak_is_scatter() -> None:
    assert lift_of_best([10, 50, 70, 80, 80, 80, *[60] * 10]) == 0
    assert lift_of_best([]) == lift_of_best([70]) == 0
