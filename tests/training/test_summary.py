"""The final row: every column there, and every number again by hand from the series."""

import math
from typing import Any

import numpy as np
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.hessian import HessianOperator, HessianTrace
from gisgd_ray.networks.models import num_parameters
from gisgd_ray.training import loop as training
from gisgd_ray.training.terms import ADDITIVE, CLOSED, LINEAR, THEOREM1, TRAJECTORIES
from tests.support import reference
from tests.support.runs import Finished, config, run

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

STEP_MEANS = [
    *("measure/gradient_dispersion", "measure/gradient_dispersion_neu"),
    *("measure/per_sample_dispersion", "measure/gradient_norm"),
]
"""Over the steps since the point before in the history, over all steps in the row."""

AT_OPTIMUM = [
    *("measure/subgaussian_constant_perturbed_at_optimum", "measure/flatness_draws_at_optimum"),
    *("measure/test_loss_increase_at_optimum", "measure/test_loss_increase_stderr_at_optimum"),
]
"""Where Eq. 3's sigma* is defined."""
NAMES_OF_FLATNESS = [
    *("measure/flatness_gap", "measure/flatness_gap_signed", "measure/flatness_gap_stderr"),
    *("measure/flatness_gap_sampling_stderr", "measure/flatness_draws"),
    "measure/subgaussian_constant_perturbed",
    *("measure/test_loss_increase", "measure/test_loss_increase_stderr"),
]
NAMES = [
    *("status", "stop_reason", "outside_theorem", "steps", "epochs", "learning_rate"),
    *("num_samples", "num_test_samples", "num_classes", "num_parameters"),
    *("data/normalization_mean", "data/normalization_std"),
    *("train/loss", "train/accuracy", "test/loss", "test/accuracy", "gap/loss", "gap/accuracy"),
    *STEP_MEANS,
    *("measure/gradient_dispersion_estimator", "measure/gradient_dispersion_of"),
    *("measure/hessian_trace", "measure/hessian_trace_stderr", "measure/hessian_trace_estimator"),
    *("measure/subgaussian_constant", "measure/ill_conditioned_steps"),
    *AT_OPTIMUM,
    *("measure/smoothness", "measure/smoothness_residual"),
    *("measure/mean_gradient_gap", "measure/mean_gradient_gap_stderr"),
    *("sum/dispersion", "sum/dispersion_neu", "sum/lr2_dispersion", "sum/lr2_dispersion_neu"),
    "sum/lr2_gradient_norm2",
    *("term/trajectory_factor", "term/flatness_factor"),
    *("term/trajectory_at_optimum", "term/flatness_at_optimum", "term/optimal_noise_std"),
    "term/theorem2_trajectory_at_optimum",
    *(*CLOSED, "bound/undefined_reason", "bound/remark"),
    *("time/training_s", "time/training_cpu_s", "time/measuring_s"),
]
EMPTY = ("outside_theorem", "bound/undefined_reason", "bound/remark")
"""Said in words, or not at all."""
OF_ONE_RUN = [name for name in ADDITIVE if name != THEOREM1]
NAMES_AT_STD = [
    *NAMES_OF_FLATNESS,
    *(*OF_ONE_RUN, "term/lemma2_without_sensitivity", "term/corollary2_flatness"),
    *(bound for bound, term in TRAJECTORIES.items() if term in OF_ONE_RUN),
    *("bound/theorem2_perturbed_r", "bound/corollary2"),
]
NAMES_OF_SENSITIVITY = [
    "measure/local_gradient_sensitivity",
    "measure/local_gradient_sensitivity_stderr",
    *("sum/sensitivity", "sum/lr2_sensitivity"),
    *LINEAR,
    *(bound for bound, term in TRAJECTORIES.items() if term in LINEAR),
    "bound/lemma2_neu_perturbed_r",
    *("term/lemma2_population_trajectory", "bound/lemma2_neu_population"),
]
NAMES_OF_REPLICAS = ["term/theorem1_trajectory", "bound/theorem1"]
STDS = ("0.01", "0.0001", "1e-06")
SENSITIVE = {"measurement.sensitivity": True, "measurement.sensitivity_draws": 2}


def at_stds(names: list[str]) -> list[str]:
    return [f"{name}@{noise_std}" for name in names for noise_std in STDS]


GROUPS = {"measurement.dispersion_estimator": "groups", "measurement.dispersion_groups": 3}
RAGGED = {"training.lr_milestones": [2], "training.lr_factor": 0.5}


def by_hand(finished: Finished) -> dict[str, Any]:
    """R, n, d, T and the per-step columns, from the raw series."""
    series = finished.series
    b = series.batch_size
    s2 = b / (b - 1) * (series.mean_squared_norm - series.squared_gradient_norm)
    return {
        "radius": (max(series.loss_max) - min(series.loss_min)) / 2,
        "n": 200,
        "d": 784 * 16 + 16 + 16 * 10 + 10,
        "rates": series.learning_rate.tolist(),
        "v": (s2 / b).tolist(),
        "s2": s2.tolist(),
        "g2": series.squared_gradient_norm.tolist(),
    }


class TestNumbers:
    def test_every_name_is_there(self):
        row = run(RAGGED).row
        assert set(row) == {*NAMES, *at_stds(NAMES_AT_STD)}
        for name, value in row.items():
            assert value is not None or name in EMPTY, name
            assert not isinstance(value, float) or math.isfinite(value), name

    def test_names_of_what_is_off_by_default(self):
        plain, row = run(RAGGED).row, run(RAGGED | SENSITIVE).row
        added = {*at_stds(NAMES_OF_SENSITIVITY), "measure/sensitivity_interpolation"}
        added |= {"measure/sensitivity_samples", "measure/sensitivity_estimator"}
        added.add("sum/lr2_mean_gradient_gap")
        assert set(row) == set(plain) | added
        assert all(math.isfinite(row[name]) for name in at_stds(NAMES_OF_SENSITIVITY))
        # Nothing else changes by measuring more.
        assert {n: v for n, v in row.items() if n in plain and not n.startswith("time/")} == {
            n: v for n, v in plain.items() if not n.startswith("time/")
        }
        replicated = run({"replicas": 2}).row
        assert set(replicated) == set(plain) | {"gap/loss_stderr", *at_stds(NAMES_OF_REPLICAS)}

    @pytest.mark.parametrize(
        ("changes", "gone"),
        [
            (
                {"measurement.dispersion": False},
                [
                    *("measure/gradient_dispersion_estimator", "measure/gradient_dispersion_of"),
                    *AT_OPTIMUM,
                ],
            ),
            (
                {"measurement.flatness": False},
                [*at_stds(NAMES_OF_FLATNESS), *AT_OPTIMUM],
            ),
            (
                {"measurement.smoothness": False},
                ["measure/smoothness", "measure/smoothness_residual"],
            ),
            (
                {"measurement.mean_gradient_gap": False},
                ["measure/mean_gradient_gap", "measure/mean_gradient_gap_stderr"],
            ),
            (
                {"measurement.hessian_trace": "off"},
                [n for n in NAMES if n.startswith("measure/hessian_trace")] + AT_OPTIMUM,
            ),
        ],
    )
    def test_names_of_what_is_turned_off(self, changes, gone):
        """Nothing that was not measured has a column; the bounds that need it keep theirs."""
        assert set(run(changes).row) == set(run().row) - set(gone)

    @pytest.mark.parametrize(
        ("changes", "estimator", "of"),
        [
            ({}, "per-sample norms", "plain gradient"),
            ({"replicas": 2}, "per-sample norms", "plain gradient"),
            ({"measurement.dispersion_of": "applied"}, "per-sample norms", "applied gradient"),
            (GROUPS, "between 3 groups", "plain gradient"),
            (
                {"scheme.name": "sam", "measurement.dispersion_of": "applied"},
                "between 2 groups",
                "applied gradient",
            ),
        ],
    )
    def test_the_row_says_which_dispersion_it_holds(self, changes, estimator, of):
        """What comes from groups of the batch does not bear the name of what comes from samples."""
        finished = run(changes | {"training.max_steps": 5})
        row, point = finished.row, finished.points[-1]
        assert row["measure/gradient_dispersion_estimator"] == estimator
        assert row["measure/gradient_dispersion_of"] == of
        names = ["measure/per_sample_dispersion", "measure/between_group_dispersion"]
        here, elsewhere = names[:: -1 if "groups" in estimator else 1]
        assert row[here] == pytest.approx(finished.series.per_sample_dispersion.mean(), rel=1e-12)
        assert elsewhere not in row
        assert here in point
        assert elsewhere not in point
        assert "measure/gradient_factor" not in row

    def test_the_factor_of_a_scheme_that_scales_is_in_the_row(self):
        """Clipped from the second epoch on: the first point after an epoch has no factor yet."""
        clipping = {"scheme.name": "clipping", "scheme.start_epoch": 1, "scheme.factor": 0.5}
        finished = run(RAGGED | clipping | {"scheme.initial_threshold": 1e-3})
        factor = finished.series.gradient_factor
        assert factor[:4].tolist() == [1.0] * 4
        assert (factor[4:] < 1).all()
        assert finished.row["measure/gradient_factor"] == pytest.approx(factor.mean(), rel=1e-12)
        told = [point.get("measure/gradient_factor") for point in finished.points]
        assert told == [None, None, *(pytest.approx(factor[i : i + 4].mean()) for i in (4, 8))]
        assert set(finished.row) == set(run(RAGGED).row) | {"measure/gradient_factor"}

    def test_closed_form_bounds(self):
        finished = run(RAGGED)
        row, hand = finished.row, by_hand(finished)
        shared = {
            "radius": hand["radius"],
            "num_samples": hand["n"],
            "learning_rates": hand["rates"],
            "trace": row["measure/hessian_trace"],
        }
        ours = reference.eq3(**shared, energies=hand["v"])
        assert row["bound/theorem2_closed_form"] == pytest.approx(ours, rel=1e-9)
        lemma7 = reference.eq3(**shared, energies=hand["g2"])
        assert row["bound/lemma7"] == pytest.approx(lemma7, rel=1e-9)
        # The same again from the row alone, as a reader of the table would.
        product = row["sum/lr2_dispersion"] * row["measure/hessian_trace"]
        constants = row["measure/subgaussian_constant"] ** 2 * row["steps"] / row["num_samples"]
        assert 1.5 * (constants * product) ** (1 / 3) == pytest.approx(ours, rel=1e-9)
        factors = row["term/trajectory_factor"] * row["term/flatness_factor"]
        assert 1.5 * factors ** (1 / 3) == pytest.approx(ours, rel=1e-9)

    def test_sums_and_means(self):
        finished = run(RAGGED)
        row, hand = finished.row, by_hand(finished)
        assert row["measure/subgaussian_constant"] == pytest.approx(hand["radius"], rel=1e-12)
        for name in ("sum/dispersion", "sum/dispersion_neu"):
            assert row[name] == pytest.approx(math.fsum(hand["v"]), rel=1e-12)
        for name, energies in (
            ("sum/lr2_dispersion", hand["v"]),
            ("sum/lr2_dispersion_neu", hand["v"]),
            ("sum/lr2_gradient_norm2", hand["g2"]),
        ):
            total = math.fsum(r * r * e for r, e in zip(hand["rates"], energies, strict=True))
            assert row[name] == pytest.approx(total, rel=1e-12)
        means = {
            "measure/gradient_dispersion": np.mean(hand["v"]),
            "measure/gradient_dispersion_neu": np.mean(hand["v"]),
            "measure/per_sample_dispersion": np.mean(hand["s2"]),
            "measure/gradient_norm": np.mean(np.sqrt(hand["g2"])),
        }
        assert {name: row[name] for name in means} == pytest.approx(means, rel=1e-12)
        assert row["measure/ill_conditioned_steps"] == 0

    def test_terms_of_eq_2_at_every_noise_std_and_at_the_optimum(self):
        finished = run(RAGGED | {"measurement.noise_stds": [0.05, 1e-5]})
        row, hand = finished.row, by_hand(finished)

        def eq2(noise_std: float) -> float:
            logs = [
                math.log1p(r * r * v / (hand["d"] * noise_std**2))
                for r, v in zip(hand["rates"], hand["v"], strict=True)
            ]
            return math.sqrt(hand["radius"] ** 2 * hand["d"] / hand["n"] * math.fsum(logs))

        assert row["num_parameters"] == num_parameters(finished.state.model) == hand["d"]
        assert row["term/theorem2_trajectory@0.05"] == pytest.approx(eq2(0.05), rel=1e-9)
        assert row["term/theorem2_trajectory@1e-05"] == pytest.approx(eq2(1e-5), rel=1e-9)
        # sigma* minimises A/sigma + B sigma^2; the two terms there add up to Eq. 3.
        total = math.fsum(r * r * v for r, v in zip(hand["rates"], hand["v"], strict=True))
        a = math.sqrt(hand["radius"] ** 2 / hand["n"] * total)
        b = len(hand["v"]) / 2 * row["measure/hessian_trace"]
        best = row["term/optimal_noise_std"]
        assert best == pytest.approx((a / (2 * b)) ** (1 / 3), rel=1e-9)
        assert row["term/trajectory_at_optimum"] == pytest.approx(a / best, rel=1e-9)
        assert row["term/flatness_at_optimum"] == pytest.approx(b * best**2, rel=1e-9)
        assert row["term/theorem2_trajectory_at_optimum"] == pytest.approx(eq2(best), rel=1e-9)

    def test_run_facts(self):
        row = run(RAGGED).row
        assert row["status"] == "finished"
        assert (row["steps"], row["epochs"], row["num_samples"]) == (12, 3.0, 200)
        assert (row["num_test_samples"], row["num_classes"]) == (1000, 10)
        assert len(row["data/normalization_mean"]) == len(row["data/normalization_std"]) == 1
        assert row["bound/undefined_reason"] is None
        assert row["outside_theorem"] is None
        assert row["measure/hessian_trace_estimator"] == "exact"
        assert row["measure/hessian_trace_stderr"] == 0
        assert row["time/training_s"] > 0

    def test_the_last_point_agrees_with_the_row(self):
        finished = run(RAGGED)
        last = finished.points[-1]
        for name in set(last) - {*STEP_MEANS, "step", "epoch"}:
            assert last[name] == finished.row[name], name
        since = {name: getattr(finished.series, name[8:]) for name in STEP_MEANS[:3]}
        since["measure/gradient_norm"] = finished.series.squared_gradient_norm**0.5
        for name, values in since.items():
            assert last[name] == pytest.approx(values[8:].mean(), rel=1e-12), name
            assert finished.row[name] == pytest.approx(values.mean(), rel=1e-12), name
            assert last[name] != finished.row[name], name

    def test_probed_trace_carries_its_error(self):
        row = run({"measurement.hessian_trace": "pyhessian", "measurement.hessian_probes": 30}).row
        assert row["measure/hessian_trace_estimator"] == "pyhessian"
        assert row["measure/hessian_trace_stderr"] > 0
        difference = row["measure/hessian_trace"] - run().row["measure/hessian_trace"]
        assert abs(difference) < 3 * row["measure/hessian_trace_stderr"]


class TestOutsideTheTheorem:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"training.momentum": 0.9}, "momentum 0.9"),
            ({"training.weight_decay": 1e-4}, "weight decay 0.0001"),
            (
                {"training.momentum": 0.5, "training.weight_decay": 0.1},
                "momentum 0.5, weight decay 0.1",
            ),
        ],
    )
    def test_is_said_in_the_row(self, changes, said):
        assert run(changes | {"training.max_steps": 2}).row["outside_theorem"] == said


class TestUndefined:
    NEED_TRACE = (*CLOSED, "term/optimal_noise_std")

    def test_without_dispersion(self):
        row = run({"measurement.dispersion": False}).row
        assert all(math.isnan(row[name]) for name in self.NEED_TRACE)
        assert math.isnan(row["measure/gradient_dispersion"])
        assert math.isnan(row["sum/lr2_dispersion"])
        assert "dispersion was not measured" in row["bound/undefined_reason"]
        # R and the curvature need no gradients of single samples.
        assert row["measure/subgaussian_constant"] == run().row["measure/subgaussian_constant"]
        assert row["measure/hessian_trace"] == run().row["measure/hessian_trace"]

    def test_without_a_trace(self):
        row = run({"measurement.hessian_trace": "off"}).row
        assert all(math.isnan(row[name]) for name in self.NEED_TRACE)
        assert "hessian_trace is off" in row["bound/undefined_reason"]
        assert row["term/trajectory_factor"] == run().row["term/trajectory_factor"]

    @pytest.mark.parametrize("trace", [-2.5, 0.0, math.nan, math.inf])
    def test_with_a_trace_that_is_not_positive(self, trace, monkeypatch):
        """Reported as it came, and the bound is NaN with the reason: never a clamped number."""
        found = HessianTrace(trace, 1.0, "pyhessian")
        monkeypatch.setattr(HessianOperator, "trace", lambda *_, **__: found)
        state = training.start(config({"training.max_steps": 1}))
        while state.stopped is None:
            training.advance(state)
        row = training.summary(state)
        assert row["measure/hessian_trace"] == pytest.approx(trace, nan_ok=True)
        assert all(math.isnan(row[name]) for name in self.NEED_TRACE)
        assert f"{trace:.4g}" in row["bound/undefined_reason"]

    def test_before_the_first_step(self):
        row = run({"training.stop_loss": 10.0}).row
        assert (row["status"], row["stop_reason"], row["steps"]) == ("finished", "stop_loss", 0)
        assert all(math.isnan(row[name]) for name in self.NEED_TRACE)
        assert all(
            math.isnan(row[name]) for name in at_stds(["bound/theorem2", "bound/corollary2"])
        )
        assert "measure/flatness_gap@0.01" not in row
        assert row["bound/undefined_reason"] == "no training step was taken"
        assert row["measure/hessian_trace"] > 0


@pytest.mark.parametrize("changes", [{}, SENSITIVE, {"replicas": 2}])
def test_row_has_no_column_of_the_configuration(changes):
    """Rows are merged with the flattened config: a shared name would hide one of the two."""
    assert not set(run(changes).row) & set(TrialConfig().flat())
