"""Figure 3's valley on curves whose shape is known, and its claims on runs of known course."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import Claim, figure3
from gisgd_ray.claims.figure3 import FACTOR, WINDOW, Course, course, find_valley, running_median
from tests.tables import NO_TRIALS, Tables, history, trial

EPOCHS = np.arange(1.0, 61.0)


def double_descent(epochs: Any) -> Any:
    """Falls from 11 to 1 at epoch 10, rises to 4 at epoch 30, falls to 0.04 at epoch 60."""
    points = {1: 11.0, 4: 3.0, 7: 1.45, 10: 1.0, 30: 4.0, 60: 0.04}
    return np.interp(epochs, list(points), list(points.values()))


def test_the_valley_of_a_clean_double_descent_is_found() -> None:
    found = find_valley(EPOCHS, double_descent(EPOCHS))
    assert found is not None
    assert (found.epoch, found.peak_epoch) == (10, 30)
    assert found.dispersion == sorted(double_descent(EPOCHS[7:12]))[2]
    assert found.peak == sorted(double_descent(EPOCHS[27:32]))[2]
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


@pytest.mark.parametrize("seed", range(20))
def test_scatter_of_two_percent_makes_no_valley_in_a_decay(seed: int) -> None:
    scatter = 1 + 0.02 * np.random.default_rng(seed).standard_normal(len(EPOCHS))
    assert find_valley(EPOCHS, 5 * np.exp(-EPOCHS / 10) * scatter) is None


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
    assert (found.epoch, found.dispersion, found.peak_epoch, found.peak) == (12, 1, 17, 2.5)
    assert not found.descends_again


def test_of_several_peaks_the_highest_counts_and_the_lowest_point_before_it() -> None:
    """A late bump of tiny V is a larger factor, and no peak of the curve."""
    levels = [9.0, 2.0, 3.0, 1.5, 4.0, 0.1, 0.5, 0.01]
    found = find_valley(range(40), np.repeat(levels, 5))
    assert found is not None
    assert (found.dispersion, found.peak, found.end) == (1.5, 4.0, 0.01)
    assert (found.epoch, found.peak_epoch) == (17, 22)


def test_points_that_are_not_finite_are_left_out() -> None:
    values = double_descent(EPOCHS)
    expected = find_valley(np.delete(EPOCHS, [0, 15, 59]), np.delete(values, [0, 15, 59]))
    values[[0, 15]], values[59] = math.nan, math.inf
    assert expected is not None
    assert find_valley(EPOCHS, values) == expected
    assert find_valley(EPOCHS, np.full(60, math.nan)) is None


def test_fewer_points_than_the_window_tell_nothing() -> None:
    assert find_valley([], []) is None
    values = [9.0, 1.0, 1.0, 5.0, 7.0]
    assert find_valley(range(WINDOW), values) is not None
    assert find_valley(range(WINDOW - 1), values[:-1]) is None


def test_the_running_median_narrows_towards_the_ends() -> None:
    assert list(running_median([9, 1, 5, 7, 3, 8, 2])) == [9, 5, 5, 5, 5, 3, 2]
    assert list(running_median([4, 8])) == [4, 8]
    assert list(running_median([])) == []


# ---------------------------------------------------------------- claims

ACCURACY = {0: 10.0, 7: 59.4, 10: 60.0, 60: 49.0}
"""In %: test accuracy is best where the dispersion is lowest."""


def run(
    name: str,
    noise: float = 0.4,
    dispersion: Callable[[Any], Any] = double_descent,
    test: dict[int, float] = ACCURACY,
    gap: dict[int, float] | None = None,
    **fields: Any,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """A trial and its points at epochs 0 to 60; accuracies in %, linear in between."""
    epochs = np.arange(61.0)
    gap = gap or {0: 0.0, 10: 4.0, 60: 50.0}
    tested = np.interp(epochs, list(test), list(test.values()))
    points = history(
        name,
        epoch=epochs,
        measure__gradient_dispersion=[math.nan, *dispersion(epochs[1:])],
        train__accuracy=(tested + np.interp(epochs, list(gap), list(gap.values()))) / 100,
        test__accuracy=tested / 100,
    )
    return trial(name, data__label_noise=noise, **fields), points


def claims(*runs: tuple[dict[str, Any], pd.DataFrame]) -> list[Claim]:
    rows, points = zip(*runs, strict=True)
    return figure3.claims(Tables(pd.DataFrame(list(rows)), pd.concat(points)))


def test_the_course_of_a_run() -> None:
    seen = course(run("a")[1])
    assert seen.valley is not None
    assert (seen.points, seen.valley.epoch, seen.best_epoch) == (60, 10, 10)
    # About epoch 10 the median of 59.6, 59.8, 60, 59.78 and 59.56 %.
    assert seen.below_best == 0
    assert seen.lost == pytest.approx(59.78 - 49)
    assert seen.learned == 1
    # In the training split 62.8, 63.4, 64, 64.7 and 65.4 %; at the end 50 points apart.
    assert seen.gap == pytest.approx((64 - 59.78) / 50)
    # Within a point of 59.78 are epochs 7 (59.4 %) to 15 (58.9 %).
    assert seen.as_good == pytest.approx(9 / 60)


def test_a_course_measures_from_the_accuracy_of_w_0() -> None:
    late = {0: 10.0, 10: 20.0, 36: 58.0, 40: 60.0, 60: 50.0}
    seen = course(run("a", test=late)[1])
    assert seen.best_epoch == 40
    assert seen.learned == pytest.approx((20 - 10) / (59.5 - 10), abs=0.02)
    assert seen.below_best == pytest.approx(59.5 - 20, abs=1)


def test_the_paper_s_picture_holds() -> None:
    found = claims(run("a", seed=0), run("b", seed=1))
    assert [c.verdict for c in found] == ["holds"] * 3
    twice, marks, small = found
    assert "(MLP on mnist, label_noise = 0.4)" in twice.text
    assert (
        twice.evidence == "2 of 2 trials; valley at epoch 10, peak at epoch 30, 3.3 times as high"
    )
    assert "0 (0 to 0 over n = 2 seeds) percentage points" in marks.evidence
    assert "valley at epoch 10, best at epoch 10, 0 epochs apart" in marks.evidence
    assert "within 1 point of the best are 15 % of all points" in marks.evidence
    assert "gap at the end 0.084 (0.084 to 0.084 over n = 2 seeds)" in small.evidence


def test_a_valley_that_comes_before_anything_is_learned_marks_nothing() -> None:
    late = {0: 10.0, 12: 10.0, 36: 58.0, 40: 60.0, 60: 50.0}
    found = claims(run("a", test=late), run("b", seed=1, test=late))
    assert [c.verdict for c in found] == ["holds", "fails", "fails"]
    assert "valley at epoch 10, best at epoch 40, 30 epochs apart" in found[1].evidence


def test_test_accuracy_that_never_falls_leaves_no_peak_to_mark() -> None:
    flat = {0: 10.0, 10: 60.0, 60: 59.5}
    assert [c.verdict for c in claims(run("a", test=flat))] == ["holds", *["single run"] * 2]


def test_a_large_gap_before_the_valley_is_told() -> None:
    found = claims(*(run(str(s), gap={0: 0.0, 10: 30.0, 60: 50.0}, seed=s) for s in range(2)))
    assert [c.verdict for c in found] == ["holds", "holds", "fails"]
    # It counts at its largest before the valley, not only there.
    gap = {0: 0.0, 5: 20.0, 10: 4.0, 60: 50.0}
    assert claims(run("a", gap=gap), run("b", gap=gap, seed=1))[2].verdict == "fails"


def test_seeds_that_differ_leave_the_question_open() -> None:
    late = {0: 10.0, 12: 54.0, 40: 60.0, 60: 50.0}
    found = claims(run("a"), run("b", seed=1), run("c", seed=2, test=late))
    assert [c.verdict for c in found] == ["holds", "undecided", "holds"]
    assert "over n = 3 seeds" in found[1].evidence


def test_a_seed_without_a_valley_is_enough_to_deny_the_double_descent() -> None:
    found = claims(run("a"), run("b", seed=1), run("c", seed=2, dispersion=lambda e: 1 / e))
    assert [c.verdict for c in found] == ["fails", "undecided", "undecided"]
    assert found[0].evidence.startswith("2 of 3 trials; valley at epoch 10")
    assert "over n = 2 seeds, 1 left out as undefined" in found[1].evidence


def test_without_any_valley_there_is_nothing_to_mark() -> None:
    twice, marks, small = claims(run("a", dispersion=lambda e: 1 / e))
    assert (twice.verdict, twice.evidence) == ("fails", "0 of 1 trials")
    assert marks.verdict == small.verdict == "undecided"
    assert marks.evidence == small.evidence == "no valley in 1 of 1 trials (n = 0)"


def test_a_peak_from_which_v_has_not_come_down_is_half_a_double_descent() -> None:
    twice, *_ = claims(run("a", dispersion=lambda e: 1 + np.abs(e - 20)))
    assert twice.verdict == "fails"
    assert twice.evidence.startswith("0 of 1 trials; valley at epoch 20, peak at epoch 60")


CLEAN = {0: 10.0, 30: 90.0, 60: 90.0}


def test_without_noise_the_mlp_s_dispersion_only_decays() -> None:
    decays, kept = claims(run("a", 0.0, lambda e: np.exp(-e / 10), CLEAN))
    assert decays.text.startswith("Without label noise the gradient dispersion V only decays (MLP")
    assert (decays.verdict, kept.verdict) == ("holds", "single run")
    assert decays.evidence.startswith("1 of 1 trials; V at the end is 0.0027 of")
    # A valley, and a curve that stays where it is, are both no decay.
    for other in (double_descent, lambda e: 1 + 0 * e):
        assert claims(run("a", 0.0, other, CLEAN))[0].verdict == "fails"


def test_without_noise_alexnet_s_dispersion_descends_twice() -> None:
    alexnet = {"model__name": "alexnet", "data__dataset": "cifar10"}
    twice, kept = claims(run("a", 0.0, double_descent, CLEAN, **alexnet))
    assert twice.text.startswith("The gradient dispersion V descends twice")
    assert "(AlexNet on cifar10, label_noise = 0)" in kept.text
    assert (twice.verdict, kept.verdict) == ("holds", "single run")
    decay = run("a", 0.0, lambda e: np.exp(-e / 10), CLEAN, **alexnet)
    assert claims(decay)[0].verdict == "fails"


def test_test_accuracy_lost_without_noise_is_told() -> None:
    lost = claims(run("a", 0.0, lambda e: np.exp(-e / 10), ACCURACY))[1]
    assert lost.verdict == "single run"
    assert lost.evidence == "11 (one seed: no interval) percentage points below"


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_runs_too_short_for_a_valley_decide_nothing_about_it(noise: float) -> None:
    row, points = run("a", noise)
    shape = claims((row, points.head(WINDOW)))[0]  # W_0 and one point too few
    assert shape.verdict == "undecided"
    assert shape.evidence == "measured at fewer than 5 points of each trial (n = 0)"


@pytest.mark.parametrize("noise", [0.0, 0.4])
@pytest.mark.parametrize("absent", ["column", "values"])
def test_what_was_not_measured_is_undecided(noise: float, absent: str) -> None:
    row, points = run("a", noise)
    column = figure3.DISPERSION
    without = points.drop(columns=column) if absent == "column" else points.assign(**{column: None})
    found = claims((row, without))
    assert {c.verdict for c in found} == {"undecided"}
    assert all(c.evidence.startswith("not measured in this run") for c in found)


def test_accuracies_that_are_unknown_leave_the_shape_of_v() -> None:
    row, points = run("a")
    for column in (figure3.TRAIN, figure3.TEST):
        points[column] = math.nan
    assert [c.verdict for c in claims((row, points))] == ["holds", "undecided", "undecided"]


def test_every_noise_level_and_model_is_a_panel_of_its_own() -> None:
    runs = [
        run(f"{model}{noise}", noise, model__name=model)
        for model in ("mlp", "alexnet")
        for noise in (0.4, 0.0, 0.2)
    ]
    found = claims(*runs)
    assert len(found) == 2 * (2 + 3 + 3)
    named = [c.text.partition("(")[2] for c in found[0:8:3]]
    assert named == [f"MLP on mnist, label_noise = {n})." for n in ("0", "0.2", "0.4")]


def test_only_finished_trials_count() -> None:
    row, points = run("a")
    diverged = pd.DataFrame([row | {"status": "diverged"}])
    assert figure3.claims(Tables(diverged, points)) == []
    assert figure3.claims(NO_TRIALS) == []


def test_a_course_of_nothing() -> None:
    empty = course(run("a")[1].head(1))
    assert isinstance(empty, Course)
    assert (empty.points, empty.valley) == (0, None)
    assert math.isnan(empty.lost)
