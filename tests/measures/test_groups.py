"""Dispersion between groups of a batch against groups differentiated one by one in float64."""

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gisgd_ray.config.scheme import (
    ClippingConfig,
    DropoutConfig,
    GMPConfig,
    MixUpConfig,
    SchemeConfig,
)
from gisgd_ray.data.dataset import epoch_batches
from gisgd_ray.measures.groups import BetweenGroups, BetweenGroupsOfApplied
from gisgd_ray.networks.losses import LossName
from gisgd_ray.networks.models import linear, mlp, trainable
from gisgd_ray.schemes.base import Batch, Scheme, Setting, Step, build_scheme
from gisgd_ray.schemes.clipping import Clipping
from gisgd_ray.schemes.gmp import GMP
from gisgd_ray.schemes.label_smoothing import LabelSmoothing
from gisgd_ray.schemes.sgd import SGD
from gisgd_ray.seeds import derived_seed
from gisgd_ray.training import loop as training
from tests.networks.test_batchnorm import small_residual, small_run, small_trial
from tests.support import reference, reference_networks
from tests.support.networks import Builder, case, small_batchnorm, small_conv, small_mlp, small_tanh
from tests.support.runs import run, weight_bits

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
SEED = 5


def between(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    groups: int,
    *,
    loss: LossName = "cross_entropy",
    scheme: Scheme | None = None,
) -> float:
    """s2 between groups, of the plain gradient, or with a scheme of that which it applies."""
    estimator = BetweenGroups if scheme is None else BetweenGroupsOfApplied
    step = Step(model, Batch(x, y), loss=loss)
    return float(estimator(model, groups).measure(step, scheme or SGD()))


def by_hand(model: nn.Module, parts: Sequence[tuple[Tensor, Tensor]], loss: str) -> float:
    """s2 between these batches, each through the network by itself, in the network's mode."""
    objective = reference_networks.mean_loss(loss)
    found = [(len(x), reference_networks.batch_gradient(model, objective, x, y)) for x, y in parts]
    return reference_networks.mean_square_between(found)


def sliced(x: Tensor, y: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def partitions(items: frozenset[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Every way to deal the items into groups of these sizes, as one list, group after group."""
    if not sizes:
        yield []
        return
    for group in combinations(sorted(items), sizes[0]):
        for rest in partitions(items - set(group), sizes[1:]):
            yield [*group, *rest]


class Scaled(nn.Module):
    """A linear network, times a number that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 2), nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


class TestPlainGradient:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_tanh])
    def test_as_many_groups_as_samples_give_the_per_sample_dispersion(self, build, loss):
        model, x, y = case(build)
        truth = reference.batch_moments(model, x, y, loss).per_sample_dispersion
        assert between(model, x, y, len(x), loss=loss) == pytest.approx(truth, rel=1e-10)

    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize(
        ("groups", "sizes"), [(2, [6, 5]), (3, [4, 4, 3]), (4, [3, 3, 3, 2]), (10, [2] + [1] * 9)]
    )
    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    def test_ragged_groups(self, build, groups, sizes, loss):
        model, x, y = case(build)
        truth = by_hand(model, sliced(x, y, sizes), loss)
        assert between(model, x, y, groups, loss=loss) == pytest.approx(truth, rel=1e-10)

    def test_a_scalar_parameter(self):
        """As a learned temperature, which is of no dimension."""
        torch.manual_seed(0)
        model = Scaled().double()
        x, y = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
        truth = by_hand(model, sliced(x, y, [3, 3]), "cross_entropy")
        assert between(model, x, y, 2) == pytest.approx(truth, rel=1e-10)

    @pytest.mark.parametrize("sizes", [[3, 3], [2, 2, 2], [3, 2], [3, 2, 2], [2, 1, 1]])
    def test_is_unbiased_over_all_partitions_of_the_batch(self, sizes):
        """Its mean is the per-sample dispersion, groups of unequal sizes included."""
        model, x, y = case(small_mlp, n=sum(sizes))
        truth = reference.batch_moments(model, x, y, "cross_entropy").per_sample_dispersion
        found = [
            between(model, x[order], y[order], len(sizes))
            for order in partitions(frozenset(range(len(x))), sizes)
        ]
        ways = math.factorial(sum(sizes)) // math.prod(math.factorial(m) for m in sizes)
        assert len(found) == ways
        assert np.std(found) > 0.05 * truth  # no partition gives it alone
        assert np.mean(found) == pytest.approx(truth, rel=1e-10)

    @pytest.mark.parametrize(("groups", "rel"), [(2, 0.2), (5, 0.2), (40, 0.01)])
    def test_groups_that_agree_to_a_millionth_do_not_cancel(self, groups, rel):
        """At w = 0 the gradient of 1/2 (w.x - 1)^2 is -x, known to float32 without error.

        What is left is the rounding of a group's own mean over its samples.
        """
        source = torch.Generator().manual_seed(0)
        centre, spread = (torch.randn(n, 500, generator=source) for n in (1, 40))
        x, y = centre * (1 + 1e-6 * spread), torch.ones(40)
        model = linear((500,))
        with torch.no_grad():
            model[1].weight.zero_()
        means = [(len(part), -part.double().mean(dim=0)) for part in x.tensor_split(groups)]
        truth = reference_networks.mean_square_between(means)
        assert truth < 1e-9  # of ||g||^2 = 500: float32 knows the latter to 3e-5
        assert between(model, x, y, groups, loss="squared") == pytest.approx(truth, rel=rel)
        exact = between(model.double(), x.double(), y.double(), groups, loss="squared")
        assert exact == pytest.approx(truth, rel=1e-9)

    def test_groups_that_are_equal_have_none(self):
        model, x, y = case(small_conv, n=4, double=False)
        assert between(model, x.repeat(3, 1, 1, 1), y.repeat(3), 3) == 0.0

    def test_is_a_float64_number_on_its_own(self):
        model, x, y = case(small_mlp, double=False)
        step = Step(model, Batch(x, y), loss="squared")
        found = BetweenGroups(model, 2).measure(step, SGD())
        assert (found.shape, found.dtype, found.requires_grad) == ((), torch.float64, False)


class TestBatchNorm:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", [small_batchnorm, small_residual])
    def test_each_group_normalises_by_itself(self, build: Builder, loss):
        torch.manual_seed(0)
        model = build().train().double()
        x, y = torch.randn(7, 1, 8, 8).double(), torch.arange(7) % 3
        truth = by_hand(model, sliced(x, y, [3, 2, 2]), loss)
        assert between(model, x, y, 3, loss=loss) == pytest.approx(truth, rel=1e-10)
        together = by_hand(model.eval(), sliced(x, y, [3, 2, 2]), loss)
        assert truth != pytest.approx(together, rel=0.01)

    @pytest.mark.parametrize("estimator", [BetweenGroups, BetweenGroupsOfApplied])
    def test_leaves_model_and_scheme_as_they_are(self, estimator):
        torch.manual_seed(0)
        model = small_residual().train()
        x, y = torch.randn(7, 1, 6, 6), torch.arange(7) % 3
        schemes = {
            "lag": clipping("lag"),
            "running minimum": clipping("running_minimum"),
            "gmp": gmp(),
            "gmp local": gmp(estimator="local"),
        }
        for name, scheme in schemes.items():
            for _ in range(3):
                scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy"))
            buffers = copy.deepcopy(model.state_dict())
            state, rng = copy.deepcopy(scheme.state_dict()), torch.get_rng_state()
            step = Step(model, Batch(x, y), loss="cross_entropy")
            estimator(model, 3).measure(step, scheme)
            torch.testing.assert_close(dict(model.state_dict()), dict(buffers), rtol=0, atol=0)
            torch.testing.assert_close(scheme.state_dict(), state, rtol=0, atol=0, msg=name)
            assert all(p.grad is None for p in model.parameters())
            assert all(module.training for module in model.modules())
            assert torch.equal(torch.get_rng_state(), rng)

    def test_the_scheme_goes_on_as_if_it_had_not_been_measured(self):
        torch.manual_seed(0)
        model = small_residual().train()
        x, y = torch.randn(7, 1, 6, 6), torch.arange(7) % 3
        found = []
        for measured in (False, True):
            scheme, gradients = gmp(), []
            for _ in range(2):
                step = Step(model, Batch(x, y), loss="cross_entropy")
                if measured:
                    BetweenGroupsOfApplied(model, 2).measure(step, scheme)
                scheme.gradient(step)
                gradients += [p.grad for p in trainable(model)]
            found.append(gradients)
        assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def setting(seed: int = SEED) -> Setting:
    return Setting(seed=seed, device=torch.device("cpu"), steps_per_epoch=4, planned_steps=20)


def gmp(**changes: Any) -> GMP:
    return GMP(GMPConfig(noise_std=0.2, draws=2, rho=0.4, **changes), setting())


def clipping(variant: Any) -> Clipping:
    return Clipping(ClippingConfig(variant=variant, factor=0.5, start_epoch=0, lag=2), setting())


def gmp_objective(model: nn.Module, x: Tensor, y: Tensor, *, step: int) -> Tensor:
    """0.6 L(w) + 0.2 sum of two draws L(w + delta), with the draws of update ``step`` + 1."""
    generator = torch.Generator().manual_seed(derived_seed(SEED, "gmp", step))
    loss = reference_networks.mean_loss("cross_entropy")
    total = 0.6 * loss(model, x, y)
    for _ in range(2):
        moved = {
            name: w + torch.empty_like(w).normal_(0, 0.2, generator=generator)
            for name, w in model.named_parameters()
        }
        scores = functional_call(model, moved, (x.double(),))
        total = total + 0.2 * F.cross_entropy(scores, y)
    return total


class TestAppliedGradient:
    """Schemes that are linear in the batch: a sample by itself has the scheme's gradient of it."""

    @pytest.mark.parametrize("build", [small_mlp, small_conv])
    def test_of_gmp(self, build):
        model, x, y = case(build, n=6)
        scheme = gmp()
        for step in range(2):
            for groups, sizes in ((6, [1] * 6), (4, [2, 2, 1, 1])):
                parts = [
                    (
                        len(part),
                        reference_networks.batch_gradient(
                            model, lambda m, a, b, t=step: gmp_objective(m, a, b, step=t), part, of
                        ),
                    )
                    for part, of in sliced(x, y, sizes)
                ]
                truth = reference_networks.mean_square_between(parts)
                found = between(model, x, y, groups, scheme=scheme)
                assert found == pytest.approx(truth, rel=1e-9)
            scheme.gradient(Step(model, Batch(x, y), loss="cross_entropy"))

    @pytest.mark.parametrize("loss", LOSSES)
    def test_of_label_smoothing(self, loss):
        model, x, y = case(small_tanh, n=6)

        def objective(double: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
            """The mean over soft labels of the loss to each: both losses are affine in them."""
            mean = reference_networks.mean_loss(loss)
            every = [mean(double, inputs, torch.full_like(labels, k)) for k in range(4)]
            return 0.7 * mean(double, inputs, labels) + 0.3 * sum(every) / 4

        parts = [
            (1, reference_networks.batch_gradient(model, objective, a, b))
            for a, b in sliced(x, y, [1] * 6)
        ]
        truth = reference_networks.mean_square_between(parts)
        found = between(model, x, y, 6, loss=loss, scheme=LabelSmoothing(smoothing=0.3))
        assert found == pytest.approx(truth, rel=1e-10)
        plain = between(model, x, y, 6, loss=loss)
        assert found != pytest.approx(plain, rel=0.01)


class TestRuns:
    def test_of_preactresnet18_step_by_step(self):
        finished = small_run({"measurement.dispersion_groups": 3})
        row, series = finished.row, finished.series
        # n = 50 and b = 20: the last batch of an epoch has 10 samples.
        assert series.batch_size.tolist() == [20, 20, 10] * 2
        assert np.isnan(series.mean_squared_norm).all()
        assert (series.group_dispersion > 0).all()
        v = series.group_dispersion / series.batch_size
        assert series.gradient_dispersion.tolist() == v.tolist()
        assert row["measure/gradient_dispersion"] == pytest.approx(v.mean())
        s2 = series.group_dispersion.mean()
        assert row["measure/between_group_dispersion"] == pytest.approx(s2)
        assert "measure/per_sample_dispersion" not in row
        assert row["measure/gradient_dispersion_estimator"] == "between 3 groups"
        assert row["measure/gradient_dispersion_of"] == "plain gradient"
        for point, steps in zip(finished.points[1:], (v[:3], v[3:]), strict=True):
            assert point["measure/gradient_dispersion"] == pytest.approx(steps.mean())
            assert "measure/between_group_dispersion" in point
            assert "measure/per_sample_dispersion" not in point

    @pytest.mark.parametrize(
        "model",
        [{"name": "mlp", "width": 6}, {"name": "preactresnet18", "filters": 2}],
        ids=lambda model: model["name"],
    )
    def test_the_first_epoch_by_hand(self, model):
        """Batches, a ragged one among them, split in order; the weights move in between."""
        changes = {
            "measurement.dispersion_estimator": "groups",
            "measurement.dispersion_groups": 4,
        }
        state = training.start(small_trial(changes, model))
        data, found = state.dataset, []
        for step, indices in enumerate(epoch_batches(50, 20, seed=0, epoch=0, last_batch="keep")):
            x, y = data.train_x[indices], data.train_y[indices]
            sizes = [5] * 4 if len(x) == 20 else [3, 3, 2, 2]
            found.append(by_hand(state.model, sliced(x, y, sizes), "cross_entropy"))
            state.stepper.step(step, learning_rate=0.1)
        series = state.stepper.drain()
        assert series.group_dispersion.tolist() == pytest.approx(found, rel=1e-4)

    def test_measuring_changes_no_weight(self):
        measured, unmeasured = (
            small_run({"measurement.dispersion": on, "measurement.hessian_trace": "off"})
            for on in (True, False)
        )
        assert weight_bits(measured.state) == weight_bits(unmeasured.state)
        assert unmeasured.series.group_dispersion is None
        assert "measure/gradient_dispersion_estimator" not in unmeasured.row

    def test_of_the_applied_gradient_of_clipping_is_the_factor_squared_times_the_plain(self):
        scheme = {"name": "clipping", "variant": "lag", "lag": 1, "start_epoch": 0, "factor": 0.5}
        clipped = {f"scheme.{name}": value for name, value in scheme.items()}
        plain, applied = (
            small_run(clipped | {"measurement.dispersion_of": of}) for of in ("plain", "applied")
        )
        assert weight_bits(plain.state) == weight_bits(applied.state)
        assert applied.row["measure/gradient_dispersion_of"] == "applied gradient"
        assert applied.row["measure/gradient_dispersion_estimator"] == "between 2 groups"
        factor = plain.series.gradient_factor
        assert factor.tolist() == applied.series.gradient_factor.tolist()
        assert 0 < (factor < 1).sum() < len(factor)
        assert plain.row["measure/gradient_factor"] == pytest.approx(factor.mean())
        for name, rel in (("group_dispersion", 1e-12), ("squared_gradient_norm", 1e-5)):
            expected = factor**2 * getattr(plain.series, name)
            found = getattr(applied.series, name)
            assert found.tolist() == pytest.approx(expected.tolist(), rel=rel)
        # Up to the first clipped step the runs are that of plain SGD, and so is what they measure.
        first = int((factor < 1).argmax()) + 1
        sgd = small_run({}).series
        assert plain.series.group_dispersion[:first].tolist() == (
            sgd.group_dispersion[:first].tolist()
        )

    def test_of_an_applied_gradient_without_batchnorm(self):
        """No norms by sample are known of it: groups it is, the plain one for comparison."""
        smoothed = {"scheme.name": "label_smoothing"}
        plain, applied = (
            run(smoothed | {"measurement.dispersion_of": of}) for of in ("plain", "applied")
        )
        assert weight_bits(plain.state) == weight_bits(applied.state)
        assert plain.row["measure/gradient_dispersion_estimator"] == "per-sample norms"
        assert applied.row["measure/gradient_dispersion_estimator"] == "between 2 groups"
        assert "measure/between_group_dispersion" in applied.row
        assert np.isfinite(applied.series.squared_gradient_norm).all()
        assert applied.series.loss.tolist() == pytest.approx(plain.series.loss.tolist(), rel=1e-5)


# ---------------------------------------------------------------- draws by sample

COPIES = 16
STEPS = 300


def wide() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp((1, 3, 3), 4, width=12).double().train()


def identical_samples() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(1, 1, 3, 3).double().expand(COPIES, -1, -1, -1).clone(),
                 torch.full((COPIES,), 2))  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [DropoutConfig(rate=0.5), GMPConfig(noise_std=0.3, estimator="local")],
    ids=["dropout", "gmp local"],
)
def test_of_copies_of_one_sample_it_is_that_of_the_draws(config: SchemeConfig) -> None:
    """All that varies is the draw, sample by sample: V is the dispersion of the applied gradient
    over the scheme's own steps, at fixed weights."""
    model, batch = wide(), identical_samples()
    scheme = build_scheme(config, model, setting(seed=3))
    groups = BetweenGroupsOfApplied(model, 2)
    estimates, gradients = [], []
    for _ in range(STEPS):
        estimates.append(float(groups.measure(Step(model, batch, loss="cross_entropy"), scheme)))
        scheme.gradient(Step(model, batch, loss="cross_entropy"))
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(model)]))
    applied = torch.stack(gradients)
    expected = float((applied - applied.mean(dim=0)).square().sum()) / (STEPS - 1)
    found = torch.tensor(estimates) / COPIES
    error = float(found.std()) / math.sqrt(STEPS) + expected * math.sqrt(2 / STEPS)
    assert expected > 0
    assert float(found.mean()) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("config", [GMPConfig(noise_std=0.3), MixUpConfig()], ids=["gmp", "mixup"])
def test_draws_that_a_batch_shares_are_shared_by_its_groups(config: SchemeConfig) -> None:
    """Then copies of one sample have one gradient, and no dispersion given the draw."""
    model, batch = wide(), identical_samples()
    scheme = build_scheme(config, model, setting(seed=3))
    step = Step(model, batch, loss="cross_entropy")
    assert float(BetweenGroupsOfApplied(model, 2).measure(step, scheme)) < 1e-20


def test_the_step_itself_draws_as_if_nothing_had_been_measured() -> None:
    gradients = []
    for measured in (False, True):
        model, batch = wide(), identical_samples()
        scheme = build_scheme(DropoutConfig(rate=0.5), model, setting(seed=3))
        for _ in range(3):
            step = Step(model, batch, loss="cross_entropy")
            if measured:
                BetweenGroupsOfApplied(model, 3).measure(step, scheme)
            scheme.gradient(step)
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(model)]))
    assert torch.equal(*gradients)
