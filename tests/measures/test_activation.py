"""Theorems 3 and 4: their inputs by brute force, and both bounds again from the definitions."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.measures.activation import ActiveUnits, hidden_layer, mean_active_units
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.networks.models import linear, mlp, two_layer_relu
from gisgd_ray.theory import bounds
from gisgd_ray.training.loop import advance, start, summary
from tests.support import reference


def unit_vectors(n: int, inputs: int) -> Tensor:
    x = torch.randn(n, inputs, generator=torch.Generator().manual_seed(1))
    return x / x.norm(dim=1, keepdim=True)


def targets(n: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(2)) * 2 - 1


def active(model: nn.Module, x: Tensor) -> list[int]:
    """sum_r 1{w_r.x_i >= 0} for every sample, unit by unit."""
    rows = [w.double() for w in hidden_layer(model).weight.detach()]
    return [sum(float(w @ xi.double()) >= 0 for w in rows) for xi in x]


def dense_trace(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Tr H of the mean of (f - y)^2 / 2 from the dense matrix of second derivatives."""
    double = reference.in_float64(model)
    parameters = [p for p in double.parameters() if p.requires_grad]
    outputs = double(x.double())[:, 0]
    loss = ((outputs - y.double()) ** 2).sum() / (2 * len(y))
    first = torch.autograd.grad(loss, parameters, create_graph=True)
    trace = 0.0
    for gradient, parameter in zip(first, parameters, strict=True):
        for i, entry in enumerate(gradient.flatten()):
            second = torch.autograd.grad(entry, parameter, retain_graph=True)[0]
            trace += float(second.flatten()[i])
    return trace


def test_trace_of_the_linear_network_is_one() -> None:
    model, x, y = linear((7,)), unit_vectors(30, 7), targets(30)
    assert dense_trace(model, x, y) == pytest.approx(1, abs=1e-6)
    assert HessianOperator(model, x, y, "squared").trace().value == pytest.approx(1, abs=1e-6)


def test_trace_of_the_two_layer_network_is_its_share_of_active_units() -> None:
    torch.manual_seed(0)
    model, x, y = two_layer_relu((7,), width=9), unit_vectors(30, 7), targets(30)
    by_units = sum(active(model, x)) / 30 / 9
    assert 0 < by_units < 1
    assert dense_trace(model, x, y) == pytest.approx(by_units, rel=1e-6)
    assert HessianOperator(model, x, y, "squared").trace().value == pytest.approx(
        by_units, rel=1e-6
    )
    assert mean_active_units(model, x, chunk=8) == pytest.approx(9 * by_units, rel=1e-12)


def test_counts_of_a_batch_and_a_unit_exactly_at_zero() -> None:
    torch.manual_seed(0)
    model, x = two_layer_relu((7,), width=9), unit_vectors(11, 7)
    counter = ActiveUnits(model)
    model(x)
    assert counter.counts().tolist() == active(model, x)
    with torch.no_grad():
        hidden_layer(model).weight.zero_()
    model(x)
    assert counter.counts().tolist() == [9] * 11  # 1{0 >= 0} = 1
    with pytest.raises(AssertionError):
        counter.counts()


def test_other_networks_have_no_active_units() -> None:
    with pytest.raises(ValueError, match="two-layer ReLU"):
        hidden_layer(mlp((1, 3, 3), 4, width=6))


def trial(model: dict[str, Any], **measurement: Any) -> TrialConfig:
    return TrialConfig.model_validate(
        {
            "data": {"dataset": "teacher"},
            "model": model,
            "training": {
                "loss": "squared",
                "learning_rate": 0.5,
                "batch_size": 12,
                "stop_loss": None,
                "max_steps": 9,
                "evaluation": {"every": 3, "unit": "step"},
            },
            "measurement": measurement,
        }
    )


def data() -> Dataset:
    x, y = unit_vectors(60, 7), targets(60)
    return Dataset(
        train_x=x[:40],
        train_y=y[:40],
        test_x=x[40:],
        test_y=y[40:],
        num_classes=1,
        normalization_mean=(0.0,),
        normalization_std=(1.0,),
    )


def replay(config: TrialConfig) -> list[dict[str, float]]:
    """The run by hand in float64; at each measuring point what Theorems 3 and 4 take, and give."""
    state = start(config, dataset=data())
    model = reference.in_float64(state.model)
    x, y = state.dataset.train_x, state.dataset.train_y
    trajectory = state.stepper.trajectory
    two_layer = config.model.name == "two_layer_relu"
    every: list[float] = []
    losses: list[float] = []
    active_losses: list[float] = []
    points = []
    for t in range(9):
        indices = trajectory.batch(t)
        outputs = [float(model(x[i : i + 1].double()).detach()) for i in indices]
        values = [float((f - y[i]) ** 2 / 2) for f, i in zip(outputs, indices, strict=True)]
        counts = active(model, x[indices]) if two_layer else [0] * len(indices)
        every += values
        losses.append(sum(values) / len(values))
        pairs = zip(counts, values, strict=True)
        active_losses.append(sum(c * v for c, v in pairs) / len(values))
        mean = sum((model(x[i : i + 1].double())[0, 0] - y[i]) ** 2 / 2 for i in indices)
        weights = next(iter(model.parameters()))
        (gradient,) = torch.autograd.grad(mean / len(indices), weights)
        with torch.no_grad():
            weights -= 0.5 * gradient
        if (t + 1) % 3 == 0:
            radius = (max(every) - min(every)) / 2
            point = {"step": t + 1, "radius": radius, "loss": 0.25 * sum(losses)}
            point["active_loss"] = 0.25 * sum(active_losses)
            if two_layer:
                point["active"] = sum(active(model, x)) / 40
            points.append(point)
    return points


def test_theorem_3_along_training() -> None:
    config = trial({"name": "linear"})
    state = start(config, dataset=data())
    while state.stopped is None:
        advance(state)
    assert math.isnan(state.history[0]["bound/theorem3"])
    expected = replay(config)
    assert [p["step"] for p in state.history[1:]] == [p["step"] for p in expected]
    for found, by_hand in zip(state.history[1:], expected, strict=True):
        steps = by_hand["step"]
        value = 3 * (by_hand["radius"] ** 2 * steps / (4 * 40) * by_hand["loss"]) ** (1 / 3)
        assert found["bound/theorem3"] == pytest.approx(value, rel=1e-5)
        assert math.isnan(found["train/accuracy"])
    assert summary(state)["bound/theorem3"] == state.history[-1]["bound/theorem3"]
    assert "bound/theorem4" not in summary(state)


def test_theorem_4_along_training_with_measured_activations() -> None:
    config = trial({"name": "two_layer_relu", "width": 9})
    state = start(config, dataset=data())
    while state.stopped is None:
        advance(state)
    for found, by_hand in zip(state.history[1:], replay(config), strict=True):
        r2, steps, m = by_hand["radius"] ** 2, by_hand["step"], 9
        product = by_hand["active"] * by_hand["active_loss"]
        value = 3 * (r2 * steps / (4 * 40 * m**2) * product) ** (1 / 3)
        assert found["measure/active_units"] == pytest.approx(by_hand["active"], rel=1e-6)
        assert found["bound/theorem4"] == pytest.approx(value, rel=1e-5)
    # The same as Lemma 7's relaxation says: Theorem 4 is never below it.
    assert summary(state)["bound/theorem4"] >= summary(state)["bound/lemma7"] * (1 - 1e-6)


def test_theorem_4_counts_every_unit_only_if_all_are_active() -> None:
    """With all units active it is Theorem 3's form: measured counts must make a difference."""
    config = trial({"name": "two_layer_relu", "width": 9})
    state = start(config, dataset=data())
    while state.stopped is None:
        advance(state)
    row, steps = summary(state), state.series
    assumed = bounds.theorem3(
        subgaussian_constant=row["measure/subgaussian_constant"],
        num_samples=40,
        learning_rates=steps.learning_rate,
        losses=steps.loss,
    )
    assert row["bound/theorem4"] < 0.9 * assumed


def test_switched_off() -> None:
    state = start(trial({"name": "linear"}, network_theorem="off"), dataset=data())
    point, _ = advance(state)
    assert "bound/theorem3" not in point
