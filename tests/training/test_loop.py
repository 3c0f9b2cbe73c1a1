"""The training run: its steps against a loop by hand, stopping, schedules, and the final row."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from gisgd_ray.data.dataset import epoch_batches
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.training import evaluation
from gisgd_ray.training import loop as training
from tests.support import reference
from tests.support.runs import config, finish, run, series_bits, untimed, weight_bits

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


class TestAgainstTheLoopByHand:
    @pytest.mark.parametrize(
        ("changes", "rates", "by_hand"),
        [
            ({"training.max_epochs": 2}, [0.1] * 8, {}),
            ({"training.max_epochs": 1, "training.loss": "squared"}, [0.1] * 4, {}),
            (
                {"training.momentum": 0.9, "training.lr_milestones": [1, 2]},
                [0.1] * 4 + [0.01] * 4 + [0.001] * 4,
                {"momentum": 0.9},
            ),
            (
                {"training.momentum": 0.5, "training.nesterov": True, "training.max_steps": 6},
                [0.1] * 6,
                {"momentum": 0.5, "nesterov": True},
            ),
            (
                {"scheme.name": "flooding", "scheme.level": 2.1, "training.max_epochs": 2},
                [0.1] * 8,
                {"flooding_level": 2.1},
            ),
        ],
        ids=["sgd", "squared", "momentum", "nesterov", "flooding"],
    )
    def test_every_step_and_the_final_weights(self, changes, rates, by_hand):
        trial = config(changes)
        fresh = training.start(trial)
        finished = run(changes)
        data, t = fresh.dataset, trial.training
        batches: list[Tensor] = []
        for epoch in range(t.max_epochs):
            batches += epoch_batches(200, 60, seed=0, epoch=epoch, last_batch="keep")
        expected = reference.sgd(
            fresh.model,
            data.train_x,
            data.train_y,
            batches[: len(rates)],
            loss=t.loss,
            learning_rates=rates,
            **by_hand,
        )
        derived = ("per_sample_dispersion", "gradient_dispersion", "gradient_dispersion_neu")
        columns = finished.series.columns()
        columns |= {name: getattr(finished.series, name) for name in derived}
        for name, found in columns.items():
            np.testing.assert_allclose(found, expected.column(name), rtol=3e-5, err_msg=name)
        radius = finished.row["measure/subgaussian_constant"]
        assert radius == pytest.approx(reference.subgaussian_constant(expected.losses), rel=1e-5)
        weights = reference.weights(finished.state.model)
        torch.testing.assert_close(weights, expected.weights, rtol=1e-4, atol=1e-5)
        if "scheme.name" in changes:
            assert finished.series.loss.min() < 2.1 < finished.series.loss.max()

    def test_steps_handed_out_are_the_series(self):
        finished = run()
        assert series_bits(finished.steps) == series_bits(finished.series)
        assert finished.series.batch_size.tolist() == [60, 60, 60, 20] * 3

    def test_evaluation(self, monkeypatch):
        """Loss and accuracy of both splits by a loop over samples; chunks of any size."""
        monkeypatch.setattr(evaluation, "EVALUATION_CHUNK", 73)
        state = training.start(config())
        point, steps = training.advance(state)
        assert (point["step"], point["epoch"], len(steps)) == (0, 0.0, 0)
        data = state.dataset
        expected = {}
        for split, x, y in (
            ("train", data.train_x, data.train_y),
            ("test", data.test_x, data.test_y),
        ):
            loss, accuracy = reference.mean_loss_and_accuracy(state.model, x, y, "cross_entropy")
            expected |= {f"{split}/loss": loss, f"{split}/accuracy": accuracy}
        expected["gap/loss"] = expected["test/loss"] - expected["train/loss"]
        expected["gap/accuracy"] = expected["train/accuracy"] - expected["test/accuracy"]
        assert expected["gap/loss"] != 0
        assert {name: point[name] for name in expected} == pytest.approx(expected, rel=1e-5)


class TestReproducible:
    def test_the_same_config_twice_is_bit_identical(self):
        first, again = run(), finish(training.start(config()))
        assert weight_bits(first.state) == weight_bits(again.state)
        assert series_bits(first.series) == series_bits(again.series)
        assert untimed(first.row) == untimed(again.row)
        assert [untimed(p) for p in first.points] == [untimed(p) for p in again.points]

    def test_whatever_the_global_generator_does(self):
        state = training.start(config())
        while state.stopped is None:
            torch.manual_seed(state.step)
            training.advance(state)
        assert weight_bits(state) == weight_bits(run().state)

    def test_another_seed_is_another_run(self):
        one, other = run(), run({"seed": 1})
        assert weight_bits(one.state) != weight_bits(other.state)
        assert one.points[0]["train/loss"] != other.points[0]["train/loss"]

    def test_initial_weights_depend_on_model_and_seed_alone(self):
        first = weight_bits(training.start(config()))
        for changes in (
            {"training.batch_size": 20},
            {"training.learning_rate": 1.0, "training.momentum": 0.9},
            {"training.loss": "squared", "scheme.name": "flooding"},
            {"data.label_noise": 0.5, "data.train_fraction": 0.1},
            {"measurement.dispersion": False, "training.last_batch": "drop"},
        ):
            assert weight_bits(training.start(config(changes))) == first
        assert weight_bits(training.start(config({"seed": 1}))) != first


class TestMeasuringIsInvisible:
    @pytest.mark.parametrize(
        "changes",
        [
            {"measurement.dispersion": False},
            {"measurement.hessian_trace": "off"},
            {"measurement.dispersion": False, "measurement.hessian_trace": "off"},
            {"measurement.hessian_schedule": {"every": 3, "unit": "step"}},
            {
                "measurement.hessian_schedule": {"every": 1, "unit": "step"},
                "measurement.hessian_trace": "pyhessian",
                "measurement.hessian_probes": 2,
            },
            {"training.evaluation": {"every": 5, "unit": "step"}},
        ],
    )
    @pytest.mark.parametrize("training_changes", [{}, {"training.momentum": 0.9}])
    def test_the_trajectory_is_the_same_to_the_bit(self, changes, training_changes):
        plain, other = run(training_changes), run(training_changes | changes)
        assert weight_bits(other.state) == weight_bits(plain.state)
        assert other.series.loss.tobytes() == plain.series.loss.tobytes()
        if changes.get("measurement.dispersion", True):
            assert series_bits(other.series) == series_bits(plain.series)

    def test_the_network_stays_in_training_mode(self):
        assert all(module.training for module in run().state.model.modules())


def steps_of(points: list[training.Point]) -> list[int]:
    return [point["step"] for point in points]


class TestSchedules:
    def test_evaluation_every_epoch(self):
        assert steps_of(run().points) == [0, 4, 8, 12]
        assert [point["epoch"] for point in run().points] == [0, 1, 2, 3]

    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ({"every": 5, "unit": "step"}, [0, 5, 10, 12]),
            ({"every": 2, "unit": "epoch"}, [0, 8, 12]),
            ({"every": 100, "unit": "step"}, [0, 12]),
        ],
    )
    def test_evaluation_otherwise_the_end_included(self, schedule, expected):
        finished = run({"training.evaluation": schedule})
        assert steps_of(finished.points) == expected
        assert weight_bits(finished.state) == weight_bits(run().state)
        for point, (start, stop) in zip(finished.points[1:], pairwise(expected), strict=True):
            steps = finished.series.gradient_dispersion[start:stop]
            assert point["measure/gradient_dispersion"] == pytest.approx(steps.mean(), rel=1e-12)

    def test_trace_on_a_schedule_of_its_own(self):
        """Points of the trace lie between those of evaluation, and do not end the run."""
        finished = run(
            {
                "measurement.hessian_schedule": {"every": 3, "unit": "step"},
                "training.max_steps": 11,
                "training.stop_loss": 2.1,
                "training.evaluation": {"every": 10, "unit": "step"},
            }
        )
        traced = [p["step"] for p in finished.points if "measure/hessian_trace" in p]
        assert steps_of(finished.points) == [0, 3, 6, 9, 10]
        assert traced == [0, 3, 6, 9, 10]
        assert finished.points[3]["train/loss"] < 2.1
        assert finished.state.stopped == "stop_loss"
        bounds = [p["bound/theorem2_closed_form"] for p in finished.points]
        assert math.isnan(bounds[0])
        assert all(math.isfinite(bound) for bound in bounds[1:])

    def test_trace_only_at_the_end_by_default(self):
        assert ["measure/hessian_trace" in p for p in run().points] == [False, False, False, True]

    def test_trace_of_the_first_training_samples(self):
        finished = run({"measurement.hessian_samples": 30})
        data = finished.state.dataset
        expected = HessianOperator(
            finished.state.model, data.train_x[:30], data.train_y[:30], "cross_entropy"
        ).trace()
        assert finished.row["measure/hessian_trace"] == expected.value
        assert finished.row["measure/hessian_trace"] != run().row["measure/hessian_trace"]

    def test_milestones(self):
        finished = run({"training.lr_milestones": [1, 2], "training.lr_factor": 0.5})
        rates = finished.series.learning_rate
        assert rates.tolist() == [0.1] * 4 + [0.05] * 4 + [0.025] * 4

    def test_dropping_the_last_batch(self):
        finished = run({"training.last_batch": "drop"})
        assert finished.series.batch_size.tolist() == [60] * 9
        assert finished.row["epochs"] == 3.0


MEMORISED = {
    "data.train_fraction": 0.01,
    "training.batch_size": 20,
    "training.learning_rate": 0.2,
    "training.max_epochs": 60,
    "training.stop_loss": None,
}


class TestStopping:
    def test_loss(self):
        finished = run({"training.stop_loss": 1.3, "training.max_epochs": 50})
        assert finished.state.stopped == "stop_loss"
        losses = [point["train/loss"] for point in finished.points]
        assert losses[-1] < 1.3 <= min(losses[:-1])
        assert finished.row["status"] == "finished"

    def test_full_accuracy_with_label_noise(self):
        finished = run(MEMORISED | {"data.label_noise": 0.2})
        assert finished.state.stopped == "full_accuracy"
        accuracies = [point["train/accuracy"] for point in finished.points]
        assert accuracies[-1] == 1
        assert max(accuracies[:-1]) < 1

    def test_full_accuracy_is_no_reason_without_label_noise_unless_asked(self):
        assert run(MEMORISED).state.stopped == "max_epochs"
        assert max(point["train/accuracy"] for point in run(MEMORISED).points[:-1]) == 1
        asked = run(MEMORISED | {"training.stop_at_full_accuracy": True})
        assert asked.state.stopped == "full_accuracy"
        declined = MEMORISED | {"data.label_noise": 0.2, "training.stop_at_full_accuracy": False}
        assert run(declined).state.stopped == "max_epochs"

    @pytest.mark.parametrize(
        ("loss", "accuracy", "expected"),
        [
            (0.0999, 0.9, "stop_loss"),
            (0.1, 0.9, None),
            (0.1001, 0.9, None),
            (0.5, 1.0, "full_accuracy"),
            (0.5, 0.9999, None),
        ],
    )
    def test_the_thresholds_themselves(self, loss, accuracy, expected):
        state = training.start(
            config({"training.stop_loss": 0.1, "training.stop_at_full_accuracy": True})
        )
        state.step = 1
        point = {"train/loss": loss, "train/accuracy": accuracy}
        assert training.stop_reason(state, point) == (expected, False)

    @pytest.mark.parametrize("steps", [1, 6, 8])
    def test_max_steps_in_mid_epoch_too(self, steps):
        finished = run({"training.max_steps": steps})
        assert finished.state.stopped == "max_steps"
        assert len(finished.series) == finished.row["steps"] == steps
        assert finished.row["epochs"] == steps / 4
        assert steps_of(finished.points) == sorted({0, *range(4, steps, 4), steps})
        assert finished.series.loss.tobytes() == run().series.loss[:steps].tobytes()

    def test_max_epochs(self):
        assert run().state.stopped == "max_epochs"
        assert run({"training.max_steps": 100}).state.stopped == "max_epochs"


class TestDivergence:
    @pytest.mark.parametrize(
        "changes",
        [
            {"training.learning_rate": 1e4},
            {"training.learning_rate": 1e30},
            {"training.learning_rate": 1e4, "training.evaluation": {"every": 1, "unit": "step"}},
            {"training.learning_rate": 1e4, "training.loss": "squared"},
            {
                "training.learning_rate": 1e4,
                "measurement.hessian_schedule": {"every": 1, "unit": "step"},
            },
        ],
    )
    def test_is_a_result_with_its_history(self, changes):
        finished = run(changes | {"training.max_epochs": 30})
        row, series = finished.row, finished.series
        assert row["status"] == "diverged"
        assert finished.state.diverged
        assert "loss" in row["stop_reason"]
        assert f"at step {row['steps']}" in row["stop_reason"]
        assert len(series) == row["steps"] == finished.points[-1]["step"] < 10
        assert (series.loss[:-1] <= 1e3).all()
        assert math.isfinite(finished.points[0]["train/loss"])
        for name in ("bound/theorem2_closed_form", "bound/lemma7", "term/flatness_at_optimum"):
            assert math.isnan(row[name])
        assert "diverged" in row["bound/undefined_reason"]

    def test_at_the_first_batch_loss_over_the_limit(self):
        """The steps after it, taken before anyone looked, are dropped."""
        rows = run({"training.learning_rate": 3.0}).series
        limit = float(rows.loss[:5].max()) - 1e-6
        first = int((rows.loss > limit).argmax()) + 1
        finished = run({"training.learning_rate": 3.0, "training.divergence_loss": limit})
        assert finished.state.diverged
        assert finished.row["steps"] == len(finished.series) == first
        kept = series_bits(rows.head(first))
        assert series_bits(finished.series) == kept
        assert math.isnan(finished.row["train/loss"])

    def test_before_the_first_step(self):
        finished = run({"training.divergence_loss": 0.5})
        assert finished.row["status"] == "diverged"
        assert len(finished.points) == 1
        assert finished.row["steps"] == 0
        assert finished.row["stop_reason"].startswith("training loss 2.3")
