"""Nothing is left on another device: steps, schemes and measures on an accelerator of no numbers.

What a GPU would refuse is refused here, without one: see :mod:`tests.support.accelerator`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from gisgd_ray.config.space import validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import load_dataset
from gisgd_ray.runner.estimate import with_few_draws
from gisgd_ray.training import loop as training
from gisgd_ray.training.stack import Stack
from tests.support import kinds
from tests.support.accelerator import DEVICE, accelerator, dataset

MLP: dict[str, Any] = {"data.dataset": "mnist", "model.name": "mlp", "model.width": 8}
ALEXNET: dict[str, Any] = {
    "data.dataset": "cifar10",
    "model.name": "alexnet",
    "model.filters": 2,
    "model.hidden": 8,
}
VGG = {**ALEXNET, "model.name": "vgg16", "measurement.flatness": False}
APPLIED = {"measurement.dispersion_of": "applied"}
BESIDES: list[dict[str, Any]] = [
    # What a user may ask for and no sweep does.
    {**MLP, "scheme.name": "sam", **APPLIED},
    {**MLP, "scheme.name": "dropout", **APPLIED},
    {**MLP, "scheme.name": "gmp", "scheme.final_noise_std": 0.01, **APPLIED},
    {**ALEXNET, "scheme.name": "gmp", "scheme.estimator": "local"},
    {**ALEXNET, "training.loss": "squared", "measurement.hessian_trace": "pyhessian"},
    {**ALEXNET, "training.precision": "bfloat16", "measurement.sensitivity": True},
    {**VGG, "scheme.name": "gmp", "scheme.estimator": "local", "measurement.smoothness": False},
    {**VGG, "scheme.name": "mixup", **APPLIED, "measurement.smoothness": False},
]
STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def _few_samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from kinds.on_few_samples(tmp_path_factory.mktemp("data"))


def tried(config: TrialConfig) -> None:
    trial = with_few_draws(config)
    real = load_dataset(trial.data, seed=0)
    with accelerator():
        state = training.start(trial, device=DEVICE, dataset=dataset(real))
        training.try_out(state, STEPS)
        assert state.step == STEPS
        for model in (replica.model for replica in state.replicas):
            assert {p.device for p in model.parameters()} == {DEVICE}


def of_each_part(name: str) -> list[TrialConfig]:
    """Trials of a sweep among which every scheme, measurement and network is once at least.

    What is left behind on a device is in one of those, not in how two of them go together; the
    smaller networks come first.
    """
    found, parts = [], set[Any]()
    for trial in sorted(kinds.kinds(name), key=lambda trial: trial.model.name == "vgg16"):
        network, *others = kinds.differences(trial)
        new = {network, *enumerate(others)} - parts
        if new:
            found.append(trial)
            parts |= new
    return found


@pytest.mark.parametrize("name", kinds.SWEEPS)
def test_every_kind_of_trial_of_a_sweep_stays_on_its_device(name: str) -> None:
    for trial in of_each_part(name):
        tried(trial)


@pytest.mark.parametrize(
    "asked", BESIDES, ids=lambda a: f"{a['model.name']}-{list(a.values())[-1]}"
)
def test_what_else_can_be_asked_for_stays_on_its_device(asked: dict[str, Any]) -> None:
    tried(validated({"training.batch_size": 10, **asked}))


@pytest.mark.parametrize("dispersion", [True, False])
def test_a_stack_stays_on_its_device(dispersion: bool) -> None:
    """No number of a step is looked at, but at a measuring point."""
    own: list[dict[str, Any]] = [
        {},
        {"seed": 1, "data.label_noise": 0.2},
        {"scheme.name": "clipping", "scheme.start_epoch": 0},
        {"scheme.name": "flooding"},
    ]
    fields = {**MLP, "training.batch_size": 10, "measurement.dispersion": dispersion}
    trials = [with_few_draws(validated({**fields, **each})) for each in own]
    real = load_dataset(trials[0].data, seed=0)
    with accelerator():
        states = [training.start(t, device=DEVICE, dataset=dataset(real)) for t in trials]
        for state in states:
            training.measure(state)
        Stack(states).train(pause=lambda: states[0].step >= STEPS)
        for state in states:
            training.measure(state, last=True)
            assert state.step == STEPS
            assert {p.device for p in state.model.parameters()} == {DEVICE}


class TestTheStandInItself:
    def test_what_meets_on_two_devices_raises(self) -> None:
        with accelerator(), pytest.raises(RuntimeError, match="two devices"):
            torch.zeros(3, device=DEVICE) + torch.zeros(3)

    def test_a_network_left_behind_raises(self) -> None:
        with accelerator(), pytest.raises(RuntimeError, match="two devices"):
            nn.Linear(3, 2)(torch.zeros(4, 3, device=DEVICE))

    @pytest.mark.parametrize("draw", ["randn", "normal_", "bernoulli_"])
    def test_a_generator_elsewhere_raises(self, draw: str) -> None:
        draws = {
            "randn": lambda here: torch.randn(3, generator=here, device=DEVICE),
            "normal_": lambda here: torch.zeros(3, device=DEVICE).normal_(generator=here),
            "bernoulli_": lambda here: torch.zeros(3, device=DEVICE).bernoulli_(generator=here),
        }
        with accelerator(), pytest.raises(RuntimeError, match="cannot draw on lazy:0"):
            draws[draw](torch.Generator("cpu"))

    def test_an_array_is_made_on_the_cpu_alone(self) -> None:
        with accelerator(), pytest.raises(TypeError, match="has no numpy"):
            torch.zeros(3, device=DEVICE).numpy()
