"""The written-out step of dense networks against autograd, and by loops over samples in float64."""

import copy
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.data.dataset import Dataset
from gisgd_ray.measures.dispersion import StepMeter
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.networks.losses import LossName, losses_and_gradient, per_sample_loss
from gisgd_ray.networks.models import FixedReadout, linear, mlp, two_layer_relu
from gisgd_ray.schemes.base import Batch
from gisgd_ray.training import dense
from gisgd_ray.training import loop as training
from gisgd_ray.training.dense import ByGram, DenseNetwork, DenseStep, is_dense
from gisgd_ray.training.stepping import AutogradRun, DenseRun, Replica, SingleRun
from tests.support import reference
from tests.support.runs import config, run, series_bits, weight_bits

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

SHAPE, CLASSES = (1, 3, 4), 5
LOSSES: tuple[LossName, ...] = ("cross_entropy", "squared")


def deep(*, biases: tuple[bool, bool, bool] = (True, True, True)) -> nn.Sequential:
    first, second, third = biases
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(12, 9, bias=first),
        nn.ReLU(),
        nn.Linear(9, 8, bias=second),
        nn.ReLU(),
        nn.Linear(8, CLASSES, bias=third),
    )


def without_activations() -> nn.Sequential:
    """Nested, with a layer that does nothing, and linear layers one behind the other."""
    inside = nn.Sequential(nn.Linear(12, 7), nn.Identity(), nn.Linear(7, 6, bias=False))
    return nn.Sequential(nn.Identity(), nn.Flatten(), inside, nn.Linear(6, CLASSES))


def dead() -> nn.Sequential:
    """All units of the first layer but two give out 0 at every sample."""
    model = mlp(SHAPE, CLASSES, width=6)
    with torch.no_grad():
        model[1].bias[:4] = -1e3
    return model


def frozen(*names: str) -> Callable[[], nn.Sequential]:
    def build() -> nn.Sequential:
        model = deep()
        for name in names:
            model.get_parameter(name).requires_grad_(False)
        return model

    return build


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "mlp": lambda: mlp(SHAPE, CLASSES, width=11),
    "width 1": lambda: mlp(SHAPE, CLASSES, width=1),
    "dead units": dead,
    "deep": deep,
    "no biases": lambda: deep(biases=(False, False, False)),
    "some biases": lambda: deep(biases=(False, True, False)),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES)),
    "without activations": without_activations,
    "ends in ReLU": lambda: nn.Sequential(*deep(), nn.ReLU()),
    "first layer frozen": frozen("1.weight", "1.bias"),
    "layer between frozen": frozen("3.weight", "3.bias"),
    "a weight and another's bias frozen": frozen("1.weight", "5.bias"),
    "only a bias trained": frozen("1.weight", "1.bias", "3.weight", "5.weight", "5.bias"),
}
REAL: dict[str, Callable[[], nn.Sequential]] = {
    "linear": lambda: linear(SHAPE),
    "two-layer ReLU": lambda: two_layer_relu(SHAPE, width=9),
    "a layer behind a read-out": lambda: nn.Sequential(
        *two_layer_relu(SHAPE, width=9), nn.Linear(1, 1)
    ),
}
"""With one output, for real targets."""


def samples(n: int, *, real: bool = False) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    inputs = torch.randn(n, *SHAPE, generator=source)
    if real:
        return inputs, torch.randn(n, generator=source)
    return inputs, torch.randint(CLASSES, (n,), generator=source)


def built(name: str) -> nn.Sequential:
    torch.manual_seed(1)
    return (NETWORKS | REAL)[name]()


def by_sample(model: nn.Module, x: Tensor, y: Tensor, loss: LossName) -> tuple[Any, Any]:
    """Losses (b,) and gradients (b, d) of what is trained, a sample at a time in float64."""
    double = reference.in_float64(model)
    trained = [p for p in double.parameters() if p.requires_grad]
    losses, gradients = [], []
    for inputs, target in zip(x.double(), y, strict=True):
        scores = double(inputs[None])[0]
        if y.is_floating_point():
            value = (scores[0] - target.double()) ** 2 / 2
        else:
            value = reference.sample_loss(scores, int(target), loss)
        found = torch.autograd.grad(value, trained, allow_unused=True, materialize_grads=True)
        gradients.append(torch.cat([g.flatten() for g in found]).numpy())
        losses.append(value.item())
    return np.array(losses), np.array(gradients)


@torch.no_grad()
def passed(
    model: nn.Module, x: Tensor, y: Tensor, loss: LossName
) -> tuple[DenseNetwork, Tensor, DenseStep]:
    """A network and its losses after the passes of a step, which is still to be taken."""
    network = DenseNetwork(model)
    step = DenseStep(network, model, Batch(x, y), loss=loss)
    return network, step.plain(), step


@pytest.fixture(params=["products", "Gram matrices"])
def either_way(request, monkeypatch):
    """1^T K 1 of all layers by the one of its two forms."""
    monkeypatch.setattr(dense, "GRAM_WORK", 0 if request.param == "products" else math.inf)


CASES = [
    *((name, loss) for name in NETWORKS for loss in LOSSES),
    *((name, "squared") for name in REAL),
]


@pytest.mark.usefixtures("either_way")
class TestOneBatch:
    @pytest.mark.parametrize("size", [1, 2, 13])
    @pytest.mark.parametrize(("name", "loss"), CASES)
    def test_losses_and_both_sums_of_the_gram_matrix(self, name, loss, size):
        model, (x, y) = built(name), samples(size, real=name in REAL)
        network, losses, _ = passed(model, x, y, loss)
        expected, gradients = by_sample(model, x, y, loss)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
        gram = gradients @ gradients.T
        assert network.trace() == pytest.approx(gram.trace(), rel=1e-5)
        total = gram.sum()
        assert network.total() == pytest.approx(total, rel=1e-5, abs=1e-7 * gram.trace())
        assert network.gradient_norm() == math.sqrt(network.total()) / size
        mean = gradients.mean(axis=0)
        if size == 13 and name != "only a bias trained":
            centred = ((gradients - mean) ** 2).sum() / (size - 1)
            s2 = (network.trace() - network.total() / size) / (size - 1)
            assert s2 == pytest.approx(centred, rel=1e-5)

    @pytest.mark.parametrize(("name", "loss"), CASES)
    def test_the_update(self, name, loss):
        model, (x, y) = built(name), samples(7, real=name in REAL)
        before = copy.deepcopy(model)
        with torch.no_grad():
            passed(model, x, y, loss)[-1].descend(0.3)
        mean = by_sample(before, x, y, loss)[1].mean(axis=0)
        pairs = list(zip(before.parameters(), model.parameters(), strict=True))
        moved = [new.double() - old.double() for old, new in pairs if old.requires_grad]
        assert np.abs(mean).max() > 0
        found = torch.cat([each.detach().flatten() for each in moved])
        np.testing.assert_allclose(found, -0.3 * mean, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(old, new) for old, new in pairs if not old.requires_grad)

    @pytest.mark.parametrize(("spread", "counted"), [(0.0, 1), (1e-4, 1), (3e-3, 1), (0.3, 0)])
    def test_samples_that_agree_have_their_dispersion_and_are_counted(self, spread, counted):
        """In float32 alone that of spread 1e-4, 1e-8 of the mean squared norm, is rounding."""
        model, (one, y), (x, _) = built("mlp"), samples(1), samples(9)
        x, y = one + spread * x, y.expand(9)
        network = DenseNetwork(model)
        meter = StepMeter(dispersion=ByGram(network))
        with torch.no_grad():
            DenseStep(network, model, Batch(x, y), loss="cross_entropy", meter=meter).plain()
        meter.close(learning_rate=0.1, factor=1.0)
        series = meter.drain()
        expected = reference.batch_moments(model, x, y, "cross_entropy")
        found = float(series.per_sample_dispersion[0])
        floor = 1e-13 * expected.mean_squared_norm
        assert found == pytest.approx(expected.per_sample_dispersion, rel=3e-3, abs=floor)
        mean = expected.mean_squared_norm
        assert series.mean_squared_norm[0] == pytest.approx(mean, rel=1e-5)
        assert series.ill_conditioned_steps == counted

    def test_a_gradient_of_nothing(self):
        """All outputs behind dead units: no NaN, and nothing moves."""
        model = nn.Sequential(*built("deep"), nn.ReLU())
        with torch.no_grad():
            model[5].bias.fill_(-1e3)
        before = reference.weights(model)
        network, losses, step = passed(model, *samples(6), "squared")
        assert losses.tolist() == [0.5] * 6
        assert (network.trace(), network.total()) == (0.0, 0.0)
        with torch.no_grad():
            step.descend(0.1)
        assert torch.equal(reference.weights(model), before)


def test_the_two_forms_are_chosen_by_their_work():
    model = mlp((1, 28, 28), 10, width=512)
    network = DenseNetwork(model)
    first, last = network._trained
    for size, expected in ((20, True), (60, True), (120, False)):
        x, y = torch.randn(size, 1, 28, 28), torch.zeros(size, dtype=torch.int64)
        with torch.no_grad():
            DenseStep(network, model, Batch(x, y), loss="cross_entropy").plain()
        assert (first._by_gram, last._by_gram) == (expected, False)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("real", [False, True])
def test_the_gradient_in_the_outputs_is_that_of_autograd(loss, real):
    if real and loss == "cross_entropy":
        return
    source = torch.Generator().manual_seed(0)
    outputs = 30 * torch.randn(8, 1 if real else CLASSES, generator=source, dtype=torch.float64)
    targets = samples(8, real=real)[1].to(torch.float64 if real else torch.int64)
    outputs.requires_grad_()
    losses, gradient = losses_and_gradient(loss, outputs.detach(), targets)
    expected = per_sample_loss(loss, outputs, targets)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=0)
    expected.sum().backward()
    torch.testing.assert_close(gradient, outputs.grad, rtol=1e-9, atol=1e-15)


# ---------------------------------------------------------------- whole runs, beside autograd

SCHEMES: dict[str, dict[str, Any]] = {
    "sgd": {},
    "flooding": {"scheme.name": "flooding", "scheme.level": 1.5},
    "clipping": {"scheme.name": "clipping", "scheme.start_epoch": 1, "scheme.factor": 0.5},
    "clipping, lag": {
        "scheme.name": "clipping",
        "scheme.variant": "lag",
        "scheme.lag": 3,
        "scheme.start_epoch": 0,
        "scheme.factor": 0.5,
    },
    "applied": {
        "scheme.name": "clipping",
        "scheme.start_epoch": 1,
        "measurement.dispersion_of": "applied",
    },
}
RUN = {"training.batch_size": 16, "training.max_epochs": 60}
"""n = 40: batches of 16, 16 and 8."""


def data(dtype: torch.dtype, *, real: bool) -> Dataset:
    x, y = samples(40, real=real)
    x, y = x.to(dtype), y.to(dtype) if real else y
    return Dataset(
        train_x=x,
        train_y=y,
        test_x=x,
        test_y=y,
        num_classes=1 if real else CLASSES,
        normalization_mean=(0.0,),
        normalization_std=(1.0,),
    )


@lru_cache
def trained(
    kind: type[SingleRun], name: str, scheme: str, dtype: torch.dtype, steps: int
) -> tuple[StepSeries, Tensor]:
    """The steps and the weights at last."""
    real = name in REAL
    trial = config(RUN | SCHEMES[scheme] | ({"training.loss": "squared"} if real else {}))
    if name == "two-layer ReLU":
        trial = trial.changed({"model": {"name": "two_layer_relu", "width": 9}})
    stepper = kind(trial, Replica(0, built(name).to(dtype), data(dtype, real=real)))
    for step in range(steps):
        stepper.step(step, learning_rate=0.1 if step < 20 else 0.05)
    return stepper.drain(), reference.weights(stepper.replicas[0].model)


WITH_GRADIENTS_BY_SAMPLE = [name for name in (NETWORKS | REAL) if "rozen" not in name]
WITH_GRADIENTS_BY_SAMPLE.remove("only a bias trained")


def assert_alike(
    name: str, scheme: str, dtype: torch.dtype, steps: int, *, rel: float, atol: float
) -> None:
    found, weights = trained(DenseRun, name, scheme, dtype, steps)
    expected, by_autograd = trained(AutogradRun, name, scheme, dtype, steps)
    assert len(found) == len(expected) == steps
    derived = ("per_sample_dispersion", "gradient_dispersion")
    columns = expected.columns() | {column: getattr(expected, column) for column in derived}
    for column, values in columns.items():
        ours = getattr(found, column)
        ours = np.full(steps, np.nan) if ours is None else ours
        scale = 1e-3 * np.nanmax(values) if np.isfinite(values).any() else 0.0
        np.testing.assert_allclose(ours, values, rtol=rel, atol=rel * scale, err_msg=column)
    assert float((weights - by_autograd).norm()) <= atol * float(by_autograd.norm())
    assert found.ill_conditioned_steps == expected.ill_conditioned_steps


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", WITH_GRADIENTS_BY_SAMPLE)
def test_fifty_steps_in_float64_are_those_of_autograd(name):
    trained.cache_clear()
    assert_alike(name, "sgd", torch.float64, 50, rel=1e-8, atol=1e-11)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["mlp", "deep", "two-layer ReLU"])
def test_the_schemes_likewise(name, scheme):
    if scheme == "flooding" and name == "two-layer ReLU":
        return
    assert_alike(name, scheme, torch.float64, 50, rel=1e-8, atol=1e-11)
    factors = trained(DenseRun, name, scheme, torch.float64, 50)[0].gradient_factor
    assert (factors != 1).any() == (scheme != "sgd")


@pytest.mark.parametrize("name", ["mlp", "width 1", "linear", "two-layer ReLU"])
def test_two_hundred_steps_in_float32_are_those_of_autograd(name):
    assert_alike(name, "sgd", torch.float32, 200, rel=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in WITH_GRADIENTS_BY_SAMPLE])
def test_frozen_layers_whose_dispersion_autograd_does_not_measure(name):
    """Each step's columns by sample, on the way of an autograd run without them."""
    plain = config(RUN | {"measurement.dispersion": False})
    model, twin = built(name), built(name)
    ours = DenseRun(config(RUN), Replica(0, model, data(torch.float32, real=False)))
    other = AutogradRun(plain, Replica(0, twin, data(torch.float32, real=False)))
    expected = []
    for step in range(6):
        indices = other.trajectory.batch(step)
        x, y = (tensor[indices] for tensor in samples(40))
        gradients = by_sample(twin, x, y, "cross_entropy")[1]
        centred = ((gradients - gradients.mean(axis=0)) ** 2).sum() / (len(x) - 1)
        expected.append((centred, (gradients.mean(axis=0) ** 2).sum()))
        for stepper in (ours, other):
            stepper.step(step, learning_rate=0.1)
    series = ours.drain()
    found = zip(series.per_sample_dispersion, series.squared_gradient_norm, strict=True)
    np.testing.assert_allclose(list(found), expected, rtol=2e-5)
    torch.testing.assert_close(reference.weights(model), reference.weights(twin))


# ---------------------------------------------------------------- which runs it takes

CLIPPED = {"scheme.name": "clipping", "scheme.start_epoch": 0}


class TestServes:
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"measurement.dispersion": False},
            {"training.loss": "squared"},
            {"training.lr_milestones": [1]},
            {"data.label_noise": 0.2},
            {"data.crop_padding": 2, "data.flip": True},
            {"scheme.name": "flooding"},
            CLIPPED,
            CLIPPED | {"measurement.dispersion_of": "applied"},
        ],
    )
    def test_plain_steps_of_dense_networks(self, changes):
        assert type(training.start(config(changes)).stepper) is DenseRun

    @pytest.mark.parametrize(
        "changes",
        [
            {"training.momentum": 0.9},
            {"training.weight_decay": 1e-4},
            {"training.max_gradient_norm": 50.0},
            {"training.precision": "bfloat16"},
            {"measurement.dispersion_estimator": "groups"},
            *({"scheme.name": name} for name in ("gmp", "sam", "dropout", "mixup")),
        ],
    )
    def test_others_are_autograds(self, changes):
        assert type(training.start(config(changes)).stepper) is AutogradRun

    @pytest.mark.parametrize("name", [*NETWORKS, *REAL])
    def test_networks(self, name):
        assert is_dense(built(name), SHAPE)

    def test_vectors_need_no_flattening(self):
        model = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2))
        assert is_dense(model, (12,))
        assert not is_dense(model, (1, 3, 12))

    def test_other_networks(self):
        class Doubling(nn.Linear):
            def forward(self, inputs: Tensor) -> Tensor:
                return 2 * super().forward(inputs)

        class Own(nn.Sequential):
            pass

        shared = nn.Linear(4, 4)
        tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        tied[0].weight = tied[1].weight
        still = nn.Sequential(nn.Linear(4, 4)).requires_grad_(False)
        for model in (
            nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
            nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)),
            nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)),
            nn.Sequential(Doubling(4, 4)),
            nn.Sequential(shared, nn.ReLU(), shared),
            nn.Sequential(nn.ReLU(), FixedReadout(4)),
            nn.Sequential(),
            Own(nn.Linear(4, 4)),
            nn.Linear(4, 4),
            tied,
            still,
        ):
            expected = type(model) is nn.Linear  # a layer is a network of one
            assert is_dense(model, (4,)) == expected, model

    @pytest.mark.parametrize(
        "hook",
        [
            lambda model: model[1].register_forward_hook(lambda *_: None),
            lambda model: model[2].register_forward_pre_hook(lambda *_: None),
            lambda model: model.register_full_backward_hook(lambda *_: None),
            lambda model: model[3].weight.register_hook(lambda gradient: 0 * gradient),
        ],
    )
    def test_hooks_are_called_by_autograd(self, hook):
        model = mlp(SHAPE, CLASSES, width=3)
        assert is_dense(model, SHAPE)
        hook(model)
        assert not is_dense(model, SHAPE)


class TestToTheBit:
    @pytest.mark.parametrize("changes", [{}, CLIPPED, {"scheme.name": "flooding"}])
    def test_measured_or_not(self, changes):
        measured, plain = run(changes), run(changes | {"measurement.dispersion": False})
        assert weight_bits(measured.state) == weight_bits(plain.state)
        factors = measured.series.gradient_factor
        assert factors.tobytes() == plain.series.gradient_factor.tobytes()

    def test_a_scheme_that_changes_nothing(self):
        never = {"scheme.name": "clipping", "scheme.variant": "lag", "scheme.lag": 11}
        sgd, clipped = run(), run(never | {"scheme.start_epoch": 2})
        flooded = run({"scheme.name": "flooding", "scheme.level": 0.0})
        assert (clipped.series.gradient_factor[:11] == 1).all()
        for name, column in series_bits(sgd.series.head(11)).items():
            assert series_bits(clipped.series.head(11))[name] == column
        assert series_bits(flooded.series) == series_bits(sgd.series)
        assert weight_bits(flooded.state) == weight_bits(sgd.state)

    def test_no_gradient_is_left(self):
        assert all(p.grad is None for p in run().state.model.parameters())

    @pytest.mark.parametrize("changes", [{}, CLIPPED])
    def test_a_checkpoint_of_either_engine_is_one_for_both(self, changes):
        """As where a sweep that began on CPUs is resumed on GPUs."""
        trial = config(changes)
        states = [training.start(trial), training.start(trial)]
        runs = [DenseRun(trial, states[0].replicas[0]), AutogradRun(trial, states[1].replicas[0])]
        for step in range(3):
            for each in runs:
                each.step(step, learning_rate=0.1)
        dense_run, by_autograd = runs
        kept = [each.state_dict() for each in runs]
        by_autograd.load_state_dict(kept[0])
        dense_run.load_state_dict(kept[1])
        assert [each.scheme.state_dict() for each in runs] == [k["scheme"] for k in kept[::-1]]
