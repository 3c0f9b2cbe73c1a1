"""Brute forces in float64: every measured quantity again, from its definition alone.

Nothing here comes from the package. A model is any ``nn.Module`` that treats its samples one by
one; samples are looped over, gradients are flattened and kept whole, sums are Python sums. Slow
and plain on purpose: the tests compare the package's fast float32 path with this.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in float64 and evaluation mode, without whatever hooks the model has collected."""
    double = copy.deepcopy(model).double().eval()
    for module in double.modules():
        for hooks in ("_forward_hooks", "_backward_hooks", "_forward_pre_hooks"):
            getattr(module, hooks).clear()
    return double


def sample_loss(scores: Tensor, label: int, loss: str) -> Tensor:
    """l(w, z) from the scores f(w, x), shape (K,): -log softmax(f)_y, or 1/2 ||f - e_y||^2."""
    if loss == "cross_entropy":
        largest = scores.max().detach()
        return torch.log(torch.exp(scores - largest).sum()) + largest - scores[label]
    assert loss == "squared"
    target = torch.zeros_like(scores)
    target[label] = 1.0
    return sum((scores[k] - target[k]) ** 2 for k in range(len(scores))) / 2


def losses(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> list[float]:
    """l(w, z_i) of every sample."""
    double = in_float64(model)
    return [float(value.detach()) for value in _losses(double, inputs, labels, loss)]


def _losses(double: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> Iterator[Tensor]:
    for x, y in zip(inputs.double(), labels.tolist(), strict=True):
        yield sample_loss(double(x[None])[0], y, loss)


def gradients(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> Iterator[Tensor]:
    """grad l(w, z_i), shape (d,), one sample after the other."""
    double = in_float64(model)
    parameters = list(double.parameters())
    for value in _losses(double, inputs, labels, loss):
        yield torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])


def mean_gradient(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> Tensor:
    """g(w, B), shape (d,)."""
    return sum(gradients(model, inputs, labels, loss)) / len(inputs)


@dataclass(frozen=True)
class BatchMoments:
    """What one batch of b samples tells about the gradient."""

    squared_gradient_norm: float
    """||g||^2."""
    mean_squared_norm: float
    """1/b sum ||g_i||^2."""
    per_sample_dispersion: float
    """1/(b-1) sum ||g_i - g||^2, the centred form, which cannot cancel."""
    gradient_dispersion: float
    """V_t, the above over b."""


def batch_moments(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> BatchMoments:
    """The moments of one batch, from its b gradients."""
    found = list(gradients(model, inputs, labels, loss))
    b = len(found)
    mean = sum(found) / b
    squares = [float((gradient**2).sum()) for gradient in found]
    s2 = math.fsum(float(((gradient - mean) ** 2).sum()) for gradient in found) / (b - 1)
    return BatchMoments(float((mean**2).sum()), math.fsum(squares) / b, s2, s2 / b)


def subgaussian_constant(recorded: Sequence[Sequence[float]]) -> float:
    """R over the losses of all batches: half the range of every loss met."""
    every = [value for batch in recorded for value in batch]
    return (max(every) - min(every)) / 2


def mean_loss_and_accuracy(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: str
) -> tuple[float, float]:
    """L_S(w) and the fraction of samples whose largest score is that of their label."""
    double = in_float64(model)
    correct = 0
    for x, y in zip(inputs.double(), labels.tolist(), strict=True):
        scores = double(x[None])[0].tolist()
        correct += scores.index(max(scores)) == y
    return math.fsum(losses(model, inputs, labels, loss)) / len(inputs), correct / len(inputs)


def hessian(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> Tensor:
    """The dense Hessian of the mean loss, (d, d), row by row; d of a few hundred at most."""
    double = in_float64(model)
    parameters = [p for p in double.parameters() if p.requires_grad]
    mean = sum(_losses(double, inputs, labels, loss)) / len(inputs)
    first = torch.autograd.grad(mean, parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in first])
    every = torch.eye(len(flat), dtype=flat.dtype)
    second = torch.autograd.grad(
        flat, parameters, every, is_grads_batched=True, materialize_grads=True
    )
    return torch.cat([g.flatten(1) for g in second], dim=1)


def hessian_trace(model: nn.Module, inputs: Tensor, labels: Tensor, loss: str) -> float:
    """Tr H of the mean loss, from the dense matrix."""
    dense = hessian(model, inputs, labels, loss)
    assert torch.allclose(dense, dense.T, rtol=1e-6, atol=1e-9)
    return float(dense.diagonal().sum())


@dataclass
class Run:
    """A run of SGD by hand: one entry per step, and the weights it ends with, (d,) float64."""

    columns: dict[str, list[float]] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def note(self, **values: float) -> None:
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value)

    def column(self, name: str) -> np.ndarray:
        return np.array(self.columns[name])


def sgd(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    batches: Sequence[Tensor],
    *,
    loss: str,
    learning_rates: Sequence[float],
    flooding_level: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
) -> Run:
    """W_t = W_{t-1} - lambda_t v_t, everything measured at W_{t-1} on B_t = S[batches[t]].

    v_t is the batch gradient; with a flooding level that of |L - level| + level, by autograd; with
    momentum m the velocity u_t = m u_{t-1} + gradient (Nesterov: gradient + m u_t).
    """
    run, current = Run(), in_float64(model)
    velocity: Tensor | None = None
    for indices, rate in zip(batches, learning_rates, strict=True):
        x, y = inputs[indices], labels[indices]
        values = losses(current, x, y, loss)
        moments = batch_moments(current, x, y, loss)
        loss_of_batch = math.fsum(values) / len(values)
        flooded = flooding_level is not None and loss_of_batch < flooding_level
        run.losses.append(values)
        run.note(
            learning_rate=rate,
            batch_size=len(indices),
            loss=loss_of_batch,
            loss_min=min(values),
            loss_max=max(values),
            squared_gradient_norm=moments.squared_gradient_norm,
            mean_squared_norm=moments.mean_squared_norm,
            per_sample_dispersion=moments.per_sample_dispersion,
            gradient_dispersion=moments.gradient_dispersion,
            # One run: the inner mean over W is of this one W, and the two definitions coincide.
            gradient_dispersion_neu=moments.gradient_dispersion,
            replica_dispersion=math.nan,
            active_loss=math.nan,
            group_dispersion=math.nan,  # by sample, not by group
            gradient_factor=-1.0 if flooded else 1.0,
        )
        if flooding_level is None:
            step = mean_gradient(current, x, y, loss)
        else:
            step = flooding_gradient(current, x, y, loss, level=flooding_level)
        if momentum:
            velocity = step if velocity is None else momentum * velocity + step
            step = step + momentum * velocity if nesterov else velocity
        current = with_weights(current, weights(current) - rate * step)
    run.weights = weights(current)
    return run


def flooding_gradient(
    model: nn.Module, inputs: Tensor, labels: Tensor, loss: str, *, level: float
) -> Tensor:
    """grad of |L - level| + level by autograd, L the mean loss of the batch, shape (d,)."""
    double = in_float64(model)
    mean = sum(_losses(double, inputs, labels, loss)) / len(inputs)
    flooded = abs(mean - level) + level
    found = torch.autograd.grad(flooded, list(double.parameters()))
    return torch.cat([g.flatten() for g in found])


def weights(model: nn.Module) -> Tensor:
    """All parameters as one vector, (d,) float64."""
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


def with_weights(model: nn.Module, vector: Tensor) -> nn.Module:
    """A float64 copy with these weights."""
    double, start = in_float64(model), 0
    with torch.no_grad():
        for parameter in double.parameters():
            count = parameter.numel()
            parameter.copy_(vector[start : start + count].view_as(parameter))
            start += count
    return double


def eq3(
    *,
    radius: float,
    num_samples: int,
    learning_rates: Sequence[float],
    energies: Sequence[float],
    trace: float,
) -> float:
    """3/2 ( (R^2 T/n) sum_t lambda_t^2 energy_t * Tr H )^(1/3): Eq. 3 of V_t, Lemma 7 of g^2."""
    total = math.fsum(r * r * e for r, e in zip(learning_rates, energies, strict=True))
    steps = len(learning_rates)
    return 1.5 * (radius**2 * steps / num_samples * total * trace) ** (1 / 3)
