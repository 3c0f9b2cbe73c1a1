"""Local gradient sensitivity and perturbed dispersion against loops in float64."""

import math
from dataclasses import astuple
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.losses import LossName, per_sample_loss
from gisgd_ray.measures import sensitivity
from gisgd_ray.measures.sensitivity import Sensitivity, local_gradient_sensitivity
from gisgd_ray.randomness import derived_seed
from tests import reference_sensitivity as reference
from tests.networks import (
    case,
    small_batchnorm,
    small_conv,
    small_groupnorm,
    small_in_place,
    small_mlp,
    small_tanh,
)
from tests.test_invisible import in_mid_training, nothing_changes

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
SEED, STEP = 3, 17


def measure(model: nn.Module, x: Tensor, y: Tensor, *stds: float, **changed) -> list[Sensitivity]:
    options = {"loss": "cross_entropy", "draws": 4, "seed": SEED, "step": STEP}
    found = local_gradient_sensitivity(model, x, y, perturbation_stds=stds, **options | changed)
    return list(found)


def normals(model: nn.Module, draws: int, dtype: torch.dtype) -> list[Tensor]:
    """u_1 .. u_k as documented: one stream a draw, named by (seed, step, i)."""
    d = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = []
    for i in range(draws):
        generator = torch.Generator().manual_seed(derived_seed(SEED, "sensitivity", STEP, i))
        found.append(torch.randn(d, generator=generator, dtype=dtype))
    return found


def zetas(model: nn.Module, std: float, *, draws: int = 4) -> list[Tensor]:
    dtype = next(model.parameters()).dtype
    return [std * u.double() for u in normals(model, draws, dtype)]


@lru_cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A float32 ReLU network close to interpolation, where float32 differences are at their worst.

    Every probability is within 1e-3 of 0 or 1, and rounding makes up most of them.
    """
    model, x, _ = case(small_mlp, n=60, double=False)
    y = (x.flatten(1)[:, 0] > 0).long()
    x[:, 0, 0, 0] += 3 * (2 * y - 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2000):
        optimizer.zero_grad()
        per_sample_loss("cross_entropy", model(x), y).mean().backward()
        optimizer.step()
    assert per_sample_loss("cross_entropy", model(x), y).mean() < 1e-3
    return model, x, y


class TestAgainstLoops:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        "build", [small_mlp, small_conv, small_batchnorm, small_tanh, small_in_place]
    )
    @pytest.mark.parametrize("std", [0.3, 1e-4])
    def test_in_float64(self, build, loss, std):
        model, x, y = case(build)
        (found,) = measure(model, x, y, std, loss=loss)
        draws = zetas(model, std)
        squares = torch.tensor(reference.squared_changes(model, x, y, loss, draws))
        dispersion = reference.perturbed_dispersion(model, x, y, loss, draws, batch_size=5)
        assert found.perturbation_std == std
        assert found.value == pytest.approx(float(squares.mean()), rel=1e-7, abs=0)
        error = float(squares.std(correction=1)) / 2
        assert found.standard_error == pytest.approx(error, rel=1e-6, abs=0)
        assert found.perturbed_dispersion(5) == pytest.approx(dispersion, rel=1e-9, abs=0)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm, small_tanh])
    def test_in_float32(self, build, loss):
        model, x, y = case(build, double=False)
        (found,) = measure(model, x, y, 0.1, loss=loss)
        draws = zetas(model, 0.1)
        squares = reference.squared_changes(model, x, y, loss, draws)
        dispersion = reference.perturbed_dispersion(model, x, y, loss, draws, batch_size=5)
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-4)
        assert found.perturbed_dispersion(5) == pytest.approx(dispersion, rel=1e-5)

    def test_batchnorm_counts_as_it_is_in_evaluation_mode(self):
        """The measure is of the network that evaluates, and leaves the one that trains."""
        model, x, y = case(small_batchnorm)
        (training,) = measure(model, x, y, 0.1)
        assert all(module.training for module in model.modules())
        (evaluating,) = measure(model.eval(), x, y, 0.1)
        assert training == evaluating
        assert training.value > 0

    def test_a_layer_without_per_sample_norms_has_no_perturbed_dispersion(self):
        model, x, y = case(small_groupnorm)
        (found, still) = measure(model, x, y, 0.1, 0.0)
        squares = reference.squared_changes(model, x, y, "cross_entropy", zetas(model, 0.1))
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-7, abs=0)
        assert math.isnan(found.perturbed_dispersion(5))
        assert math.isnan(still.perturbed_dispersion(5))

    def test_frozen_parameters_stay(self):
        model, x, y = case(small_tanh)
        model[1].requires_grad_(False)
        (found,) = measure(model, x, y, 0.2)
        squares = reference.squared_changes(model, x, y, "cross_entropy", zetas(model, 0.2))
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-7, abs=0)

    @pytest.mark.parametrize("double", [True, False])
    def test_regression(self, double):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        x, y = torch.randn(9, 4), torch.randn(9)
        if double:
            model, x, y = model.double(), x.double(), y.double()
        (found,) = measure(model, x, y, 0.2, loss="squared")
        draws = zetas(model, 0.2)
        squares = reference.squared_changes(model, x, y, "squared", draws)
        dispersion = reference.perturbed_dispersion(model, x, y, "squared", draws, batch_size=5)
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-7 if double else 1e-4)
        assert found.perturbed_dispersion(5) == pytest.approx(dispersion, rel=1e-5)


class TestTinyNoise:
    @pytest.mark.parametrize("std", [1e-7, 1e-6, 1e-5])
    def test_near_interpolation_in_float32(self, std):
        model, x, y = trained()
        (found,) = measure(model, x, y, std)
        squares = reference.squared_changes(model, x, y, "cross_entropy", zetas(model, std))
        assert found.value == pytest.approx(sum(squares) / 4, rel=0.01, abs=0)

    def test_float32_throughout_would_not_do(self, monkeypatch):
        """Else the switch to float64, and the test above, would be for nothing."""
        monkeypatch.setattr(sensitivity, "PRECISION_TOLERANCE", math.inf)
        model, x, y = trained()
        (found,) = measure(model, x, y, 1e-7)
        squares = reference.squared_changes(model, x, y, "cross_entropy", zetas(model, 1e-7))
        assert found.value != pytest.approx(sum(squares) / 4, rel=0.1, abs=0)

    def test_float32_where_it_serves(self, monkeypatch):
        """Each std has the precision that it needs, whichever others are asked for."""
        model, x, y = trained()
        passes: list[torch.dtype] = []
        moments = sensitivity._Moments

        def spy(chosen: sensitivity._Passes) -> sensitivity._Moments:
            passes.append(chosen.model.dtype)
            return moments(chosen)

        monkeypatch.setattr(sensitivity, "_Moments", spy)
        measure(model, x, y, 1e-7, 0.1)
        assert passes == [torch.float64, torch.float32]


def regression(n: int = 12, p: int = 5) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """1/2 (w.x - y)^2: the Hessian X^T X / n, whatever w."""
    torch.manual_seed(2)
    x, y = torch.randn(n, p, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    return nn.Sequential(nn.Linear(p, 1, bias=False)).double(), x, y, x.T @ x / n


class TestQuadratic:
    @pytest.mark.parametrize("std", [1e-6, 1e-3, 1.0, 100.0])
    def test_each_draw_changes_the_gradient_by_hessian_times_zeta(self, std):
        model, x, y, hessian = regression()
        (found,) = measure(model, x, y, std, loss="squared", draws=7)
        squares = [(hessian @ zeta).square().sum() for zeta in zetas(model, std, draws=7)]
        assert found.value == pytest.approx(float(sum(squares)) / 7, rel=1e-8, abs=0)

    @pytest.mark.parametrize("std", [1e-6, 1.0])
    def test_expectation(self, std):
        model, x, y, hessian = regression()
        (found,) = measure(model, x, y, std, loss="squared", draws=400)
        expected = float((hessian @ hessian).trace()) * std**2
        assert 0 < found.standard_error < 0.1 * expected
        assert abs(found.value - expected) < 4 * found.standard_error

    def test_dispersion_between_draws_does_not_cancel(self):
        """Identical samples leave nothing within: D = sum ||A (zeta_i - mean)||^2 / (k-1)."""
        model, x, y, _ = regression()
        x, y = x[:1].expand(6, -1), y[:1].expand(6)
        (found,) = measure(model, x, y, 1e-5, loss="squared")
        draws = torch.stack(zetas(model, 1e-5))
        moves = (draws - draws.mean(dim=0)) @ (x[:1].T @ x[:1])
        between = float(moves.square().sum()) / 3
        # Within is rounding of ||g||^2, 1e-16 of it.
        assert found.perturbed_dispersion(5) == pytest.approx(between, rel=1e-4, abs=0)


class TestDegenerate:
    def test_zero_std(self, monkeypatch):
        model, x, y = case(small_mlp)
        passes = []
        differentiate = sensitivity._Data.differentiate
        monkeypatch.setattr(
            sensitivity._Data,
            "differentiate",
            lambda self, model: passes.append(1) or differentiate(self, model),
        )
        (found,) = measure(model, x, y, 0.0)
        still = [torch.zeros(sum(p.numel() for p in model.parameters()))] * 2
        dispersion = reference.perturbed_dispersion(
            model, x, y, "cross_entropy", still, batch_size=5
        )
        assert astuple(found)[:3] == (0.0, 0.0, 0.0)
        assert found.perturbed_dispersion(5) == pytest.approx(dispersion, rel=1e-9, abs=0)
        assert len(passes) == 1

    def test_one_sample_has_no_dispersion(self):
        model, x, y = case(small_mlp, n=1)
        (found,) = measure(model, x, y, 0.1)
        assert found.value > 0
        assert math.isnan(found.perturbed_dispersion(5))

    def test_noise_beyond_float32_is_not_hidden(self):
        model, x, y, _ = regression()
        (found,) = measure(model, x, y, 1e200, loss="squared")
        assert not math.isfinite(found.value)
        assert not math.isfinite(found.perturbed_dispersion(5))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"draws": 1}, "draws"),
            ({"perturbation_stds": (0.1, -0.1)}, "stds"),
            ({"perturbation_stds": (math.nan,)}, "stds"),
            ({"perturbation_stds": (math.inf,)}, "stds"),
        ],
    )
    def test_bad_arguments(self, changed, message):
        model, x, y = case(small_mlp)
        options = {"loss": "squared", "draws": 4, "seed": 0, "step": 0}
        options |= {"perturbation_stds": (0.1,)} | changed
        with pytest.raises(ValueError, match=message):
            local_gradient_sensitivity(model, x, y, **options)

    def test_nothing_to_measure(self):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match="samples"):
            measure(model, x[:0], y[:0], 0.1)
        with pytest.raises(ValueError, match="trainable"):
            measure(model.requires_grad_(False), x, y, 0.1)


class TestDraws:
    @pytest.mark.parametrize("double", [True, False])
    def test_several_stds_at_once_equal_each_alone(self, double):
        model, x, y = case(small_conv, double=double)
        stds = (1e-6, 0.0, 0.3, 1e-6)
        together = measure(model, x, y, *stds)
        assert together == [measure(model, x, y, std)[0] for std in stds]
        assert len({s.value for s in together}) == 3

    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    def test_chunks_change_nothing_a_ragged_last_one_included(self, build):
        model, x, y = case(build)
        whole = astuple(measure(model, x, y, 0.2)[0])
        for chunk in (1, 4, 11):
            found = astuple(measure(model, x, y, 0.2, chunk=chunk)[0])
            assert found == pytest.approx(whole, rel=1e-9, abs=0)

    def test_a_function_of_seed_and_step(self):
        model, x, y = case(small_mlp, double=False)
        found = measure(model, x, y, 0.1)
        torch.randn(5)
        assert measure(model, x, y, 0.1) == found
        assert measure(model, x, y, 0.1, step=STEP + 1) != found
        assert measure(model, x, y, 0.1, seed=SEED + 1) != found

    def test_batch_size_divides_what_is_within_draws(self):
        model, x, y = case(small_mlp)
        one, two, four = (measure(model, x, y, 0.2)[0].perturbed_dispersion(b) for b in (1, 2, 4))
        assert one - two == pytest.approx(2 * (two - four), rel=1e-9, abs=0)
        assert 2 * two > one > two


@pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
@pytest.mark.parametrize("stds", [(1e-9, 0.5), (0.0,)])
def test_leaves_no_trace(build, stds):
    model, optimizer, x, y = in_mid_training(build)
    with nothing_changes(model, optimizer):
        measure(model, x, y, *stds, chunk=4)
