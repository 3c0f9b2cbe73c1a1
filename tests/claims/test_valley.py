"""Figure 3's valley on curves whose shape is known, and how often it is found where there is none.

The false alarms are counted on synthetic curves, none of them a run's.
"""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gisgd_ray.claims.statistics import LEVEL
from gisgd_ray.claims.valley import (
    AUTOCORRELATION,
    FACTOR,
    NEIGHBOURS,
    WINDOW,
    Excluded,
    MedianCurves,
    correlated_scatter,
    excluded,
    find_valley,
    local_scatter,
    null_changes,
    running_median,
)

EPOCHS = np.arange(1.0, 61.0)


def double_descent(epochs: Any) -> Any:
    """Falls from 11 to 1 at epoch 10, rises to 4 at epoch 30, falls to 0.04 at epoch 60."""
    points = {1: 11.0, 4: 3.0, 7: 1.45, 10: 1.0, 30: 4.0, 60: 0.04}
    return np.interp(epochs, list(points), list(points.values()))


def test_the_valley_of_a_clean_double_descent_is_found() -> None:
    found = find_valley(EPOCHS, double_descent(EPOCHS))
    assert found is not None
    assert (found.epoch, found.peak_epoch) == (10, 30)
    assert found.dispersion == pytest.approx(sorted(double_descent(EPOCHS[7:12]))[2])
    assert found.peak == pytest.approx(sorted(double_descent(EPOCHS[27:32]))[2])
    assert found.end == pytest.approx(0.04)
    assert found.descends_again


def test_epochs_need_not_be_whole_or_start_at_one() -> None:
    found = find_valley(EPOCHS / 4 + 100, double_descent(EPOCHS))
    assert found is not None
    assert (found.epoch, found.peak_epoch) == (102.5, 107.5)


@pytest.mark.parametrize("seed", range(20))
def test_scatter_of_two_percent_moves_the_valley_little(seed: int) -> None:
    scatter = 1 + 0.02 * np.random.default_rng(seed).standard_normal(len(EPOCHS))
    found = find_valley(EPOCHS, double_descent(EPOCHS) * scatter)
    assert found is not None
    assert abs(found.epoch - 10) <= 1
    assert abs(found.peak_epoch - 30) <= 2
    assert found.descends_again


def test_a_spike_of_one_epoch_or_two_is_no_peak() -> None:
    decay = 5 * np.exp(-EPOCHS / 10)
    assert find_valley(EPOCHS, decay) is None
    for spikes in ([40], [40, 41]):
        spiked = decay.copy()
        spiked[spikes] = 100
        assert find_valley(EPOCHS, spiked) is None
    spiked[42] = 100  # a third epoch is most of the window
    assert find_valley(EPOCHS, spiked) is not None


def test_a_dip_of_one_epoch_is_no_valley() -> None:
    dipped = double_descent(EPOCHS)
    dipped[20] = 0.001
    found = find_valley(EPOCHS, dipped)
    assert found is not None
    assert found.epoch == 10


@pytest.mark.parametrize("shape", [EPOCHS, 1 / EPOCHS, np.ones(60), np.zeros(60), 60 - EPOCHS])
def test_a_curve_that_only_rises_or_falls_or_stays_has_no_valley(shape: Any) -> None:
    assert find_valley(EPOCHS, shape) is None


def test_both_the_fall_and_the_rise_must_exceed_the_factor() -> None:
    def shaped(start: float, peak: float) -> Any:
        return np.array([start] * 5 + [1.0] * 5 + [peak] * 5)

    epochs = range(15)
    assert find_valley(epochs, shaped(2, FACTOR - 0.001)) is None
    assert find_valley(epochs, shaped(FACTOR - 0.001, 2)) is None
    found = find_valley(epochs, shaped(FACTOR + 0.001, FACTOR + 0.001))
    assert found is not None
    assert (found.epoch, found.peak_epoch) == (7, 12)


def test_a_curve_that_rises_before_it_falls_has_its_valley_after_that() -> None:
    values = [2.0] * 5 + [3.0] * 5 + [1.0] * 5 + [2.5] * 5
    found = find_valley(range(20), values)
    assert found is not None
    assert (found.epoch, found.peak_epoch) == (12, 17)
    assert (found.dispersion, found.peak) == pytest.approx((1, 2.5))
    assert not found.descends_again


def test_of_several_peaks_the_highest_counts_and_the_lowest_point_before_it() -> None:
    """A late bump of tiny V is a larger factor, and no peak of the curve."""
    levels = [9.0, 2.0, 3.0, 1.5, 4.0, 0.1, 0.5, 0.01]
    found = find_valley(range(40), np.repeat(levels, 5))
    assert found is not None
    assert (found.dispersion, found.peak, found.end) == pytest.approx((1.5, 4.0, 0.01))
    assert (found.epoch, found.peak_epoch) == (17, 22)


def test_points_that_are_not_positive_and_finite_are_left_out() -> None:
    values = double_descent(EPOCHS)
    expected = find_valley(np.delete(EPOCHS, [0, 15, 59]), np.delete(values, [0, 15, 59]))
    values[0], values[15], values[59] = math.nan, math.inf, 0.0
    assert expected is not None
    assert find_valley(EPOCHS, values) == expected
    assert find_valley(EPOCHS, np.full(60, math.nan)) is None


def test_fewer_points_than_the_window_tell_nothing() -> None:
    assert find_valley([], []) is None
    values = [9.0, 1.0, 1.0, 5.0, 7.0]
    assert find_valley(range(WINDOW), np.repeat(values, 3)[1:-1:3]) is None  # too few to be sure
    assert find_valley(range(3 * WINDOW), np.repeat(values, 3)) is not None
    assert find_valley(range(WINDOW - 1), values[:-1]) is None
    assert not any(vars(excluded(values[:-1])).values())


def test_the_running_median_narrows_towards_the_ends() -> None:
    assert list(running_median([9, 1, 5, 7, 3, 8, 2])) == [9, 5, 5, 5, 5, 3, 2]
    assert list(running_median([4, 8])) == [4, 8]
    assert list(running_median([])) == []


# ---------------------------------------------------------------- the scatter and its quantiles


def test_scatter_and_standard_errors_by_hand() -> None:
    """Against loops over the points: second differences, their nearest, and medians."""
    logs = np.random.default_rng(0).normal(size=30).cumsum()
    n = len(logs)
    bends = {i: abs(logs[i] - (logs[i - 1] + logs[i + 1]) / 2) for i in range(1, n - 1)}
    curve = MedianCurves.of(logs)
    for i in range(n):
        nearest = sorted(bends, key=lambda k: (abs(k - min(max(i, 1), n - 2)), k))
        middle = nearest[:NEIGHBOURS]
        if i <= NEIGHBOURS // 2:
            middle = list(range(1, NEIGHBOURS + 1))
        if i >= n - 1 - NEIGHBOURS // 2:
            middle = list(range(n - 1 - NEIGHBOURS, n - 1))
        sigma = 1.4826 * np.median([bends[k] for k in middle]) / math.sqrt(1.5)
        assert local_scatter(logs)[i] == pytest.approx(sigma)
        half = min(2, i, n - 1 - i)
        assert curve.smooth[i] == np.median(logs[i - half : i + half + 1])
        assert curve.variances[i] == pytest.approx(sigma**2 / (2 * half + 1))
    steps = (curve.smooth[20] - curve.smooth[4]) / math.hypot(
        *(math.sqrt(curve.variances[i]) for i in (4, 20))
    )
    assert float(curve.t(4, 20)) == pytest.approx(steps)


def test_scatter_is_that_of_its_own_neighbourhood() -> None:
    """Of independent points sigma comes out as it is, where it is, on a curve that bends little."""
    rng = np.random.default_rng(1)
    sigma = np.where(np.arange(200) < 100, 0.02, 0.2)
    logs = -np.arange(200) / 20 + sigma * rng.standard_normal((200, 200))
    mean = local_scatter(logs).mean(axis=0)
    assert mean[10:85].mean() == pytest.approx(0.02, rel=0.1)
    assert mean[115:190].mean() == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_correlated_scatter_is_stationary(rho: float) -> None:
    drawn = correlated_scatter(np.random.default_rng(2), 20_000, 12, rho)
    assert drawn.std(axis=0) == pytest.approx(np.ones(12), abs=0.02)
    lagged = (drawn[:, :-1] * drawn[:, 1:]).mean(axis=0)
    assert lagged == pytest.approx(np.full(11, rho), abs=0.03)


def test_one_change_needs_fewer_errors_than_the_largest() -> None:
    assert null_changes(39) == null_changes(40)  # between the same two sizes
    for n in (5, 20, 80):
        found = null_changes(n)
        assert found.single < min(found.of_two, found.largest)


def test_quantiles_are_those_of_flat_curves_drawn_anew() -> None:
    """Neighbours correlate by 0.3; of 38 and 48 points and scatter even or growing, the largest."""
    largest, given = [], []
    for size in (38, 48):
        for growth in (1, 25):
            rng = np.random.default_rng(size * growth)
            drawn = correlated_scatter(rng, 3000, size, 0.3) * np.geomspace(1, growth, size)
            smooth = np.array(
                [
                    np.median(drawn[:, j - h : j + h + 1], axis=1)
                    for j in range(size)
                    for h in [min(2, j, size - 1 - j)]
                ]
            )
            widths = np.array([2 * min(2, j, size - 1 - j) + 1 for j in range(size)])
            squares = local_scatter(drawn).T ** 2 / widths[:, None]
            t = {
                (i, j): (smooth[j] - smooth[i]) / np.sqrt(squares[i] + squares[j])
                for i, j in itertools.permutations(range(size), 2)
            }
            most = np.max([t[i, j] for i, j in t if i < j], axis=0)
            late = np.concatenate([t[i, j] for i, j in t if min(i, j) >= size // 2])
            largest.append(np.quantile(most, 0.95))
            given.append(np.quantile(late, [0.95, 0.975]))
    found = null_changes(45)
    assert found.largest == pytest.approx(max(largest), rel=0.04)
    assert found[1:] == pytest.approx(tuple(np.max(given, axis=0)), rel=0.1)


# ---------------------------------------------------------------- rates

CURVES = 200
MOST = int(stats.binom.ppf(0.999, CURVES, LEVEL))
"""False alarms of 200 curves at 5 %, with chance 0.999."""

SLOW = np.exp(-np.arange(60) / 60)
LEVELS_OFF = 1 + 10 * np.exp(-np.arange(60) / 2)
LEVELS_OFF_LONG = 1 + 10 * np.exp(-np.arange(150) / 2)
"""Of which a fixed threshold of 5 % finds a valley in 43 and 99 % at 2 and 3 % scatter."""
GROWING = np.geomspace(0.02, 0.25, 60)
"""As of runs: 2 % of V at first, 25 % once it is small."""


def curves(shape: Any, scatter: Any, rho: float, count: int = CURVES) -> Any:
    """Curves about a shape; the scatter is of log V."""
    rng = np.random.default_rng(3)
    return shape * np.exp(scatter * correlated_scatter(rng, count, len(shape), rho))


@pytest.mark.parametrize(
    ("shape", "scatter", "rho"),
    [
        (LEVELS_OFF_LONG, 0.02, 0.0),
        (LEVELS_OFF_LONG, 0.03, 0.0),
        (LEVELS_OFF, 0.1, 0.0),  # where a fall is certain, and then nothing takes off the rises
        (LEVELS_OFF, 0.1, AUTOCORRELATION),
        (SLOW, GROWING, AUTOCORRELATION),
        (np.exp(-np.arange(12) / 12), 0.1, AUTOCORRELATION),
        (SLOW, 0.03, 0.5),  # more than the quantiles are of, but falling
        # Of which the nearest fifteen points are of all parts of the scatter.
        (1 + 10 * np.exp(-np.arange(18.0)), np.geomspace(0.01, 0.25, 18), 0.3),
        (1 + 10 * np.exp(-np.arange(22.0)), np.geomspace(0.01, 0.25, 22), 0.3),
        (1 + 10 * np.exp(-np.arange(30.0)), np.geomspace(0.01, 0.25, 30), 0.3),
    ],
    ids=[
        *("2 %", "3 %", "level", "level, correlated", "growing", "twelve points"),
        *("more correlated", "18 growing", "22 growing", "30 growing"),
    ],
)
def test_a_plain_decay_has_a_valley_in_five_percent_at_most(
    shape: Any, scatter: Any, rho: float
) -> None:
    found = [find_valley(range(len(v)), v) for v in curves(shape, scatter, rho)]
    assert sum(valley is not None for valley in found) <= MOST


def test_the_false_alarms_come_to_five_percent_where_nothing_else_stands_in_the_way() -> None:
    """The largest change of flat curves, which is what the quantile is of: neither far below."""
    enough = null_changes(40).largest
    drawn = correlated_scatter(np.random.default_rng(4), 400, 40, 0.3)
    curve = MedianCurves.of(drawn)
    largest = np.max([curve.t([i], slice(i + 1, 40)).max(axis=-1) for i in range(39)], axis=0)
    assert 2 <= (largest > enough).sum() <= 36  # of 400; even scatter has fewer than 20


def test_without_an_end_that_is_lower_the_second_descent_is_a_false_alarm_as_rarely() -> None:
    shape = np.concatenate([LEVELS_OFF[:20], np.linspace(1, 2, 10), np.full(30, 2.0)])
    found = [find_valley(range(60), v) for v in curves(shape, 0.1, AUTOCORRELATION)]
    assert sum(valley is not None for valley in found) > CURVES / 2
    assert sum(valley is not None and valley.descends_again for valley in found) <= MOST


@pytest.mark.parametrize(("rise", "scatter"), [(1.13, 0.01), (1.5, 0.03), (2.2, 0.03)])
def test_a_valley_is_found_where_there_is_one(rise: float, scatter: float) -> None:
    """Rises as those of the MLP at label noise 0.2, 0.4 and 0.6, within 6 to 10 epochs."""
    log_v = np.interp(np.arange(40), [0, 1, 2, 10, 40], [1.6, 1.0, 1.0, 1 + math.log(rise), -3])
    found = [find_valley(range(40), v) for v in curves(np.exp(log_v), scatter, 0.0, 60)]
    assert sum(valley is not None and valley.descends_again for valley in found) >= 45


@pytest.mark.parametrize("rho", [0.0, AUTOCORRELATION])
def test_a_rise_that_is_there_is_excluded_in_five_percent_at_most(rho: float) -> None:
    """One of just FACTOR in the running median, which decays before and after it."""
    least = math.log(FACTOR)
    log_v = np.interp(np.arange(40), [0, 10, 14, 20, 24, 40], [1, 0, 0, least, least, -1])
    drawn = curves(np.exp(log_v), 0.01, rho)
    assert sum(excluded(v).rise for v in drawn) <= MOST
    twice = np.exp(np.interp(np.arange(40), [0, 10, 14, 20, 30, 39], [1, 0, 0, least, least, 0]))
    assert sum(excluded(v).second_descent for v in curves(twice, 0.01, rho)) <= MOST
    half = curves(np.geomspace(1, 0.5, 40), 0.01, rho)
    assert sum(excluded(v).halving for v in half) <= MOST


def test_of_a_plain_decay_a_rise_is_excluded_and_late_scatter_of_tiny_v_does_not_matter() -> None:
    decay = curves(np.exp(-np.arange(60) / 10), np.geomspace(0.02, 0.25, 60), 0.0, 60)
    assert sum(excluded(v).rise for v in decay) >= 55
    assert sum(excluded(v).second_descent for v in decay) >= 50
    assert not any(excluded(v).halving for v in decay)
    assert excluded(EPOCHS) == Excluded(rise=False, second_descent=True, halving=True)


def test_a_curve_that_stays_up_after_its_rise_does_not_descend_twice() -> None:
    """Though its end is lower than its start; it is left open what scatter hides."""
    levels = np.repeat([9.0, 1.0, 5.0, 5.0, 5.0, 5.0], 5)
    assert excluded(levels) == Excluded(rise=False, second_descent=True, halving=True)
    scattered = curves(levels, 0.003, 0.3, 40)
    assert sum(excluded(v).second_descent for v in scattered) >= 36
    assert not any(excluded(v).second_descent for v in curves(levels, 0.2, 0.3, 40))
    lower = np.repeat([9.0, 1.0, 5.0, 5.0, 5.0, 4.0], 5)
    assert not excluded(lower).second_descent


def test_a_rise_within_a_few_points_is_not_overlooked() -> None:
    """Twelve points later V is below the valley again."""
    steep = np.exp(np.interp(np.arange(40), [0, 15, 20, 39], [1.5, 0, 0.5, -1.4]))
    assert steep[27] < steep[15]
    assert excluded(steep) == Excluded()
