"""Replicas advanced together against loops over replicas and samples, and against single runs."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.data.dataset import epoch_batches
from gisgd_ray.errors import UserError
from gisgd_ray.measures.dispersion import BySample, StepMeter
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.networks.losses import LossName
from gisgd_ray.networks.models import alexnet, mlp
from gisgd_ray.training import loop as training
from gisgd_ray.training.lockstep import Lockstep
from tests.support import reference, runs
from tests.support.networks import small_batchnorm, small_conv, small_mlp, small_tanh
from tests.support.reference_lockstep import about_the_sample, replica_moments

LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")
SIZES: dict[Callable[[], nn.Module], int] = {small_mlp: 3, small_conv: 8}
Batches = list[tuple[Tensor, Tensor]]


def replicas(build: Callable[[], nn.Module], count: int, *, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [build().train() for _ in range(count)]


def batches(
    count: int, sizes: Sequence[int], shape: tuple[int, ...], *, classes: int = 4, seed: int = 1
) -> Batches:
    """One (R, b, ...) batch a step."""
    torch.manual_seed(seed)
    return [(torch.randn(count, b, *shape), torch.randint(classes, (count, b))) for b in sizes]


def vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run(lockstep: Lockstep, steps: Batches, rate: float | Tensor = 0.1) -> StepSeries:
    for x, y in steps:
        lockstep.step(x, y, learning_rate=rate)
    return lockstep.drain()


def one_step(models: list[nn.Module], x: Tensor, y: Tensor, dispersion: bool = True) -> StepSeries:
    return run(Lockstep(models, loss="cross_entropy", dispersion=dispersion), [(x, y)])


def assert_equals_brute_force(
    models: list[nn.Module],
    steps: Batches,
    *,
    loss: LossName = "cross_entropy",
    group: int | None = None,
) -> StepSeries:
    """Every column of every step, and every update."""
    lockstep = Lockstep(models, loss=loss, dispersion=True, group=group)
    truths = []
    for x, y in steps:
        before = [reference.weights(model) for model in models]
        truths.append(replica_moments(models, x, y, loss))
        lockstep.step(x, y, learning_rate=0.1)
        for model, old, gradient in zip(models, before, truths[-1].mean_gradients, strict=True):
            found = vector(model).double()
            torch.testing.assert_close(found, old - 0.1 * gradient, rtol=1e-5, atol=1e-6)
    series = lockstep.drain()
    assert len(series) == len(steps)
    assert series.batch_size.tolist() == [x.shape[1] for x, _ in steps]
    assert series.learning_rate.tolist() == [0.1] * len(steps)
    assert np.isnan(series.active_loss).all()
    assert series.group_dispersion is None
    assert series.gradient_factor.tolist() == [1.0] * len(steps)
    for name in vars(truths[0]).keys() - {"mean_gradients"}:
        expected = [getattr(truth, name) for truth in truths]
        np.testing.assert_allclose(getattr(series, name), expected, rtol=1e-5, err_msg=name)
    return series


class TestAgainstLoops:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("build", list(SIZES))
    @pytest.mark.parametrize("group", [None, 2])
    def test_every_column_with_a_ragged_batch(self, build, loss, group):
        steps = batches(3, (5, 5, 2), (1, SIZES[build], SIZES[build]))
        assert_equals_brute_force(replicas(build, 3), steps, loss=loss, group=group)

    def test_regression(self):
        models = replicas(lambda: nn.Sequential(nn.Linear(5, 1, bias=False)), 4)
        steps = [(torch.randn(4, b, 5), torch.randn(4, b)) for b in (6, 3)]
        assert_equals_brute_force(models, steps, loss="squared")

    def test_alexnet(self):
        def build() -> nn.Module:
            model = alexnet((1, 28, 28), 10, filters=2)
            for index, (inputs, outputs) in {-5: (256, 30), -3: (30, 20), -1: (20, 10)}.items():
                model[index] = nn.Linear(inputs, outputs)
            return model

        steps = batches(2, (3, 2), (1, 28, 28), classes=10)
        assert_equals_brute_force(replicas(build, 2), steps)
        assert_equals_brute_force(replicas(build, 2), steps, group=2)

    @pytest.mark.parametrize("group", [1, 2, 5])
    @pytest.mark.parametrize(("dtype", "apart"), [(torch.float32, 1e-3), (torch.float64, 1e-6)])
    def test_gradients_that_nearly_agree(self, dtype, apart, group):
        """V_t = apart^2 ||g||^2: a difference of squared norms would be off by 1 % and more."""

        def smooth() -> nn.Module:
            layers = [nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)]
            return nn.Sequential(*layers).to(dtype)

        models = replicas(smooth, 5)
        with torch.no_grad():
            for model in models[1:]:
                for weights, first in zip(model.parameters(), models[0].parameters(), strict=True):
                    weights.copy_(first + apart * weights)
        ((x, y),) = batches(1, (20,), (1, 8, 8), classes=10)
        shared = (x.to(dtype).expand(5, -1, -1, -1, -1), y.expand(5, -1))
        series = assert_equals_brute_force(models, [shared], group=group)
        share = series.gradient_dispersion[0] / series.squared_gradient_norm[0]
        assert 0.1 * apart**2 < share < 10 * apart**2

    def test_any_grouping_gives_the_same_numbers(self):
        steps = batches(7, (4, 4, 3), (1, 3, 3))
        found = []
        for group in (1, 2, 3, 7, 100, None):
            models = replicas(small_mlp, 7)
            lockstep = Lockstep(models, loss="cross_entropy", dispersion=True, group=group)
            found.append((run(lockstep, steps), torch.stack([vector(m) for m in models])))
        for series, weights in found[1:]:
            torch.testing.assert_close(weights, found[0][1], rtol=1e-5, atol=1e-6)
            for name, column in series.columns().items():
                expected = found[0][0].columns()[name]
                np.testing.assert_allclose(column, expected, rtol=2e-6, err_msg=name)


class TestAgainstSingleRuns:
    @pytest.mark.parametrize("loss", LOSSES)
    def test_each_replica_is_the_run_of_its_seed(self, loss):
        seeds = (0, 1, 2)
        configs = [runs.config({"seed": s, "training.loss": loss}) for s in seeds]
        alone = [runs.finish(training.start(config)) for config in configs]
        states = [training.start(config) for config in configs]
        models, n = [state.model for state in states], states[0].dataset.num_samples
        lockstep = Lockstep(models, loss=loss, dispersion=True)
        for epoch in range(3):
            orders = [epoch_batches(n, 60, seed=s, epoch=epoch, last_batch="keep") for s in seeds]
            for chosen in zip(*orders, strict=True):
                pairs = [
                    (s.dataset.train_x[i], s.dataset.train_y[i])
                    for s, i in zip(states, chosen, strict=True)
                ]
                x, y = (torch.stack(parts) for parts in zip(*pairs, strict=True))
                lockstep.step(x, y, learning_rate=configs[0].training.learning_rate)
        for model, run in zip(models, alone, strict=True):
            torch.testing.assert_close(vector(model), vector(run.state.model), rtol=1e-5, atol=1e-5)
        series = lockstep.drain()
        assert len(series) == len(alone[0].series) == 12
        means = "learning_rate batch_size loss squared_gradient_norm mean_squared_norm"
        for name in (*means.split(), "gradient_dispersion_neu"):
            expected = np.mean([getattr(run.series, name) for run in alone], axis=0)
            np.testing.assert_allclose(getattr(series, name), expected, rtol=1e-4, err_msg=name)
        for name, extreme in (("loss_min", np.min), ("loss_max", np.max)):
            expected = extreme([getattr(run.series, name) for run in alone], axis=0)
            np.testing.assert_allclose(getattr(series, name), expected, rtol=1e-4, err_msg=name)

    def test_one_replica_is_the_deterministic_setting(self):
        ((x, y),) = batches(1, (6,), (1, 3, 3))
        models = replicas(small_mlp, 1)
        truth = reference.batch_moments(models[0], x[0], y[0], "cross_entropy")
        series = one_step(models, x, y)
        assert series.replica_dispersion is None
        assert series.gradient_dispersion[0] == pytest.approx(truth.gradient_dispersion, rel=1e-5)


class TestWhatTheTwoDispersionsMean:
    """A tiny network, 40 samples, 2,000 replicas with batches of 5 drawn with replacement."""

    def draws(self, kinds: int) -> tuple[list[nn.Module], Tensor, Tensor, StepSeries]:
        torch.manual_seed(0)
        originals = [mlp((1, 2, 2), 3, width=3) for _ in range(kinds)]
        for original in originals:
            nn.init.normal_(original[-1].bias, std=2.0)
        models = [mlp((1, 2, 2), 3, width=3) for _ in range(2_000)]
        for r, model in enumerate(models):
            model.load_state_dict(originals[r % kinds].state_dict())
        x, y = torch.randn(40, 1, 2, 2), torch.randint(3, (40,))
        chosen = torch.randint(40, (2_000, 5))
        return originals, x, y, one_step(models, x[chosen], y[chosen])

    def test_equal_when_all_weights_are(self):
        (original,), x, y, series = self.draws(1)
        _, spread = about_the_sample(original, x, y, "cross_entropy")
        # The standard error is about 2 %.
        assert series.gradient_dispersion[0] == pytest.approx(spread / 5, rel=0.06)
        assert series.gradient_dispersion_neu[0] == pytest.approx(spread / 5, rel=0.06)

    def test_apart_by_the_dispersion_over_the_weights(self):
        originals, x, y, series = self.draws(2)
        found = [about_the_sample(original, x, y, "cross_entropy") for original in originals]
        (mean_a, spread_a), (mean_b, spread_b) = found
        over_weights = float(((mean_a - mean_b) ** 2).sum()) / 4
        conditional = (spread_a + spread_b) / 2 / 5
        assert over_weights > 0.2 * conditional
        assert series.gradient_dispersion_neu[0] == pytest.approx(conditional, rel=0.06)
        assert series.gradient_dispersion[0] == pytest.approx(conditional + over_weights, rel=0.06)

    def test_one_shared_batch_leaves_the_dispersion_over_the_weights(self):
        models = replicas(small_mlp, 6)
        ((x, y),) = batches(1, (7,), (1, 3, 3))
        means = [reference.mean_gradient(m, x[0], y[0], "cross_entropy") for m in models]
        each = [reference.batch_moments(m, x[0], y[0], "cross_entropy") for m in models]
        centre = sum(means) / 6
        over_weights = sum(float(((mean - centre) ** 2).sum()) for mean in means) / 5
        series = one_step(models, x.expand(6, -1, -1, -1, -1), y.expand(6, -1))
        assert series.gradient_dispersion[0] == pytest.approx(over_weights, rel=1e-5)
        conditional = np.mean([moments.gradient_dispersion for moments in each])
        assert series.gradient_dispersion_neu[0] == pytest.approx(conditional, rel=1e-5)

    def test_copies_of_one_run_have_none_across_them(self):
        models = replicas(small_conv, 5)
        for model in models:
            model.load_state_dict(models[0].state_dict())
        ((x, y),) = batches(1, (7,), (1, 8, 8))
        series = one_step(models, x.expand(5, -1, -1, -1, -1), y.expand(5, -1))
        assert series.gradient_dispersion_neu[0] > 1e-3
        assert 0 <= series.gradient_dispersion[0] < 1e-12


class FixedReadout(nn.Module):
    """A buffer behind the layer, as in Theorem 4's network, and a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(9, 4)
        self.inner.bias.requires_grad_(False)
        self.register_buffer("signs", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.flatten(1)) * self.signs


class TestViews:
    def test_a_restored_run_goes_on_bit_for_bit(self):
        first, second = batches(3, (4, 4), (1, 8, 8)), batches(3, (4, 2, 4), (1, 8, 8), seed=2)
        models = replicas(small_conv, 3)
        lockstep = Lockstep(models, loss="cross_entropy", dispersion=True)
        run(lockstep, first)
        saved = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
        expected = run(lockstep, second)

        others = replicas(small_conv, 3, seed=9)
        restored = Lockstep(others, loss="cross_entropy", dispersion=True)
        for model, state in zip(others, saved, strict=True):
            model.load_state_dict(state)
        found = run(restored, second)
        for r, (model, other) in enumerate(zip(models, others, strict=True)):
            assert torch.equal(vector(model), vector(other))
            for name, stack in restored.parameters.items():
                assert torch.equal(model.get_parameter(name), stack[r])
        for name, column in expected.columns().items():
            assert column.tobytes() == found.columns()[name].tobytes(), name

    def test_buffers_and_frozen_parameters_stay(self):
        models = replicas(FixedReadout, 3)
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
        lockstep = Lockstep(models, loss="cross_entropy", dispersion=False)
        run(lockstep, batches(3, (5,), (1, 3, 3)))
        assert list(lockstep.parameters) == ["inner.weight"]
        for r, (model, old) in enumerate(zip(models, before, strict=True)):
            assert torch.equal(model.inner.weight, lockstep.parameters["inner.weight"][r])
            assert not torch.equal(model.inner.weight, old["inner.weight"])
            assert torch.equal(model.inner.bias, old["inner.bias"])
            assert torch.equal(model.signs, old["signs"])
            assert model.inner.weight.grad is None

    def test_measuring_changes_no_weight(self):
        steps = batches(3, (4, 3), (1, 3, 3))
        measured, unmeasured = replicas(small_mlp, 3), replicas(small_mlp, 3)
        run(Lockstep(measured, loss="cross_entropy", dispersion=True), steps)
        series = run(Lockstep(unmeasured, loss="cross_entropy", dispersion=False), steps)
        for model, other in zip(measured, unmeasured, strict=True):
            torch.testing.assert_close(vector(model), vector(other), rtol=1e-6, atol=1e-7)
        assert np.isfinite(series.loss).all()
        for name in ("squared_gradient_norm", "mean_squared_norm", "gradient_dispersion"):
            assert np.isnan(getattr(series, name)).all()

    def test_hooks_of_the_models_are_neither_used_nor_lost(self):
        models = replicas(small_mlp, 2)
        meter = StepMeter(dispersion=BySample(models[0]))
        ((x, y),) = batches(2, (3,), (1, 3, 3))
        assert one_step(models, x, y).mean_squared_norm[0] > 0
        losses = nn.functional.cross_entropy(models[0](x[0]), y[0], reduction="none")
        with meter.watch():
            losses.mean().backward()
        meter.see(losses.detach())
        meter.close(learning_rate=0.1)
        truth = reference.batch_moments(models[0], x[0], y[0], "cross_entropy").mean_squared_norm
        assert meter.drain().mean_squared_norm[0] == pytest.approx(truth, rel=1e-5)

    def test_drain_hands_out_each_step_once(self):
        lockstep = Lockstep(replicas(small_mlp, 2), loss="cross_entropy", dispersion=True)
        assert len(lockstep.drain()) == 0
        steps = batches(2, (3, 3, 2), (1, 3, 3))
        assert len(run(lockstep, steps[:2])) == 2
        assert run(lockstep, steps[2:]).batch_size.tolist() == [2.0]
        assert len(lockstep.drain()) == 0


def test_each_replica_may_have_its_own_learning_rate():
    steps, rates = batches(5, (4, 4), (1, 8, 8)), torch.tensor([0.0, 0.05, 0.1, 0.2, 0.4])
    together = replicas(small_conv, 5)
    lockstep = Lockstep(together, loss="cross_entropy", dispersion=True, group=2)
    np.testing.assert_allclose(run(lockstep, steps, rates).learning_rate, [0.15, 0.15], rtol=1e-6)
    assert torch.equal(vector(together[0]), vector(replicas(small_conv, 5)[0]))
    for r, rate in enumerate(rates.tolist()):
        same = replicas(small_conv, 5)
        run(Lockstep(same, loss="cross_entropy", dispersion=True, group=2), steps, rate)
        torch.testing.assert_close(vector(together[r]), vector(same[r]), rtol=1e-6, atol=1e-7)


class Used(nn.Module):
    """One layer, so many times."""

    def __init__(self, times: int):
        super().__init__()
        self.inner, self.times = nn.Linear(9, 9), times

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for _ in range(self.times):
            x = self.inner(x)
        return x


class TestErrors:
    @pytest.mark.parametrize("dispersion", [True, False])
    @pytest.mark.parametrize(
        ("build", "named"),
        [
            (small_batchnorm, "'1' is BatchNorm2d"),
            (lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)), "'1' is Dropout"),
        ],
    )
    def test_layers_that_no_replicas_can_have(self, build, named, dispersion):
        with pytest.raises(UserError, match=r"replicas = null") as caught:
            Lockstep(replicas(build, 2), loss="squared", dispersion=dispersion)
        assert named in str(caught.value)

    def test_layers_whose_norms_are_unknown(self):
        def build() -> nn.Module:
            return nn.Sequential(nn.Flatten(), nn.LayerNorm(9), nn.Linear(9, 4))

        with pytest.raises(UserError, match="'1' is LayerNorm") as caught:
            Lockstep(replicas(build, 2), loss="squared", dispersion=True)
        assert "measurement.dispersion = false, or replicas = null" in str(caught.value)
        ((x, y),) = batches(2, (3,), (1, 3, 3))
        assert np.isfinite(one_step(replicas(build, 2), x, y, dispersion=False).loss).all()

    @pytest.mark.parametrize(("times", "said"), [(2, "used twice"), (0, "not used")])
    def test_a_layer_not_used_once(self, times, said):
        ((x, y),) = batches(2, (3,), (1, 3, 3))
        with pytest.raises(UserError, match=f"'inner' is {said}"):
            one_step(replicas(lambda: Used(times), 2), x, y)
        one_step(replicas(lambda: Used(times), 2), x, y, dispersion=False)

    def test_batchnorm_in_evaluation_mode_is_a_constant(self):
        ((x, y),) = batches(2, (3,), (1, 8, 8))
        models = [model.eval() for model in replicas(small_batchnorm, 2)]
        loss = replica_moments(models, x, y, "cross_entropy").loss
        assert one_step(models, x, y, dispersion=False).loss[0] == pytest.approx(loss, rel=1e-5)

    def test_models_of_different_shape(self):
        plain = {"loss": "squared", "dispersion": False}
        for other in (small_tanh(), mlp((1, 3, 3), 4, width=7), small_mlp().double()):
            with pytest.raises(ValueError, match=r"models\[1\] differs"):
                Lockstep([small_mlp(), other], **plain)
        with pytest.raises(ValueError, match="no models"):
            Lockstep([], **plain)
        with pytest.raises(ValueError, match="group = 0"):
            Lockstep([small_mlp()], **plain, group=0)

    def test_batches_of_another_number_of_replicas_update_nothing(self):
        models = replicas(small_mlp, 3)
        lockstep = Lockstep(models, loss="cross_entropy", dispersion=True, group=2)
        before = torch.stack([vector(m) for m in models])
        ((x, y),) = batches(3, (3,), (1, 3, 3))
        for named, args, rate in (
            ("inputs", (x[:2], y), 0.1),
            ("targets", (x, y[:2]), 0.1),
            ("learning_rate", (x, y), torch.ones(2)),
        ):
            with pytest.raises(ValueError, match=rf"{named} of \(2,\)"):
                lockstep.step(*args, learning_rate=rate)
        assert torch.equal(before, torch.stack([vector(m) for m in models]))
