"""Loss and accuracy on whole splits."""

import math
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from gisgd_ray.data.dataset import Dataset
from gisgd_ray.measures.invisible import evaluating
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.training.measure import standard_error
from gisgd_ray.training.state import Point, TrainState

EVALUATION_CHUNK = 2_000

EVALUATED = (
    "train/loss",
    "train/accuracy",
    "test/loss",
    "test/accuracy",
    "gap/loss",
    "gap/accuracy",
)
"""What :func:`evaluate_splits` gives, in its order."""


def losses_and_gap(state: TrainState) -> Point:
    """Train and test loss and accuracy, and the gaps; with replicas, the gap's standard error."""
    loss = state.config.training.loss
    found = [evaluate_splits(r.model, r.dataset, loss=loss) for r in state.replicas]
    point: Point = {name: fmean(each[name] for each in found) for name in found[0]}
    if len(found) > 1:
        point["gap/loss_stderr"] = standard_error([each["gap/loss"] for each in found])
    return point


def evaluate_splits(model: nn.Module, data: Dataset, *, loss: LossName) -> dict[str, Any]:
    """Loss and accuracy on the whole train and test split, and the gaps.

    ``gap/loss`` = test - train (an estimate of gen, signed); ``gap/accuracy`` = train - test.
    Accuracies are NaN in regression.
    """
    train_loss, train_accuracy = evaluate(model, data.train_x, data.train_y, loss=loss)
    test_loss, test_accuracy = evaluate(model, data.test_x, data.test_y, loss=loss)
    gaps = (test_loss - train_loss, train_accuracy - test_accuracy)
    values = (train_loss, train_accuracy, test_loss, test_accuracy, *gaps)
    return dict(zip(EVALUATED, values, strict=True))


@torch.no_grad()
def evaluate(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, loss: LossName
) -> tuple[float, float]:
    """Mean loss and accuracy (fraction) in evaluation mode; the model's mode is put back."""
    total = torch.zeros((), dtype=torch.float64, device=inputs.device)
    correct = torch.zeros((), dtype=torch.int64, device=inputs.device)
    chunks = zip(inputs.split(EVALUATION_CHUNK), targets.split(EVALUATION_CHUNK), strict=True)
    with evaluating(model):
        for x, y in chunks:
            outputs = model(x)
            total += per_sample_loss(loss, outputs, y).double().sum()
            correct += (outputs.argmax(dim=1) == y).sum()
    accuracy = math.nan if targets.is_floating_point() else float(correct) / len(targets)
    return float(total) / len(targets), accuracy
