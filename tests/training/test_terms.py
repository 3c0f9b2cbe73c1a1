"""The running terms of a trajectory equal the formulas on the whole of it, however it was cut."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.theory import bounds
from gisgd_ray.theory.quantities import at
from gisgd_ray.training.measured.flatness import condition_remark
from gisgd_ray.training.terms import (
    CLOSED,
    CLOSED_FORMS,
    THEOREM2,
    StepSums,
    TrajectoryTerms,
    arguments,
)

STDS = (0.05, 1e-6)


def series(steps: int, *, dispersion: bool = True) -> StepSeries:
    rng = np.random.default_rng(3)
    squared = rng.uniform(0.1, 2.0, steps)
    return StepSeries(
        learning_rate=rng.uniform(0.01, 0.2, steps),
        batch_size=rng.integers(2, 30, steps).astype(float),
        loss=rng.uniform(0, 1, steps),
        loss_min=rng.uniform(0, 0.5, steps),
        loss_max=rng.uniform(1, 9, steps),
        squared_gradient_norm=squared if dispersion else np.full(steps, np.nan),
        mean_squared_norm=squared * rng.uniform(1, 8, steps)
        if dispersion
        else np.full(steps, np.nan),
        replica_dispersion=None,
        active_loss=rng.uniform(0, 5, steps),
        group_dispersion=None,
        gradient_factor=np.ones(steps),
    )


def piece(whole: StepSeries, begin: int, end: int) -> StepSeries:
    return StepSeries.of({name: values[begin:end] for name, values in whole.columns().items()})


def terms() -> TrajectoryTerms:
    return TrajectoryTerms(num_samples=400, num_parameters=1234, noise_stds=STDS)


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 40], list(range(1, 60))])
def test_equal_to_the_formulas_at_every_cut(cuts: list[int]) -> None:
    whole, running = series(60), terms()
    for begin, end in zip([0, *cuts], [*cuts, 60], strict=True):
        running.add(piece(whole, begin, end))
        so_far = whole.head(end)
        found = running.metrics()
        radius = (so_far.loss_max.max() - so_far.loss_min.min()) / 2
        assert found["measure/subgaussian_constant"] == radius
        common = {
            "subgaussian_constant": radius,
            "num_samples": 400,
            "learning_rates": so_far.learning_rate,
            "dispersions": so_far.gradient_dispersion,
        }
        assert found["term/trajectory_factor"] == pytest.approx(
            bounds.trajectory_factor(**common), rel=1e-12
        )
        for std in STDS:
            expected = bounds.theorem2_trajectory(
                **common, num_parameters=1234, noise_stds=[std] * end
            )
            assert found[at(THEOREM2, std)] == pytest.approx(expected, rel=1e-12)
            floor = bounds.lemma2_trajectory(
                **common, noise_stds=[std] * end, sensitivities=[0.0] * end
            )
            found_floor = found[f"term/lemma2_without_sensitivity@{std:g}"]
            assert found_floor == pytest.approx(floor, rel=1e-12)
        assert found["sum/dispersion"] == pytest.approx(so_far.gradient_dispersion.sum(), rel=1e-12)
        by_hand = sum(
            so_far.learning_rate[t] ** 2 * so_far.squared_gradient_norm[t] for t in range(end)
        )
        assert found["sum/lr2_gradient_norm2"] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("trace", [3.0, 1e-9, 0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("cuts", [[], [7, 8, 40]])
def test_every_bound_equals_its_formula_on_the_whole_series(cuts: list[int], trace: float) -> None:
    whole, running = series(60), terms()
    for begin, end in zip([0, *cuts], [*cuts, 60], strict=True):
        running.add(piece(whole, begin, end))
    sizes = {"num_samples": 400, "learning_rates": whole.learning_rate}
    run = {"subgaussian_constant": running.radius, "hessian_trace": trace, **sizes}
    energies = {"dispersions": whole.gradient_dispersion}
    best = bounds.optimal_noise_std(**run, **energies)
    at_best = np.nan
    if best > 0:
        at_best = bounds.theorem2_trajectory(
            **sizes,
            **energies,
            subgaussian_constant=running.radius,
            num_parameters=1234,
            noise_stds=[best] * 60,
        )
    all_of = {**run, **energies, "squared_gradient_norms": whole.squared_gradient_norm}
    expected = {
        "term/flatness_factor": trace,
        **dict(zip(CLOSED_FORMS[1:3], bounds.terms_at_optimum(**run, **energies), strict=True)),
        "term/optimal_noise_std": best,
        "term/theorem2_trajectory_at_optimum": at_best,
        **{
            name: formula(
                **{key: value for key, value in all_of.items() if key in arguments(formula)}
            )
            for name, formula in CLOSED.items()
        },
    }
    found = running.closed_forms(trace, whole)
    assert list(found) == list(expected) == list(CLOSED_FORMS)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
    del run["hessian_trace"]
    assert bounds.theorem3(**running.as_one_step, losses=[60 * running.lr2_loss]) == pytest.approx(
        bounds.theorem3(**run, losses=whole.loss), rel=1e-12
    )
    units = {"width": 9, "final_active_units": 4.5}
    assert bounds.theorem4(
        **running.as_one_step, **units, active_losses=[60 * running.lr2_active_loss]
    ) == pytest.approx(bounds.theorem4(**run, **units, active_losses=whole.active_loss), rel=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 40]])
def test_means_and_counts_however_the_steps_were_cut(cuts: list[int]) -> None:
    whole, sums = series(60), StepSums()
    whole.gradient_factor[9] = 0.5
    whole.batch_size[[20, 30]] = 1
    whole.mean_squared_norm[40:43] = whole.squared_gradient_norm[40:43]
    for begin, end in zip([0, *cuts], [*cuts, 60], strict=True):
        sums.add(piece(whole, begin, end))
    assert (sums.steps, sums.single_sample, sums.single_sample_within) == (60, 21, 0)
    assert (sums.ill_conditioned_steps, sums.is_rounding, sums.by_groups) == (3, False, False)
    assert sums.means() == pytest.approx(
        {
            "measure/gradient_dispersion": np.nan,
            "measure/gradient_dispersion_neu": np.nan,
            "measure/per_sample_dispersion": np.nan,
            "measure/gradient_norm": (whole.squared_gradient_norm**0.5).mean(),
            "measure/gradient_factor": 59.5 / 60,
        },
        rel=1e-12,
        nan_ok=True,
    )
    whole = replace(whole, replica_dispersion=np.ones(len(whole)))
    within = StepSums()
    for begin, end in zip([0, *cuts], [*cuts, 60], strict=True):
        within.add(piece(whole, begin, end))
    assert (within.single_sample, within.single_sample_within) == (0, 21)
    assert within.is_measured


def test_no_steps_and_no_dispersion_give_nan_with_r_where_it_is_known() -> None:
    assert all(np.isnan(value) for value in terms().metrics().values())
    running = terms()
    running.add(series(5, dispersion=False))
    found = running.metrics()
    assert found.pop("measure/subgaussian_constant") > 0
    assert all(np.isnan(value) for value in found.values())


def test_continued_from_what_a_checkpoint_holds() -> None:
    whole, unbroken, first = series(30), terms(), terms()
    for begin in (0, 10, 20):
        unbroken.add(piece(whole, begin, begin + 10))
    first.add(piece(whole, 0, 10))
    second = TrajectoryTerms(**asdict(first))
    second.add(piece(whole, 10, 20))
    second.add(piece(whole, 20, 30))
    assert second.metrics() == unbroken.metrics()


@pytest.mark.parametrize(
    ("increase", "stderr", "falls"),
    [(0.5, 0.1, False), (-0.2, 0.1, False), (-0.24, 0.1, True), (-3.0, 0.0, True)],
)
def test_the_condition_of_eq_3_fails_only_where_that_is_established(
    increase: float, stderr: float, falls: bool
) -> None:
    """Eight pairs of draws, or eight runs: t = 2.365."""
    point = {
        "measure/test_loss_increase_at_optimum": increase,
        "measure/test_loss_increase_stderr_at_optimum": stderr,
        "measure/flatness_draws_at_optimum": 16,
    }
    for replicas in (None, 8):
        said = condition_remark(point, replicas=replicas)
        assert (said is not None) == falls
        if said is not None:
            assert f"by {-increase:g} (standard error {stderr:g})" in said
    assert condition_remark(point | {"measure/flatness_draws_at_optimum": 2}, replicas=None) is None


def test_of_a_condition_not_looked_at_nothing_is_said() -> None:
    assert condition_remark({}, replicas=None) is None
    assert condition_remark({}, replicas=8) is None
