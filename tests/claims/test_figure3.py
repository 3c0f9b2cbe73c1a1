"""Figure 3's claims on runs of known course; its valley itself is in test_valley.py."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gisgd_ray.claims import figure3
from gisgd_ray.claims.accuracies import HeldOut
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.figure3 import FITTED, Course, course, shape_test
from gisgd_ray.claims.statistics import LEVEL
from gisgd_ray.claims.valley import WINDOW
from tests.claims.test_valley import double_descent
from tests.support.tables import NO_TRIALS, Tables, history, trial

SPLIT = HeldOut(samples=10_000, classes=10, label_noise=0.4)

ACCURACY = {0: 10.0, 7: 59.4, 10: 60.0, 60: 49.0}
"""In %: test accuracy is best where the dispersion is lowest."""
MEMORISED = {0: 0.0, 10: 4.0, 60: 51.0}
"""Training accuracy above that of test: all labels are fitted in the end."""


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
    gap = gap or MEMORISED | {60: 100.0 - test[60]}
    tested = np.interp(epochs, list(test), list(test.values()))
    points = history(
        name,
        epoch=epochs,
        measure__gradient_dispersion=[math.nan, *dispersion(epochs[1:])],
        train__accuracy=(tested + np.interp(epochs, list(gap), list(gap.values()))) / 100,
        test__accuracy=tested / 100,
    )
    return trial(name, data__label_noise=noise, **fields), points


def seeds(count: int = 3, **changes: Any) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    return [run(f"{seed}/{changes}", seed=seed, **changes) for seed in range(count)]


def claims(*runs: tuple[dict[str, Any], pd.DataFrame]) -> list[Claim]:
    rows, points = zip(*runs, strict=True)
    return figure3.claims(Tables(pd.DataFrame(list(rows)), pd.concat(points)))


def verdicts(*runs: tuple[dict[str, Any], pd.DataFrame]) -> list[str]:
    return [claim.verdict for claim in claims(*runs)]


def test_the_course_of_a_run() -> None:
    seen = course(run("a")[1], SPLIT)
    assert seen.valley is not None
    assert (seen.points, seen.valley.epoch, seen.best_epoch) == (60, 10, 10)
    assert seen.is_fitted
    # About epoch 10 the median of 59.6, 59.8, 60, 59.78 and 59.56 %.
    assert seen.below_best == (0, SPLIT.difference_error(59.78, 59.78))
    assert seen.lost.value == pytest.approx(59.78 - 49)
    assert seen.lost.error == pytest.approx(SPLIT.difference_error(59.78, 49))
    # W_0 has 10 %.
    assert seen.learned.value == pytest.approx(59.78 - (59.78 + 10) / 2)
    # Training 62.8, 63.4, 64, 64.72 and 65.44 %; 51 points above the test split's at the end.
    assert seen.gap.value == pytest.approx(64 - 59.78 - 0.2 * 51)


def test_the_plateau_is_what_the_sampling_error_does_not_tell_from_the_best() -> None:
    """1.96 standard errors of the difference and one sample, at every epoch by itself."""
    _, points = run("a")
    tested = 100 * points["test/accuracy"].to_numpy()
    for samples in (1_000, 10_000):
        split = HeldOut(samples=samples, classes=10, label_noise=0.4)
        seen = course(points, split)
        known = [
            epoch
            for epoch in range(3, 59)
            if 59.78 - np.median(tested[epoch - 2 : epoch + 3])
            <= 1.96 * split.difference_error(59.78, np.median(tested[epoch - 2 : epoch + 3]))
            + 100 / samples
        ]
        assert seen.plateau == (known[0], known[-1])
        assert seen.as_good == pytest.approx(len(known) / 60)
    assert seen.plateau == (7, 13)


def test_a_course_measures_from_the_accuracy_of_w_0() -> None:
    late = {0: 10.0, 10: 20.0, 36: 58.0, 40: 60.0, 60: 50.0}
    seen = course(run("a", test=late)[1], SPLIT)
    assert seen.best_epoch == 40
    assert seen.learned.value == pytest.approx(20 - (10 + 59.5) / 2, abs=1)
    assert seen.below_best.value == pytest.approx(59.5 - 20, abs=1)


def test_the_paper_s_picture_holds() -> None:
    found = claims(*seeds())
    assert [c.verdict for c in found] == ["holds"] * 3
    twice, marks, small = found
    assert "(MLP on mnist, label_noise = 0.4)" in twice.text
    assert twice.evidence.startswith(
        "descends twice in 3, excluded in 0 of 3 trials; valley at epoch 10, peak at epoch 30, "
        "3.3 times as high"
    )
    # Two networks right of 93 % of the true labels: +-1.96 sqrt(9.6 % / 10,000 + 1e-8).
    assert marks.evidence.startswith("below the best at the valley by 0 (-0.61 to 0.61 over n = 3")
    assert "valley at epoch 10, best at epoch 10, 0 epochs apart" in marks.evidence
    assert (
        "the test samples do not tell epochs 7 to 13 from the best, 12 % of all points, the valley "
        "among them in 3 of 3 trials" in marks.evidence
    )
    assert "with the sampling error of 10,000 test samples" in marks.test
    assert small.evidence.startswith(
        "largest gap up to the valley minus 0.2 of that at the end -6.0 (-6.9 to -5.0 over n = 3"
    )


def test_with_fewer_test_samples_less_is_told() -> None:
    """A drop of 4 points: what 10,000 samples show, 1,000 do not."""
    dropped = {0: 10.0, 10: 60.0, 60: 54.0}
    assert verdicts(*seeds(test=dropped))[1] == "holds"
    assert verdicts(*seeds(test=dropped, num_test_samples=1_000))[1] == "undecided"
    unknown = claims(*seeds(test=dropped, num_test_samples=math.nan))[1]
    assert unknown.verdict == "undecided"
    assert "no finite interval" in unknown.evidence
    assert "an unknown number of test samples" in unknown.test


def test_two_seeds_decide_nothing_and_one_is_a_single_run() -> None:
    assert verdicts(*seeds(2)) == ["undecided"] * 3
    assert verdicts(*seeds(2, dispersion=decay))[0] == "undecided"
    assert verdicts(*seeds(1)) == ["single run"] * 3


def test_a_valley_that_comes_before_anything_is_learned_marks_nothing() -> None:
    late = {0: 10.0, 12: 10.0, 36: 58.0, 40: 60.0, 60: 50.0}
    found = claims(*seeds(test=late))
    assert [c.verdict for c in found] == ["holds", "fails", "fails"]
    assert "valley at epoch 10, best at epoch 40, 30 epochs apart" in found[1].evidence
    assert "the valley among them in 0 of 3 trials" in found[1].evidence


def test_test_accuracy_that_never_falls_leaves_no_peak_to_mark() -> None:
    flat = {0: 10.0, 10: 60.0, 60: 59.5}
    assert verdicts(*seeds(test=flat)) == ["holds", "fails", "holds"]


def test_a_large_gap_before_the_valley_is_told() -> None:
    assert verdicts(*seeds(gap={0: 0.0, 10: 30.0, 60: 51.0})) == ["holds", "holds", "fails"]
    # It counts at its largest before the valley, not only there.
    assert verdicts(*seeds(gap={0: 0.0, 5: 20.0, 10: 4.0, 60: 51.0}))[2] == "fails"


def test_up_to_the_valley_both_accuracies_rise() -> None:
    """Where training accuracy stays low its gap is small, and below zero."""
    low = {0: 0.0, 10: -50.0, 15: -45.0, 60: 51.0}
    small = claims(*seeds(gap=low))[2]
    assert small.verdict == "fails"
    # About epoch 10 the median of 19.6, 14.8, 10, 10.78 and 11.56 %: a rise by 1.56 from 10 %.
    assert "rise of training accuracy there minus 0.5 of that way -23 (" in small.evidence
    seen = course(run("a", gap=low)[1], SPLIT)
    assert seen.trained.error == pytest.approx(SPLIT.difference_error(59.78, 10) / 2)


def test_seeds_that_differ_leave_the_question_open() -> None:
    late = {0: 10.0, 12: 54.0, 40: 60.0, 60: 50.0}
    found = claims(*seeds(2), run("c", seed=2, test=late))
    assert [c.verdict for c in found] == ["holds", "undecided", "undecided"]
    assert "over n = 3 seeds" in found[1].evidence


def decay(epochs: Any) -> Any:
    return np.exp(-epochs / 10)


def test_runs_with_and_runs_without_a_valley_leave_it_open() -> None:
    found = claims(*seeds(2), run("c", seed=2, dispersion=decay))
    assert [c.verdict for c in found] == ["undecided"] * 3
    assert found[0].evidence.startswith("descends twice in 2, excluded in 1 of 3 trials")
    assert "no valley found in 1 of 3 trials" in found[1].evidence


def test_without_any_valley_there_is_nothing_to_mark() -> None:
    twice, marks, small = claims(*seeds(dispersion=decay))
    assert twice.verdict == "fails"
    assert twice.evidence.startswith("descends twice in 0, excluded in 3 of 3 trials")
    assert marks.verdict == small.verdict == "undecided"
    assert (
        marks.evidence == small.evidence == "no valley in any trial that fitted the labels (n = 0)"
    )


def test_a_peak_from_which_v_has_not_come_down_is_half_a_double_descent() -> None:
    twice, *_ = claims(*seeds(dispersion=lambda e: 1 + np.abs(e - 20)))
    assert twice.verdict == "fails"
    assert "excluded in 3 of 3 trials; valley at epoch 20, peak at epoch 60" in twice.evidence


def test_v_that_stays_up_after_its_peak_does_not_descend_twice() -> None:
    """Though it ends far below where it began, and has a valley."""
    up = seeds(dispersion=lambda e: np.interp(e, [1, 10, 30, 60], [11, 1, 4, 4]))
    twice = claims(*up)[0]
    assert twice.verdict == "fails"
    assert "excluded in 3 of 3 trials; valley at epoch 11" in twice.evidence


@pytest.mark.parametrize("reached", [FITTED - 1, FITTED + 0.5])
def test_a_run_that_stopped_before_the_labels_were_fitted_does_not_deny_anything(
    reached: float,
) -> None:
    """Without a valley, and with test accuracy that has not dropped yet: both may be to come."""
    flat = {0: 10.0, 10: 60.0, 60: 60.0}
    stopped = {"gap": {0: 0.0, 60: reached - 60}, "test": flat}
    over = reached >= FITTED
    decays = claims(*seeds(dispersion=decay, **stopped))[0]
    assert decays.verdict == ("fails" if over else "undecided")
    half, marks, small = claims(*seeds(dispersion=lambda e: 1 + np.abs(e - 20), **stopped))
    assert half.verdict == ("fails" if over else "undecided")
    assert marks.verdict == ("fails" if over else "undecided")
    if not over:
        told = "3 of 3 trials stopped before the labels were fitted, at a training accuracy of 98 %"
        assert told in decays.evidence
        assert marks.evidence == small.evidence == told
        assert small.verdict == "undecided"
        # What a run does show is shown, fitted or not.
        assert verdicts(*seeds(**stopped))[0] == "holds"


CLEAN = {0: 10.0, 30: 90.0, 60: 90.0}


def test_without_noise_the_mlp_s_dispersion_only_decays() -> None:
    decays, kept = claims(*seeds(noise=0.0, dispersion=decay, test=CLEAN))
    assert decays.text.startswith("Without label noise the gradient dispersion V only decays (MLP")
    assert (decays.verdict, kept.verdict) == ("holds", "holds")
    assert decays.evidence.startswith(
        "only decays in 3, excluded in 0 of 3 trials; V at the end is 0.0027 of"
    )
    # A valley, and a curve that stays where it is, are both no decay.
    for other in (double_descent, lambda e: 1 + 0 * e):
        assert verdicts(*seeds(noise=0.0, dispersion=other, test=CLEAN))[0] == "fails"


def test_without_noise_a_run_that_stopped_early_has_not_shown_that_v_only_decays() -> None:
    gap = {0: 0.0, 60: 5.0}
    found = claims(*seeds(noise=0.0, dispersion=decay, test=CLEAN, gap=gap))
    assert [c.verdict for c in found] == ["undecided"] * 2
    assert all("stopped before the labels were fitted" in c.evidence for c in found)
    assert verdicts(*seeds(noise=0.0, test=CLEAN, gap=gap))[0] == "fails"


def test_without_noise_alexnet_s_dispersion_descends_twice() -> None:
    alexnet = {"model__name": "alexnet", "data__dataset": "cifar10", "noise": 0.0, "test": CLEAN}
    twice, kept = claims(*seeds(**alexnet))
    assert twice.text.startswith("The gradient dispersion V descends twice")
    assert "(AlexNet on cifar10, label_noise = 0)" in kept.text
    assert (twice.verdict, kept.verdict) == ("holds", "holds")
    assert verdicts(*seeds(dispersion=decay, **alexnet))[0] == "fails"


def test_test_accuracy_lost_without_noise_is_told() -> None:
    lost = claims(*seeds(noise=0.0, dispersion=decay, test=ACCURACY))[1]
    assert lost.verdict == "fails"
    assert lost.evidence.startswith("11 (8.9 to 13 over n = 3 seeds) percentage points below")
    single = claims(run("a", 0.0, decay, ACCURACY))[1]
    assert single.verdict == "single run"
    assert single.evidence.startswith("11 (one seed: no interval) percentage points below")


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
    runs = seeds()
    for _, points in runs:
        points[[figure3.TRAIN, figure3.TEST]] = math.nan
    assert verdicts(*runs) == ["holds", "undecided", "undecided"]
    for _, points in runs:
        points[figure3.DISPERSION] = np.exp(-points["epoch"])
    assert verdicts(*runs) == ["undecided"] * 3


@pytest.mark.parametrize("epochs", [[30], [9, 10], [60]])
def test_a_point_whose_accuracy_is_unknown_is_left_out(epochs: list[int]) -> None:
    """At the peak, the valley and the end, which are then at the points beside them."""
    runs = seeds()
    for _, points in runs:
        points.loc[points["epoch"].isin(epochs), figure3.TEST] = math.nan
    assert verdicts(*runs) == ["holds"] * 3
    seen = course(runs[0][1], SPLIT)
    assert (seen.points, seen.best_epoch) == (60, 10 if 10 not in epochs else 11)
    assert seen.fitted == pytest.approx(100 if 60 not in epochs else 99.28)


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
    empty = course(run("a")[1].head(1), SPLIT)
    assert isinstance(empty, Course)
    assert (empty.points, empty.valley, empty.is_fitted) == (0, None, False)
    assert math.isnan(empty.lost.value)


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_shape_that_no_run_has_is_established_in_five_percent_at_most(n: int) -> None:
    """Each run shows, or denies, at 5 % what is not so: exactly, over all outcomes of n runs."""
    for claimed in (True, False):
        wrong = 0.0
        for k in range(n + 1):
            runs, none = [i < k for i in range(n)], [False] * n
            p_values = shape_test(runs, none) if claimed else shape_test(none, runs)
            p = p_values.p_holds if claimed else p_values.p_fails
            if p <= LEVEL:
                wrong += math.comb(n, k) * LEVEL**k * (1 - LEVEL) ** (n - k)
        assert wrong <= LEVEL
    few = shape_test([True] * 2 + [False] * 3, [False] * 5)
    assert few.p_holds == pytest.approx(1 - 0.95**5 - 5 * 0.05 * 0.95**4)
    assert (few.p_fails, few.n) == (1.0, 5)
    assert shape_test([True], [False]) == (0.0, 1.0, 1)
    assert shape_test([False], [False]) == (1.0, 1.0, 1)


NULL = {
    # The second descent's null: a decay that levels off, with scatter.
    "twice": lambda e: 1 + 10 * np.exp(-e / 2),
    # Its opposite's: a double descent, of which a rise of 5 % is the smallest that counts.
    "decays": lambda e: np.exp(np.interp(e, [1, 20, 26, 36, 42, 60], [1, 0, 0, 0.049, 0.049, -2])),
}


@pytest.mark.parametrize("null", NULL)
def test_of_runs_under_their_null_no_more_claims_hold_or_fail_than_said(null: str) -> None:
    """Whole claims, of three seeds each, with scatter of 3 % whose neighbours correlate by 0.3."""
    rng = np.random.default_rng(5)
    many, wrong = 20, 0
    for _ in range(many):
        runs = []
        for row, points in seeds(noise=0.0 if null == "decays" else 0.4, test=ACCURACY):
            scatter = rng.standard_normal(62)
            correlated = 0.3 * scatter[:-1] + math.sqrt(1 - 0.09) * scatter[1:]
            v = NULL[null](points["epoch"]) * np.exp(0.03 * correlated)
            runs.append((row, points.assign(**{figure3.DISPERSION: v})))
        wrong += verdicts(*runs)[0] == "holds"
    assert wrong <= stats.binom.ppf(0.999, many, LEVEL)


def test_scatter_of_the_epochs_is_no_fall() -> None:
    source, wrong = np.random.default_rng(0), 0
    for _page in range(20):
        runs = []
        for seed in range(5):
            epochs = np.arange(151.0)
            test = np.clip(0.7 + 0.05 * source.standard_normal(151), 0, 1)
            points = history(
                f"{seed}",
                epoch=epochs,
                measure__gradient_dispersion=[math.nan, *np.exp(-epochs[1:] / 30)],
                train__accuracy=np.full(151, 1.0),
                test__accuracy=test,
            )
            fields = {"seed": seed, "num_test_samples": 10_000, "data__label_noise": 0.0}
            runs.append((trial(f"{seed}", **fields), points))
        (found,) = [c for c in claims(*runs) if "does not fall" in c.text]
        wrong += found.verdict == "fails"
    assert wrong == 0
