"""Local gradient sensitivity against loops in float64."""

import itertools
import math
from dataclasses import astuple
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.measures import sensitivity
from gisgd_ray.measures.displaced import Samples, WeightNoise
from gisgd_ray.measures.sensitivity import SensitivityEstimate, local_gradient_sensitivity
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.seeds import derived_seed
from tests.measures.test_invisible import in_mid_training, nothing_changes
from tests.support import reference_sensitivity as reference
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
SEED, STEP = 3, 17


def measure(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *stds: float,
    loss: LossName = "cross_entropy",
    chunk: int | None = None,
    seed: int = SEED,
    **changed,
) -> list[SensitivityEstimate]:
    data, noise = Samples(x, y, loss, chunk), WeightNoise(stds, seed)
    options = {"draws": 4, "step": STEP} | changed
    return list(local_gradient_sensitivity(model, data, noise, **options))


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
        assert found.perturbation_std == std
        assert found.value == pytest.approx(float(squares.mean()), rel=1e-7, abs=0)
        error = float(squares.std(correction=1)) / 2
        assert found.standard_error == pytest.approx(error, rel=1e-6, abs=0)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm, small_tanh])
    def test_in_float32(self, build, loss):
        model, x, y = case(build, double=False)
        (found,) = measure(model, x, y, 0.1, loss=loss)
        draws = zetas(model, 0.1)
        squares = reference.squared_changes(model, x, y, loss, draws)
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-4)

    def test_batchnorm_counts_as_it_is_in_evaluation_mode(self):
        """The measure is of the network that evaluates, and leaves the one that trains."""
        model, x, y = case(small_batchnorm)
        (training,) = measure(model, x, y, 0.1)
        assert all(module.training for module in model.modules())
        (evaluating,) = measure(model.eval(), x, y, 0.1)
        assert training == evaluating
        assert training.value > 0

    def test_a_layer_without_per_sample_norms(self):
        model, x, y = case(small_groupnorm)
        (found,) = measure(model, x, y, 0.1)
        squares = reference.squared_changes(model, x, y, "cross_entropy", zetas(model, 0.1))
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-7, abs=0)

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
        assert found.value == pytest.approx(sum(squares) / 4, rel=1e-7 if double else 1e-4)


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
        differences = sensitivity._Passes.differences

        def spy(self: sensitivity._Passes, u: list[Tensor], std: float) -> list[list[Tensor]]:
            passes.append(self.model.dtype)
            return differences(self, u, std)

        monkeypatch.setattr(sensitivity._Passes, "differences", spy)
        measure(model, x, y, 1e-7, 0.1)
        # After both in both for the choice.
        assert passes[4:] == [torch.float64, torch.float32] * 4


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


class TestDegenerate:
    def test_zero_std(self, monkeypatch):
        model, x, y = case(small_mlp)
        passes = []
        gradient = sensitivity.Samples.gradient
        monkeypatch.setattr(
            sensitivity.Samples,
            "gradient",
            lambda self, model: passes.append(1) or gradient(self, model),
        )
        (found,) = measure(model, x, y, 0.0)
        assert astuple(found) == (0.0, 0.0, 0.0)
        assert not passes

    def test_noise_beyond_float32_is_not_hidden(self):
        model, x, y, _ = regression()
        (found,) = measure(model, x, y, 1e200, loss="squared")
        assert not math.isfinite(found.value)

    @pytest.mark.parametrize(
        ("draws", "stds", "message"),
        [
            (1, (0.1,), "draws"),
            (4, (0.1, -0.1), "stds"),
            (4, (math.nan,), "stds"),
            (4, (math.inf,), "stds"),
        ],
    )
    def test_bad_arguments(self, draws, stds, message):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match=message):
            measure(model, x, y, *stds, loss="squared", draws=draws)

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


def drawn_halves(seed: int, step: int, draw: int, *, n: int, m: int) -> tuple[Tensor, Tensor]:
    """The two halves of the samples that a draw takes: one stream a draw, as documented."""
    named = derived_seed(seed, "samples of the sensitivity", step, draw)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(named))[:m]
    return chosen[: m // 2], chosen[m // 2 :]


class TestSomeOfTheSamples:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_tanh])
    @pytest.mark.parametrize("samples", [2, 6, 10])
    def test_by_loops(self, build, loss, samples):
        model, x, y = case(build)
        (found,) = measure(model, x, y, 0.3, loss=loss, samples=samples, chunk=2)
        halves = [drawn_halves(SEED, STEP, i, n=11, m=samples) for i in range(4)]
        draws = zetas(model, 0.3)
        values = reference.sensitivities_from_halves(model, x, y, loss, draws, halves)
        assert found.value == pytest.approx(sum(values) / 4, rel=1e-7, abs=0)
        error = float(torch.tensor(values).std(correction=1)) / 2
        assert found.standard_error == pytest.approx(error, rel=1e-6, abs=0)

    @pytest.mark.parametrize(("n", "m"), [(6, 4), (5, 2), (4, 4)])
    def test_unbiased_over_all_halves(self, n, m):
        """The mean over every choice of samples is ||E||^2 over all of them, in exact terms."""
        torch.manual_seed(0)
        changes = torch.randn(n, 3, dtype=torch.float64) + 0.1
        expected = float((changes.mean(dim=0) ** 2).sum())
        found, plain = [], []
        for chosen in itertools.permutations(range(n), m):
            halves = changes[list(chosen)].chunk(2)
            parts = [[half.mean(dim=0)] for half in halves]
            plain.append(float((changes[list(chosen)].mean(dim=0) ** 2).sum()))
            found.append(float(sensitivity._square(parts, noise=1 - m / n)))
            assert found[-1] == pytest.approx(reference.from_halves(*halves, n), rel=1e-9)
        assert sum(found) / len(found) == pytest.approx(expected, rel=1e-12)
        if m < n:
            assert sum(plain) / len(plain) > 1.5 * expected
            assert min(found) < 0

    def test_all_of_them_by_default(self):
        model, x, y = case(small_mlp)
        assert measure(model, x, y, 0.1, samples=11) == measure(model, x, y, 0.1)
        assert measure(model, x, y, 0.1, samples=10) != measure(model, x, y, 0.1)

    @pytest.mark.parametrize(
        ("build", "std"), [(small_mlp, 1e-3), (small_mlp, 1e-2), (small_tanh, 1e-2)]
    )
    def test_a_tenth_of_them_is_within_its_error_of_the_whole(self, build, std):
        """Where ||E||^2 over a tenth is 2 to 6 times that over the whole."""
        model, x, y = case(build, n=1000)
        draws = zetas(model, std, draws=100)
        # ||E_i||^2 over all samples from their gradients, all at once.
        params = dict(model.named_parameters())

        def mean_loss(weights: dict[str, Tensor]) -> Tensor:
            outputs = torch.func.functional_call(model, weights, (x,))
            return per_sample_loss("cross_entropy", outputs, y).mean()

        def gradient(shift: Tensor) -> Tensor:
            parts = shift.split([p.numel() for p in params.values()])
            moved = {n: p + s.view_as(p) for (n, p), s in zip(params.items(), parts, strict=True)}
            grads = torch.func.grad(mean_loss)(moved).values()
            return torch.cat([g.detach().flatten() for g in grads])

        at_w = gradient(torch.zeros_like(draws[0]))
        squares = torch.stack([(gradient(zeta) - at_w).square().sum() for zeta in draws])
        truth, error = float(squares.mean()), float(squares.std()) / 10
        (plain,) = measure(model, x[:100], y[:100], std, draws=100)
        (found,) = measure(model, x, y, std, draws=100, samples=100)
        assert plain.value > 1.9 * truth
        assert plain.value - truth > 5 * math.hypot(plain.standard_error, error)
        assert abs(found.value - truth) < 3 * math.hypot(found.standard_error, error)
        assert found.standard_error < 0.3 * truth

    def test_the_error_is_that_of_the_estimates(self):
        """Of a quadratic, whose Psi is known: 60 estimates scatter as widely as each tells."""
        model, x, y, hessian = regression(n=200)
        expected = float((hessian @ hessian).trace())
        found = [
            measure(model, x, y, 1.0, loss="squared", draws=20, samples=20, seed=seed)[0]
            for seed in range(60)
        ]
        values, errors = (
            torch.tensor([getattr(f, name) for f in found]) for name in ("value", "standard_error")
        )
        told = float(errors.square().mean().sqrt())
        assert abs(float(values.mean()) - expected) < 3 * told / 60**0.5
        assert 0.7 * told < float(values.std()) < 1.4 * told

    @pytest.mark.parametrize("samples", [0, 1, 3, 12, -2])
    def test_samples_that_cannot_be_halved(self, samples):
        model, x, y = case(small_mlp)
        with pytest.raises(ValueError, match=f"samples must be all 11, .* not {samples}"):
            measure(model, x, y, 0.1, samples=samples)

    def test_float64_where_it_is_needed(self, monkeypatch):
        model, x, y = trained()
        passes: list[torch.dtype] = []
        start = sensitivity._Passes.start
        monkeypatch.setattr(
            sensitivity._Passes,
            "start",
            lambda self, parts: passes.append(self.model.dtype) or start(self, parts),
        )
        (found,) = measure(model, x, y, 1e-7, samples=30)
        # Two for the choice of precision, then one a draw.
        assert passes == [torch.float32] + [torch.float64] * 5
        halves = [drawn_halves(SEED, STEP, i, n=60, m=30) for i in range(4)]
        draws = zetas(model, 1e-7)
        values = reference.sensitivities_from_halves(model, x, y, "cross_entropy", draws, halves)
        assert found.value == pytest.approx(sum(values) / 4, rel=0.01, abs=0)


@pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
@pytest.mark.parametrize("stds", [(1e-9, 0.5), (0.0,)])
def test_leaves_no_trace(build, stds):
    model, optimizer, x, y = in_mid_training(build)
    with nothing_changes(model, optimizer):
        measure(model, x, y, *stds, chunk=4)
