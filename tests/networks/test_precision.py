"""Mixed precision on the CPU, and the limit on the gradient's norm."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.data.dataset import epoch_batches
from gisgd_ray.measures.dispersion import BySample, StepMeter
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.models import trainable
from gisgd_ray.schemes.base import Batch, Step
from gisgd_ray.schemes.label_smoothing import smoothed_loss
from gisgd_ray.schemes.sgd import SGD
from gisgd_ray.training import loop as training
from tests.support.networks import Builder, case, small_batchnorm, small_conv, small_mlp
from tests.support.runs import config, finish, run, series_bits, untimed, weight_bits

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
BFLOAT16 = {"training.precision": "bfloat16"}


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.double().flatten() for p in trainable(model) if p.grad is not None])


def step(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> Step:
    return Step(model, Batch(x, y), **{"loss": "cross_entropy", **options})


class TestFloat32:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_passes_are_the_plain_ones_to_the_bit(self, build: Builder, loss):
        model, x, y = case(build, double=False)
        other = copy.deepcopy(model)
        losses = step(model, x, y, loss=loss).plain()
        expected = per_sample_loss(loss, other(x), y)
        expected.mean().backward()
        assert torch.equal(losses, expected)
        assert not losses.requires_grad
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)


class TestBFloat16:
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_outputs(self, build: Builder):
        model, x, y = case(build, double=False)
        with torch.no_grad():
            full = step(model, x, y).forward(x)
            mixed = step(model, x, y, precision="bfloat16").forward(x)
        assert mixed.dtype == torch.float32
        size = float(full.abs().max())
        error = float((mixed - full).abs().max())
        assert 0 < error < 0.03 * size

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_gradients(self, build: Builder, loss):
        model, x, y = case(build, double=False)
        step(model, x, y, loss=loss).plain()
        full = flat(model)
        losses = step(model, x, y, loss=loss, precision="bfloat16").plain()
        assert losses.dtype == torch.float32
        for p in model.parameters():
            assert p.dtype == p.grad.dtype == torch.float32
        mixed = flat(model)
        assert 0 < float((mixed - full).norm()) < 0.04 * float(full.norm())

    def test_is_repeatable_to_the_bit(self):
        model, x, y = case(small_conv, double=False)
        found = []
        for _ in range(2):
            losses = step(model, x, y, precision="bfloat16").plain()
            found.append([losses, *(p.grad for p in model.parameters())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    def test_norms_by_sample_against_a_loop_in_the_same_precision(self, build: Builder, loss):
        model, x, y = case(build, double=False)
        squares = []
        for i in range(len(x)):
            step(model, x[i : i + 1], y[i : i + 1], loss=loss, precision="bfloat16").plain()
            squares.append(float(flat(model).square().sum()))
        by_sample = BySample(model)
        meter = StepMeter(dispersion=by_sample)
        SGD().gradient(step(model, x, y, loss=loss, precision="bfloat16", meter=meter))
        found = by_sample._squared[0]
        assert found.tolist() == pytest.approx(squares, rel=0.02)
        norm = float(flat(model).square().sum())
        meter.close(learning_rate=0.1)
        series = meter.drain()
        assert series.mean_squared_norm[0] == pytest.approx(sum(squares) / len(x), rel=0.02)
        # Of the gradient that is applied nothing is rounded: it is float32.
        assert series.squared_gradient_norm[0] == pytest.approx(norm, rel=1e-6)

    def test_squares_are_summed_in_full(self):
        """300 weights alike: a sum kept in bfloat16 would stop growing at 256 of them."""
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 2))
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(1.0)
        meter = StepMeter(dispersion=BySample(model))
        x, y = torch.ones(2, 4), torch.tensor([0, 1])
        SGD().gradient(step(model, x, y, precision="bfloat16", meter=meter))
        meter.close(learning_rate=0.1)
        # Both outputs equal, d = +-1/2 there: 2/4 (300 * 5^2 + 1); the hidden units get 0.
        assert meter.drain().mean_squared_norm[0] == pytest.approx(0.5 * 7501, rel=1e-5)

    @pytest.mark.parametrize(
        "scheme",
        [
            {"name": "sgd"},
            {"name": "gmp", "estimator": "weights"},
            {"name": "gmp", "estimator": "local"},
            {"name": "sam"},
            {"name": "mixup"},
            {"name": "label_smoothing"},
            {"name": "dropout"},
            {"name": "adversarial"},
        ],
        ids=lambda scheme: "-".join(scheme.values()),
    )
    def test_runs(self, scheme):
        """Every scheme trains, close to what it does in full precision, and the row says so."""
        changes = {f"scheme.{name}": value for name, value in scheme.items()}
        changes |= {"measurement.smoothness": False, "measurement.hessian_trace": "off"}
        changes |= {"training.learning_rate": 0.02}  # at 0.1 any difference grows
        full, mixed = run(changes), run(changes | BFLOAT16)
        assert weight_bits(mixed.state) != weight_bits(full.state)
        assert all(p.dtype == torch.float32 for p in mixed.state.model.parameters())
        assert mixed.row["train/loss"] == pytest.approx(full.row["train/loss"], rel=0.01)
        assert mixed.row["train/loss"] < 0.9 * mixed.points[0]["train/loss"]
        for name in ("gradient_dispersion", "gradient_norm"):
            value = mixed.row[f"measure/{name}"]
            assert value == pytest.approx(full.row[f"measure/{name}"], rel=0.02)
        assert "passes in bfloat16" in mixed.row["outside_theorem"]
        assert "bfloat16" not in str(full.row["outside_theorem"])

    def test_of_batchnorm_too(self):
        model, x, y = case(small_batchnorm, double=False)
        kept = copy.deepcopy(model[1])
        step(model, x, y, precision="bfloat16").plain()
        assert model[1].running_mean.dtype == torch.float32
        assert not torch.equal(model[1].running_mean, kept.running_mean)


class TestRuns:
    def test_tf32_is_for_gpus_and_changes_no_bit_here(self):
        full, tf32 = run(), run({"training.precision": "tf32"})
        assert weight_bits(full.state) == weight_bits(tf32.state)
        assert series_bits(full.series) == series_bits(tf32.series)
        assert "passes in tf32" in tf32.row["outside_theorem"]

    def test_a_run_is_repeatable_to_the_bit(self):
        first, again = run(BFLOAT16), finish(training.start(config(BFLOAT16)))
        assert weight_bits(first.state) == weight_bits(again.state)
        assert series_bits(first.series) == series_bits(again.series)
        assert untimed(first.row) == untimed(again.row)


LIMIT = "training.max_gradient_norm"


BY_AUTOGRAD = {"training.momentum": 0.5}
"""As every run with a limit is."""


class TestMaxGradientNorm:
    @pytest.mark.parametrize("scheme", ["sgd", "label_smoothing"])
    def test_steps_by_hand(self, scheme):
        """g min(1, limit / (||g|| + 1e-6)) of the scheme's gradient, then the optimizer."""
        limit = 0.5
        state = training.start(
            config({"scheme.name": scheme, LIMIT: limit, "training.momentum": 0.9})
        )
        model, data = copy.deepcopy(state.model), state.dataset
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaled = 0
        for number, indices in enumerate(
            epoch_batches(200, 60, seed=0, epoch=0, last_batch="keep")
        ):
            optimizer.zero_grad()
            outputs = model(data.train_x[indices])
            smoothing = 0.2 if scheme == "label_smoothing" else 0.0
            smoothed_loss(
                "cross_entropy", outputs, data.train_y[indices], smoothing
            ).mean().backward()
            norm = math.sqrt(float(flat(model).square().sum()))
            scaled += norm > limit
            for p in model.parameters():
                p.grad.mul_(min(1.0, limit / (norm + 1e-6)))
            optimizer.step()
            state.stepper.step(number, learning_rate=0.1)
        assert scaled > 0
        for p, q in zip(state.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)

    def test_is_torchs_own_to_the_bit(self):
        state = training.start(config({LIMIT: 0.5}))
        model, data = copy.deepcopy(state.model), state.dataset
        indices = torch.arange(60)
        per_sample_loss(
            "cross_entropy", model(data.train_x[indices]), data.train_y[indices]
        ).mean().backward()
        assert nn.utils.clip_grad_norm_(model.parameters(), 0.5) > 0.5
        state.stepper.train_on(indices, learning_rate=0.1)
        for p, q in zip(state.model.parameters(), model.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)

    @pytest.mark.parametrize("scheme", ["sgd", "gmp", "clipping"])
    def test_one_that_is_never_reached_changes_nothing(self, scheme):
        changes = BY_AUTOGRAD | {"scheme.name": scheme}
        free, limited = run(changes), run(changes | {LIMIT: 1e30})
        assert weight_bits(free.state) == weight_bits(limited.state)
        assert series_bits(free.series) == series_bits(limited.series)
        assert "gradient norm limited" in limited.row["outside_theorem"]

    def test_comes_after_the_scheme(self):
        """Clipped gradients have a tenth of their norm, below a limit above which it was."""
        scheme = {"scheme.name": "clipping", "scheme.start_epoch": 0, "scheme.factor": 0.1}
        scheme |= BY_AUTOGRAD
        scheme |= {"scheme.initial_threshold": 1e-3}  # every step is clipped, to 1e-4
        free, limited = run(scheme), run(scheme | {LIMIT: 0.01})
        assert (free.series.gradient_factor < 1).all()
        assert (free.series.squared_gradient_norm > 0.01).all()
        assert weight_bits(free.state) == weight_bits(limited.state)

    @pytest.mark.parametrize("of", ["plain", "applied"])
    def test_what_is_measured_is_what_the_scheme_gives_out(self, of):
        """The limit belongs to the optimizer: the first step's measures do not know it."""
        measured = BY_AUTOGRAD | {"measurement.dispersion_of": of}
        free, limited = run(measured), run(measured | {LIMIT: 0.1})
        assert limited.series.squared_gradient_norm[0] > 0.01
        for name, column in free.series.head(1).columns().items():
            assert column.tobytes() == limited.series.head(1).columns()[name].tobytes(), name
        assert weight_bits(free.state) != weight_bits(limited.state)
