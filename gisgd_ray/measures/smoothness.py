"""Smoothness: the largest absolute eigenvalue of the Hessian of the mean loss.

Corollary 2 (Wang & Mao 2022; PAPER section 3) assumes a beta-smooth loss, |grad l(w) - grad l(w')|
<= beta |w - w'| for *all* w, w', and holds the bound's flatness term as beta d sum_t sigma_t^2.
That beta is a global constant which no measurement at one point can give. What is measured,
beta(w) = max_i |lambda_i(H_w)| at w = W_T, is its local stand-in and a lower estimate of it; in a
ReLU network, whose gradient jumps, no global constant exists at all.

Power iteration: v_{k+1} = H v_k / ||H v_k||, H v by differentiating the gradient twice. Instead of
v_k the estimate uses x = v_k + s v_{k+1}, s = +-1 the sign of v_k . v_{k+1}, at no extra cost::

    theta = x . H x / x . x,    residual = || H x - theta x || / || x ||

since H x follows from the two products known. With eigenvalues +lambda and -lambda of equal size,
v_k swings for ever between two vectors and v . H v settles anywhere; x drops one of the two.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from backpack import disable
from torch import Tensor, nn

from gisgd_ray.losses import LossName, per_sample_loss
from gisgd_ray.measures.invisible import invisible
from gisgd_ray.models import trainable
from gisgd_ray.randomness import derived_seed

_Vector = list[Tensor]


@dataclass(frozen=True)
class Smoothness:
    """beta(w), and how well it is known."""

    value: float
    """|theta|, a lower bound of max_i |lambda_i(H_w)| up to rounding."""
    residual: float
    """||H x - theta x|| of the unit vector x found: some eigenvalue is as close to theta."""
    iterations: int
    """Hessian-vector products taken."""
    converged: bool


def smoothness(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName,
    seed: int,
    tolerance: float = 3e-2,
    max_iterations: int = 100,
    chunk: int | None = None,
) -> Smoothness:
    """max |eigenvalue| of the Hessian of the mean loss at the current weights; leaves no trace.

    Stops when |theta| has changed by less than ``tolerance`` of itself since the iteration before
    *and* the residual is at most ``tolerance`` of |theta|. The change alone says little: it is
    small whenever convergence is slow. The residual alone bounds the distance to an eigenvalue,
    and, the error of theta being of second order in it, is the stricter of the two; only from a
    start orthogonal to the top eigenvector, of probability zero, would it be the wrong eigenvalue.

    Args:
        model: any network; in evaluation mode while measured. Frozen parameters are left out.
        inputs: (n, ...).
        targets: (n,), as :func:`gisgd_ray.losses.per_sample_loss` takes them.
        loss: which.
        seed: of the start vector, which is drawn on the model's device.
        tolerance: relative.
        max_iterations: of Hessian-vector products, at least 2; reaching it leaves ``converged``
            false.
        chunk: samples differentiated at once; by default 5,000, or 500 with convolutions. If one
            chunk holds all, the gradient's graph is built once and kept.

    Raises:
        ValueError: no samples, nothing trainable, a tolerance not above 0, or fewer than 2
            iterations.
    """
    parameters = trainable(model)
    if len(inputs) == 0 or not parameters:
        raise ValueError("smoothness needs samples and trainable parameters")
    if not tolerance > 0 or max_iterations < 2:
        raise ValueError(
            "smoothness needs tolerance > 0 and max_iterations >= 2, not "
            f"{tolerance} and {max_iterations}"
        )
    if chunk is None:
        chunk = 500 if any(isinstance(m, nn.Conv2d) for m in model.modules()) else 5000
    with (
        invisible(model, seed=seed, purpose="smoothness"),
        disable(),
        warnings.catch_warnings(),
    ):
        # PyTorch warns that create_graph may leak through .grad, which is not used here.
        warnings.filterwarnings("ignore", message=".*create_graph=True.*")
        product = _hessian_product(model, parameters, inputs, targets, loss=loss, chunk=chunk)
        device = parameters[0].device
        generator = torch.Generator(device).manual_seed(derived_seed(seed, "smoothness"))
        start = [
            torch.randn(p.shape, generator=generator, device=device, dtype=p.dtype)
            for p in parameters
        ]
        return _power_iteration(product, start, tolerance, max_iterations)


def _power_iteration(
    product: Callable[[_Vector], _Vector], start: _Vector, tolerance: float, max_iterations: int
) -> Smoothness:
    v = _scaled(start, 1 / _norm(start))
    image = product(v)
    size, theta, residual = _norm(image), math.nan, math.nan
    for iteration in range(2, max_iterations + 1):
        if not (size > 0 and math.isfinite(size)):
            # H v = 0 for a random v: H = 0. A non-finite H has no eigenvalues.
            value = 0.0 if size == 0 else math.nan
            return Smoothness(value, value, iteration - 1, size == 0)
        w = _scaled(image, 1 / size)
        image = product(w)
        sign = 1.0 if _dot(v, w) >= 0 else -1.0
        # x = v + s w, and H x = |H v| w + s H w.
        x = torch._foreach_add(v, w, alpha=sign)
        image_of_x = torch._foreach_add(_scaled(w, size), image, alpha=sign)
        before, length = theta, _norm(x)
        theta = _dot(x, image_of_x) / length**2
        torch._foreach_add_(image_of_x, x, alpha=-theta)
        residual = _norm(image_of_x) / length
        settled = abs(abs(theta) - abs(before)) <= tolerance * abs(theta)
        if settled and residual <= tolerance * abs(theta):
            return Smoothness(abs(theta), residual, iteration, True)
        v, size = w, _norm(image)
    return Smoothness(abs(theta), residual, max_iterations, False)


def _hessian_product(
    model: nn.Module,
    parameters: _Vector,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName,
    chunk: int,
) -> Callable[[_Vector], _Vector]:
    """v -> H v of the mean loss."""

    def gradient(x: Tensor, y: Tensor) -> _Vector:
        part = per_sample_loss(loss, model(x), y).sum() / len(inputs)
        return list(
            torch.autograd.grad(part, parameters, create_graph=True, materialize_grads=True)
        )

    def second(first: _Vector, v: _Vector, *, keep: bool) -> _Vector:
        # Where the gradient is constant in w there is nothing to differentiate.
        known = [(g, direction) for g, direction in zip(first, v, strict=True) if g.requires_grad]
        if not known:
            return [torch.zeros_like(p) for p in parameters]
        outputs, directions = zip(*known, strict=True)
        return list(
            torch.autograd.grad(
                outputs, parameters, directions, retain_graph=keep, materialize_grads=True
            )
        )

    if len(inputs) <= chunk:
        whole = gradient(inputs, targets)
        return lambda v: second(whole, v, keep=True)

    def by_chunk(v: _Vector) -> _Vector:
        total = [torch.zeros_like(p) for p in parameters]
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True):
            torch._foreach_add_(total, second(gradient(x, y), v, keep=False))
        return total

    return by_chunk


def _scaled(vector: Sequence[Tensor], factor: float) -> _Vector:
    return [part * factor for part in vector]


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return sum(float((x * y).sum(dtype=torch.float64)) for x, y in zip(a, b, strict=True))


def _norm(vector: Sequence[Tensor]) -> float:
    return math.sqrt(_dot(vector, vector))
