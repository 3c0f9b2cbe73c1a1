"""Brute force in float64 of what several replicas of a run tell at one step.

From the definitions alone: nothing here comes from the package. The gradients of all samples of
all replicas are kept whole, and each mean is taken before anything is squared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.support import reference


@dataclass(frozen=True)
class ReplicaMoments:
    """One step of R replicas, at their weights before it; names as in the package's columns."""

    loss: float
    loss_min: float
    loss_max: float
    squared_gradient_norm: float
    mean_squared_norm: float
    gradient_dispersion: float
    """1/(R-1) sum_r ||g_r - mean_r g_r||^2 + b/n of the next."""
    gradient_dispersion_neu: float
    """mean_r 1/(b(b-1)) sum_i ||g_{r,i} - g_r||^2."""
    mean_gradients: list[Tensor]
    """g_r, each (d,)."""


def conditional_dispersion(
    weights: Tensor,
    own: int,
    direction: Tensor,
    std: float,
    gradients: Sequence[Tensor],
    num_samples: float = math.inf,
) -> tuple[float, list[float]]:
    """D_t(w~) of Theorem 1 at w~ = weights[own] + std * direction, and the posterior at w~.

    ``weights`` (R, d) and ``direction`` (d,) whole; ``gradients`` those of every sample of each
    replica's batch, (b, d), drawn without replacement from so many samples.
    """
    noisy = weights[own] + std * direction
    logs = [-float(((noisy - w) ** 2).sum()) / (2 * std**2) for w in weights]
    odds = [math.exp(log - max(logs)) for log in logs]
    posterior = [odd / math.fsum(odds) for odd in odds]
    means = [rows.mean(dim=0) for rows in gradients]
    centre = sum(p * mean for p, mean in zip(posterior, means, strict=True))
    found = 0.0
    for p, rows, mean in zip(posterior, gradients, means, strict=True):
        b = len(rows)
        s2 = float(((rows - mean) ** 2).sum()) / (b - 1)
        found += p * float(((mean - centre) ** 2).sum()) + p**2 * s2 / b
        found += p * (1 - p) * s2 / num_samples
    return found, posterior


def replica_moments(
    models: Sequence[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    loss: str,
    num_samples: float = math.inf,
) -> ReplicaMoments:
    """``inputs`` (R, b, ...) and ``targets`` (R, b): the batch of each of the R models, drawn
    without replacement from so many samples."""
    losses, squares, means, conditional = [], [], [], []
    for model, xs, ys in zip(models, inputs, targets, strict=True):
        double = reference.in_float64(model)
        parameters = list(double.parameters())
        gradients = []
        for x, y in zip(xs.double(), ys, strict=True):
            scores = double(x[None])[0]
            if y.is_floating_point():
                value = (scores[0] - float(y)) ** 2 / 2
            else:
                value = reference.sample_loss(scores, int(y), loss)
            losses.append(float(value.detach()))
            parts = torch.autograd.grad(value, parameters)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        b = len(gradients)
        mean = sum(gradients) / b
        squares += [float((gradient**2).sum()) for gradient in gradients]
        around = [float(((gradient - mean) ** 2).sum()) for gradient in gradients]
        conditional.append(math.fsum(around) / (b - 1) / b)
        means.append(mean)
    replicas = len(means)
    overall = sum(means) / replicas
    across = math.fsum(float(((mean - overall) ** 2).sum()) for mean in means)
    return ReplicaMoments(
        loss=math.fsum(losses) / len(losses),
        loss_min=min(losses),
        loss_max=max(losses),
        squared_gradient_norm=math.fsum(float((mean**2).sum()) for mean in means) / replicas,
        mean_squared_norm=math.fsum(squares) / len(squares),
        gradient_dispersion=across / (replicas - 1)
        + inputs.shape[1] / num_samples * math.fsum(conditional) / replicas,
        gradient_dispersion_neu=math.fsum(conditional) / replicas,
        mean_gradients=means,
    )


def about_the_sample(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: str
) -> tuple[Tensor, float]:
    """E_Z grad l(w, Z) with Z drawn from these samples, and the mean squared distance to it."""
    gradients = list(reference.gradients(model, inputs, labels, loss))
    mean = sum(gradients) / len(gradients)
    around = [float(((gradient - mean) ** 2).sum()) for gradient in gradients]
    return mean, math.fsum(around) / len(around)
