"""Brute forces in float64 for perturbed weights: explicit perturbations, loops over samples.

Like :mod:`tests.reference`, nothing here comes from the package. A perturbation is a vector (d,)
over the trainable parameters in their order.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests import reference


def displaced(model: nn.Module, perturbation: Tensor) -> nn.Module:
    """A float64 copy in evaluation mode at w + perturbation."""
    double, start = reference.in_float64(model), 0
    with torch.no_grad():
        for parameter in double.parameters():
            if parameter.requires_grad:
                count = parameter.numel()
                part = perturbation[start : start + count].double()
                parameter.add_(part.view_as(parameter))
                start += count
    assert start == len(perturbation)
    return double


def sample_losses(double: nn.Module, inputs: Tensor, targets: Tensor, loss: str) -> list[Tensor]:
    """l(w, z_i) of every sample; a real target y counts 1/2 (f(w, x) - y)^2."""
    found = []
    for x, y in zip(inputs.double(), targets, strict=True):
        scores = double(x[None])[0]
        if targets.is_floating_point():
            found.append((scores[0] - y.double()) ** 2 / 2)
        else:
            found.append(reference.sample_loss(scores, int(y), loss))
    return found


def sample_gradients(
    model: nn.Module, perturbation: Tensor, inputs: Tensor, targets: Tensor, loss: str
) -> list[Tensor]:
    """grad l(w + perturbation, z_i) of every sample, each (d,)."""
    double = displaced(model, perturbation)
    parameters = [p for p in double.parameters() if p.requires_grad]
    found = []
    for value in sample_losses(double, inputs, targets, loss):
        parts = torch.autograd.grad(value, parameters)
        found.append(torch.cat([g.flatten() for g in parts]))
    return found


def squared_changes(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: str, zetas: Sequence[Tensor]
) -> list[float]:
    """||G(w) - G(w + zeta)||^2 of every zeta; their mean is Psi."""
    n = len(inputs)
    still = torch.zeros_like(zetas[0])
    at_w = sum(sample_gradients(model, still, inputs, targets, loss)) / n
    found = []
    for zeta in zetas:
        moved = sum(sample_gradients(model, zeta, inputs, targets, loss)) / n
        found.append(float(((at_w - moved) ** 2).sum()))
    return found


def perturbed_dispersion(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: str,
    zetas: Sequence[Tensor],
    *,
    batch_size: int,
) -> float:
    """Theorem 1's inner dispersion: within draws over the batch size, plus between draws."""
    n, k = len(inputs), len(zetas)
    means, within = [], []
    for zeta in zetas:
        found = sample_gradients(model, zeta, inputs, targets, loss)
        mean = sum(found) / n
        means.append(mean)
        within.append(math.fsum(float(((g - mean) ** 2).sum()) for g in found) / (n - 1))
    centre = sum(means) / k
    between = math.fsum(float(((mean - centre) ** 2).sum()) for mean in means) / (k - 1)
    return math.fsum(within) / k / batch_size + between


def gamma(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: str, deltas: Sequence[Tensor]
) -> float:
    """gamma(w, s): the mean over the Deltas of L_s(w + Delta) - L_s(w)."""
    at_w = _mean_loss(model, torch.zeros_like(deltas[0]), inputs, targets, loss)
    rises = [_mean_loss(model, delta, inputs, targets, loss) - at_w for delta in deltas]
    return math.fsum(rises) / len(deltas)


def _mean_loss(
    model: nn.Module, perturbation: Tensor, inputs: Tensor, targets: Tensor, loss: str
) -> float:
    double = displaced(model, perturbation)
    values = sample_losses(double, inputs, targets, loss)
    return math.fsum(float(value.detach()) for value in values) / len(inputs)


def smoothness(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> float:
    """The largest absolute eigenvalue of the dense Hessian."""
    dense = reference.hessian(model, inputs, labels, loss)
    return float(torch.linalg.eigvalsh((dense + dense.T) / 2).abs().max())
