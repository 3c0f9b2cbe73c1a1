"""What is measured of a run, when, and that it is what the measures say of its actual weights."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.displaced import WeightNoise
from gisgd_ray.measures.flatness import FlatnessRun, flatness_gaps
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.seeds import derived_seed
from gisgd_ray.training import loop as training
from gisgd_ray.training.measure import Measure
from tests.measures.test_sensitivity import drawn_halves
from tests.support import reference_sensitivity as reference
from tests.support.runs import Finished, config, finish, run, series_bits, untimed, weight_bits

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

PSI = "measure/local_gradient_sensitivity"
SENSITIVE: dict[str, Any] = {
    "measurement.sensitivity": True,
    "measurement.sensitivity_draws": 2,
    "measurement.noise_stds": [0.01, 1e-6],
}


def sensitive(every: int, unit: str, **more: Any) -> dict[str, Any]:
    return SENSITIVE | {"measurement.sensitivity_schedule": {"every": every, "unit": unit}} | more


def has_psi(point: training.Point) -> bool:
    """Whether Psi was measured there: all of its columns, or none of them."""
    names = [PSI, f"{PSI}_stderr", "sum/sensitivity", "sum/lr2_sensitivity"]
    names += [f"term/{term}_trajectory" for term in ("lemma2", "corollary1")]
    found = {f"{name}@{std}" in point for name in names for std in ("0.01", "1e-06")}
    assert len(found) == 1
    return found.pop()


class TestSchedule:
    @pytest.mark.parametrize(
        ("every", "unit", "expected", "text"),
        [
            (1, "epoch", [0, 4, 8, 12], "linear in t between 4 points, at most 4 steps apart"),
            (2, "epoch", [0, 8, 12], "linear in t between 3 points, at most 8 steps apart"),
            (1, "step", list(range(13)), "none: measured at every step"),
            (5, "step", [0, 5, 10, 12], "linear in t between 4 points, at most 5 steps apart"),
            (2, "log", [0, 1, 3, 10, 12], "linear in t between 5 points, at most 7 steps apart"),
        ],
    )
    def test_columns_at_due_points_and_at_the_end(self, every, unit, expected, text):
        finished = run(sensitive(every, unit))
        assert [p["step"] for p in finished.points if has_psi(p)] == expected
        # Evaluation has points of its own, and so Psi's do not end up in between unseen.
        assert [p["step"] for p in finished.points] == sorted({*expected, 0, 4, 8, 12})
        assert finished.row["measure/sensitivity_interpolation"] == text

    def test_at_the_start_nothing_is_perturbed_yet(self):
        first = run(sensitive(1, "epoch")).points[0]
        for std in ("0.01", "1e-06"):
            assert first[f"{PSI}@{std}"] == first[f"{PSI}_stderr@{std}"] == 0
            assert first[f"sum/sensitivity@{std}"] == 0
            assert math.isnan(first[f"term/lemma2_trajectory@{std}"])

    def test_a_run_that_stops_early_is_measured_where_it_stops(self):
        finished = run(sensitive(3, "epoch", **{"training.stop_loss": 1.6}))
        assert finished.state.stopped == "stop_loss"
        measured = [p["step"] for p in finished.points if has_psi(p)]
        assert measured == [0, finished.row["steps"]] == [0, 8]

    def test_by_default_there_is_no_psi(self):
        assert not any(
            "sensitivity" in name.partition("without_sensitivity")[0]
            for point in [*run().points, run().row]
            for name in point
        )


def models_at(changes: dict[str, Any], *steps: int) -> tuple[Finished, dict[int, nn.Module]]:
    """A run of its own, and copies of its model at these steps."""
    state, models, points = training.start(config(changes)), {}, []
    while state.stopped is None:
        points.append(training.advance(state)[0])
        if state.step in steps:
            models[state.step] = copy.deepcopy(state.model)
    return Finished(state, points, state.series), models


def zetas(
    model: nn.Module, std: float, step: int, *, draws: int = 2, seed: int = 0
) -> list[Tensor]:
    """zeta_1 .. zeta_k of the step: one stream a draw, named by (seed, step, i)."""
    d = sum(p.numel() for p in model.parameters())
    found = []
    for i in range(draws):
        generator = torch.Generator().manual_seed(derived_seed(seed, "sensitivity", step, i))
        found.append(std * step**0.5 * torch.randn(d, generator=generator).double())
    return found


class TestAgainstLoops:
    """On the weights of the run, n = 200; the std of zeta at W_t is sigma sqrt(t)."""

    @pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
    def test_psi(self, loss):
        changes = sensitive(5, "step", **{"training.loss": loss, "model.width": 3, "seed": 4})
        finished, models = models_at(changes, 5, 12)
        data = finished.state.dataset
        for step, model in models.items():
            (point,) = [p for p in finished.points if p["step"] == step]
            for std in (0.01, 1e-6):
                draws = zetas(model, std, step, seed=4)
                squares = reference.squared_changes(model, data.train_x, data.train_y, loss, draws)
                mean, spread = sum(squares) / 2, abs(squares[0] - squares[1]) / 2
                # Float32 differences of gradients may be off by 1 % (test_sensitivity).
                rel = 1e-3 if std == 0.01 else 1e-2
                assert point[f"{PSI}@{std:g}"] == pytest.approx(mean, rel=rel, abs=0)
                error = point[f"{PSI}_stderr@{std:g}"]
                assert error == pytest.approx(spread, rel=0, abs=rel * mean)

    def test_over_two_halves_of_a_fraction_of_the_samples(self):
        changes = sensitive(1, "epoch", **{"measurement.sensitivity_fraction": 0.1})
        finished, models = models_at(changes, 4)
        data = finished.state.dataset
        draws = zetas(models[4], 0.01, 4)
        halves = [drawn_halves(0, 4, i, n=200, m=20) for i in (0, 1)]
        values = reference.sensitivities_from_halves(
            models[4], data.train_x, data.train_y, "cross_entropy", draws, halves
        )
        point = finished.points[1]
        assert point[f"{PSI}@0.01"] == pytest.approx(sum(values) / 2, rel=1e-3)
        error = point[f"{PSI}_stderr@0.01"]
        assert error == pytest.approx(abs(values[0] - values[1]) / 2, rel=0.01)
        assert finished.row["measure/sensitivity_samples"] == 20
        said = "two halves of 20 training samples, others a draw"
        assert finished.row["measure/sensitivity_estimator"] == said

    def test_all_of_the_samples(self):
        row = run(sensitive(1, "epoch")).row
        assert row["measure/sensitivity_samples"] == 200
        assert row["measure/sensitivity_estimator"] == "all training samples"

    @pytest.mark.parametrize(
        ("fraction", "samples"), [(1e-9, 2), (0.0149, 2), (0.016, 4), (0.999, 200)]
    )
    def test_an_even_number_of_samples_and_at_least_two(self, fraction, samples):
        changes = {"measurement.sensitivity_fraction": fraction, "training.max_steps": 1}
        row = run(sensitive(1, "step", **changes)).row
        assert row["measure/sensitivity_samples"] == samples
        assert ("halves" in row["measure/sensitivity_estimator"]) == (samples < 200)

    def test_a_sum_below_zero_gives_no_bound_and_the_reason(self):
        """Two samples tell next to nothing of 200, and at some seed less than nothing."""
        seen = set()
        for seed in range(8):
            changes = {"measurement.sensitivity_fraction": 1e-9, "seed": seed}
            row = run(sensitive(1, "epoch", **changes)).row
            for std in ("0.01", "1e-06"):
                below = row[f"sum/lr2_sensitivity@{std}"] < 0
                for name in ("bound/lemma2_neu", "bound/corollary1", "term/lemma2_trajectory"):
                    assert math.isnan(row[f"{name}@{std}"]) == below
                said = row["bound/undefined_reason"] or ""
                assert (f"{std}:" in said or f"{std}, " in said) == below
                assert math.isfinite(row[f"term/lemma2_without_sensitivity@{std}"])
                seen.add(below)
            assert math.isfinite(row["bound/theorem2_closed_form"])
        assert seen == {False, True}


class TestAtTheEnd:
    def test_flatness_gap_and_beta_are_those_of_the_final_model(self):
        finished = run({"seed": 3, "measurement.flatness_draws": 6})
        state, row = finished.state, finished.row
        data, stds = state.dataset, (1e-2, 1e-4, 1e-6)
        noise = WeightNoise([std * 12**0.5 for std in stds], 3)
        one = FlatnessRun(state.model, *state.replicas[0].samples("cross_entropy"), noise)
        gaps = flatness_gaps([one], draws=[6] * 3, target=0.0)
        for std, (gap,) in zip(stds, gaps, strict=True):
            assert row[f"measure/flatness_gap@{std:g}"] == gap.value
            assert row[f"measure/flatness_gap_stderr@{std:g}"] == gap.standard_error
        found = HessianOperator(
            state.model, data.train_x, data.train_y, "cross_entropy"
        ).largest_eigenvalue(seed=3)
        assert row["measure/smoothness"] == found.value
        assert row["measure/smoothness_residual"] == found.residual

    @pytest.mark.parametrize("replicas", [None, 2])
    def test_what_eq_3_takes_for_granted_is_looked_at_at_its_own_noise_std(self, replicas):
        """As if sigma* were one of the noise stds, but for the number of draws."""
        changes = {"measurement.flatness_draws": 20, "replicas": replicas}
        row = run(changes).row
        best = row["term/optimal_noise_std"]
        draws = 16  # of all runs together
        assert row["measure/flatness_draws_at_optimum"] == draws
        other = run(
            changes | {"measurement.noise_stds": [best], "measurement.flatness_draws": draws}
        )
        for name in (
            "subgaussian_constant_perturbed",
            "test_loss_increase",
            "test_loss_increase_stderr",
        ):
            found = row[f"measure/{name}_at_optimum"]
            assert found == pytest.approx(other.row[f"measure/{name}@{best:g}"], rel=1e-6), name
        assert row["measure/test_loss_increase_at_optimum"] > 0
        assert row["measure/subgaussian_constant_perturbed_at_optimum"] > 0

    def test_at_the_end_alone(self):
        for point in run().points[:-1]:
            assert not [
                name
                for name in point
                if name.startswith(("measure/flatness", "measure/smoothness", "bound/"))
            ]

    def test_the_gap_by_loops(self):
        finished = run({"model.width": 2, "measurement.flatness_draws": 4, "training.max_steps": 3})
        model, data = finished.state.model, finished.state.dataset
        d = sum(p.numel() for p in model.parameters())
        signed = 0.0
        for pair in range(2):
            generator = torch.Generator().manual_seed(derived_seed(0, "flatness", pair))
            delta = 0.01 * 3**0.5 * torch.randn(d, generator=generator, dtype=torch.float64)
            for sign, x, y in (
                (1, data.train_x, data.train_y),
                (-1, data.test_x, data.test_y),
            ):
                both = [delta, -delta]
                signed += sign * reference.gamma(model, x, y, "cross_entropy", both) / 2
        # A difference of two gammas, each known to 2e-5.
        found = finished.row["measure/flatness_gap@0.01"]
        assert found == pytest.approx(abs(signed), rel=1e-2, abs=0)

    def test_without_flatness_the_bounds_that_need_it_are_nan(self):
        row = run(SENSITIVE | {"measurement.flatness": False}).row
        for bound in ("theorem2", "lemma2_neu", "corollary1"):
            assert math.isnan(row[f"bound/{bound}@0.01"])
        assert not any(name.startswith("measure/flatness_gap") for name in row)
        assert math.isfinite(row["bound/corollary2@0.01"])
        assert math.isfinite(row["term/theorem2_trajectory@0.01"])

    def test_without_smoothness_corollary_2_is_nan(self):
        row = run({"measurement.smoothness": False}).row
        assert math.isnan(row["bound/corollary2@0.01"])
        assert math.isnan(row["term/corollary2_flatness@0.01"])
        assert row["bound/theorem2@0.01"] == run().row["bound/theorem2@0.01"]

    def test_without_dispersion_no_bound_is_known(self):
        without = {"measurement.dispersion": False}
        row = run(SENSITIVE | without).row
        for bound in ("theorem2", "lemma2_neu", "corollary1", "corollary2"):
            assert math.isnan(row[f"bound/{bound}@0.01"])
        assert row[f"{PSI}@0.01"] == run(SENSITIVE).row[f"{PSI}@0.01"]
        assert math.isnan(run(without | {"replicas": 2}).row["bound/theorem1@0.01"])


class TestInvisible:
    @pytest.mark.parametrize(
        "changes",
        [
            sensitive(1, "step"),
            sensitive(2, "log", **{"measurement.sensitivity_fraction": 0.3}),
            {"measurement.flatness": False},
            {"measurement.smoothness": False},
            {"measurement.flatness_draws": 20, "measurement.noise_stds": [0.3]},
            {"measurement.network_theorem": "off"},
        ],
    )
    @pytest.mark.parametrize("trained", [{}, {"training.momentum": 0.9}, {"replicas": 2}])
    def test_the_trajectory_is_the_same_to_the_bit(self, changes, trained):
        plain, other = run(trained), run(trained | changes)
        assert weight_bits(other.state) == weight_bits(plain.state)
        assert series_bits(other.series) == series_bits(plain.series)
        evaluated = ("train/loss", "test/loss", "test/accuracy", "measure/hessian_trace")
        assert [other.row[name] for name in evaluated] == [plain.row[name] for name in evaluated]

    def test_each_std_alone_gives_what_it_gives_among_others(self):
        several = run(SENSITIVE).row
        alone = run(SENSITIVE | {"measurement.noise_stds": [1e-6]}).row
        known = {name: value for name, value in several.items() if not name.endswith("@0.01")}
        assert untimed(alone) == untimed(known)


DIVERGING = {"training.learning_rate": 1.0, "training.divergence_loss": 22.5}
"""At step 5, one step into the second epoch."""


class TestDiverging:
    @pytest.mark.parametrize(
        "changes",
        [
            sensitive(1, "epoch", **DIVERGING),
            sensitive(1, "step", **DIVERGING),
            sensitive(1, "step", **{"training.learning_rate": 1e30}),
            sensitive(1, "epoch", **{"training.learning_rate": 1e4}),
            sensitive(3, "step", **DIVERGING, replicas=2),
        ],
    )
    def test_ends_cleanly(self, changes):
        finished = run(changes)
        row = finished.row
        assert row["status"] == "diverged"
        assert "loss" in row["stop_reason"]
        assert not has_psi(finished.points[-1])
        assert has_psi(finished.points[0])
        assert len(finished.series) == row["steps"] == finished.state.terms.steps
        assert not any(name.startswith(("bound/theorem2@", "bound/lemma2_neu")) for name in row)
        assert "diverged" in row["bound/undefined_reason"]

    def test_before_the_first_step(self):
        row = run(SENSITIVE | {"training.divergence_loss": 0.5}).row
        assert (row["status"], row["steps"]) == ("diverged", 0)
        assert not any(name.startswith(PSI) and not math.isnan(row[name]) for name in row)

    @pytest.mark.parametrize("every", [3, 5])
    def test_a_mean_over_all_steps_is_unknown_past_the_last_point(self, every):
        """Psi is known up to step 3 of 5, or not at all: neither gives a mean over 5 steps."""
        row = run(sensitive(every, "step", **DIVERGING)).row
        assert row["steps"] == 5
        assert math.isnan(row[f"{PSI}@0.01"])
        assert math.isnan(row[f"{PSI}_stderr@0.01"])

    def test_never_measured_is_not_measured_at_every_step(self):
        row = run(SENSITIVE | {"training.divergence_loss": 0.5}).row
        assert "every step" not in row["measure/sensitivity_interpolation"]


def test_another_quantity_is_one_class(monkeypatch):
    """On its own schedule, at the end, and in the row; nothing else changes."""

    class Own(Measure):
        def is_on(self, config: TrialConfig) -> bool:
            return config.seed == 5

        def schedules(self, _: TrialConfig) -> tuple[Schedule, ...]:
            return (Schedule(every=5, unit="step"),)

        def measure(self, _: training.TrainState, point: training.Point) -> training.Point:
            return {"measure/own": point["step"] + math.pi}

        def row(self, state: training.TrainState) -> training.Point:
            return {"measure/own_steps": state.step}

        def undefined_reason(self, _: training.TrainState) -> str:
            return "none of one's own"

    monkeypatch.setattr(training, "MEASURES", (*training.MEASURES, Own()))
    on, off = (finish(training.start(config({"seed": seed}))) for seed in (5, 6))
    found = {p["step"]: p["measure/own"] for p in on.points if "measure/own" in p}
    assert found == {step: step + math.pi for step in (0, 5, 10, 12)}
    assert [p["step"] for p in on.points] == [0, 4, 5, 8, 10, 12]
    assert [p["step"] for p in off.points] == [0, 4, 8, 12]
    own = {"measure/own": 12 + math.pi, "measure/own_steps": 12}
    assert own.items() <= on.row.items()
    assert set(on.row) == set(off.row) | set(own)
    assert on.row["bound/undefined_reason"] == "none of one's own"
