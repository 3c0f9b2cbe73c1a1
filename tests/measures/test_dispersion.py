"""StepMeter and StepSeries (float32, BackPACK) against loops over samples in float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.measures.dispersion import BySample, Dispersion, StepMeter
from gisgd_ray.measures.groups import BetweenGroups
from gisgd_ray.measures.step_series import ILL_CONDITIONED, StepSeries
from gisgd_ray.networks.losses import LossName
from gisgd_ray.networks.models import alexnet, mlp
from gisgd_ray.schemes.base import Batch, Scheme, Step
from gisgd_ray.schemes.flooding import Flooding
from gisgd_ray.schemes.sgd import SGD
from gisgd_ray.training.terms import StepSums
from tests.support import reference

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")


def data(*shape: int, classes: int = 10, seed: int = 1) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(*shape, generator=source)
    return inputs, torch.randint(classes, (shape[0],), generator=source)


def conv_net(convolution: nn.Conv2d, size: int, *, classes: int = 3) -> nn.Sequential:
    """Two convolutions (the second at its default) and a linear layer, on size x size images."""
    m = convolution.out_channels
    features = [convolution, nn.ReLU(), nn.Conv2d(m, 2, 2), nn.ReLU(), nn.Flatten()]
    outputs = nn.Sequential(*features)(torch.zeros(1, convolution.in_channels, size, size))
    return nn.Sequential(*features, nn.Linear(outputs.shape[1], classes, bias=False))


def radius(series: StepSeries) -> float:
    """R of the losses of these steps."""
    sums = StepSums()
    sums.add(series)
    return sums.radius


def plain_pass(meter: StepMeter, model: nn.Module, x: Tensor, y: Tensor, loss: LossName) -> None:
    """What a training step of plain SGD does before it applies anything."""
    factor = SGD().gradient(Step(model, Batch(x, y), loss=loss, meter=meter))
    meter.close(learning_rate=0.1, factor=factor)


def measured(
    model: nn.Module, x: Tensor, y: Tensor, *, loss: LossName, batch_sizes: tuple[int, ...]
) -> StepSeries:
    """One row per consecutive batch at unchanged weights; the first batch is the largest."""
    meter = StepMeter(dispersion=BySample(model))
    ends = np.cumsum([0, *batch_sizes])
    for start, stop in pairwise(ends):
        plain_pass(meter, model, x[start:stop], y[start:stop], loss)
    return meter.drain()


def assert_equals_brute_force(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    loss: LossName,
    batch_sizes: tuple[int, ...],
    rel: float = 1e-5,
) -> None:
    series = measured(model, x, y, loss=loss, batch_sizes=batch_sizes)
    assert len(series) == len(batch_sizes)
    for t, (start, stop) in enumerate(pairwise(np.cumsum([0, *batch_sizes]))):
        bx, by = x[start:stop], y[start:stop]
        truth = reference.batch_moments(model, bx, by, loss)
        losses = reference.losses(model, bx, by, loss)
        assert series.batch_size[t] == stop - start
        assert series.loss[t] == pytest.approx(np.mean(losses), rel=rel)
        assert series.loss_min[t] == pytest.approx(min(losses), rel=rel)
        assert series.loss_max[t] == pytest.approx(max(losses), rel=rel)
        norm = truth.squared_gradient_norm
        assert series.squared_gradient_norm[t] == pytest.approx(norm, rel=rel)
        assert series.mean_squared_norm[t] == pytest.approx(truth.mean_squared_norm, rel=rel)
        s2 = truth.per_sample_dispersion
        assert series.per_sample_dispersion[t] == pytest.approx(s2, rel=rel)
        assert series.gradient_dispersion[t] == pytest.approx(s2 / (stop - start), rel=rel)
        assert series.gradient_factor[t] == 1
    assert series.group_dispersion is None
    assert series.ill_conditioned_steps == 0


class TestOneBatch:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_mlp_with_a_ragged_last_batch(self, loss):
        torch.manual_seed(0)
        model = mlp((1, 28, 28), 10, width=12)
        x, y = data(26, 1, 28, 28)
        assert_equals_brute_force(model, x, y, loss=loss, batch_sizes=(12, 12, 2))

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
    def test_alexnet_with_a_ragged_last_batch(self, shape, loss):
        torch.manual_seed(0)
        model = alexnet(shape, 10, filters=4)
        for index, (inputs, outputs) in {-5: (256, 30), -3: (30, 20), -1: (20, 10)}.items():
            model[index] = nn.Linear(inputs, outputs)
        x, y = data(5, *shape)
        assert_equals_brute_force(model, x, y, loss=loss, batch_sizes=(3, 2))

    def test_the_whole_alexnet(self):
        """A norm over its 16.8 million weights at once would be off by 1e-4 in float32."""
        torch.manual_seed(0)
        model = alexnet((1, 28, 28), 10, filters=2)
        x, y = data(2, 1, 28, 28)
        assert_equals_brute_force(model, x, y, loss="cross_entropy", batch_sizes=(2,))

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(
        ("options", "size"),
        [
            ({}, 7),
            ({"stride": 2, "padding": 1}, 7),
            ({"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}, 8),
            ({"dilation": 2, "padding": 3, "stride": 3}, 6),
        ],
    )
    def test_convolutions(self, options, size, bias, loss):
        torch.manual_seed(0)
        model = conv_net(nn.Conv2d(2, 4, (3, 2), bias=bias, **options), size)
        x, y = data(7, 2, size, size, classes=3)
        assert_equals_brute_force(model, x, y, loss=loss, batch_sizes=(5, 2))

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("size", "few"), [(4, True), (12, False)])
    def test_both_ways_to_contract_a_convolution(self, size, few, bias):
        """Few output positions: Gram matrices, L (m + k) < m k; many: the gradient itself."""
        layer = nn.Conv2d(6, 9, 3, stride=2, padding=1, bias=bias)
        positions, filters, weights = ((size + 1) // 2) ** 2, 9, 6 * 3 * 3
        assert (positions * (filters + weights) < filters * weights) is few
        torch.manual_seed(0)
        model = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(9 * positions, 3))
        x, y = data(6, 6, size, size, classes=3)
        assert_equals_brute_force(model, x, y, loss="cross_entropy", batch_sizes=(4, 2))

    def test_pooling_and_a_model_without_activations(self):
        torch.manual_seed(0)
        pooled = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
        )
        x, y = data(6, 1, 10, 10, classes=3)
        assert_equals_brute_force(pooled, x, y, loss="squared", batch_sizes=(4, 2))
        linear = nn.Sequential(nn.Flatten(), nn.Linear(100, 3))
        assert_equals_brute_force(linear, x, y, loss="cross_entropy", batch_sizes=(4, 2))

    def test_linear_layer_by_hand(self):
        """f = w.x, b = 2, squared loss towards class 0 of 1: g_i = (f_i - 1) x_i."""
        model = nn.Sequential(nn.Linear(2, 1, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[2.0, 3.0]]))
        x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, dtype=torch.int64)
        series = measured(model, x, y, loss="squared", batch_sizes=(2,))
        # f = (2, 6); g_1 = (1, 0), g_2 = (0, 10), g = (0.5, 5); losses 0.5 and 12.5.
        assert series.squared_gradient_norm[0] == pytest.approx(25.25)
        assert series.mean_squared_norm[0] == pytest.approx(50.5)
        assert series.per_sample_dispersion[0] == pytest.approx(50.5)
        assert series.gradient_dispersion[0] == pytest.approx(25.25)
        assert radius(series) == pytest.approx(6.0)


class TestIdenticalSamples:
    def test_dispersion_vanishes_and_the_step_is_counted(self):
        torch.manual_seed(0)
        model = mlp((1, 6, 6), 4, width=8)
        x, y = data(1, 1, 6, 6, classes=4)
        one, same = x.expand(9, -1, -1, -1), y.expand(9)
        series = measured(model, one, same, loss="cross_entropy", batch_sizes=(9,))
        # The documented rounding: about 1e-7 of the mean squared norm, and never below zero.
        assert series.mean_squared_norm[0] > 0.1
        assert 0 <= series.per_sample_dispersion[0] < 1e-6 * series.mean_squared_norm[0]
        assert series.ill_conditioned_steps == 1

    def test_only_ill_conditioned_steps_are_counted(self):
        mean = np.array([1.0, 1.0, 1.0, 0.0, np.nan])
        share = np.array([ILL_CONDITIONED / 2, ILL_CONDITIONED * 2, -1e-7, 0.0, 0.0])
        series = StepSeries.of(
            {
                **{name: np.full(5, 2.0) for name in StepSeries.empty().columns()},
                "group_dispersion": np.full(5, np.nan),
                "mean_squared_norm": mean,
                "squared_gradient_norm": mean * (1 - share),
            }
        )
        assert series.ill_conditioned_steps == 2
        assert series.per_sample_dispersion[2] == 0
        assert np.isnan(series.per_sample_dispersion[4])

    def test_the_dispersion_between_groups_stands_where_it_was_taken(self):
        two = np.full(3, 2.0)
        series = StepSeries.of(
            {
                **{name: np.full(3, np.nan) for name in StepSeries.empty().columns()},
                "learning_rate": two,
                "batch_size": 4 * two,
                "squared_gradient_norm": two,
                "mean_squared_norm": np.full(3, 5.5),
                "group_dispersion": np.array([3.0, np.nan, 0.0]),
            }
        )
        np.testing.assert_array_equal(series.per_sample_dispersion, [3.0, np.nan, 0.0])
        np.testing.assert_array_equal(series.gradient_dispersion, [0.375, np.nan, 0.0])
        assert series.ill_conditioned_steps == 0
        by_sample = replace(series, group_dispersion=None)
        assert by_sample.per_sample_dispersion.tolist() == pytest.approx([4.0] * 3)  # 8/7 (5.5 - 2)
        assert StepSeries.of(by_sample.columns()).group_dispersion is None


class TestSeries:
    def test_buffers_flush_in_mid_run(self):
        torch.manual_seed(0)
        model = mlp((1, 4, 4), 3, width=5)
        x, y = data(40, 1, 4, 4, classes=3)
        batches = [*torch.arange(39).split(4), torch.arange(37, 40)]
        wide = StepMeter(dispersion=BySample(model), capacity=256)
        narrow = StepMeter(dispersion=BySample(model), capacity=4)
        for meter in (wide, narrow):
            for indices in batches:
                plain_pass(meter, model, x[indices], y[indices], "cross_entropy")
        expected, found = wide.drain(), narrow.drain()
        assert len(expected) == len(found) == len(batches) == 11
        for name, column in expected.columns().items():
            assert column.tobytes() == found.columns()[name].tobytes(), name
        assert len(narrow.drain()) == 0
        plain_pass(narrow, model, x[:3], y[:3], "cross_entropy")
        assert narrow.drain().batch_size.tolist() == [3.0]

    def test_what_a_step_is_told_stays_its_own_when_the_buffers_are_used_again(self):
        torch.manual_seed(0)
        model = mlp((1, 4, 4), 3, width=5)
        x, y = data(2, 1, 4, 4, classes=3)
        told = torch.arange(11.0)

        class Told(BetweenGroups):
            def measure(self, step: Step, scheme: Scheme) -> Tensor:
                del step, scheme
                return told[t]

        meter = StepMeter(dispersion=Told(model, 2), capacity=3)
        parts = []
        for t in range(11):
            step = Step(model, Batch(x, y), loss="squared", meter=meter)
            meter.before(step, SGD())
            SGD().gradient(step)
            meter.close(learning_rate=0.1, factor=-told[t])
            if t in (7, 10):  # after two buffers and a part of one, and after the rest
                parts.append(meter.drain())
        series = StepSeries.concatenate(parts)
        assert series.group_dispersion.tolist() == told.tolist()
        assert series.gradient_factor.tolist() == (-told).tolist()

    def test_without_dispersion_only_the_losses_are_known(self):
        torch.manual_seed(0)
        model = mlp((1, 4, 4), 3, width=5)
        x, y = data(6, 1, 4, 4, classes=3)
        meter = StepMeter(dispersion=Dispersion())
        plain_pass(meter, model, x, y, "cross_entropy")
        series = meter.drain()
        losses = reference.losses(model, x, y, "cross_entropy")
        assert series.loss[0] == pytest.approx(np.mean(losses), rel=1e-5)
        assert radius(series) == pytest.approx(reference.subgaussian_constant([losses]), rel=1e-5)
        assert np.isnan(series.gradient_dispersion).all()
        assert np.isnan(series.squared_gradient_norm).all()
        assert series.ill_conditioned_steps == 0

    def test_concatenate_and_head(self):
        names = StepSeries.empty().columns()
        parts = [
            StepSeries.of({name: np.arange(a, b) + 0.5 for name in names})
            for a, b in ((0, 3), (3, 5))
        ]
        whole = StepSeries.concatenate(parts)
        assert all(
            column.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5] for column in whole.columns().values()
        )
        assert all(column.tolist() == [0.5, 1.5] for column in whole.head(2).columns().values())
        assert len(StepSeries.concatenate([])) == 0


def train(
    scheme: Scheme, *, loss: LossName, rates: list[float], dispersion: bool = True
) -> tuple[StepSeries, Tensor, nn.Module, tuple[Tensor, Tensor, list[Tensor]]]:
    """Fourteen steps of a small MLP over epochs of three batches (6, 6, 3) and what they gave."""
    torch.manual_seed(3)
    model = mlp((1, 5, 5), 4, width=7)
    before = reference.in_float64(model)
    x, y = data(15, 1, 5, 5, classes=4)
    batches: list[Tensor] = []
    while len(batches) < len(rates):
        batches += torch.randperm(15).split(6)
    batches = batches[: len(rates)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    estimator = BySample(model) if dispersion else Dispersion()
    meter = StepMeter(dispersion=estimator, capacity=5)

    for indices, rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        batch = Batch(x[indices], y[indices])
        factor = scheme.gradient(Step(model, batch, loss=loss, meter=meter))
        meter.close(learning_rate=rate, factor=factor)
        optimizer.step()
    final = torch.cat([p.detach().flatten() for p in model.parameters()])
    return meter.drain(), final, before, (x, y, batches)


def assert_series_equal(series: StepSeries, run: reference.Run, rel: float = 2e-5) -> None:
    derived = ("per_sample_dispersion", "gradient_dispersion", "gradient_dispersion_neu")
    columns = series.columns() | {name: getattr(series, name) for name in derived}
    for name, column in columns.items():
        np.testing.assert_allclose(column, run.column(name), rtol=rel, err_msg=name)
    recorded = reference.subgaussian_constant(run.losses)
    assert radius(series) == pytest.approx(recorded, rel=rel)


RATES = [0.1] * 5 + [0.2] * 6 + [0.05] * 3


class TestWholeRun:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_every_row_equals_the_loop_by_hand(self, loss):
        series, final, before, (x, y, batches) = train(SGD(), loss=loss, rates=RATES)
        assert sorted(set(series.batch_size)) == [3.0, 6.0]
        run = reference.sgd(before, x, y, batches, loss=loss, learning_rates=RATES)
        assert_series_equal(series, run)
        torch.testing.assert_close(final.double(), run.weights, rtol=1e-5, atol=1e-6)

    def test_flooding_measures_the_plain_gradient_and_applies_its_own(self):
        level = 1.3
        series, final, before, (x, y, batches) = train(
            Flooding(level=level), loss="cross_entropy", rates=RATES
        )
        assert series.loss.min() < level < series.loss.max()
        run = reference.sgd(
            before, x, y, batches, loss="cross_entropy", learning_rates=RATES, flooding_level=level
        )
        assert_series_equal(series, run)
        torch.testing.assert_close(final.double(), run.weights, rtol=1e-5, atol=1e-6)

    def test_flooding_at_level_0_is_sgd_bit_for_bit(self):
        ours, final, *_ = train(Flooding(level=0.0), loss="cross_entropy", rates=RATES)
        sgd, expected, *_ = train(SGD(), loss="cross_entropy", rates=RATES)
        assert torch.equal(final, expected)
        for name, column in sgd.columns().items():
            assert column.tobytes() == ours.columns()[name].tobytes(), name

    def test_measuring_changes_no_weight(self):
        _, on, *_ = train(SGD(), loss="cross_entropy", rates=RATES, dispersion=True)
        _, off, *_ = train(SGD(), loss="cross_entropy", rates=RATES, dispersion=False)
        assert torch.equal(on, off)


@pytest.mark.parametrize("level", [0.5, 3.0])
def test_flooding_gradient_is_that_of_its_objective(level):
    torch.manual_seed(0)
    model = mlp((1, 4, 4), 3, width=5)
    x, y = data(6, 1, 4, 4, classes=3)
    meter = StepMeter(dispersion=BySample(model))
    step = Step(model, Batch(x, y), loss="cross_entropy", meter=meter)
    factor = Flooding(level=level).gradient(step)
    meter.close(learning_rate=0.1, factor=factor)
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    expected = reference.flooding_gradient(model, x, y, "cross_entropy", level=level)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    plain = reference.mean_gradient(model, x, y, "cross_entropy")
    torch.testing.assert_close(factor.double() * plain, expected, rtol=1e-5, atol=1e-7)
    series = meter.drain()
    assert series.gradient_factor.tolist() == [1.0 if level == 0.5 else -1.0]
    norm = float(plain.square().sum())
    assert series.squared_gradient_norm[0] == pytest.approx(norm, rel=1e-5)
