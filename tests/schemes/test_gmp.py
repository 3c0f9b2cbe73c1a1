"""Gaussian model perturbation against autograd on its objective, and where it must equal SGD."""

import copy
import math
import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from gisgd_ray.config.model import AlexNetConfig, MLPConfig, PreActResNet18Config, VGG16Config
from gisgd_ray.config.scheme import GMPConfig
from gisgd_ray.device import Precision
from gisgd_ray.networks.losses import LossName
from gisgd_ray.networks.models import build_model, mlp, num_parameters
from gisgd_ray.networks.residual import preactresnet18
from gisgd_ray.schemes.base import Batch, Scheme, Setting, Step
from gisgd_ray.schemes.gmp import GMP, noise_std_at
from gisgd_ray.schemes.sgd import SGD
from tests.support.networks import Builder, case, small_batchnorm, small_conv, small_mlp, small_tanh
from tests.support.reference_schemes import gmp_deltas, gmp_gradient

NETWORKS = {
    "mlp": (MLPConfig(width=12), 28),
    "alexnet": (AlexNetConfig(filters=2, hidden=16), 28),
    "vgg16": (VGG16Config(filters=4, hidden=16), 32),
    "preactresnet18": (PreActResNet18Config(filters=2), 32),
}
"""The paper's networks, narrow, and the side of their images."""

KINDS: dict[str, dict[str, Any]] = {
    "average": {"variant": "average"},
    "absolute": {"variant": "absolute"},
    "local": {"estimator": "local"},
}
SEED = 3
UNFELT = 1e-30
"""A std that changes no weight in float32 but those that are zero."""


def gmp(*, seed: int = SEED, steps: int = 100, kind: type[GMP] = GMP, **options: Any) -> GMP:
    place = Setting(seed=seed, device=torch.device("cpu"), steps_per_epoch=10, planned_steps=steps)
    return kind(GMPConfig(**options), place)


def gradient(
    scheme: Scheme,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: LossName = "cross_entropy",
    precision: Precision = "float32",
) -> list[Tensor]:
    """What the scheme leaves in ``.grad`` of every parameter."""
    scheme.gradient(Step(model, Batch(x, y), loss=loss, precision=precision))
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


def state_bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """|| found - expected || / || expected ||, all parameters together."""
    parts = [(a - b).square().sum() for a, b in zip(found, expected, strict=True)]
    return math.sqrt(sum(parts) / sum(b.square().sum() for b in expected))


def network(name: str, *, double: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    """In training mode, with 6 images of noise."""
    config, side = NETWORKS[name]
    model = build_model(config, (3, side, side), 4, seed=0, initialization="kaiming")
    torch.manual_seed(1)
    x, y = torch.randn(6, 3, side, side), torch.randint(4, (6,))
    return (model.double(), x.double(), y) if double else (model, x, y)


class TestAgainstTheObjective:
    @pytest.mark.parametrize(("draws", "rho"), [(1, 0.3), (2, 1.0), (5, 0.5)])
    @pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
    @pytest.mark.parametrize("variant", ["average", "absolute"])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_weight_has_the_gradient_of_the_stated_objective(
        self, name, variant, loss, draws, rho
    ):
        model, x, y = network(name)
        deltas = gmp_deltas(model, seed=SEED, step=0, std=0.05, draws=draws)
        exact = gmp_gradient(model, x, y, loss, deltas, rho=rho, variant=variant)
        plain = gradient(SGD(), copy.deepcopy(model), x, y, loss)
        assert difference(plain, exact) > 0.01
        scheme = gmp(draws=draws, rho=rho, variant=variant, noise_std=0.05)
        found = gradient(scheme, model, x, y, loss)
        # Each tensor by itself, since the last layers' gradients are much the largest. Those of
        # biases ahead of a BatchNorm are rounding errors.
        whole = math.sqrt(sum(g.square().sum() for g in exact))
        for ours, expected in zip(found, exact, strict=True):
            assert (ours - expected).norm() < 1e-9 * expected.norm() + 1e-13 * whole

    def test_the_second_of_two_steps_has_draws_of_its_own(self):
        model, x, y = network("mlp")
        scheme = gmp(noise_std=0.05)
        for step in range(2):
            deltas = gmp_deltas(model, seed=SEED, step=step, std=0.05, draws=3)
            exact = gmp_gradient(model, x, y, "squared", deltas, rho=0.5, variant="average")
            assert difference(gradient(scheme, model, x, y, "squared"), exact) < 1e-12

    def test_the_absolute_variant_meets_losses_below_the_clean_one_and_above(self):
        """Otherwise the cases above would not tell it from the average."""
        model, x, y = network("mlp")
        deltas = gmp_deltas(model, seed=SEED, step=0, std=0.05, draws=5)
        average, absolute = (
            gmp_gradient(model, x, y, "squared", deltas, rho=0.3, variant=variant)
            for variant in ("average", "absolute")
        )
        assert difference(average, absolute) > 0.01

    @pytest.mark.parametrize("variant", ["average", "absolute"])
    def test_in_mixed_precision_too(self, variant):
        """Weights cast for one pass must not serve another."""
        model, x, y = network("vgg16", double=False)
        deltas = gmp_deltas(model, seed=SEED, step=0, std=0.05, draws=3)
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            exact = gmp_gradient(model, x, y, "cross_entropy", deltas, rho=0.5, variant=variant)
        plain = gradient(SGD(), copy.deepcopy(model), x, y, precision="bfloat16")
        found = gradient(gmp(noise_std=0.05, variant=variant), model, x, y, precision="bfloat16")
        assert difference(found, exact) < 0.02 < 0.3 < difference(plain, exact)


class TestBatchNorm:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", ["vgg16", "preactresnet18"])
    def test_running_statistics_are_those_of_the_clean_pass(self, name, kind):
        model, x, y = network(name, double=False)
        plain, before = copy.deepcopy(model), copy.deepcopy(model)
        gradient(gmp(**KINDS[kind]), model, x, y)
        gradient(SGD(), plain, x, y)
        assert state_bits(model) == state_bits(plain)
        pairs = zip(model.buffers(), before.buffers(), strict=True)
        assert all(not torch.equal(after, then) for after, then in pairs)


def some_steps(model: nn.Module, scheme: Scheme, x: Tensor, y: Tensor) -> nn.Module:
    """A copy of the model after five steps of Nesterov's momentum with weight decay."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3
    )
    for t in range(5):
        gradient(scheme, model, x[t::5], y[t::5])
        optimizer.step()
    return model


LIMITS: dict[str, dict[str, Any]] = {
    **{f"rho = 0, {kind}": {"rho": 0.0, **options} for kind, options in KINDS.items()},
    **{f"std -> 0, {kind}": {"noise_std": UNFELT, **options} for kind, options in KINDS.items()},
    "std -> 0, ten draws": {"noise_std": UNFELT, "draws": 10, "rho": 0.7},
    "std -> 0, rho = 1": {"noise_std": UNFELT, "rho": 1.0},
}


class TestLimits:
    @pytest.mark.parametrize("limit", LIMITS)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm, preactresnet18])
    def test_is_sgd_bit_for_bit(self, build, limit):
        residual = build is preactresnet18
        model, x, y = case(small_conv if residual else build, n=50, double=False)
        if residual:
            model = preactresnet18((1, 8, 8), 4, filters=2)
        plain = state_bits(some_steps(model, SGD(), x, y))
        assert plain != state_bits(model)
        assert state_bits(some_steps(model, gmp(**LIMITS[limit]), x, y)) == plain

    @pytest.mark.parametrize("kind", KINDS)
    def test_elsewhere_it_is_not(self, kind):
        model, x, y = case(small_mlp, n=50, double=False)
        plain = state_bits(some_steps(model, SGD(), x, y))
        assert state_bits(some_steps(model, gmp(**KINDS[kind]), x, y)) != plain

    @pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-6), (True, 1e-12)])
    @pytest.mark.parametrize("variant", ["average", "absolute"])
    @pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
    def test_equal_draws_are_one_draw(self, build, variant, double, tolerance):
        class Repeating(GMP):
            def perturb(self, stand_ins: Mapping[Tensor, Tensor], std: float, generator: Generator):
                super().perturb(stand_ins, std, generator.manual_seed(7))

        model, x, y = case(build, double=double)
        options = {"variant": variant, "noise_std": 0.3, "kind": Repeating}
        one = gradient(gmp(draws=1, **options), model, x, y)
        assert difference(one, gradient(SGD(), model, x, y)) > 0.01
        for draws in (2, 3, 7):
            several = gradient(gmp(draws=draws, **options), model, x, y)
            assert difference(several, one) < tolerance


class TestNothingIsLeftBehind:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("build", [small_mlp, small_conv, small_batchnorm])
    def test_weights_come_back_bit_for_bit(self, build, kind):
        model, x, y = case(build, double=False)
        weights, where = bits(list(model.parameters())), [p.data_ptr() for p in model.parameters()]
        random = torch.get_rng_state()
        scheme = gmp(noise_std=0.3, **KINDS[kind])
        for _ in range(2):
            gradient(scheme, model, x, y)
            assert bits(list(model.parameters())) == weights
        assert [p.data_ptr() for p in model.parameters()] == where
        assert torch.equal(torch.get_rng_state(), random)
        self.is_as_new(model, build, x, y)

    @pytest.mark.parametrize("during", ["forward", "backward"])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("build", [small_mlp, small_batchnorm])
    def test_after_a_pass_that_fails(self, build, kind, during):
        """The last noisy pass fails halfway through the network."""
        model, x, y = case(build, double=False)
        weights, passes = bits(list(model.parameters())), []

        def fail(*_: object) -> None:
            raise FloatingPointError

        def count(_layer: nn.Module, _inputs: object, output: Tensor) -> None:
            passes.append(output)
            if len(passes) == (2 if kind == "local" else 4):
                fail() if during == "forward" else output.register_hook(fail)

        hook = model[2].register_forward_hook(count)
        scheme = gmp(noise_std=0.3, **KINDS[kind])
        with pytest.raises(FloatingPointError):
            gradient(scheme, model, x, y)
        hook.remove()
        assert bits(list(model.parameters())) == weights
        self.is_as_new(model, build, x, y)
        gradient(scheme, model, x, y)
        assert bits(list(model.parameters())) == weights

    def is_as_new(self, model: nn.Module, build: Builder, x: Tensor, y: Tensor) -> None:
        """Neither noise nor hooks: gradient and statistics are those of a model built afresh."""
        twin = build().train()
        twin.load_state_dict(model.state_dict())
        assert bits(gradient(SGD(), model, x, y)) == bits(gradient(SGD(), twin, x, y))
        assert state_bits(model) == state_bits(twin)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors first seen as results inside it, and the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, results)
        return results

    def _note(self, result: Tensor) -> None:
        storage = result.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen[key] = weakref.ref(storage, lambda _: self._freed(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        del self._seen[key]
        self.now -= size


class TestMemory:
    def peak(self, scheme: Scheme) -> int:
        """Bytes during one step of six layers of 64 x 64 on two samples."""
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(6)))
        batch = Batch(torch.randn(2, 64), torch.randint(64, (2,)))
        with LiveBytes() as memory:
            scheme.gradient(Step(model, batch, loss="cross_entropy"))
        return memory.peak

    @pytest.mark.parametrize(("kind", "copies"), [("average", 1), ("absolute", 2), ("local", 0)])
    def test_one_copy_of_the_parameters_whatever_the_number_of_draws(self, kind, copies):
        """And, where signs are needed, one of the clean gradient; none of the noise."""
        parameters, largest = 4 * 6 * 64 * 65, 4 * 64 * 64
        extra = {
            self.peak(gmp(draws=draws, **KINDS[kind])) - self.peak(SGD()) for draws in (1, 2, 8)
        }
        assert len(extra) == 1
        assert 0 <= extra.pop() - copies * parameters < 1.7 * largest


class TestNoiseStd:
    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("linear", [0.08, 0.07, 0.06, 0.05, 0.04]),
            ("cosine", [0.06 + 0.02 * math.cos(step * math.pi / 4) for step in range(5)]),
            ("geometric", [0.08 / 2 ** (step / 4) for step in range(5)]),
        ],
    )
    @pytest.mark.parametrize("order", [1, -1])
    def test_from_the_first_update_to_the_last_planned_one(self, schedule, expected, order):
        stds = expected[::order]
        config = GMPConfig(noise_std=stds[0], final_noise_std=stds[-1], noise_schedule=schedule)
        found = [noise_std_at(config, step, 5) for step in range(7)]
        assert found == pytest.approx([*stds, stds[-1], stds[-1]], rel=1e-14)
        assert noise_std_at(config, 0, 1) == pytest.approx(stds[0], rel=1e-14)

    def test_constant_unless_asked(self):
        config = GMPConfig(noise_std=0.07, noise_schedule="geometric")
        assert {noise_std_at(config, step, 5) for step in range(8)} == {0.07}

    @pytest.mark.parametrize("kind", KINDS)
    def test_each_step_uses_its_own(self, kind):
        """The gradient of step t is that of a scheme whose constant std is the one of step t."""
        model, x, y = case(small_tanh, double=False)
        ends = {"noise_std": 0.4, "final_noise_std": 0.1, "noise_schedule": "linear"}
        scheduled = gmp(steps=4, **ends, **KINDS[kind])
        for step, std in enumerate((0.4, 0.3, 0.2, 0.1)):
            found = gradient(scheduled, model, x, y)
            constant = gmp(noise_std=std, **KINDS[kind])
            same = [gradient(constant, model, x, y) for _ in range(step + 1)][-1]
            assert difference(found, same) < 1e-6


def weights_of_passes(scheme: Scheme, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """w of the clean pass and of every noisy one, (1 + k, d)."""
    seen = []
    hook = model.register_forward_pre_hook(
        lambda *_: seen.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    )
    gradient(scheme, model, x, y)
    hook.remove()
    return torch.stack(seen)


class TestDraws:
    @pytest.mark.parametrize("variant", ["average", "absolute"])
    def test_independent_normal_noise_on_every_weight(self, variant):
        torch.manual_seed(0)
        model = mlp((1, 8, 8), 4, width=100).double()
        x, y = torch.randn(3, 1, 8, 8).double(), torch.randint(4, (3,))
        scheme = gmp(noise_std=0.05, draws=6, variant=variant)
        passes = torch.cat([weights_of_passes(scheme, model, x, y) for _ in range(2)])
        w = nn.utils.parameters_to_vector(model.parameters())
        assert torch.equal(passes[[0, 7]], torch.stack([w, w]))
        deltas = (torch.cat([passes[1:7], passes[8:]]) - w) / 0.05
        d = num_parameters(model)
        assert deltas.shape == (12, d)
        assert deltas.abs().min() > 0
        count = deltas.numel()
        assert abs(deltas.mean()) < 4.5 / math.sqrt(count)
        for part in (deltas, deltas[:, -404:], deltas[:, 6400:6500]):  # the head; hidden biases
            n = part.numel()
            assert abs(part.square().sum() - n) < 4.5 * math.sqrt(2 * n)
        assert abs(deltas.pow(4).mean() - 3) < 4.5 * math.sqrt(96 / count)
        correlations = deltas @ deltas.T / d
        assert correlations.fill_diagonal_(0).abs().max() < 4.5 / math.sqrt(d)

    def test_frozen_weights_stay(self):
        model, x, y = case(small_tanh)
        model[1].requires_grad_(False)
        passes = weights_of_passes(gmp(noise_std=0.3), model, x, y)
        frozen = sum(p.numel() for p in model[1].parameters())
        changed = passes[1:] != passes[0]
        assert not changed[:, :frozen].any()
        assert changed[:, frozen:].all()

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_function_of_seed_and_step(self, kind):
        model, x, y = case(small_mlp, double=False)

        def two_steps(seed: int) -> list[list[bytes]]:
            scheme = gmp(seed=seed, noise_std=0.3, **KINDS[kind])
            return [bits(gradient(scheme, model, x, y)) for _ in range(2)]

        first, second = two_steps(SEED)
        torch.randn(5)
        assert [first, second] == two_steps(SEED)
        assert len({str(found) for found in (first, second, *two_steps(SEED + 1))}) == 4

    @pytest.mark.parametrize("kind", KINDS)
    def test_continues_from_its_state_bit_for_bit(self, kind):
        model, x, y = case(small_batchnorm, double=False)
        options = {"noise_std": 0.3, "final_noise_std": 0.01, "steps": 5, **KINDS[kind]}
        whole, resumed = gmp(**options), gmp(**options)
        for _ in range(2):
            gradient(whole, model, x, y)
        resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        for _ in range(3):
            after = copy.deepcopy(model)
            expected = bits(gradient(whole, model, x, y))
            assert bits(gradient(resumed, after, x, y)) == expected
