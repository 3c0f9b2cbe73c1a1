"""The bounds of a run at every noise std: again by hand from series and history, and in order."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from gisgd_ray.theory import bounds
from tests.support.runs import Finished, run

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

STDS = (0.05, 1e-6, 1e-12)
MEASURED: dict[str, Any] = {
    "measurement.noise_stds": list(STDS),
    "measurement.sensitivity": True,
    "measurement.sensitivity_draws": 3,
    # Points of Psi at 0, 5, 10 and 12, of evaluation at 0, 4, 8 and 12.
    "measurement.sensitivity_schedule": {"every": 5, "unit": "step"},
}
RUNS: dict[str, dict[str, Any]] = {
    "plain": MEASURED | {"training.lr_milestones": [2], "training.lr_factor": 0.5},
    "squared loss, label noise": MEASURED | {"training.loss": "squared", "data.label_noise": 0.4},
    "replicas": MEASURED | {"replicas": 3},
    "flooding": MEASURED | {"scheme.name": "flooding", "scheme.level": 2.2},
}
PSI = "measure/local_gradient_sensitivity"

each_run = pytest.mark.parametrize("name", RUNS)
each_std = pytest.mark.parametrize("std", STDS)


def total(*factors: Any) -> float:
    """sum_t of the product of these columns."""
    return math.fsum(math.prod(row) for row in zip(*factors, strict=True))


def interpolated(finished: Finished, column: str) -> list[float]:
    """The column at W_0 .. W_{T-1} from the points that have it, linear in between."""
    points = [(p["step"], p[column]) for p in finished.points if column in p]
    values = []
    for (left, a), (right, b) in pairwise(points):
        values += [((right - t) * a + (t - left) * b) / (right - left) for t in range(left, right)]
    return values


def by_hand(finished: Finished, std: float, *, steps: int | None = None) -> dict[str, float]:
    """Sums, terms at one noise std and bounds after the first steps (by default all)."""
    series = finished.series.head(steps or len(finished.series))
    n, d = 200, 12730
    radius = (max(series.loss_max) - min(series.loss_min)) / 2
    lr2 = series.learning_rate**2
    v, neu = series.gradient_dispersion, series.gradient_dispersion_neu
    psi = interpolated(finished, f"{PSI}@{std:g}")[: len(series)]
    linear = 2 * radius**2 / n / std**2

    def logs(dispersions: Any) -> float:
        inside = [
            math.log1p(float(r * e) / (d * std**2)) for r, e in zip(lr2, dispersions, strict=True)
        ]
        return radius * math.sqrt(d / n * math.fsum(inside))

    neu_sum, psi_sum = total(lr2, neu), total(lr2, psi)
    return {
        "sum/dispersion": total(v),
        "sum/dispersion_neu": total(neu),
        "sum/lr2_dispersion": total(lr2, v),
        "sum/lr2_dispersion_neu": neu_sum,
        "sum/lr2_gradient_norm2": total(lr2, series.squared_gradient_norm),
        f"sum/sensitivity@{std:g}": total(psi),
        f"sum/lr2_sensitivity@{std:g}": psi_sum,
        f"term/theorem2_trajectory@{std:g}": logs(v),
        f"term/lemma2_without_sensitivity@{std:g}": 2 * math.sqrt(linear * neu_sum),
        f"term/lemma2_trajectory@{std:g}": 2 * math.sqrt(linear * (psi_sum + neu_sum)),
        f"term/corollary1_trajectory@{std:g}": math.sqrt(linear * (3 * psi_sum + 2 * neu_sum)),
    }


def relaxation(finished: Finished, std: float) -> float:
    """Theorem 2's trajectory term with x for log(1 + x): sqrt(R^2/n sum lambda^2 V / sigma^2)."""
    series = finished.series
    radius = (max(series.loss_max) - min(series.loss_min)) / 2
    energy = total(series.learning_rate**2, series.gradient_dispersion)
    return radius * math.sqrt(energy / 200) / std


@each_run
class TestByHand:
    @each_std
    def test_sums_and_terms(self, name, std):
        finished = run(RUNS[name])
        assert finished.row["num_parameters"] == 12730
        for column, expected in by_hand(finished, std).items():
            assert finished.row[column] == pytest.approx(expected, rel=1e-9, abs=0), column

    @each_std
    def test_in_mid_run(self, name, std):
        """At a point of Psi all that is known is of the steps so far; elsewhere Psi has none."""
        finished = run(RUNS[name])
        points = {point["step"]: point for point in finished.points}
        assert sorted(points) == [0, 4, 5, 8, 10, 12]
        for column, expected in by_hand(finished, std, steps=5).items():
            assert points[5][column] == pytest.approx(expected, rel=1e-9, abs=0), column
        for step in (4, 8):
            known = by_hand(finished, std, steps=step)
            for column in [c for c in known if c in points[step]]:
                assert points[step][column] == pytest.approx(known[column], rel=1e-9, abs=0)
            assert set(known) - set(points[step]) == {
                f"{column}@{std:g}"
                for column in (
                    *("sum/sensitivity", "sum/lr2_sensitivity"),
                    *("term/lemma2_trajectory", "term/corollary1_trajectory"),
                )
            }

    @each_std
    def test_bounds_are_trajectory_plus_flatness(self, name, std):
        finished = run(RUNS[name])
        row, terms, at = finished.row, by_hand(finished, std), f"@{std:g}"
        gap = row[f"measure/flatness_gap{at}"]
        assert gap >= 0
        for bound, term in (
            ("theorem2", "theorem2_trajectory"),
            ("lemma2_neu", "lemma2_trajectory"),
            ("corollary1", "corollary1_trajectory"),
        ):
            expected = terms[f"term/{term}{at}"] + gap
            assert row[f"bound/{bound}{at}"] == pytest.approx(expected, rel=1e-9, abs=0), bound

    @each_std
    def test_bounds_with_r_of_the_losses_around_w_t(self, name, std):
        """Every trajectory term is R times what does not depend on it."""
        finished = run(RUNS[name])
        row, terms, at = finished.row, by_hand(finished, std), f"@{std:g}"
        series = finished.series
        trained = (max(series.loss_max) - min(series.loss_min)) / 2
        times = row[f"measure/subgaussian_constant_perturbed{at}"] / trained
        for bound, term in (
            ("theorem2", "theorem2_trajectory"),
            ("lemma2_neu", "lemma2_trajectory"),
        ):
            expected = times * terms[f"term/{term}{at}"] + row[f"measure/flatness_gap{at}"]
            found = row[f"bound/{bound}_perturbed_r{at}"]
            assert found == pytest.approx(expected, rel=1e-9, abs=0), bound

    @each_std
    def test_corollary_2(self, name, std):
        finished = run(RUNS[name])
        row, series = finished.row, finished.series
        whole = bounds.corollary2(
            subgaussian_constant=row["measure/subgaussian_constant"],
            num_samples=200,
            num_parameters=12730,
            learning_rates=series.learning_rate,
            noise_stds=[std] * 12,
            dispersions=series.gradient_dispersion,
            smoothness=row["measure/smoothness"],
        )
        assert row[f"bound/corollary2@{std:g}"] == pytest.approx(whole, rel=1e-12, abs=0)
        flatness = row["measure/smoothness"] * 12730 * 12 * std**2
        found = row[f"term/corollary2_flatness@{std:g}"]
        assert found == pytest.approx(flatness, rel=1e-12, abs=0)

    def test_psi_in_the_row_is_the_mean_over_all_steps(self, name):
        finished = run(RUNS[name])
        for std in STDS:
            mean = by_hand(finished, std)[f"sum/sensitivity@{std:g}"] / 12
            assert finished.row[f"{PSI}@{std:g}"] == pytest.approx(mean, rel=1e-9, abs=0)

    @each_std
    def test_the_error_of_that_mean(self, name, std):
        """Of one run's from its points', with the weights they have in the interpolation."""
        finished = run(RUNS[name])
        points = [p for p in finished.points if f"{PSI}@{std:g}" in p]
        assert [p["step"] for p in points] == [0, 5, 10, 12]
        weights = []
        for chosen in points:
            unit = [dict(p, unit=float(p is chosen)) for p in points]
            weights.append(
                sum(interpolated(Finished(finished.state, unit, finished.steps), "unit"))
            )
        assert sum(weights) == pytest.approx(12)
        errors = [p[f"{PSI}_stderr@{std:g}"] for p in points]
        found = finished.row[f"{PSI}_stderr@{std:g}"]
        assert found > 0
        if "replicas" not in RUNS[name]:
            squares = [(w * error) ** 2 for w, error in zip(weights, errors, strict=True)]
            assert found == pytest.approx(math.sqrt(math.fsum(squares)) / 12, rel=1e-9, abs=0)
        else:  # what differs between replicas stays from point to point: no more than in sum
            most = math.fsum(w * error for w, error in zip(weights, errors, strict=True)) / 12
            assert 0.2 * most < found <= most * (1 + 1e-9)


@each_run
class TestInOrder:
    @each_std
    def test_the_logarithm_is_below_its_relaxation(self, name, std):
        finished = run(RUNS[name])
        assert 0 < finished.row[f"term/theorem2_trajectory@{std:g}"] < relaxation(finished, std)

    @each_std
    def test_ours_below_neu(self, name, std):
        row, at = run(RUNS[name]).row, f"@{std:g}"
        lemma2 = row[f"bound/lemma2_neu{at}"]
        assert row[f"bound/corollary1{at}"] < lemma2
        if name == "replicas":
            assert row[f"bound/theorem1{at}"] <= row[f"bound/theorem2{at}"]
        else:  # one draw of W: the two are one number, and have one column
            assert f"bound/theorem1{at}" not in row
            assert f"term/theorem1_trajectory{at}" not in row
        assert row[f"bound/theorem2{at}"] < lemma2
        # At 1e-12 Psi is 1e-20 of V, and the two are the same number.
        floor, lemma2 = (
            row[f"term/{term}{at}"] for term in ("lemma2_without_sensitivity", "lemma2_trajectory")
        )
        assert floor < lemma2 if std == STDS[0] else floor <= lemma2
        # In one run V and V~ coincide, and what is left is the factor of the two.
        if name != "replicas":
            ratio = row[f"term/lemma2_without_sensitivity{at}"] / relaxation(run(RUNS[name]), std)
            assert ratio == pytest.approx(math.sqrt(8), rel=1e-9)

    def test_eq_3_is_the_minimum_over_sigma(self, name):
        finished = run(RUNS[name])
        row = finished.row
        closed, best = row["bound/theorem2_closed_form"], row["term/optimal_noise_std"]
        half = row["steps"] / 2 * row["measure/hessian_trace"]
        grid = best * np.geomspace(1e-3, 1e3, 4001)
        values = np.array([relaxation(finished, std) + half * std**2 for std in grid])
        assert (values >= closed * (1 - 1e-12)).all()
        assert values.min() == pytest.approx(closed, rel=1e-3)
        assert values.argmin() == 2000
        # The logarithm kept, the same noise gives less.
        tighter = row["term/theorem2_trajectory_at_optimum"] + row["term/flatness_at_optimum"]
        assert tighter < closed


@each_run
class TestTinyNoise:
    def test_every_number_is_finite(self, name):
        row = run(RUNS[name]).row
        found = {c: v for c, v in row.items() if c.endswith(("@1e-06", "@1e-12"))}
        names = {column.partition("@")[0] for column in row if "@" in column}
        assert set(found) == {f"{each}@{std}" for each in names for std in ("1e-06", "1e-12")}
        assert len(names) > 20
        for column, value in found.items():
            assert math.isfinite(value), column
            signed = ("measure/flatness_gap", "measure/test_loss_increase@")
            assert value > 0 or column.startswith(signed), column

    def test_nothing_has_cancelled(self, name):
        """As sigma falls a linear term grows as 1/sigma, and log(1 + x) as log x."""
        finished = run(RUNS[name])
        row, series = finished.row, finished.series
        for term in ("lemma2_without_sensitivity", "lemma2_trajectory", "corollary1_trajectory"):
            ratio = row[f"term/{term}@1e-12"] / row[f"term/{term}@1e-06"]
            assert ratio == pytest.approx(1e6, rel=1e-5)
        radius = row["measure/subgaussian_constant"]
        logs = [
            2 * (math.log(rate) - math.log(1e-12)) + math.log(float(v) / 12730)
            for rate, v in zip(series.learning_rate, series.gradient_dispersion, strict=True)
        ]
        expected = radius * math.sqrt(12730 / 200 * math.fsum(logs))
        assert row["term/theorem2_trajectory@1e-12"] == pytest.approx(expected, rel=1e-12)
        flatness = [row[f"term/corollary2_flatness@{std:g}"] for std in (1e-12, 1e-6)]
        assert flatness[0] / flatness[1] == pytest.approx(1e-12, rel=1e-9, abs=0)


def test_psi_at_tiny_noise_is_not_rounding():
    """Where no unit's input changes sign Psi is quadratic in sigma, down to 1e-12."""
    row = run(RUNS["plain"] | {"measurement.noise_stds": [1e-9, 1e-12]}).row
    ratio = row[f"{PSI}@1e-12"] / row[f"{PSI}@1e-09"]
    assert ratio == pytest.approx(1e-6, rel=1e-2, abs=0)
