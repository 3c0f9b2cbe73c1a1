"""The flatness gap against loops over explicit perturbations in float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.measures import flatness
from gisgd_ray.measures.displaced import Samples, WeightNoise
from gisgd_ray.measures.flatness import FlatnessGap, FlatnessRun, combined, flatness_gaps
from gisgd_ray.networks.losses import LossName
from gisgd_ray.seeds import derived_seed
from tests.measures.test_invisible import in_mid_training, nothing_changes
from tests.support import reference_sensitivity as reference
from tests.support.networks import (
    case,
    small_batchnorm,
    small_conv,
    small_in_place,
    small_mlp,
    small_tanh,
)

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
SEED = 5
Split = tuple[Tensor, Tensor, Tensor, Tensor]


FLOAT32 = 2 * flatness.PRECISION_TOLERANCE
"""Relative error of gamma where the losses may be evaluated in float32."""


def gap_of(
    train,
    test=(1.0, 1.0),
    *,
    train_samples=(0.0, 0.0),
    test_samples=(0.0, 0.0),
    loss_range=(0.0, 1.0),
) -> FlatnessGap:
    """Made by hand."""
    arrays = (np.array(values) for values in (train, test, train_samples, test_samples))
    return FlatnessGap(0.1, *arrays, loss_range=loss_range)


def split(x: Tensor, y: Tensor, *, train: int = 7) -> Split:
    return x[:train], y[:train], x[train:], y[train:]


def measure(
    model: nn.Module,
    data: Split,
    *stds: float,
    loss: LossName = "cross_entropy",
    draws: int = 6,
    seed: int = SEED,
    chunk: int | None = None,
) -> list[FlatnessGap]:
    """Of a single run, by std."""
    train, test = Samples(*data[:2], loss, chunk), Samples(*data[2:], loss, chunk)
    run = FlatnessRun(model, train, test, WeightNoise(stds, seed))
    return [gap for (gap,) in flatness_gaps([run], draws=[draws] * len(stds), target=0.0)]


def deltas(model: nn.Module, std: float, *, pairs: int = 3) -> list[Tensor]:
    """Delta_p as documented: one stream a pair, named by (seed, p)."""
    d = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = []
    for pair in range(pairs):
        generator = torch.Generator().manual_seed(derived_seed(SEED, "flatness", pair))
        found.append(std * torch.randn(d, generator=generator, dtype=torch.float64))
    return found


def gammas(model: nn.Module, x: Tensor, y: Tensor, loss: str, std: float) -> list[float]:
    """gamma of every antithetic pair, by loops."""
    return [reference.gamma(model, x, y, loss, [d, -d]) for d in deltas(model, std)]


def as_tuples(gaps: list[FlatnessGap]) -> list[tuple[float, list[float], list[float]]]:
    return [(gap.perturbation_std, gap.train.tolist(), gap.test.tolist()) for gap in gaps]


class TestAgainstLoops:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        "build", [small_mlp, small_conv, small_tanh, small_in_place, small_batchnorm]
    )
    @pytest.mark.parametrize("double", [True, False])
    def test_both_samples_pair_by_pair(self, build, loss, double):
        model, x, y = case(build, double=double)
        data = split(x, y)
        (found,) = measure(model, data, 0.2, loss=loss)
        train = gammas(model, *data[:2], loss, 0.2)
        test = gammas(model, *data[2:], loss, 0.2)
        assert found.perturbation_std == 0.2
        rel = 1e-10 if next(model.parameters()).dtype == torch.float64 else FLOAT32
        assert found.train.tolist() == pytest.approx(train, rel=rel, abs=0)
        assert found.test.tolist() == pytest.approx(test, rel=rel, abs=0)
        differences = np.array(train) - np.array(test)
        # The gap is a difference of the two: of theirs, not of its own size, is its error.
        scale = max(map(abs, [*train, *test]))
        assert found.signed == pytest.approx(differences.mean(), rel=1e-9, abs=rel * scale)
        assert found.value == abs(found.signed)
        assert found.standard_error == pytest.approx(
            differences.std(ddof=1) / math.sqrt(3), rel=1e-9, abs=rel * scale
        )

    def test_frozen_parameters_stay(self):
        model, x, y = case(small_tanh)
        model[1].requires_grad_(False)
        data = split(x, y)
        (found,) = measure(model, data, 0.2)
        train = gammas(model, *data[:2], "cross_entropy", 0.2)
        assert found.train.tolist() == pytest.approx(train, rel=1e-10, abs=0)

    def test_regression_in_float32(self):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        data = split(torch.randn(9, 4), torch.randn(9))
        (found,) = measure(model, data, 0.3, loss="squared")
        test = gammas(model, *data[2:], "squared", 0.3)
        assert found.test.tolist() == pytest.approx(test, rel=FLOAT32, abs=0)


class TestQuadratic:
    """1/2 (w.x - y)^2: gamma = Delta^T A Delta / 2 for every pair, A = X^T X / n."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("std", [1e-6, 1e-3, 1.0])
    def test_each_pair_and_the_expectation(self, std, dtype):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(5, 1, bias=False)).to(dtype)
        x, y = torch.randn(20, 5, dtype=dtype), torch.randn(20, dtype=dtype)
        x[12:] *= 0.3  # a flat test loss, so that the gap is far from 0
        data = split(x, y, train=12)
        (found,) = measure(model, data, std, loss="squared", draws=600)
        train, test = ((x.T.double() @ x.double() / len(x)) for x in (data[0], data[2]))
        draws = deltas(model, std, pairs=300)
        exact = [float(d @ train @ d) / 2 for d in draws]
        rel = 1e-8 if dtype == torch.float64 or std < 1 else FLOAT32
        # At 1e-6 gamma is 1e-12 of a loss about 1, known to 1e-16 a sample.
        assert found.train.tolist() == pytest.approx(exact, rel=1e-3 if std < 1e-4 else rel, abs=0)
        expected = float((train - test).trace()) * std**2 / 2
        assert 0 < found.standard_error < 0.2 * abs(expected)
        assert abs(found.signed - expected) < 4 * found.standard_error


class TestPrecision:
    """Losses are evaluated in float32 only where that is as good."""

    @pytest.mark.parametrize(("std", "fast"), [(1e-5, False), (1e-4, False), (1.0, True)])
    def test_chosen_by_measuring(self, std, fast, monkeypatch):
        model, x, y = case(small_mlp, double=False)
        used = []
        losses = flatness.Samples.losses
        monkeypatch.setattr(
            flatness.Samples,
            "losses",
            lambda sample, moved: used.append(moved.dtype) or losses(sample, moved),
        )
        (found,) = measure(model, split(x, y), std)
        assert used[-1] == (torch.float32 if fast else torch.float64)
        train = gammas(model, *split(x, y)[:2], "cross_entropy", std)
        assert found.train.tolist() == pytest.approx(train, rel=FLOAT32, abs=0)


class TestDraws:
    def test_several_stds_at_once_equal_each_alone(self):
        model, x, y = case(small_conv, double=False)
        data = split(x, y)
        stds = (0.1, 1e-6, 0.3)
        together = as_tuples(measure(model, data, *stds))
        assert together == [as_tuples(measure(model, data, std))[0] for std in stds]
        assert len({str(found[1:]) for found in together}) == 3

    def test_the_unperturbed_losses_are_shared(self, monkeypatch):
        model, x, y = case(small_mlp)
        evaluated = []
        losses = flatness.Samples.losses
        monkeypatch.setattr(
            flatness.Samples,
            "losses",
            lambda sample, moved: evaluated.append(len(sample.targets)) or losses(sample, moved),
        )
        measure(model, split(x, y), 0.1, 0.2, 0.3)
        assert evaluated == [7, 4] * (1 + 3 * 6)

    def test_no_noise_no_gap(self):
        model, x, y = case(small_mlp, double=False)
        assert as_tuples(measure(model, split(x, y), 0.0)) == [(0.0, [0.0] * 3, [0.0] * 3)]

    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    def test_chunks_change_nothing_a_ragged_last_one_included(self, build):
        model, x, y = case(build)
        (whole,) = measure(model, split(x, y), 0.2)
        for chunk in (1, 3, 11):
            (found,) = measure(model, split(x, y), 0.2, chunk=chunk)
            assert found.train.tolist() == pytest.approx(whole.train.tolist(), rel=1e-10, abs=0)
            assert found.test.tolist() == pytest.approx(whole.test.tolist(), rel=1e-10, abs=0)

    def test_a_function_of_the_seed(self):
        model, x, y = case(small_mlp, double=False)
        found = as_tuples(measure(model, split(x, y), 0.1))
        torch.randn(5)
        assert as_tuples(measure(model, split(x, y), 0.1)) == found
        assert as_tuples(measure(model, split(x, y), 0.1, seed=SEED + 1)) != found

    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_leaves_no_trace(self, build):
        model, optimizer, x, y = in_mid_training(build)
        with nothing_changes(model, optimizer):
            measure(model, split(x, y), 1e-6, 0.5, chunk=4)

    @pytest.mark.parametrize(
        ("draws", "std", "message"),
        [(2, 0.1, "draws"), (5, 0.1, "draws"), (4, -0.1, "stds"), (4, math.nan, "stds")],
    )
    def test_bad_arguments(self, draws, std, message):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match=message):
            measure(model, split(x, y), std, draws=draws)

    def test_nothing_to_measure(self):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match="samples"):
            measure(model, split(x, y, train=len(x)), 0.1)
        with pytest.raises(ValueError, match="trainable"):
            measure(model.requires_grad_(False), split(x, y), 0.1)


class TestNotFinite:
    def test_losses_beyond_float64_are_not_hidden(self):
        model, x, y = case(small_mlp)
        (found,) = measure(model, split(x, y), 1e200, loss="squared")
        assert not np.isfinite(found.train).any()
        assert not math.isfinite(found.value)
        assert not math.isfinite(found.standard_error)

    def test_of_one_sample_alone(self):
        gap = gap_of([np.inf, 1.0], [0.0, 1.0])
        assert gap.signed == math.inf
        assert math.isnan(gap.standard_error)


class TestCombined:
    def test_the_absolute_value_comes_last(self):
        """Runs of opposite sign cancel, as in |E[.]|, rather than add up."""
        runs = [gap_of([4.0, 6.0]), gap_of([0.0, -2.0]), gap_of([-8.0, -10.0])]
        found = combined(runs)
        assert found.signed == pytest.approx(-8 / 3)
        assert found.standard_error == pytest.approx(
            math.sqrt(((20 / 3) ** 2 + (2 / 3) ** 2 + (22 / 3) ** 2) / 6)
        )
        assert found.draws == 12

    def test_one_run_has_the_error_of_its_pairs(self):
        found = combined([gap_of([-2.0, -4.0])])
        assert (found.signed, found.standard_error, found.draws) == pytest.approx((-4.0, 1.0, 4))

    def test_the_samples_of_all_runs(self):
        """Each run's i-th sample is the same one, or as good as another: their mean scatters."""
        runs = [
            gap_of([1.0, 1.0], train_samples=a, test_samples=b, loss_range=c)
            for a, b, c in (
                ([1.0, 2.0, 6.0], [0.0, 4.0], (0.5, 7.0)),
                ([3.0, 0.0, 0.0], [2.0, 0.0], (0.25, 3.0)),
            )
        ]
        found = combined(runs)
        train, test = math.sqrt((1 + 0 + 1) / 2 / 3), math.sqrt(0.5 / 2)  # of 2, 1, 3 and of 1, 2
        assert found.sampling_error == pytest.approx(math.hypot(train, test))
        assert found.test_increase_error == pytest.approx(test)
        assert found.subgaussian_constant == (7.0 - 0.25) / 2

    def test_no_run(self):
        with pytest.raises(ValueError, match="no flatness gap"):
            combined([])
