"""BatchNorm: statistics that stay, and the measures of networks that have it."""

import copy
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.model import ModelConfig, PreActResNet18Config, VGG16Config
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import load_dataset
from gisgd_ray.errors import UserError
from gisgd_ray.measures.displaced import Samples, WeightNoise
from gisgd_ray.measures.flatness import FlatnessRun, flatness_gaps
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.measures.sensitivity import local_gradient_sensitivity
from gisgd_ray.networks import per_sample
from gisgd_ray.networks.batchnorm import frozen_statistics, mixes_samples
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.models import build_model, is_piecewise_linear, num_parameters
from gisgd_ray.networks.residual import PreActBlock
from gisgd_ray.training import loop as training
from tests.measures.test_invisible import nothing_changes
from tests.support import reference, reference_networks, reference_sensitivity
from tests.support.runs import Finished, finish

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
CLASSES = 3

TINY_VGG16 = (VGG16Config(filters=1, hidden=4), (1, 32, 32))
TINY_RESNET = (PreActResNet18Config(filters=1), (1, 8, 8))


def data(n: int, *shape: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(n, *shape, generator=source, dtype=torch.float64)
    return x, torch.arange(n) % CLASSES


def used(model: nn.Module, x: Tensor) -> nn.Module:
    """In float64 and train mode, its statistics and affine weights those of no new network."""
    torch.manual_seed(3)
    model = model.double().train()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.uniform_(-0.5, 0.5)
        for _ in range(20):
            model(x)
    return model


@lru_cache
def tiny(config: ModelConfig, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor, Tensor]:
    """A used network with few filters: leave it as it is."""
    x, y = data(5, *shape)
    model = build_model(config, shape, CLASSES, seed=2, initialization="kaiming")
    return used(model, x), x, y


def small_vgg() -> nn.Sequential:
    """Two blocks as in VGG16, and a BatchNorm over vectors; 6 x 6 images."""
    return nn.Sequential(
        *[nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)],
        *[nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()],
        *[nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 4), nn.BatchNorm1d(4, eps=0.1), nn.ReLU()],
        nn.Linear(4, CLASSES),
    )


def small_residual() -> nn.Sequential:
    """Blocks with and without a convolution in the shortcut, and a BatchNorm without weights."""
    return nn.Sequential(
        *[nn.Conv2d(1, 1, 3, padding=1, bias=False), PreActBlock(1, 1, stride=1)],
        *[PreActBlock(1, 2, stride=2), nn.BatchNorm2d(2, affine=False), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, CLASSES)],
    )


def small(build: Any) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = data(5, 1, 6, 6)
    return used(build(), x), x, y


def small_trial(changes: dict[str, Any], model: dict[str, Any] | None = None) -> TrialConfig:
    """Two epochs, by default of PreActResNet18 with two filters, on 50 digits in batches of 20."""
    fields: dict[str, Any] = {
        "data.train_fraction": 0.0125,
        "training.learning_rate": 0.1,
        "training.batch_size": 20,
        "training.max_epochs": 2,
    }
    model = model or {"name": "preactresnet18", "filters": 2}
    return TrialConfig.model_validate({"model": model} | unflatten(fields | changes))


def small_run(changes: dict[str, Any]) -> Finished:
    """That trial on images of 14 x 14, with 100 of them to test."""
    config = small_trial(changes)
    digits = load_dataset(config.data, seed=config.seed)
    every_second = (..., slice(None, None, 2), slice(None, None, 2))
    digits = replace(
        digits,
        train_x=digits.train_x[every_second],
        test_x=digits.test_x[:100][every_second],
        test_y=digits.test_y[:100],
    )
    whole = config.changed({"data.train_fraction": 1.0})  # of what is given
    return finish(training.start(whole, dataset=digits))


class TestFrozenStatistics:
    @pytest.mark.parametrize("build", [small_vgg, small_residual])
    def test_a_pass_is_that_of_train_mode_and_leaves_the_buffers_alone(self, build):
        model, x, _ = small(build)
        kept = copy.deepcopy(model.state_dict())
        with frozen_statistics(model):
            found = model(x)
            assert all(module.training for module in model.modules())
        torch.testing.assert_close(dict(model.state_dict()), dict(kept), rtol=0, atol=0)
        expected = model(x)  # a pass that counts
        assert torch.equal(found, expected)
        moved = model.state_dict()
        assert not any(torch.equal(moved[k], kept[k]) for k in kept if "running_mean" in k)
        assert all(moved[k] == kept[k] + 1 for k in kept if "num_batches" in k)

    def test_gradients_are_those_of_train_mode(self):
        model, x, y = small(small_residual)
        other = copy.deepcopy(model)
        with frozen_statistics(model):
            F.cross_entropy(model(x), y).backward()
        F.cross_entropy(other(x), y).backward()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)

    def test_is_over_after_an_exception_too(self):
        model, x, _ = small(small_vgg)
        with pytest.raises(RuntimeError, match="channels"), frozen_statistics(model):
            model(x[:, :, 0])
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        assert all(norm.track_running_stats for norm in norms)
        before = norms[0].num_batches_tracked.clone()
        model(x)
        assert norms[0].num_batches_tracked == before + 1

    def test_layers_that_evaluate_go_on_using_their_statistics(self):
        model, x, _ = small(small_vgg)
        model[1].eval()
        model[5].track_running_stats = False  # as a caller may have set it
        kept = copy.deepcopy(model.state_dict())
        expected = copy.deepcopy(model)(x)
        with frozen_statistics(model):
            assert torch.equal(model(x), expected)
        assert not model[1].training
        assert model[1].track_running_stats
        assert not model[5].track_running_stats
        torch.testing.assert_close(dict(model.state_dict()), dict(kept), rtol=0, atol=0)

    def test_may_be_nested(self):
        model, x, _ = small(small_vgg)
        kept = copy.deepcopy(model.state_dict())
        with frozen_statistics(model):
            with frozen_statistics(model):
                model(x)
            model(x)
        torch.testing.assert_close(dict(model.state_dict()), dict(kept), rtol=0, atol=0)
        assert model[1].track_running_stats

    @pytest.mark.parametrize(
        ("layer", "mixes"),
        [
            (nn.BatchNorm2d(2), True),
            (nn.BatchNorm1d(2, affine=False), True),
            (nn.BatchNorm2d(2).eval(), False),
            (nn.BatchNorm2d(2, track_running_stats=False).eval(), True),
            (nn.GroupNorm(1, 2), False),
            (nn.Conv2d(2, 2, 1), False),
        ],
    )
    def test_which_layers_mix_samples(self, layer, mixes):
        """The first sample's output moves with the second one, or does not."""
        shape = (2, 2) if isinstance(layer, nn.BatchNorm1d) else (2, 2, 3, 3)
        x, other = torch.randn(shape), torch.randn(shape)
        other[0] = x[0]
        assert (not torch.equal(layer(x)[0], layer(other)[0])) is mixes
        assert mixes_samples(layer) is mixes


class TestExactTrace:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(("config", "shape"), [TINY_VGG16, TINY_RESNET])
    def test_of_the_papers_networks_equals_the_dense_hessians(self, config, shape, loss):
        """The model trains; the trace is that of the network which evaluates."""
        model, x, y = tiny(config, shape)
        assert model.training
        found = HessianOperator(model, x, y, loss).trace("exact")
        truth = reference_networks.hessian_trace(model, x, y, loss)
        assert found.value == pytest.approx(truth, rel=1e-8)
        assert (found.estimator, found.standard_error) == ("exact", 0.0)
        assert HessianOperator(model, x, y, loss).trace() == found
        ragged = HessianOperator(model, x, y, loss, chunk=2).trace()
        assert ragged.value == pytest.approx(truth, rel=1e-8)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_vgg, small_residual])
    def test_of_small_networks(self, build, loss):
        model, x, y = small(build)
        found = HessianOperator(model, x, y, loss).trace("exact")
        truth = reference.hessian_trace(model, x, y, loss)
        assert found.value == pytest.approx(truth, rel=1e-8)
        assert reference_networks.hessian_trace(model, x, y, loss) == pytest.approx(truth)

    @pytest.mark.parametrize("config", [TINY_VGG16, TINY_RESNET])
    def test_every_layer_takes_part(self, config):
        """A network whose ReLUs are all off in some layer would say nothing about those before."""
        model, x, y = tiny(*config)
        gradients = list(reference.gradients(model, x, y, "squared"))
        start = 0
        for parameter in model.parameters():
            part = slice(start, start + parameter.numel())
            assert any(float(g[part].abs().max()) > 1e-6 for g in gradients)
            start += parameter.numel()

    def test_a_container_of_another_kind_is_refused(self):
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inside = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                inside: Tensor = self.inside(x) ** 2
                return inside

        model = nn.Sequential(Twice(), nn.ReLU(), nn.Linear(4, CLASSES))
        assert not is_piecewise_linear(model)
        x, y = torch.randn(3, 4), torch.arange(3)
        with pytest.raises(UserError, match=r"'exact' needs .*another kind"):
            HessianOperator(model, x, y, "squared").trace("exact")
        assert HessianOperator(model, x, y, "squared").trace(probes=2).estimator == "pyhessian"

    def test_when_a_block_is_piecewise_linear(self):
        for block in (PreActBlock(2, 2, stride=1), PreActBlock(2, 3, stride=2)):
            model = nn.Sequential(nn.Conv2d(1, 2, 1), block)
            assert not is_piecewise_linear(model.train())
            assert is_piecewise_linear(model.eval())
            assert is_piecewise_linear(block)
            block.residual[1].train()
            assert not is_piecewise_linear(model)
            block.residual[1] = nn.Tanh()
            assert not is_piecewise_linear(model)


class TestPerSampleNorms:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        "case",
        [lambda: tiny(*TINY_VGG16), lambda: tiny(*TINY_RESNET)]
        + [lambda build=build: small(build) for build in (small_vgg, small_residual)],
        ids=["vgg16", "preactresnet18", "small_vgg", "small_residual"],
    )
    def test_in_evaluation_mode_against_a_loop(self, case, loss):
        model, x, y = case()
        model = copy.deepcopy(model).eval()
        norms = per_sample.per_sample_norms(model)
        assert type(norms) is per_sample.LayerNorms
        with norms.watch():
            per_sample_loss(loss, model(x), y).mean().backward()
        squared = norms.squared(len(x))
        expected = [float((g**2).sum()) for g in reference.gradients(model, x, y, loss)]
        assert squared.tolist() == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5), (6, 4, 3, 2)])
    def test_of_one_layer_by_hand(self, shape):
        """sum_c (sum_l d_cl x^_cl)^2 + (sum_l d_cl)^2, places l, d the gradient at the output."""
        torch.manual_seed(0)
        kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
        layer = kind(4, eps=0.3).eval().double()
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.2, 2)
        x, d = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
        for i, found in enumerate(per_sample.squared_norm(layer, x, d)):
            total = 0.0
            for c in range(4):
                std = math.sqrt(float(layer.running_var[c]) + 0.3)
                normalised = (x[i, c] - layer.running_mean[c]) / std
                total += float((d[i, c] * normalised).sum()) ** 2 + float(d[i, c].sum()) ** 2
            assert float(found) == pytest.approx(total, rel=1e-12)


def measure_all(model: nn.Module, x: Tensor, y: Tensor, loss: LossName) -> dict[str, float]:
    hessian = HessianOperator(model, x, y, loss)
    hessian.trace()
    data, noise = Samples(x, y, loss), WeightNoise([0.05], 0)
    (moved,) = local_gradient_sensitivity(model, data, noise, draws=2, step=1)
    run = FlatnessRun(model, data.at(slice(3)), data.at(slice(3, None)), noise)
    [(gap,)] = flatness_gaps([run], draws=[4], target=0.0)
    top = hessian.largest_eigenvalue(max_iterations=300)
    return {"psi": moved.value, "gap": gap.signed, "beta": top.value}


class TestMeasures:
    @pytest.mark.parametrize("double", [True, False])
    @pytest.mark.parametrize("config", [TINY_VGG16, TINY_RESNET])
    def test_leave_no_trace_in_the_middle_of_training(self, config, double):
        model, x, y = tiny(*config)
        model, x = copy.deepcopy(model), x if double else x.float()
        model = model if double else model.float()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        next(iter(model.parameters())).grad = None
        model[1].eval()
        with nothing_changes(model, optimizer):
            found = measure_all(model, x, y, "cross_entropy")
        assert all(map(math.isfinite, found.values()))
        assert model.training

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_vgg, small_residual])
    def test_are_those_of_the_network_that_evaluates(self, build, loss):
        model, x, y = small(build)
        found = measure_all(model, x, y, loss)
        assert found == measure_all(copy.deepcopy(model).eval(), x, y, loss)
        truth = reference_sensitivity.smoothness(model, x, y, loss)
        assert found["beta"] == pytest.approx(truth, rel=1e-4)


class TestWholeRun:
    def test_of_preactresnet18_has_every_bound(self):
        measured = {"sensitivity": True, "sensitivity_draws": 2, "flatness_draws": 4}
        row = small_run({f"measurement.{name}": value for name, value in measured.items()}).row
        assert row["status"] == "finished"
        assert row["outside_theorem"] == "batch normalisation"
        assert row["measure/hessian_trace_estimator"] == "exact"
        values = {k: v for k, v in row.items() if k.startswith(("bound/", "term/", "measure/"))}
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        assert len(numbers) > 40
        assert [k for k, v in numbers.items() if not math.isfinite(v)] == []
        assert row["bound/theorem2_closed_form"] > 0
        assert row["num_parameters"] == num_parameters(
            build_model(PreActResNet18Config(filters=2), (1, 28, 28), 10, seed=0)
        )
