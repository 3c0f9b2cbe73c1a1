"""A trial in the stochastic setting: replicas in lockstep, and single runs of the same seeds."""

import copy
import math
from functools import lru_cache
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import epoch_batches, load_dataset
from gisgd_ray.errors import UserError
from gisgd_ray.measures.displaced import Samples, WeightNoise
from gisgd_ray.measures.flatness import FlatnessRun, combined, flatness_gaps
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.measures.sensitivity import local_gradient_sensitivity
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from tests.support import reference, reference_lockstep
from tests.support.runs import Finished, config, finish, run, series_bits, untimed, weight_bits

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

REPLICAS: dict[str, Any] = {"replicas": 3, "seed": 1, "training.lr_milestones": [2]}
SEEDS = [3, 4, 5]
MEASURED: dict[str, Any] = REPLICAS | {
    "data.label_noise": 0.4,
    "training.evaluation": {"every": 1, "unit": "step"},
    "measurement.sensitivity": True,
    "measurement.sensitivity_draws": 2,
    "measurement.sensitivity_schedule": {"every": 5, "unit": "step"},
    "measurement.flatness_draws": 6,
    "measurement.noise_stds": [0.01, 1e-6],
}


def single(trial: TrialConfig, seed: int) -> Finished:
    """The run of one replica on its own."""
    changed = trial.changed({"replicas": None, "seed": seed})
    assert list(changed.replica_seeds) == [seed]
    return finish(training.start(changed))


@lru_cache
def measured() -> tuple[Finished, list[list[nn.Module]]]:
    """A run of three replicas, and copies of their models at W_0 .. W_12."""
    state, points, models = training.start(config(MEASURED)), [], []
    while state.stopped is None:
        points.append(training.advance(state)[0])
        models.append([copy.deepcopy(replica.model) for replica in state.replicas])
    assert len(models) == 13
    return Finished(state, points, state.series), models


def mean_of(finished: list[Finished], name: str) -> float:
    return fmean(each.row[name] for each in finished)


def error_of(finished: list[Finished], name: str) -> float:
    return stdev(each.row[name] for each in finished) / math.sqrt(len(finished))


class TestAgainstSingleRuns:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"training.loss": "squared", "data.label_noise": 0.4},
            {"training.last_batch": "drop", "measurement.dispersion": False},
        ],
    )
    def test_weights_losses_and_measures(self, changes):
        trial = config(REPLICAS | changes)
        assert list(trial.replica_seeds) == SEEDS
        together = run(REPLICAS | changes)
        alone = [single(trial, seed) for seed in SEEDS]
        for replica, other in zip(together.state.replicas, alone, strict=True):
            torch.testing.assert_close(
                reference.weights(replica.model),
                reference.weights(other.state.model),
                rtol=1e-4,
                atol=1e-6,
            )
        for name in (
            *("train/loss", "train/accuracy", "test/loss", "test/accuracy"),
            *("gap/loss", "gap/accuracy", "measure/hessian_trace", "measure/smoothness"),
        ):
            mean = mean_of(alone, name)
            assert together.row[name] == pytest.approx(mean, rel=2e-4), name
        for name, error in (
            ("gap/loss", "gap/loss_stderr"),
            ("measure/hessian_trace", "measure/hessian_trace_stderr"),
        ):
            assert together.row[error] == pytest.approx(error_of(alone, name), rel=1e-3), error

    def test_at_every_point(self):
        trial = config(REPLICAS)
        together, alone = run(REPLICAS), [single(trial, seed) for seed in SEEDS]
        assert [p["step"] for p in together.points] == [0, 4, 8, 12]
        for i, point in enumerate(together.points):
            others = [each.points[i] for each in alone]
            for name in ("train/loss", "test/loss", "gap/loss"):
                mean = fmean(other[name] for other in others)
                assert point[name] == pytest.approx(mean, rel=1e-5), name
            gaps = [other["gap/loss"] for other in others]
            error = stdev(gaps) / math.sqrt(3)
            assert point["gap/loss_stderr"] == pytest.approx(error, rel=1e-4)

    def test_columns_of_the_series(self):
        trial = config(REPLICAS)
        together, alone = run(REPLICAS), [single(trial, seed) for seed in SEEDS]
        assert together.series.learning_rate.tolist() == [0.1] * 8 + [0.1 * 0.1] * 4
        for name, over in (
            *((name, np.mean) for name in ("loss", "squared_gradient_norm", "mean_squared_norm")),
            *(("loss_min", np.min), ("loss_max", np.max)),
            *((name, np.mean) for name in ("batch_size", "gradient_dispersion_neu")),
        ):
            expected = over([getattr(each.series, name) for each in alone], axis=0)
            found = getattr(together.series, name)
            np.testing.assert_allclose(found, expected, rtol=2e-4, err_msg=name)
        radius = (
            max(max(each.series.loss_max) for each in alone)
            - min(min(each.series.loss_min) for each in alone)
        ) / 2
        assert together.row["measure/subgaussian_constant"] == pytest.approx(radius, rel=1e-5)


def batches(step: int) -> tuple[Tensor, Tensor]:
    """Inputs (3, b, ...) and labels (3, b) of update ``step`` + 1, each seed's own."""
    epoch, position = divmod(step, 4)
    chosen = []
    for seed in SEEDS:
        data = load_dataset(config(MEASURED).data, seed=seed)
        indices = epoch_batches(200, 60, seed=seed, epoch=epoch, last_batch="keep")[position]
        chosen.append((data.train_x[indices], data.train_y[indices]))
    inputs, labels = zip(*chosen, strict=True)
    return torch.stack(inputs), torch.stack(labels)


class TestDispersions:
    @pytest.mark.parametrize("step", [0, 3, 10])
    def test_both_by_loops_on_the_weights_of_the_step(self, step):
        """V_t is across replicas, V~_t within them; the batch of step 3 is the ragged one."""
        finished, models = measured()
        inputs, labels = batches(step)
        truth = reference_lockstep.replica_moments(
            models[step], inputs, labels, "cross_entropy", num_samples=200
        )
        series = finished.series
        assert series.batch_size[step] == inputs.shape[1] == (20 if step == 3 else 60)
        for name in (
            *("loss", "loss_min", "loss_max", "squared_gradient_norm", "mean_squared_norm"),
            *("gradient_dispersion", "gradient_dispersion_neu"),
        ):
            found = getattr(series, name)[step]
            assert found == pytest.approx(getattr(truth, name), rel=3e-5), name
        point = finished.points[step + 1]
        for name in ("gradient_dispersion", "gradient_dispersion_neu"):
            # Evaluated at every step: the mean over the steps since the point before is that step.
            assert point[f"measure/{name}"] == getattr(series, name)[step]
        # The two are different numbers, or the comparison would not tell which is which.
        assert abs(truth.gradient_dispersion / truth.gradient_dispersion_neu - 1) > 0.1

    def test_the_updates_by_hand(self):
        """From the captured weights of one step to those of the next, in float64."""
        _, models = measured()
        for step, rate in ((0, 0.1), (3, 0.1), (9, 0.01)):
            truth = reference_lockstep.replica_moments(
                models[step], *batches(step), "cross_entropy"
            )
            for before, after, gradient in zip(
                models[step], models[step + 1], truth.mean_gradients, strict=True
            ):
                expected = reference.weights(before) - rate * gradient
                torch.testing.assert_close(reference.weights(after), expected, rtol=1e-5, atol=1e-7)

    def test_each_takes_its_own_in_the_terms(self):
        row, series = measured()[0].row, measured()[0].series
        lr2 = series.learning_rate**2
        own, neu = (
            math.fsum(lr2 * getattr(series, name))
            for name in ("gradient_dispersion", "gradient_dispersion_neu")
        )
        assert row["sum/lr2_dispersion"] == pytest.approx(own, rel=1e-12)
        assert row["sum/lr2_dispersion_neu"] == pytest.approx(neu, rel=1e-12)
        radius = row["measure/subgaussian_constant"]
        closed = 1.5 * (radius**2 * 12 / 200 * own * row["measure/hessian_trace"]) ** (1 / 3)
        assert row["bound/theorem2_closed_form"] == pytest.approx(closed, rel=1e-9)
        floor = 2 * math.sqrt(2 * radius**2 / 200 * neu) / 1e-6
        assert row["term/lemma2_without_sensitivity@1e-06"] == pytest.approx(floor, rel=1e-9)


class TestMeans:
    def test_psi(self):
        finished, models = measured()
        datasets = [replica.dataset for replica in finished.state.replicas]
        for step in (5, 12):
            found = [
                local_gradient_sensitivity(
                    model,
                    Samples(data.train_x, data.train_y, "cross_entropy"),
                    WeightNoise([0.01 * step**0.5], seed),
                    draws=2,
                    step=step,
                )[0]
                for seed, model, data in zip(SEEDS, models[step], datasets, strict=True)
            ]
            point = finished.points[step]
            values = [each.value for each in found]
            assert len(set(values)) == 3
            for name, expected in (
                ("local_gradient_sensitivity", fmean(values)),
                ("local_gradient_sensitivity_stderr", stdev(values) / math.sqrt(3)),
            ):
                assert point[f"measure/{name}@0.01"] == pytest.approx(expected, rel=1e-6), name

    def test_flatness_and_smoothness(self):
        finished, models = measured()
        row, gaps, betas = finished.row, [], []
        for replica, model in zip(finished.state.replicas, models[12], strict=True):
            noise = WeightNoise([0.01 * 12**0.5], replica.seed)
            one = FlatnessRun(model, *replica.samples("cross_entropy"), noise)
            gaps += flatness_gaps([one], draws=[4], target=0.0)[0]
            data = replica.dataset
            hessian = HessianOperator(model, data.train_x, data.train_y, "cross_entropy")
            betas.append(hessian.largest_eigenvalue(seed=replica.seed).value)
        # |mean of the signed gaps| and not the mean of their sizes; the 6 draws are shared out.
        signed = [gap.signed for gap in gaps]
        assert row["measure/flatness_gap_signed@0.01"] == pytest.approx(fmean(signed), rel=1e-6)
        assert row["measure/flatness_gap@0.01"] == pytest.approx(abs(fmean(signed)), rel=1e-6)
        error = stdev(signed) / math.sqrt(3)
        assert row["measure/flatness_gap_stderr@0.01"] == pytest.approx(error, rel=1e-6)
        assert row["measure/flatness_draws@0.01"] == 12
        lowest, highest = zip(*(gap.loss_range for gap in gaps), strict=True)
        found = row["measure/subgaussian_constant_perturbed@0.01"]
        assert found == pytest.approx((max(highest) - min(lowest)) / 2, rel=1e-6)
        estimate = combined(gaps)
        found = row["measure/flatness_gap_sampling_stderr@0.01"]
        assert found == pytest.approx(estimate.sampling_error, rel=1e-6)
        assert row["measure/smoothness"] == pytest.approx(fmean(betas), rel=1e-6)


class TestSeeds:
    def test_no_two_trials_share_a_replica(self):
        trials = [config({"replicas": 4, "seed": seed}) for seed in range(3)]
        assert [seed for trial in trials for seed in trial.replica_seeds] == list(range(12))

    def test_labels_weights_and_order_are_of_each_replica(self):
        replicas = training.start(config(MEASURED)).replicas
        assert [replica.seed for replica in replicas] == SEEDS
        for replica in replicas:
            expected = load_dataset(config(MEASURED).data, seed=replica.seed)
            assert torch.equal(replica.dataset.train_y, expected.train_y)
            assert torch.equal(replica.dataset.test_y, expected.test_y)
        first, *others = replicas
        for other in others:
            assert torch.equal(first.dataset.train_x, other.dataset.train_x)
            differing = (first.dataset.train_y != other.dataset.train_y).float().mean()
            assert 0.3 < float(differing) < 0.9  # 0.4 of either redrawn over ten classes
            assert not torch.equal(first.dataset.test_y, other.dataset.test_y)
            assert not torch.equal(reference.weights(first.model), reference.weights(other.model))
        orders = [epoch_batches(200, 60, seed=s, epoch=0, last_batch="keep")[0] for s in SEEDS]
        assert not torch.equal(orders[0], orders[1])

    def test_without_label_noise_the_samples_are_shared(self):
        first, second, _ = training.start(config(REPLICAS)).replicas
        assert torch.equal(first.dataset.train_y, second.dataset.train_y)

    def test_the_same_config_twice_is_bit_identical(self):
        first, again = run(REPLICAS), finish(training.start(config(REPLICAS)))
        assert weight_bits(first.state) == weight_bits(again.state)
        assert series_bits(first.series) == series_bits(again.series)
        assert untimed(first.row) == untimed(again.row)


class TestCheckpoint:
    def test_in_mid_run_bit_for_bit(self):
        """Every case of a checkpoint is in test_checkpoint; here with all that is measured."""
        expected, _ = measured()
        state = training.start(config(MEASURED))
        for _ in range(8):  # between two points of Psi
            training.advance(state)
        rest = finish(checkpoint.load(config(MEASURED), checkpoint.dump(state)))
        assert weight_bits(rest.state) == weight_bits(expected.state)
        assert series_bits(rest.series) == series_bits(expected.series)
        assert untimed(rest.row) == untimed(expected.row)

    def test_holds_each_replica_once(self):
        """The models are views of one stack, which must not be written for each of them."""
        state = training.start(config(REPLICAS | {"replicas": 6}))
        training.advance(state)
        size = len(checkpoint.dump(state))
        assert 6 * 12730 * 4 < size < 7 * 12730 * 4

    def test_one_replica_more_is_another_trial(self):
        state = training.start(config(REPLICAS))
        content = checkpoint.dump(state)
        with pytest.raises(UserError, match="belongs to trial"):
            checkpoint.load(config(REPLICAS | {"replicas": 4}), content)


class TestDiverging:
    @pytest.mark.parametrize("rate", [1e4, 1e30])
    def test_all_of_them(self, rate):
        finished = run(REPLICAS | {"training.learning_rate": rate, "training.max_epochs": 30})
        row = finished.row
        assert row["status"] == "diverged"
        assert len(finished.series) == row["steps"] == finished.points[-1]["step"] < 10
        assert math.isfinite(finished.points[0]["train/loss"])
        assert math.isnan(row["train/loss"])
        assert math.isnan(row["bound/theorem2_closed_form"])

    @pytest.mark.parametrize("lost", [0, 2])
    @pytest.mark.parametrize("value", [math.nan, 1e30])
    def test_one_of_them_ends_the_trial(self, lost, value):
        """A mean over the survivors would be of other seeds than were asked for."""
        state = training.start(config(REPLICAS))
        training.advance(state)
        with torch.no_grad():
            next(state.replicas[lost].model.parameters()).fill_(value)
        before = [reference.weights(replica.model) for replica in state.replicas]
        training.advance(state)
        assert state.diverged
        assert state.step == 1
        assert training.summary(state)["status"] == "diverged"
        # The others have trained on as if nothing had happened.
        for r, replica in enumerate(state.replicas):
            if r != lost:
                assert not torch.equal(reference.weights(replica.model), before[r])
                assert torch.isfinite(reference.weights(replica.model)).all()
