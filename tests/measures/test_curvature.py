"""The Hessian trace, exact and estimated, against the dense Hessian in float64."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from gisgd_ray.errors import UserError
from gisgd_ray.measures import curvature
from gisgd_ray.measures.curvature import hessian_trace
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.models import alexnet
from tests.support import reference
from tests.support.networks import (
    case,
    small_batchnorm,
    small_conv,
    small_groupnorm,
    small_in_place,
    small_mlp,
    small_tanh,
)

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")


class TestExact:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_equals_the_dense_hessian(self, build, loss):
        model, x, y = case(build)
        found = hessian_trace(model, x, y, loss=loss)
        assert found.estimator == "exact"
        assert found.standard_error == 0
        assert found.value == pytest.approx(reference.hessian_trace(model, x, y, loss), rel=1e-6)
        assert hessian_trace(model, x, y, loss=loss, method="exact") == found

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_conv, small_batchnorm])
    def test_in_float32(self, build, loss):
        model, x, y = case(build, double=False)
        found = hessian_trace(model, x, y, loss=loss)
        assert found.value == pytest.approx(reference.hessian_trace(model, x, y, loss), rel=1e-5)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_after_training_when_most_probabilities_are_small(self, loss):
        model, x, y = case(small_mlp, double=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            per_sample_loss(loss, model(x), y).mean().backward()
            optimizer.step()
        assert per_sample_loss(loss, model(x), y).mean() < (
            0.02 if loss == "cross_entropy" else 0.1
        )
        found = hessian_trace(model, x, y, loss=loss)
        assert found.value == pytest.approx(reference.hessian_trace(model, x, y, loss), rel=1e-5)

    def test_by_hand(self):
        """f_k = w_k . x: squared loss K ||x||^2; two-class cross-entropy 2 p (1 - p) ||x||^2."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]))
        x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
        assert hessian_trace(model, x, y, loss="squared").value == pytest.approx(5.0)
        # p = 3/4 and 1/2, so (2 * 3/16 * 1 + 2 * 1/4 * 4) / 2.
        assert hessian_trace(model, x, y, loss="cross_entropy").value == pytest.approx(1.1875)

    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_chunks_change_nothing_a_ragged_last_one_included(self, build):
        model, x, y = case(build)
        whole = hessian_trace(model, x, y, loss="cross_entropy", chunk=100)
        for chunk in (1, 4, 11):
            part = hessian_trace(model, x, y, loss="cross_entropy", chunk=chunk)
            assert part.value == pytest.approx(whole.value, rel=1e-12)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_labels_play_no_role(self, loss):
        model, x, y = case(small_conv)
        others = (y + 1 + torch.arange(len(y)) % 3) % 4
        assert (others != y).all()
        found = hessian_trace(model, x, y, loss=loss)
        assert hessian_trace(model, x, others, loss=loss) == found
        other = reference.hessian_trace(model, x, others, loss)
        assert found.value == pytest.approx(other, rel=1e-6)

    @pytest.mark.parametrize("affine", [True, False])
    def test_batchnorm_counts_as_it_is_in_evaluation_mode(self, affine):
        """The model trains, the trace is of the network that evaluates."""
        model, x, y = case(small_batchnorm)
        norm = nn.BatchNorm2d(3, affine=affine).double()
        norm.load_state_dict(model[1].state_dict(), strict=affine)
        if affine:  # a scale and shift of training, not the initial 1 and 0
            with torch.no_grad():
                norm.weight.copy_(torch.tensor([0.5, -2.0, 3.0]))
                norm.bias.copy_(torch.tensor([0.1, 0.4, -0.2]))
        model[1] = norm
        assert model[1].training
        found = hessian_trace(model, x, y, loss="squared")
        assert found.estimator == "exact"
        truth = reference.hessian_trace(model, x, y, "squared")
        assert found.value == pytest.approx(truth, rel=1e-6)

    def test_refuses_what_it_does_not_cover(self):
        refused = [(small_tanh, "another kind"), (small_groupnorm, "GroupNorm")]
        for build, obstacle in [*refused, (small_in_place, "overwrites")]:
            model, x, y = case(build)
            with pytest.raises(UserError, match=rf"'exact' needs .*{obstacle}.*'pyhessian'"):
                hessian_trace(model, x, y, loss="squared", method="exact")
        # BatchNorm without running statistics takes the batch's, also in evaluation mode.
        model, x, y = case(small_batchnorm)
        model[1] = nn.BatchNorm2d(3, track_running_stats=False).double()
        with pytest.raises(UserError, match=r"'exact' needs .*BatchNorm2d.*'pyhessian'"):
            hessian_trace(model, x, y, loss="squared", method="exact")


class TestEstimated:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm, small_tanh])
    def test_within_three_standard_errors(self, build, loss):
        model, x, y = case(build)
        truth = reference.hessian_trace(model, x, y, loss)
        found = hessian_trace(model, x, y, loss=loss, method="pyhessian", probes=150, seed=1)
        assert found.estimator == "pyhessian"
        assert 0 < found.standard_error < 0.2 * abs(truth)
        assert abs(found.value - truth) < 3 * found.standard_error

    @pytest.mark.parametrize("chunk", [100, 4])
    def test_mean_and_standard_error_from_probes_drawn_by_hand(self, chunk):
        """Rademacher vectors of the same stream on the dense Hessian, a last chunk being ragged."""
        model, x, y = case(small_mlp)
        probes, dense = 20, reference.hessian(model, x, y, "cross_entropy")
        found = hessian_trace(
            model, x, y, loss="cross_entropy", method="pyhessian", probes=probes, chunk=chunk
        )
        draws = []
        with curvature.invisible(model, seed=0, purpose="hessian_trace"):
            for _ in range(probes):
                parts = [torch.randint_like(p, high=2) for p in model.parameters()]
                v = torch.cat([p.flatten() for p in parts]) * 2 - 1
                draws.append(float(v @ dense @ v))
        mean = sum(draws) / probes
        variance = sum((draw - mean) ** 2 for draw in draws) / (probes - 1)
        rel = 1e-9 if chunk == 100 else 1e-6
        assert found.value == pytest.approx(mean, rel=rel)
        assert found.standard_error == pytest.approx(math.sqrt(variance / probes), rel=rel)

    def test_seed_decides(self):
        model, x, y = case(small_tanh)
        settings: dict[str, Any] = {"loss": "squared", "method": "pyhessian", "probes": 4}
        first = hessian_trace(model, x, y, **settings, seed=0)
        torch.rand(3)
        assert hessian_trace(model, x, y, **settings, seed=0) == first
        assert hessian_trace(model, x, y, **settings, seed=1) != first

    @pytest.mark.parametrize("build", [small_tanh, small_groupnorm, small_in_place])
    def test_auto_falls_back_to_it(self, build):
        model, x, y = case(build)
        found = hessian_trace(model, x, y, loss="squared", method="auto", probes=5)
        assert found == hessian_trace(model, x, y, loss="squared", method="pyhessian", probes=5)

    def test_auto_falls_back_for_grouped_frozen_and_shared_layers(self):
        torch.manual_seed(0)
        head = [nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)]
        grouped = nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), *head)
        frozen = nn.Sequential(nn.Conv2d(2, 2, 2), *head)
        frozen[0].weight.requires_grad_(False)
        layer = nn.Linear(18, 18)
        shared = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(18, 4))
        x, y = torch.randn(5, 2, 3, 3), torch.randint(4, (5,))
        for model in (grouped, frozen, shared):
            found = hessian_trace(model, x, y, loss="squared", probes=100)
            assert found.estimator == "pyhessian"
            truth = reference.hessian_trace(model, x, y, "squared")
            assert abs(found.value - truth) < 3 * found.standard_error

    @pytest.mark.parametrize("chunk", [100, 3])
    def test_a_negative_trace_draws_every_probe_all_the_same(self, chunk, monkeypatch):
        """PyHessian's own rule divides by the running mean, unsigned: it would stop at probe 2."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
        with torch.no_grad():
            for layer, weight, bias in ((model[0], 0.1, 0.6), (model[2], 0.2, 20.0)):
                layer.weight.fill_(weight)
                layer.bias.fill_(bias)
        x, y = torch.linspace(0, 2, 7, dtype=torch.float64)[:, None], torch.zeros(7).long()
        # f is far above its target 1 and concave in the first layer: the curvature is negative.
        truth = reference.hessian_trace(model, x, y, "squared")
        assert truth < -10
        drawn = count_probes(monkeypatch)
        found = hessian_trace(model, x, y, loss="squared", probes=40, chunk=chunk)
        assert drawn == [40]
        assert found.value < 0
        assert abs(found.value - truth) < 3 * found.standard_error

    @pytest.mark.parametrize("probes", [2, 37])
    def test_number_of_probes_is_honoured(self, probes, monkeypatch):
        """On a quadratic with a diagonal Hessian all probes agree: the rule's favourite stop."""
        model = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
        x, y = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3).long()
        drawn = count_probes(monkeypatch)
        found = hessian_trace(model, x, y, loss="squared", method="pyhessian", probes=probes)
        assert drawn == [probes]
        assert found.value == pytest.approx(2.0)
        assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def count_probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives how many probes each call of PyHessian's ``trace`` returns."""
    drawn: list[int] = []

    class Counting(curvature.hessian):
        def trace(self, *args: Any, **kwargs: Any) -> list[float]:
            values = super().trace(*args, **kwargs)
            drawn.append(len(values))
            return values

    monkeypatch.setattr(curvature, "hessian", Counting)
    return drawn


def test_alexnet_exact_against_probes():
    """The real layout, its wide head cut down: no dense Hessian, so the two methods face off."""
    torch.manual_seed(0)
    model = alexnet((1, 28, 28), 10, filters=3)
    for index, (inputs, outputs) in {-5: (256, 20), -3: (20, 20), -1: (20, 10)}.items():
        model[index] = nn.Linear(inputs, outputs)
    x, y = torch.randn(6, 1, 28, 28), torch.randint(10, (6,))
    exact = hessian_trace(model, x, y, loss="cross_entropy")
    probed = hessian_trace(model, x, y, loss="cross_entropy", method="pyhessian", probes=60)
    assert exact.estimator == "exact"
    assert abs(probed.value - exact.value) < 3 * probed.standard_error
