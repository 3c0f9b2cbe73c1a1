"""Schemes, augmentation and checkpoints on a GPU, against the CPU; skipped where there is none."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.model import VGG16Config
from gisgd_ray.config.scheme import (
    AdversarialConfig,
    AMPConfig,
    ClippingConfig,
    FloodingConfig,
    GMPConfig,
    LabelSmoothingConfig,
    SAMConfig,
    SchemeConfig,
    SGDConfig,
)
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.augmentation import Augmentation
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.device import GPU
from gisgd_ray.measures.groups import BetweenGroups
from gisgd_ray.networks.models import build_model, trainable
from gisgd_ray.schemes.base import Batch, Setting, Step, build_scheme
from gisgd_ray.schemes.clipping import Clipping
from gisgd_ray.schemes.sgd import SGD
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from gisgd_ray.training.state import TrainState
from gisgd_ray.training.stepping import SingleRun
from tests.support.runs import SMALL, Finished, finish

DEVICE = "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

NETWORK = VGG16Config(filters=4, hidden=16)

DETERMINISTIC: list[SchemeConfig] = [
    SGDConfig(),
    FloodingConfig(level=1000.0),
    ClippingConfig(start_epoch=0, initial_threshold=1e-3),
    SAMConfig(),
    AMPConfig(radius=0.1),
    LabelSmoothingConfig(),
    AdversarialConfig(),
    GMPConfig(rho=0.0),
]
"""Schemes without draws: with one device's draws another's would not agree."""

EVERY = [
    *[{"name": name} for name in ("sgd", "flooding", "clipping", "amp", "sam", "dropout")],
    *[{"name": name} for name in ("label_smoothing", "mixup", "adversarial")],
    {"name": "clipping", "variant": "lag", "lag": 2, "start_epoch": 0},
    *[{"name": "gmp", "estimator": estimator} for estimator in ("weights", "local")],
    {"name": "gmp", "variant": "absolute", "draws": 2},
]


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """Convolutions in float32 proper, and the same every time."""
    GPU().set_arithmetic("float32")
    yield
    torch.use_deterministic_algorithms(False)


def network(dtype: torch.dtype) -> nn.Module:
    model = build_model(NETWORK, (3, 32, 32), 10, seed=0, initialization="kaiming")
    return model.to(dtype).train()


def batch(dtype: torch.dtype, n: int = 24) -> Batch:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 32, 32, generator=source, dtype=torch.float64)
    return Batch(x.to(dtype), torch.randint(10, (n,), generator=source))


def there(given: Batch) -> Batch:
    return Batch(given.inputs.to(DEVICE), given.targets.to(DEVICE))


def setting(device: str, dtype: torch.dtype) -> Setting:
    black, white = torch.tensor([[-2.0] * 3, [2.5] * 3], device=device, dtype=dtype)
    return Setting(
        seed=0,
        device=torch.device(device),
        steps_per_epoch=3,
        planned_steps=30,
        black=black,
        white=white,
    )


def gradients(
    config: SchemeConfig, given: Batch, model: nn.Module, device: str, **options: Any
) -> list[Tensor]:
    """Of two calls at the same weights, each (d,) float64 on the CPU, and the buffers after."""
    scheme = build_scheme(config, model, setting(device, given.inputs.dtype))
    found = []
    for _ in range(2):
        scheme.gradient(Step(model, given, loss="cross_entropy", **options))
        found.append(flat([p.grad for p in trainable(model) if p.grad is not None]))
    return [*found, flat(list(model.buffers()))]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().cpu().flatten() for t in tensors])


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float((found - expected).norm() / expected.norm())


def random_images(device: str, n: int = 60) -> Dataset:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(2 * n, 3, 32, 32, generator=source)
    y = torch.randint(10, (2 * n,), generator=source)
    x, y = x.to(device), y.to(device)
    return Dataset(
        train_x=x[:n],
        train_y=y[:n],
        test_x=x[n:],
        test_y=y[n:],
        num_classes=10,
        normalization_mean=(0.5, 0.4, 0.3),
        normalization_std=(0.2, 0.25, 0.3),
    )


def vgg16_trial(changes: dict[str, Any]) -> TrialConfig:
    """Four steps on images of CIFAR-10's shape, put in its place."""
    fields: dict[str, Any] = {
        "data.dataset": "cifar10",
        "model.name": "vgg16",
        "model.filters": 4,
        "model.hidden": 16,
        "training.batch_size": 20,
        "training.max_steps": 4,
        "measurement.flatness_draws": 4,
    }
    return TrialConfig.model_validate(unflatten(fields | changes))


def weights(state: TrainState) -> list[bytes]:
    values = state.model.state_dict().values()
    return [value.cpu().numpy().tobytes() for value in values]


class TestSchemes:
    @pytest.mark.parametrize("config", DETERMINISTIC, ids=lambda config: config.name)
    def test_gradients_are_those_of_the_cpu(self, config):
        """In float64: between two ways to round float32 a few ReLUs and maxima switch over."""
        given, model = batch(torch.float64), network(torch.float64)
        expected = gradients(config, given, copy.deepcopy(model), "cpu")
        found = gradients(config, there(given), model.to(DEVICE), DEVICE)
        for here, right in zip(found, expected, strict=True):
            assert distance(here, right) < 1e-6

    def test_gradients_in_float32(self):
        given, model = batch(torch.float32), network(torch.float32)
        expected, *_ = gradients(SGDConfig(), given, copy.deepcopy(model), "cpu")
        found, *_ = gradients(SGDConfig(), there(given), model.to(DEVICE), DEVICE)
        assert distance(found, expected) < 0.05

    @pytest.mark.parametrize(
        "scheme", EVERY, ids=lambda scheme: "-".join(map(str, scheme.values()))
    )
    def test_whole_runs(self, scheme):
        """Steps, measures by groups, trace and flatness, all on the device."""
        changes = {f"scheme.{name}": value for name, value in scheme.items()}
        state = training.start(vgg16_trial(changes), device=DEVICE, dataset=random_images(DEVICE))
        before = [p.detach().clone() for p in state.model.parameters()]
        finished = finish(state)
        assert finished.row["status"] == "finished"
        assert finished.row["steps"] == 4
        for p, start in zip(state.model.parameters(), before, strict=True):
            assert p.isfinite().all()
            assert p.dim() == 1 or not torch.equal(p, start)
        assert all(t.device.type == DEVICE for t in state.model.state_dict().values())
        for name in ("gradient_dispersion", "between_group_dispersion", "hessian_trace"):
            assert finished.row[f"measure/{name}"] > 0
        assert finished.row["bound/theorem2_closed_form"] > 0

    @pytest.mark.parametrize("estimator", ["weights", "local"])
    def test_gmp_draws_on_the_device_and_keeps_the_clean_weights(self, estimator):
        model = network(torch.float32).to(DEVICE)
        kept = [p.detach().clone() for p in model.parameters()]
        config = GMPConfig(estimator=estimator, rho=1.0)
        first, second, _ = gradients(config, there(batch(torch.float32)), model, DEVICE)
        again, *_ = gradients(config, there(batch(torch.float32)), model, DEVICE)
        assert distance(second, first) > 0.1  # other draws
        assert distance(again, first) < 0.05
        for p, clean in zip(model.parameters(), kept, strict=True):
            assert torch.equal(p, clean)

    def test_bfloat16(self):
        given, model = there(batch(torch.float32)), network(torch.float32).to(DEVICE)
        with torch.no_grad():
            full, mixed = (
                Step(model, given, loss="cross_entropy", precision=precision).forward(given.inputs)
                for precision in ("float32", "bfloat16")
            )
        assert mixed.dtype == torch.float32
        assert 0 < distance(flat([mixed]), flat([full])) < 0.1
        exact, *_ = gradients(SGDConfig(), given, model, DEVICE)
        found, *_ = gradients(SGDConfig(), given, model, DEVICE, precision="bfloat16")
        assert all(p.grad.dtype == torch.float32 for p in trainable(model))
        # Relative errors of 1 % switch about as many ReLUs and maxima: gradients move by 10 % of
        # themselves a layer, and by half in all.
        assert float(found.norm()) == pytest.approx(float(exact.norm()), rel=0.1)
        assert 0 < distance(found, exact) < 0.8
        last = slice(-NETWORK.hidden * 10 - 10, None)
        assert distance(found[last], exact[last]) < 0.1

    def test_float32_is_not_tf32_unless_asked(self):
        """TF32 has 10 bits of mantissa; a trial sets what all passes of its process use."""
        source = torch.Generator().manual_seed(2)
        layer, x = nn.Conv2d(64, 64, 3).to(DEVICE), torch.randn(8, 64, 16, 16, generator=source)
        x = x.to(DEVICE)
        errors = {}
        with torch.no_grad():
            exact = copy.deepcopy(layer).double()(x.double())
            for precision in ("tf32", "float32"):
                trial = vgg16_trial({"training.precision": precision})
                training.start(trial, device=DEVICE, dataset=random_images(DEVICE))
                errors[precision] = distance(flat([layer(x)]), flat([exact]))
        assert errors["float32"] < 1e-5 < errors["tf32"] < 1e-2

    def test_dispersion_between_groups(self):
        given, model = batch(torch.float64), network(torch.float64)
        step = Step(model, given, loss="squared")
        expected = BetweenGroups(model, 3).measure(step, SGD())
        step = Step(model.to(DEVICE), there(given), loss="squared")
        found = BetweenGroups(model, 3).measure(step, SGD())
        assert found.device.type == DEVICE
        assert float(found) == pytest.approx(float(expected), rel=1e-8)


@contextmanager
def no_waiting() -> Iterator[None]:
    """Anything that makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestNoStepWaits:
    def test_the_guard_sees_a_norm_that_is_looked_at(self):
        norm = torch.ones((), device=DEVICE)
        with pytest.raises(RuntimeError, match="synchronizing"), no_waiting():
            float(norm)

    @pytest.mark.parametrize("variant", ["running_minimum", "lag"])
    @pytest.mark.parametrize("start_epoch", [None, 0, 1])
    def test_for_the_factor_of_clipping(self, variant, start_epoch):
        """Over the ends of epochs, and as on the CPU."""
        norms = [3.0, 2.0, 5.0, 1.0, 4.0, 6.0, 0.5, 9.0, 2.0, 8.0]
        options = ClippingConfig(variant=variant, factor=0.5, start_epoch=start_epoch, lag=2)

        def clipping(device: torch.device) -> Clipping:
            return Clipping(options, Setting(0, device, steps_per_epoch=3, planned_steps=10))

        here, away = clipping(torch.device("cpu")), clipping(DEVICE)
        expected = [float(here.scale(torch.tensor(norm))) for norm in norms]
        on_device = torch.tensor(norms, device=DEVICE).unbind()
        away.scale(on_device[0].clone())  # whatever is loaded at the first call
        away = clipping(DEVICE)
        with no_waiting():
            found = [away.scale(norm) for norm in on_device]
        assert [float(scale) for scale in found] == pytest.approx(expected, rel=1e-6)
        assert any(scale < 1 for scale in expected)

    @pytest.mark.parametrize("scheme", ["sgd", "clipping"])
    def test_for_a_measured_step_of_augmented_images(self, scheme):
        changes = {"scheme.name": scheme, "data.crop_padding": 4, "data.flip": True}
        state = training.start(vgg16_trial(changes), device=DEVICE, dataset=random_images(DEVICE))
        assert isinstance(state.stepper, SingleRun)
        indices = torch.arange(20, device=DEVICE)
        state.stepper.train_on(indices, learning_rate=0.1)  # loads libraries, makes buffers
        with no_waiting():
            state.stepper.train_on(indices, learning_rate=0.1, step=1)


class TestAugmentation:
    @pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True)])
    def test_is_the_cpus_to_the_bit(self, padding, flip):
        data = random_images("cpu")
        config = vgg16_trial({"data.crop_padding": padding, "data.flip": flip}).data
        here, away = (
            Augmentation.of(config, random_images(device), seed=3) for device in ("cpu", DEVICE)
        )
        assert here is not None
        assert away is not None
        for step in range(3):
            found = away(data.train_x.to(DEVICE), step)
            assert found.device.type == DEVICE
            assert torch.equal(found.cpu(), here(data.train_x, step))


class TestCheckpoints:
    """Of an MLP, whose passes are the same to the bit each time."""

    @pytest.mark.parametrize(
        "scheme",
        [
            {"name": "clipping", "variant": "lag", "lag": 3, "start_epoch": 0},
            {"name": "clipping"},
            {"name": "gmp", "final_noise_std": 0.01},
            {"name": "gmp", "estimator": "local"},
            {"name": "dropout"},
            {"name": "mixup"},
        ],
        ids=lambda scheme: "-".join(map(str, scheme.values())),
    )
    def test_a_restored_run_ends_as_one_never_stopped(self, scheme):
        changes = {f"scheme.{name}": value for name, value in scheme.items()}
        fields = SMALL | {"training.momentum": 0.9, "training.evaluation.unit": "step"} | changes
        config = TrialConfig.model_validate(unflatten(fields))
        whole: Finished = finish(training.start(config, device=DEVICE))
        stopped = training.start(config, device=DEVICE)
        for _ in range(7):  # in the middle of the second epoch
            training.advance(stopped)
        restored = checkpoint.load(config, checkpoint.dump(stopped), device=DEVICE)
        assert all(p.device.type == DEVICE for p in restored.model.parameters())
        assert weights(finish(restored).state) == weights(whole.state)
        for name, column in whole.series.columns().items():
            assert restored.series.columns()[name].tobytes() == column.tobytes(), name

    def test_may_be_read_without_a_gpu(self):
        config = TrialConfig.model_validate(unflatten(SMALL | {"scheme.name": "clipping"}))
        state = training.start(config, device=DEVICE)
        for _ in range(2):
            training.advance(state)
        restored = checkpoint.load(config, checkpoint.dump(state), device="cpu")
        assert weights(restored) == weights(state)
        assert finish(restored).row["status"] == "finished"
