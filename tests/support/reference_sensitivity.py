"""Brute forces in float64 for perturbed weights: explicit perturbations, loops over samples.

Like :mod:`tests.support.reference`, nothing here comes from the package. A perturbation is a vector
(d,) over the trainable parameters in their order.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.support import reference


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


def from_halves(first: Tensor, second: Tensor, whole: int) -> float:
    """||E||^2 over ``whole`` samples from the changes E_z of the gradients (m/2, d) in two halves.

    The product of the halves' means, and what it lacks as the halves share no sample: s^2 / whole,
    s^2 being estimated from how far the two means lie apart, E ||A - B||^2 = s^2 (2/m + 2/m).
    """
    m, a, b = len(first) + len(second), first.mean(dim=0), second.mean(dim=0)
    s2 = float(((a - b) ** 2).sum()) * m / 4
    return float((a * b).sum()) + s2 / whole


def sensitivities_from_halves(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: str,
    zetas: Sequence[Tensor],
    halves: Sequence[tuple[Tensor, Tensor]],
) -> list[float]:
    """The same for every zeta, of these two halves of the samples (indices) for each."""
    found = []
    for zeta, pair in zip(zetas, halves, strict=True):
        changes = []
        for half in pair:
            x, y, still = inputs[half], targets[half], torch.zeros_like(zeta)
            at_w = torch.stack(sample_gradients(model, still, x, y, loss))
            moved = torch.stack(sample_gradients(model, zeta, x, y, loss))
            changes.append(moved - at_w)
        found.append(from_halves(*changes, len(inputs)))
    return found


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
