"""Products, trace and largest eigenvalue of the Hessian against the dense one in float64."""

import math
from typing import Any

import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from gisgd_ray.errors import UserError
from gisgd_ray.measures import hessian as module
from gisgd_ray.measures import lanczos
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.models import alexnet
from gisgd_ray.randomness import derived_seed
from tests.measures.test_invisible import in_mid_training, nothing_changes
from tests.support import reference, reference_sensitivity
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


def regression(scales: list[float]) -> tuple[nn.Module, Tensor, Tensor]:
    """1/2 (w.x - y)^2 with x along the axes: the Hessian diag(scales^2) / n."""
    x = torch.diag(torch.tensor(scales, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(len(scales), 1, bias=False)).double()
    return model, x, torch.ones(len(scales), dtype=torch.float64)


class Saddle(nn.Module):
    """f(x) = sum_j x_j a_j b_j, at a = b = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.b = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.a * self.b).sum(dim=1, keepdim=True)


class TestProducts:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        "build", [small_mlp, small_conv, small_tanh, small_in_place, small_batchnorm]
    )
    @pytest.mark.parametrize("chunk", [4, None])
    def test_of_vectors_and_stacks_are_those_of_the_dense_hessian(self, build, loss, chunk):
        model, x, y = case(build)
        dense = reference.hessian(model, x, y, loss)
        hessian = HessianOperator(model, x, y, loss, chunk=chunk)
        stack = torch.randn(len(dense), 3, dtype=torch.float64)
        torch.testing.assert_close(hessian @ stack, dense @ stack, rtol=1e-9, atol=1e-12)
        vector = stack[:, 1]
        assert (hessian @ vector).shape == vector.shape
        torch.testing.assert_close(hessian @ vector, dense @ vector, rtol=1e-9, atol=1e-12)

    def test_trace_and_eigenvalue_are_those_of_the_products(self):
        """All of H, column by column: one operator, whatever is asked of it."""
        model, x, y = case(small_conv)
        hessian = HessianOperator(model, x, y, "cross_entropy")
        d = sum(p.numel() for p in model.parameters())
        whole = hessian @ torch.eye(d, dtype=torch.float64)
        assert hessian.trace_exact().value == pytest.approx(float(whole.trace()), rel=1e-9)
        largest = float(torch.linalg.eigvalsh((whole + whole.T) / 2).abs().max())
        assert hessian.largest_eigenvalue(tolerance=1e-6).value == pytest.approx(largest, rel=1e-9)

    def test_leave_no_trace(self):
        model, optimizer, x, y = in_mid_training(small_conv)
        hessian = HessianOperator(model, x, y, "squared")
        with nothing_changes(model, optimizer):
            found = hessian @ torch.ones(sum(p.numel() for p in model.parameters()))
        assert not found.requires_grad


class TestExact:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_equals_the_dense_hessian(self, build, loss):
        model, x, y = case(build)
        found = HessianOperator(model, x, y, loss).trace()
        assert found.estimator == "exact"
        assert found.standard_error == 0
        assert found.value == pytest.approx(reference.hessian_trace(model, x, y, loss), rel=1e-6)
        assert HessianOperator(model, x, y, loss).trace("exact") == found

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_conv, small_batchnorm])
    def test_in_float32(self, build, loss):
        model, x, y = case(build, double=False)
        found = HessianOperator(model, x, y, loss).trace()
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
        found = HessianOperator(model, x, y, loss).trace()
        assert found.value == pytest.approx(reference.hessian_trace(model, x, y, loss), rel=1e-5)

    def test_by_hand(self):
        """f_k = w_k . x: squared loss K ||x||^2; two-class cross-entropy 2 p (1 - p) ||x||^2."""
        model = nn.Sequential(nn.Linear(2, 2, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]))
        x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])
        assert HessianOperator(model, x, y, "squared").trace().value == pytest.approx(5.0)
        # p = 3/4 and 1/2, so (2 * 3/16 * 1 + 2 * 1/4 * 4) / 2.
        assert HessianOperator(model, x, y, "cross_entropy").trace().value == pytest.approx(1.1875)

    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_chunks_change_nothing_a_ragged_last_one_included(self, build):
        model, x, y = case(build)
        whole = HessianOperator(model, x, y, "cross_entropy", chunk=100).trace()
        for chunk in (1, 4, 11):
            part = HessianOperator(model, x, y, "cross_entropy", chunk=chunk).trace()
            assert part.value == pytest.approx(whole.value, rel=1e-12)

    @pytest.mark.parametrize("loss", LOSSES)
    def test_labels_play_no_role(self, loss):
        model, x, y = case(small_conv)
        others = (y + 1 + torch.arange(len(y)) % 3) % 4
        assert (others != y).all()
        found = HessianOperator(model, x, y, loss).trace()
        assert HessianOperator(model, x, others, loss).trace() == found
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
        found = HessianOperator(model, x, y, "squared").trace()
        assert found.estimator == "exact"
        truth = reference.hessian_trace(model, x, y, "squared")
        assert found.value == pytest.approx(truth, rel=1e-6)

    def test_refuses_what_it_does_not_cover(self):
        refused = [(small_tanh, "another kind"), (small_groupnorm, "GroupNorm")]
        for build, obstacle in [*refused, (small_in_place, "overwrites")]:
            model, x, y = case(build)
            with pytest.raises(UserError, match=rf"'exact' needs .*{obstacle}.*'pyhessian'"):
                HessianOperator(model, x, y, "squared").trace("exact")
        # BatchNorm without running statistics takes the batch's, also in evaluation mode.
        model, x, y = case(small_batchnorm)
        model[1] = nn.BatchNorm2d(3, track_running_stats=False).double()
        with pytest.raises(UserError, match=r"'exact' needs .*BatchNorm2d.*'pyhessian'"):
            HessianOperator(model, x, y, "squared").trace("exact")


class TestEstimated:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm, small_tanh])
    def test_within_three_standard_errors(self, build, loss):
        model, x, y = case(build)
        truth = reference.hessian_trace(model, x, y, loss)
        found = HessianOperator(model, x, y, loss).trace("pyhessian", probes=150, seed=1)
        assert found.estimator == "pyhessian"
        assert 0 < found.standard_error < 0.2 * abs(truth)
        assert abs(found.value - truth) < 3 * found.standard_error

    @pytest.mark.parametrize("chunk", [100, 4])
    def test_mean_and_standard_error_from_probes_drawn_by_hand(self, chunk):
        """Rademacher vectors of the same stream on the dense Hessian, a last chunk being ragged."""
        model, x, y = case(small_mlp)
        probes, dense = 20, reference.hessian(model, x, y, "cross_entropy")
        found = HessianOperator(model, x, y, "cross_entropy", chunk=chunk).trace(
            "pyhessian", probes=probes
        )
        draws = []
        with module.invisible(model, seed=0, purpose="hessian_trace"):
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
        hessian = HessianOperator(model, x, y, "squared")
        first = hessian.trace_estimate(4, seed=0)
        torch.rand(3)
        assert hessian.trace_estimate(4, seed=0) == first
        assert hessian.trace_estimate(4, seed=1) != first

    @pytest.mark.parametrize("build", [small_tanh, small_groupnorm, small_in_place])
    def test_auto_falls_back_to_it(self, build):
        model, x, y = case(build)
        found = HessianOperator(model, x, y, "squared").trace("auto", probes=5)
        assert found == HessianOperator(model, x, y, "squared").trace("pyhessian", probes=5)

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
            found = HessianOperator(model, x, y, "squared").trace(probes=100)
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
        found = HessianOperator(model, x, y, "squared", chunk=chunk).trace(probes=40)
        assert drawn == [40]
        assert found.value < 0
        assert abs(found.value - truth) < 3 * found.standard_error

    @pytest.mark.parametrize("probes", [2, 37])
    def test_number_of_probes_is_honoured(self, probes, monkeypatch):
        """On a quadratic with a diagonal Hessian all probes agree: the rule's favourite stop."""
        model = nn.Sequential(nn.Linear(1, 2, bias=False)).double()
        x, y = torch.ones(3, 1, dtype=torch.float64), torch.zeros(3).long()
        drawn = count_probes(monkeypatch)
        found = HessianOperator(model, x, y, "squared").trace("pyhessian", probes=probes)
        assert drawn == [probes]
        assert found.value == pytest.approx(2.0)
        assert found.standard_error == pytest.approx(0.0, abs=1e-12)


def count_probes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that receives how many probes each call of PyHessian's ``trace`` returns."""
    drawn: list[int] = []

    class Counting(module.hessian):
        def trace(self, *args: Any, **kwargs: Any) -> list[float]:
            values = super().trace(*args, **kwargs)
            drawn.append(len(values))
            return values

    monkeypatch.setattr(module, "hessian", Counting)
    return drawn


def test_alexnet_exact_against_probes():
    """The real layout, its wide head cut down: no dense Hessian, so the two methods face off."""
    torch.manual_seed(0)
    model = alexnet((1, 28, 28), 10, filters=3)
    for index, (inputs, outputs) in {-5: (256, 20), -3: (20, 20), -1: (20, 10)}.items():
        model[index] = nn.Linear(inputs, outputs)
    x, y = torch.randn(6, 1, 28, 28), torch.randint(10, (6,))
    exact = HessianOperator(model, x, y, "cross_entropy").trace()
    probed = HessianOperator(model, x, y, "cross_entropy").trace("pyhessian", probes=60)
    assert exact.estimator == "exact"
    assert abs(probed.value - exact.value) < 3 * probed.standard_error


class TestLargestEigenvalue:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        "build", [small_mlp, small_conv, small_tanh, small_in_place, small_batchnorm]
    )
    @pytest.mark.parametrize("chunk", [4, None])
    def test_tight(self, build, loss, chunk):
        model, x, y = case(build)
        truth = reference_sensitivity.smoothness(model, x, y, loss)
        found = HessianOperator(model, x, y, loss, chunk=chunk).largest_eigenvalue(
            tolerance=1e-4, max_iterations=2000
        )
        assert found.converged
        assert found.value == pytest.approx(truth, rel=1e-5)
        assert found.residual <= 1e-4 * found.value

    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_tanh])
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_default_tolerance_in_float32(self, build, seed):
        model, x, y = case(build, double=False)
        truth = reference_sensitivity.smoothness(model, x, y, "cross_entropy")
        found = HessianOperator(model, x, y, "cross_entropy").largest_eigenvalue(seed=seed)
        assert found.converged
        assert found.iterations < 60
        assert found.residual <= 1e-3 * found.value
        assert found.value == pytest.approx(truth, rel=1e-4)
        assert found.value <= truth * (1 + 1e-5)

    @pytest.mark.parametrize("seed", range(4))
    def test_a_crowded_top_is_not_left_low(self, seed):
        """Where power iteration stopped 1.3 % low: eigenvalues 4 % apart, thousands below."""
        spectrum = [1.0, 0.96, 0.93, 0.9, 0.88, *torch.linspace(0.8, 0.0, 400).tolist()]
        model, x, y = regression([math.sqrt(405 * value) for value in spectrum])
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue(seed=seed)
        assert found.converged
        assert found.iterations < 90
        assert 1 - 1e-4 < found.value <= 1 + 1e-12
        assert found.value + found.residual > 1

    def test_the_residual_is_that_of_the_dense_hessian(self):
        """Of the run cut off anywhere: an eigenvalue of H lies within it, past restarts as well."""
        model, x, y = case(small_conv)
        dense = reference.hessian(model, x, y, "cross_entropy")
        sizes = torch.linalg.eigvalsh((dense + dense.T) / 2).abs()
        assert len(sizes) > 3 * lanczos.BASIS
        hessian = HessianOperator(model, x, y, "cross_entropy")
        residuals = []
        for iterations in range(1, 20):
            found = hessian.largest_eigenvalue(seed=3, tolerance=1e-12, max_iterations=iterations)
            assert found.iterations == iterations
            assert found.value <= float(sizes.max()) * (1 + 1e-12)
            assert float((sizes - found.value).abs().min()) <= found.residual + 1e-12
            residuals.append(found.residual)
        assert residuals[-1] < 1e-3 * residuals[0]

    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_tanh, small_batchnorm])
    def test_the_same_as_eigsh(self, build):
        """ARPACK on the dense Hessian, both ends of the spectrum."""
        model, x, y = case(build)
        dense = reference.hessian(model, x, y, "squared")
        dense = ((dense + dense.T) / 2).numpy()
        ends = eigsh(dense, k=2, which="BE", return_eigenvectors=False, tol=1e-10)
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue(
            tolerance=1e-8, max_iterations=500
        )
        assert found.value == pytest.approx(abs(ends).max(), rel=1e-9)

    def test_frozen_parameters_are_left_out(self):
        model, x, y = case(small_mlp)
        whole = HessianOperator(model, x, y, "squared").largest_eigenvalue(tolerance=1e-5)
        model[1].requires_grad_(False)
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue(tolerance=1e-5)
        truth = reference_sensitivity.smoothness(model, x, y, "squared")
        assert found.value == pytest.approx(truth, rel=1e-6)
        assert found.value < 0.99 * whole.value


class TestKnownSpectra:
    def test_quadratic(self):
        model, x, y = regression([1.0, 3.0, 2.0])
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue(tolerance=1e-6)
        assert found.value == pytest.approx(3.0, rel=1e-9)

    def test_residual_bounds_the_distance_to_an_eigenvalue(self):
        """Stopped early, between nearly equal eigenvalues 100/8, 99/8, ... 93/8."""
        eigenvalues = [float(100 - i) for i in range(8)]
        model, x, y = regression([math.sqrt(value) for value in eigenvalues])
        for iterations in (1, 2, 3, 5):
            found = HessianOperator(model, x, y, "squared").largest_eigenvalue(
                tolerance=1e-9, max_iterations=iterations
            )
            assert not found.converged
            assert found.iterations == iterations
            distance = min(abs(found.value - value / 8) for value in eigenvalues)
            assert distance <= found.residual <= 100 / 8

    def test_two_products_by_hand(self):
        """theta and residual in the plane of v and H v, v the documented start."""
        model, x, y = regression([1.0, 3.0, 2.0])
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue(seed=4, max_iterations=2)
        generator = torch.Generator().manual_seed(derived_seed(4, "smoothness"))
        v = torch.randn((1, 3), generator=generator, dtype=torch.float64)[0]
        hessian = x.T @ x / 3
        plane, _ = torch.linalg.qr(torch.stack([v, hessian @ v]).T)
        values, vectors = torch.linalg.eigh(plane.T @ hessian @ plane)
        theta, unit = float(values[1]), plane @ vectors[:, 1]
        assert found.value == pytest.approx(theta, rel=1e-12)
        residual = float((hessian @ unit - theta * unit).norm())
        assert found.residual == pytest.approx(residual, rel=1e-9)

    def test_one_eigenvector_is_found_at_once(self):
        model, x, y = regression([0.0, 2.0, 0.0])
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue()
        assert found.value == pytest.approx(4 / 3)
        assert found.converged
        assert found.iterations == 3  # start, image, and a start outside of it

    @pytest.mark.parametrize("seed", range(5))
    def test_equal_eigenvalues_of_both_signs(self, seed):
        """1/2 (x.ab - y)^2 at a = b = 0: the Hessian is -y x_j on (a_j, b_j), off the diagonal."""
        x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        y = torch.tensor([2.0], dtype=torch.float64)
        found = HessianOperator(Saddle(), x, y, "squared").largest_eigenvalue(
            seed=seed, tolerance=1e-4
        )
        assert found.converged
        assert found.value == pytest.approx(6.0, rel=1e-6)

    def test_negative_dominant(self):
        """In one weight, f = 1/2 w^2 x with target 1: f'' at w = 0 is -x."""

        class Square(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

            def forward(self, x: Tensor) -> Tensor:
                return 0.5 * self.w.square() * x

        x, y = torch.full((1, 1), 3.0).double(), torch.ones(1).double()
        found = HessianOperator(Square(), x, y, "squared").largest_eigenvalue()
        assert found.value == pytest.approx(3.0)
        assert found.residual == pytest.approx(0.0, abs=1e-9)

    @pytest.mark.parametrize("chunk", [2, None])
    def test_no_curvature_at_all(self, chunk):
        model, x, y = regression([0.0, 0.0, 0.0])
        found = HessianOperator(model, x, y, "squared", chunk=chunk).largest_eigenvalue()
        assert found == lanczos.Eigenvalue(0.0, 0.0, 2, True)

    def test_not_finite(self):
        model, x, y = regression([1.0, math.nan])
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue()
        assert math.isnan(found.value)
        assert math.isnan(found.residual)
        assert not found.converged


def scores_nearly_equal(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network at a fifth of its usual weights: top eigenvalues by a few per cent apart."""
    torch.manual_seed(seed)
    inputs, width, classes = [3, 5, 9][seed % 3], [4, 8, 12][seed // 3 % 3], [3, 4][seed // 9 % 2]
    activation = [nn.ReLU, nn.Tanh][seed // 18 % 2]
    model = nn.Sequential(nn.Linear(inputs, width), activation(), nn.Linear(width, classes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    return model, torch.randn(40, inputs), torch.randint(classes, (40,))


@pytest.mark.parametrize("seed", [101, 134, 180, 236, 295])
def test_is_not_the_second_where_one_search_stopped_at_it(seed: int) -> None:
    """The 5 of 700 seeds of which one start gave up to 2.8 % less, with a residual of 8e-4."""
    model, x, y = scores_nearly_equal(seed)
    truth = reference_sensitivity.smoothness(model, x, y, "cross_entropy")
    found = HessianOperator(model, x, y, "cross_entropy").largest_eigenvalue(seed=seed)
    assert found.converged
    assert found.residual <= 1e-3 * found.value
    assert truth - found.residual <= found.value <= truth * (1 + 1e-5)


class TestRun:
    def test_a_function_of_the_seed(self):
        model, x, y = case(small_mlp, double=False)
        found = HessianOperator(model, x, y, "squared").largest_eigenvalue()
        torch.randn(5)
        assert HessianOperator(model, x, y, "squared").largest_eigenvalue() == found
        assert HessianOperator(model, x, y, "squared").largest_eigenvalue(seed=1) != found

    @pytest.mark.parametrize(("chunk", "forwards"), [(11, 1), (10, 2 * 7)])
    def test_the_graph_is_kept_where_one_chunk_holds_all(self, chunk, forwards, monkeypatch):
        model, x, y = case(small_mlp)
        calls = []
        loss = module.per_sample_loss
        monkeypatch.setattr(module, "per_sample_loss", lambda *a: calls.append(1) or loss(*a))
        hessian = HessianOperator(model, x, y, "squared", chunk=chunk)
        assert hessian.largest_eigenvalue(tolerance=1e-15, max_iterations=7).iterations == 7
        assert len(calls) == forwards

    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    @pytest.mark.parametrize("chunk", [4, None])
    def test_leaves_no_trace(self, build, chunk):
        model, optimizer, x, y = in_mid_training(build)
        with nothing_changes(model, optimizer):
            HessianOperator(model, x, y, "cross_entropy", chunk=chunk).largest_eigenvalue()

    @pytest.mark.parametrize(
        "changed", [{"tolerance": 0.0}, {"tolerance": math.nan}, {"max_iterations": 0}]
    )
    def test_bad_arguments(self, changed):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match=next(iter(changed))):
            HessianOperator(model, x, y, "squared").largest_eigenvalue(**changed)

    def test_nothing_to_measure(self):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match="samples"):
            HessianOperator(model, x[:0], y[:0], "squared").largest_eigenvalue()
        with pytest.raises(ValueError, match="trainable"):
            HessianOperator(model.requires_grad_(False), x, y, "squared").largest_eigenvalue()
