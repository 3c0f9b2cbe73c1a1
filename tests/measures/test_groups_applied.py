"""The applied gradient by groups where a scheme draws random numbers for every sample."""

import math

import pytest
import torch
from torch import nn

from gisgd_ray.config.scheme import DropoutConfig, GMPConfig, MixUpConfig, SchemeConfig
from gisgd_ray.measures.groups import BetweenGroupsOfApplied
from gisgd_ray.networks.models import mlp, trainable
from gisgd_ray.schemes.base import Batch, Setting, Step
from gisgd_ray.schemes.builders import build_scheme

COPIES = 16
STEPS = 300


def setting() -> Setting:
    return Setting(seed=3, device=torch.device("cpu"), steps_per_epoch=10, planned_steps=1000)


def network() -> nn.Sequential:
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
    model, batch = network(), identical_samples()
    scheme = build_scheme(config, model, setting())
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
    model, batch = network(), identical_samples()
    scheme = build_scheme(config, model, setting())
    step = Step(model, batch, loss="cross_entropy")
    assert float(BetweenGroupsOfApplied(model, 2).measure(step, scheme)) < 1e-20


def test_the_step_itself_draws_as_if_nothing_had_been_measured() -> None:
    gradients = []
    for measured in (False, True):
        model, batch = network(), identical_samples()
        scheme = build_scheme(DropoutConfig(rate=0.5), model, setting())
        for _ in range(3):
            step = Step(model, batch, loss="cross_entropy")
            if measured:
                BetweenGroupsOfApplied(model, 3).measure(step, scheme)
            scheme.gradient(step)
        gradients.append(torch.cat([p.grad.flatten() for p in trainable(model)]))
    assert torch.equal(*gradients)
