"""Counts and intervals against scipy and hand-computed values, and the verdicts drawn from them."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gisgd_ray.claims.statistics import (
    Count,
    Interval,
    RatioInterval,
    Verdict,
    count_below,
    count_verdict,
    mean_interval,
    ratio_interval,
    short_number,
)

NAN, INF = math.nan, math.inf
LOG2, T4 = math.log(2), float(stats.t.ppf(0.975, 4))

# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("lower", "upper", "count", "verdict"),
    [
        ([1, 2, 3], [2, 6, 4], Count(3, 3, 0, 4 / 3), "holds"),
        ([1, 2, 3], [2, 1, 4], Count(2, 3, 0, 0.5), "fails"),
        ([1, 2], [1, 3], Count(1, 2, 0, 1.0), "fails"),  # a tie is not below
        ([1, NAN, 3], [2, 5, NAN], Count(1, 1, 2, 2.0), "holds"),
        ([NAN], [NAN], Count(0, 0, 1, NAN), "undecided"),
        ([], [], Count(0, 0, 0, NAN), "undecided"),
        ([-4, 0], [2, 1], Count(2, 2, 0, 0.5), "holds"),  # the ratio is to |lower|
        ([1, 2], [INF, 3], Count(2, 2, 0, 1.5), "holds"),
        ([INF], [INF], Count(0, 1, 0, NAN), "fails"),
    ],
)
def test_count(lower: Any, upper: Any, count: Count, verdict: Verdict) -> None:
    found = count_below(lower, upper)
    assert (found.k, found.n, found.missing) == (count.k, count.n, count.missing)
    assert found.worst_ratio == pytest.approx(count.worst_ratio, nan_ok=True)
    assert count_verdict(found) == verdict


def test_a_count_may_take_ties() -> None:
    assert count_below([1.0, 2.0], [1.0, 3.0], strict=False).k == 2
    zeros = count_below([0.0], [0.0], strict=False)
    assert (zeros.k, zeros.n, math.isnan(zeros.worst_ratio)) == (1, 1, True)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (Count(50, 50, 0, 1.4142), "50 of 50 points, worst ratio 1.41"),
        (Count(3, 4, 2, 0.25), "3 of 4 points, worst ratio 0.25, 2 left out as NaN"),
        (Count(1, 1, 0, NAN), "1 of 1 points"),
        (Count(0, 0, 7, NAN), "not measured in this run (n = 0 points, 7 left out as NaN)"),
    ],
)
def test_count_in_words(count: Count, text: str) -> None:
    assert str(count) == text


# ---------------------------------------------------------------- intervals


def test_two_seeds_by_hand() -> None:
    """1 and 3: mean 2, standard error 1, t_1 at 97.5 % is 12.7062."""
    found = mean_interval([1, 3])
    assert (found.center, found.n) == (2, 2)
    assert (found.low, found.high) == pytest.approx((2 - 12.7062, 2 + 12.7062), abs=1e-4)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_the_interval_is_the_t_interval(n: int) -> None:
    values = np.random.default_rng(n).normal(3, 2, n)
    found = mean_interval(values)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-10)
    assert found.center == pytest.approx(values.mean())


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(1, 1, 4)) for _ in range(1000)]
    covered = sum(i.low <= 1 <= i.high for i in intervals)
    assert 925 <= covered <= 972  # binomial(1000, 0.95) at 1e-3


def test_one_seed_none_and_undefined_ones() -> None:
    one = mean_interval([3.4, NAN])
    assert (one.center, one.n, one.missing) == (3.4, 1, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    nothing = mean_interval([NAN])
    assert (nothing.n, nothing.missing, math.isnan(nothing.center)) == (0, 1, True)
    assert mean_interval([]).n == 0
    assert mean_interval([2, 2, 2]).high == mean_interval([2, 2, 2]).low == 2


def test_an_infinite_value_leaves_no_interval() -> None:
    found = mean_interval([1, INF])
    assert (found.center, found.n, math.isnan(found.low)) == (INF, 2, True)
    assert math.isnan(mean_interval([-INF, INF]).center)


def test_a_ratio_is_the_geometric_mean() -> None:
    """Ratios 2 and 8: geometric mean 4; of logs, mean log 4 and standard error log 2."""
    found = ratio_interval([2, 16], [1, 2])
    assert found.center == pytest.approx(4)
    assert found.high == pytest.approx(4 * 2**12.7062, rel=1e-4)
    assert found.low == pytest.approx(4 / 2**12.7062, rel=1e-4)
    upside_down = ratio_interval([1, 2], [2, 16])
    assert upside_down.center == pytest.approx(1 / found.center)
    assert upside_down.low == pytest.approx(1 / found.high)


def test_ratios_that_are_not_defined_are_left_out() -> None:
    found = ratio_interval([2, -1, 0, NAN, 4], [1, 1, 0, 1, 2])
    assert (found.center, found.n, found.missing) == (pytest.approx(2), 2, 3)
    assert ratio_interval([0], [2]).center == 0
    assert ratio_interval([2], [0]).center == INF


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (RatioInterval(LOG2, LOG2 / T4, 5), "2.0 × (1.00 to 4.0 over n = 5 seeds)"),
        (RatioInterval(LOG2, NAN, 1), "2.0 × (one seed: no interval)"),
        (
            RatioInterval(LOG2, LOG2 / T4, 1, degrees=4),
            "2.0 × (1.00 to 4.0 by the Monte-Carlo error of the one seed)",
        ),
        (
            RatioInterval(LOG2, LOG2 / T4, 5, 1),
            "2.0 × (1.00 to 4.0 over n = 5 seeds, 1 left out as undefined)",
        ),
        (RatioInterval(INF, NAN, 2), "inf × (no finite interval over n = 2 seeds)"),
        (RatioInterval(NAN, NAN, 0), "not measured in this run (n = 0)"),
        (Interval(NAN, NAN, 0, 2), "not measured in this run (n = 0, 2 left out as undefined)"),
        (Interval(0.6213, 0.07 / T4, 5), "0.62 (0.55 to 0.69 over n = 5 seeds)"),
    ],
)
def test_interval_in_words(interval: Interval, text: str) -> None:
    assert str(interval) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.04, "1.04"),
        (0.1, "0.10"),
        (0.0123, "0.012"),
        (-3.44, "-3.4"),
        (42.4, "42"),
        (12345.6, "12,346"),
        (2.34e7, "2.3e+07"),
        (4.2e-6, "4.2e-06"),
        (0.0, "0"),
        (NAN, "nan"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text
