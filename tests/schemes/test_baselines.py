"""Dropout, label smoothing, flooding, MixUp and adversarial training against their objectives."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from gisgd_ray.networks.models import alexnet
from gisgd_ray.networks.residual import preactresnet18
from gisgd_ray.schemes.adversarial import Adversarial
from gisgd_ray.schemes.base import Batch, Scheme, Setting, Step
from gisgd_ray.schemes.dropout import Dropout, dropped_inputs
from gisgd_ray.schemes.label_smoothing import LabelSmoothing
from gisgd_ray.schemes.mixup import MixUp
from gisgd_ray.training import loop as training
from tests.support import reference
from tests.support.networks import case, small_batchnorm, small_conv, small_mlp
from tests.support.runs import config, run

SETTING = Setting(seed=3, device=torch.device("cpu"), steps_per_epoch=3, planned_steps=30)
UNMEASURED_AT_THE_END = {
    "measurement.hessian_trace": "off",
    **dict.fromkeys(("measurement.flatness", "measurement.smoothness"), False),
}
MEASURED = pytest.mark.parametrize("measured", [True, False], ids=["measured", "unmeasured"])


class Recorder:
    """A meter that keeps what it is shown."""

    def __init__(self, model: nn.Module, *, measures: bool):
        self._model, self.measures_gradients = model, measures
        self.losses, self.gradient = torch.empty(0), torch.empty(0)

    def watch(self) -> AbstractContextManager[object]:
        return nullcontext()

    def see(self, losses: Tensor) -> None:
        self.losses, self.gradient = losses, flat_gradient(self._model)

    def gradient_norm(self) -> None:
        return None


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.detach().flatten() for p in model.parameters()])


def by_autograd(model: nn.Module, objective: Tensor) -> Tensor:
    found = torch.autograd.grad(objective, list(model.parameters()))
    return torch.cat([g.flatten() for g in found])


def taken(
    scheme: Scheme, model: nn.Module, batch: Batch, *, loss: Any, measured: bool = False
) -> Recorder:
    """What a meter sees of a step; the scheme's gradient is left in ``.grad``."""
    recorder = Recorder(model, measures=measured)
    scheme.gradient(Step(model, batch, loss=loss, meter=recorder))
    return recorder


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def assert_plain(recorder: Recorder, model: nn.Module, batch: Batch) -> None:
    """The meter saw the losses and the gradient of the clean batch, by cross-entropy."""
    losses = cross_entropy(model(batch.inputs), batch.targets)
    torch.testing.assert_close(recorder.losses, losses.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(recorder.gradient, by_autograd(model, losses.mean()))


@pytest.mark.parametrize("build", [partial(Dropout, rate=0.5), partial(MixUp, alpha=1.0)])
def test_draws_are_those_of_the_seed_and_the_step(build):
    model, x, y = case(small_mlp)
    found = []
    for seed in (3, 3, 4):
        scheme = build(setting=replace(SETTING, seed=seed))
        for _ in range(2):
            scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy"))
            found.append(tuple(flat_gradient(model).tolist()))
    assert found[:2] == found[2:4]
    assert len(set(found)) == 4


class TestFlooding:
    def test_turns_when_the_mean_loss_crosses_the_level_not_a_single_loss(self):
        flooding = {"training.learning_rate": 0.2, "scheme.name": "flooding", "scheme.level": 2.2}
        series = run(UNMEASURED_AT_THE_END | flooding).series
        expected = np.sign(series.loss - 2.2)
        assert set(expected) == {-1.0, 1.0}
        assert (series.loss_min < 2.2).all()
        assert series.gradient_factor.tolist() == expected.tolist()


class TestLabelSmoothing:
    @MEASURED
    @pytest.mark.parametrize("smoothing", [0.2, 0.9])
    def test_cross_entropy_is_that_to_the_soft_target(self, smoothing, measured):
        model, x, y = case(small_mlp)
        scheme, batch = LabelSmoothing(smoothing=smoothing), Batch(x, y)
        recorder = taken(scheme, model, batch, loss="cross_entropy", measured=measured)
        found = flat_gradient(model)
        # Of K = 4 classes: - sum_k t_k log p_k, with t_k = s/4, and 1 - s + s/4 at the label.
        target = torch.full((11, 4), smoothing / 4, dtype=torch.float64)
        target[range(11), y] += 1 - smoothing
        outputs = model(x)
        log_p = outputs - outputs.exp().sum(dim=1, keepdim=True).log()
        expected = by_autograd(model, -(target * log_p).sum() / 11)
        torch.testing.assert_close(found, expected)
        # What is recorded is the loss to the true labels.
        torch.testing.assert_close(recorder.losses, -log_p[range(11), y].detach())
        if measured:
            assert_plain(recorder, model, batch)

    def test_squared_loss_is_half_the_distance_to_the_soft_target(self):
        model, x, y = case(small_mlp)
        recorder = taken(LabelSmoothing(smoothing=0.2), model, Batch(x, y), loss="squared")
        found = flat_gradient(model)
        target = torch.full((11, 4), 0.05, dtype=torch.float64)
        target[range(11), y] = 0.85
        outputs = model(x)
        expected = by_autograd(model, ((outputs - target) ** 2).sum() / 22)
        torch.testing.assert_close(found, expected)
        hard = torch.zeros_like(target)
        hard[range(11), y] = 1
        losses = ((outputs - hard) ** 2).sum(dim=1) / 2
        torch.testing.assert_close(recorder.losses, losses.detach())


class FixedShare(MixUp):
    """lambda = 0.3; keeps the source of the permutation as it is before."""

    def draw_share(self, source: np.random.RandomState) -> float:
        super().draw_share(source)
        self.source = copy.deepcopy(source)
        return 0.3


class Recording(MixUp):
    def draw_share(self, source: np.random.RandomState) -> float:
        self.share = super().draw_share(source)
        return self.share


class TestMixUp:
    @MEASURED
    @pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
    def test_inputs_and_losses_are_mixed_by_one_share(self, build, measured):
        model, x, y = case(build)
        scheme = FixedShare(alpha=1.0, setting=SETTING)
        batch = Batch(x.clone(), y.clone())
        recorder = taken(scheme, model, batch, loss="cross_entropy", measured=measured)
        found = flat_gradient(model)
        partner = torch.from_numpy(scheme.source.permutation(11))
        outputs = model(0.3 * x + 0.7 * x[partner])
        losses = 0.3 * cross_entropy(outputs, y) + 0.7 * cross_entropy(outputs, y[partner])
        torch.testing.assert_close(found, by_autograd(model, losses.mean()))
        if measured:
            assert_plain(recorder, model, Batch(x, y))
        else:
            torch.testing.assert_close(recorder.losses, losses.detach())
        assert torch.equal(batch.inputs, x)

    @pytest.mark.parametrize("alpha", [1.0, 0.3])
    def test_shares_and_partners_are_drawn_anew_in_every_step(self, alpha):
        """With one-hot inputs, the mixed ones are lambda 1 + (1 - lambda) P."""
        model, seen = nn.Sequential(nn.Linear(3, 2).double()), []
        model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        scheme, shares, n = Recording(alpha=alpha, setting=SETTING), [], 1500
        one_hot, targets = torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 1])
        for _ in range(n):
            scheme.gradient(Step(model, Batch(one_hot, targets), loss="cross_entropy"))
            shares.append(scheme.share)
        found = np.array(shares)
        variance = 1 / (4 * (2 * alpha + 1))
        assert found.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / n))
        # The fourth moment is below variance / 4, since |lambda - 1/2| <= 1/2.
        assert found.var() == pytest.approx(variance, abs=4 * math.sqrt(variance / 4 / n))
        assert stats.kstest(found, stats.beta(alpha, alpha).cdf).pvalue > 1e-4
        partners = [m - share * one_hot for m, share in zip(seen, shares, strict=True)]
        far = [p / (1 - s) for p, s in zip(partners, shares, strict=True) if s < 0.999]
        assert len(far) > 0.8 * n
        orders = torch.stack(far).round(decimals=6).argmax(dim=2)
        assert torch.equal(orders.sort(dim=1).values, torch.arange(3).expand(len(far), 3))
        _, counts = orders.unique(dim=0, return_counts=True)
        assert len(counts) == 6
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4


class LayerInputs:
    """What reaches every layer with weights, before and after dropout."""

    def __init__(self, model: nn.Module):
        layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        self.raw: list[Tensor] = [torch.empty(0)] * len(layers)
        self.seen: list[Tensor] = list(self.raw)
        self.handles: list[Any] = []
        for i, layer in enumerate(layers):  # hooks run in the order of their registration

            def before(_: nn.Module, given: tuple[Tensor], i: int = i) -> None:
                self.raw[i] = given[0].detach().clone()

            def after(_: nn.Module, given: tuple[Tensor], __: Tensor, i: int = i) -> None:
                self.seen[i] = given[0].detach().clone()

            self.handles.append(layer.register_forward_pre_hook(before))
            self.handles.append(layer.register_forward_hook(after))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


class TestDropout:
    @pytest.mark.parametrize(
        "build",
        [
            small_mlp,
            small_conv,
            lambda: alexnet((1, 28, 28), 4, filters=3, hidden=40),
            lambda: preactresnet18((1, 8, 8), 4, filters=4),
        ],
        ids=["mlp", "conv", "alexnet", "preactresnet18"],
    )
    def test_drops_inputs_of_every_layer_but_the_first(self, build):
        torch.manual_seed(0)
        model = build()
        size = {small_mlp: 3, small_conv: 8}.get(build, 28)
        x, y = torch.randn(24, 1, size, size), torch.randint(4, (24,))
        inputs = LayerInputs(model)
        Dropout(rate=0.4, setting=SETTING).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
        assert len(hooks) == len(inputs.handles)
        assert len(inputs.raw) >= 2
        first, *others = zip(inputs.raw, inputs.seen, strict=True)
        assert torch.equal(first[0], x.flatten(1) if build is small_mlp else x)
        assert torch.equal(*first)
        for raw, seen in others:
            alive = raw != 0
            dropped = alive & (seen == 0)
            n = int(alive.sum())
            assert n > 20
            tolerance = 4.5 * math.sqrt(0.4 * 0.6 / n)
            assert float(dropped.sum()) / n == pytest.approx(0.4, abs=tolerance)
            kept = ~dropped
            torch.testing.assert_close(seen[kept], raw[kept] / 0.6)
        # Evaluation sees the network whole.
        model.eval()
        model(x)
        assert all(map(torch.equal, inputs.raw, inputs.seen))

    def test_single_units_of_single_samples_are_dropped(self):
        model = nn.Sequential(nn.Identity(), nn.Conv2d(1, 2, 1), nn.Conv2d(2, 1, 1))
        inputs = LayerInputs(model)
        with dropped_inputs(model, rate=0.5, generator=torch.Generator().manual_seed(0)):
            model(torch.randn(30, 1, 10, 10))
        dropped = (inputs.seen[1] == 0).double()  # (samples, channels, 10, 10)
        for axes in ((1, 2, 3), (0, 1), (0, 2, 3)):
            share = dropped.mean(dim=axes)
            assert ((share > 0.3) & (share < 0.7)).all()

    def test_keeps_the_expectation_of_every_layers_input(self):
        """The mean output of a network of linear layers is that without dropout."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)).double()
        x = torch.randn(1, 4, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad(), dropped_inputs(model, rate=0.3, generator=generator):
            outputs = model(x.expand(20000, 4))
        error = outputs.std(dim=0) / math.sqrt(20000)
        assert ((outputs.mean(dim=0) - model(x)[0]).abs() < 4 * error).all()
        assert (error < 0.01).all()

    @MEASURED
    def test_gradient_is_that_of_the_loss_with_the_same_units_dropped(self, measured):
        model, x, y = case(small_mlp)
        spy = LayerInputs(model)
        scheme = Dropout(rate=0.4, setting=SETTING)
        recorder = taken(scheme, model, Batch(x, y), loss="cross_entropy", measured=measured)
        found = flat_gradient(model)
        mask = spy.seen[1] != 0  # where the unit was 0 before, it does not matter
        spy.remove()
        hidden = torch.relu(model[1](x.flatten(1))) * mask / 0.6
        losses = cross_entropy(model[3](hidden), y)
        torch.testing.assert_close(found, by_autograd(model, losses.mean()))
        if measured:
            assert_plain(recorder, model, Batch(x, y))
        else:
            torch.testing.assert_close(recorder.losses, losses.detach())

    def test_a_run_is_evaluated_without_dropout(self):
        dropout = {"scheme.name": "dropout", "scheme.rate": 0.6, "training.max_epochs": 1}
        found = run(UNMEASURED_AT_THE_END | dropout)
        data = found.state.dataset
        loss, accuracy = reference.mean_loss_and_accuracy(
            found.state.model, data.train_x, data.train_y, "cross_entropy"
        )
        assert found.row["train/loss"] == pytest.approx(loss, rel=1e-5)
        assert found.row["train/accuracy"] == pytest.approx(accuracy)


MEAN = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor([0.25, 0.2, 0.1], dtype=torch.float64).view(3, 1, 1)
"""Of the raw values by channel, scaled to [0, 1]."""


def adversarial(pixels: float) -> Adversarial:
    return Adversarial(
        pixels=pixels,
        black=-MEAN.flatten() / STD.flatten(),
        white=(1 - MEAN).flatten() / STD.flatten(),
    )


def colour_case() -> tuple[nn.Module, Tensor, Tensor]:
    """A network, raw pixel values 0 .. 255 (many of them at either end) and labels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 4)]
    raw = torch.randint(-60, 316, (9, 3, 5, 5)).clamp(0, 255).double()
    return nn.Sequential(*layers).double(), raw, torch.randint(4, (9,))


class TestAdversarial:
    @MEASURED
    @pytest.mark.parametrize("pixels", [1.0, 7.5])
    def test_every_pixel_moves_so_far_towards_a_larger_loss(self, pixels, measured):
        model, raw, y = colour_case()
        x = (raw / 255 - MEAN) / STD
        images = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cross_entropy(model(images), y).mean(), images)
        target = (raw + pixels * slope.sign()).clamp(0, 255)
        at_an_end = (target - raw).abs() < pixels
        assert 0 < float(at_an_end.double().mean()) < 0.3
        norm, seen = model[1], []
        norm.reset_running_stats()
        handle = model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        batch = Batch(x.clone(), y)
        recorder = taken(adversarial(pixels), model, batch, loss="cross_entropy", measured=measured)
        found, statistics = flat_gradient(model), norm.running_mean.clone()
        handle.remove()
        clean, moved = seen
        assert torch.equal(clean, x)
        torch.testing.assert_close((moved * STD + MEAN) * 255, target, rtol=0, atol=1e-9)
        assert torch.equal(batch.inputs, x)
        assert not batch.inputs.requires_grad
        # BatchNorm's statistics are of the moved images alone.
        assert int(norm.num_batches_tracked) == 1
        torch.testing.assert_close(statistics, 0.1 * model[0](moved).mean(dim=(0, 2, 3)).detach())
        losses = cross_entropy(model(moved), y)
        torch.testing.assert_close(found, by_autograd(model, losses.mean()))
        assert_plain(recorder, model, Batch(x, y))

    def test_is_the_worst_case_in_the_box_for_a_linear_model(self):
        """log(1 + exp(-margin)), the margin less by sum_c eps_c ||w_yc - w_other,c||_1."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
        raw, y = torch.randint(20, 236, (8, 3, 2, 2)).double(), torch.randint(2, (8,))
        x = (raw / 255 - MEAN) / STD
        adversarial(4.0).gradient(Step(model, Batch(x, y), loss="cross_entropy"))
        found = flat_gradient(model)
        weight, bias = model[1].weight, model[1].bias
        sign = 2.0 * y - 1  # of class 1 against class 0
        difference = weight[1] - weight[0]
        reach = (4 / 255 / STD).expand(3, 2, 2).flatten()
        margin = sign * (x.flatten(1) @ difference + bias[1] - bias[0])
        worst = margin - (reach * difference.abs()).sum()
        expected = by_autograd(model, torch.log1p(torch.exp(-worst)).mean())
        torch.testing.assert_close(found, expected)

    def test_reach_and_range_are_those_of_the_data(self):
        """By the mean and std of the digits, of which most pixels are black."""
        state = training.start(config({"scheme.name": "adversarial", "scheme.pixels": 2.0}))
        seen: list[Tensor] = []
        state.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        state.stepper.step(0, learning_rate=0.1)
        (mean,), (std,) = state.dataset.normalization_mean, state.dataset.normalization_std
        clean, moved = [(images.double() * std + mean) * 255 for images in seen]
        up, down = (clean + 2).clamp(max=255), (clean - 2).clamp(min=0)
        nearest = torch.minimum((moved - up).abs(), (moved - down).abs())
        assert nearest.max() < 1e-3
        for end in (up, down):
            assert 0.2 < float(((moved - end).abs() < 1e-3).double().mean()) < 0.9
