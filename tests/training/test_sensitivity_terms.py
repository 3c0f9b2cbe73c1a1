"""Lemma 2 and Corollary 1 from points of Psi, against the formulas on every step."""

from dataclasses import asdict, replace
from statistics import fmean, stdev

import numpy as np
import pytest

from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.theory import bounds
from gisgd_ray.training.sensitivity_terms import SensitivityTerms
from gisgd_ray.training.terms import LEMMA2, TrajectoryTerms
from tests.training.test_terms import piece, series

STDS = (0.05, 1e-6)
ERRORS = [0.1, 0.2]
SIZES = {"num_samples": 400, "num_parameters": 1234}


def measured_at(step: int) -> list[list[float]]:
    """Psi at W_step for each std and of two replicas: anything positive, not linear in the step."""
    return [[0.3 * (1 + step) ** 1.5 * std, (20.0 + np.sin(step)) * std] for std in STDS]


def run(whole: StepSeries, points: list[int]) -> tuple[SensitivityTerms, TrajectoryTerms]:
    terms = TrajectoryTerms(**SIZES, noise_stds=STDS)
    found = SensitivityTerms(STDS)
    found.add_point(measured_at(0), ERRORS)
    for begin, end in zip([0, *points[:-1]], points, strict=True):
        steps = piece(whole, begin, end)
        terms.add(steps)
        found.add_steps(steps.learning_rate)
        found.add_point(measured_at(end), ERRORS)
    return found, terms


def interpolated(points: list[int], which: int, place: int) -> list[float]:
    """Psi_t of one replica, t = 1..T, by hand from values at 0 and ``points``."""
    values = []
    for t in range(1, points[-1] + 1):
        at = t - 1  # the weights of step t are W_{t-1}
        left = max(p for p in [0, *points] if p <= at)
        right = min(p for p in points if p > at)
        a, b = measured_at(left)[place][which], measured_at(right)[place][which]
        values.append(a + (at - left) / (right - left) * (b - a))
    return values


@pytest.mark.parametrize("points", [list(range(1, 31)), [30], [10, 20, 30], [1, 2, 7, 30]])
def test_equal_to_the_formulas_on_interpolated_values(points: list[int]) -> None:
    whole = series(30)
    found, terms = run(whole, points)
    metrics = found.metrics(terms)
    radius = (whole.loss_max.max() - whole.loss_min.min()) / 2
    for place, std in enumerate(STDS):
        each = [interpolated(points, replica, place) for replica in (0, 1)]
        psi = [fmean(pair) for pair in zip(*each, strict=True)]
        common = {
            "subgaussian_constant": radius,
            "num_samples": 400,
            "learning_rates": whole.learning_rate,
            "noise_stds": [std] * 30,
        }
        linear = {"sensitivities": psi, "dispersions": whole.gradient_dispersion_neu}
        expected = {
            "measure/local_gradient_sensitivity": fmean(measured_at(30)[place]),
            "sum/sensitivity": sum(psi),
            "sum/lr2_sensitivity": sum(
                r**2 * p for r, p in zip(whole.learning_rate, psi, strict=True)
            ),
            "term/lemma2_trajectory": bounds.lemma2_trajectory(**common, **linear),
            "term/corollary1_trajectory": bounds.corollary1_trajectory(**common, **linear),
        }
        for name, value in expected.items():
            assert metrics[f"{name}@{std:g}"] == pytest.approx(value, rel=1e-11), name
        means, name = found.means(30), f"measure/local_gradient_sensitivity@{std:g}"
        assert means[name] == pytest.approx(fmean(psi), rel=1e-11)
        error = stdev(sum(replica) / 30 for replica in each) / 2**0.5
        name = f"measure/local_gradient_sensitivity_stderr@{std:g}"
        assert means[name] == pytest.approx(error, rel=1e-11)


def test_the_row_says_how_it_was_interpolated() -> None:
    every, _ = run(series(5), [1, 2, 3, 4, 5])
    assert every.interpolation == "none: measured at every step"
    assert SensitivityTerms(STDS).interpolation == "none: measured at no step"
    some, _ = run(series(9), [2, 9])
    assert some.interpolation == "linear in t between 3 points, at most 7 steps apart"


def test_neu_takes_their_own_dispersion() -> None:
    """With replicas V~ is the smaller of the two, and Lemma 2 is entitled to it."""
    whole = series(20)
    larger = replace(whole, replica_dispersion=whole.gradient_dispersion * 9)
    _, terms = run(larger, [20])
    _, plain = run(whole, [20])
    assert terms.linear(LEMMA2, 0.7, 0.05) == plain.linear(LEMMA2, 0.7, 0.05)
    name = "term/theorem2_trajectory@0.05"
    assert terms.metrics()[name] > plain.metrics()[name]


def test_before_the_first_step_the_terms_are_nan_and_psi_is_known() -> None:
    found = SensitivityTerms(STDS)
    found.add_point([[0.0], [0.0]], [0.0, 0.0])
    metrics = found.metrics(TrajectoryTerms(**SIZES, noise_stds=STDS))
    assert metrics["measure/local_gradient_sensitivity@0.05"] == 0.0
    assert np.isnan(metrics["term/lemma2_trajectory@0.05"])


def test_a_sum_below_zero_gives_no_lemma_2_and_the_reason() -> None:
    """As estimates from halves of few samples may; and nothing is taken for 0."""
    terms, found = TrajectoryTerms(**SIZES, noise_stds=STDS), SensitivityTerms(STDS)
    found.add_point([[0.0], [0.0]], [0.0, 0.0])
    terms.add(series(4))
    found.add_steps(series(4).learning_rate)
    found.add_point([[1.0], [-0.5]], [0.1, 2.0])
    metrics = found.metrics(terms)
    assert metrics["measure/local_gradient_sensitivity@1e-06"] == -0.5
    assert metrics["sum/lr2_sensitivity@1e-06"] < 0
    for name in ("term/lemma2_trajectory", "term/corollary1_trajectory"):
        assert np.isnan(metrics[f"{name}@1e-06"])
        assert metrics[f"{name}@0.05"] > 0
    reason = found.undefined_reason()
    assert reason is not None
    assert reason.startswith("Lemma 2 and Corollary 1 at sigma = 1e-06: ")
    # Steps 1 to 4 take 0, 1/4, 1/2 and 3/4 of the last point.
    assert found.means(4)["measure/local_gradient_sensitivity_stderr@1e-06"] == 2.0 * 1.5 / 4
    assert run(series(5), [5])[0].undefined_reason() is None


def test_continued_from_what_a_checkpoint_holds() -> None:
    whole = series(30)
    unbroken, _ = run(whole, [10, 20, 30])
    first, _ = run(whole, [10])
    first.add_steps(whole.learning_rate[10:15])
    second = SensitivityTerms(**asdict(first))
    second.add_steps(whole.learning_rate[15:20])
    second.add_point(measured_at(20), ERRORS)
    second.add_steps(whole.learning_rate[20:])
    second.add_point(measured_at(30), ERRORS)
    assert asdict(second) == asdict(unbroken)
