"""Smoothness: the largest absolute eigenvalue of the Hessian of the mean loss.

Corollary 2 (Wang & Mao 2022; PAPER section 3) assumes a beta-smooth loss, |grad l(w) - grad l(w')|
<= beta |w - w'| for *all* w, w', and holds the bound's flatness term as beta d sum_t sigma_t^2.
That beta is a global constant which no measurement at one point can give. What is measured,
beta(w) = max_i |lambda_i(H_w)| at w = W_T, is its local stand-in and a lower estimate of it; in a
ReLU network, whose gradient jumps, no global constant exists at all.

Lanczos' method with thick restarts (Wu & Simon 2000). Products H v, by differentiating the gradient
twice, span an orthonormal basis Q of at most :data:`BASIS` vectors, in which H is the small matrix
T = Q^T H Q; its eigenpair (theta, s) of largest |theta|, of either sign, gives the unit vector
x = Q s with::

    theta = x . H x,    residual = || H x - theta x ||

|theta| is at most max_i |lambda_i|, and some eigenvalue lies within the residual of theta. It need
not be the largest: a start that happens to hold little of the top eigenvector ends at the second,
with as small a residual (of 4,500 searches on small networks of nearly equal scores 34 did, up to
7 % low). So a second search goes, from a start of its own, through the vectors orthogonal to the x
found, and where it finds more, its vector is the start of a third. To be left low then takes two
such starts (no pair of the 4,500 was); no residual excludes it. Where the top is found,
max_i |lambda_i| is in the interval [|theta|, |theta| + residual], and the residual says more than
enough of theta's error, which is about residual^2 / (distance to the other eigenvalues).

A full basis is replaced by its :data:`KEPT` Ritz vectors of largest |theta| and the next direction,
so that memory holds about BASIS + 4 vectors of d numbers: 480 MB at d = 10^7. (SciPy's ``eigsh``
finds the same and serves as a check; it tells nothing before its basis is full, and keeps it in
float64 on the CPU.)
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from backpack import disable
from torch import Tensor, nn

from gisgd_ray.measures.invisible import invisible
from gisgd_ray.networks.losses import LossName, per_sample_loss
from gisgd_ray.networks.models import trainable
from gisgd_ray.seeds import derived_seed

BASIS = 8
"""Vectors of the basis at most."""
KEPT = 3
"""Of them, as Ritz vectors, at a restart."""

_Vector = list[Tensor]


@dataclass(frozen=True)
class Smoothness:
    """beta(w), and how well it is known."""

    value: float
    """|theta|, a lower bound of max_i |lambda_i(H_w)| up to rounding."""
    residual: float
    """||H x - theta x|| of the unit vector x found: some eigenvalue is as close to theta, though it
    need not be the largest. At most the tolerance times ``value`` where converged."""
    iterations: int
    """Hessian-vector products taken, by all searches."""
    converged: bool
    """Whether every search came to its end: the residual is small, and a second start found no
    more."""


def smoothness(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName,
    seed: int,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    chunk: int | None = None,
) -> Smoothness:
    """max |eigenvalue| of the Hessian of the mean loss at the current weights; leaves no trace.

    A search stops when its basis has been full and the residual is at most ``tolerance`` of the
    largest |theta| so far. That it is the largest eigenvalue is very likely after the second
    search, and not certain.

    Args:
        model: any network; in evaluation mode while measured. Frozen parameters are left out.
        inputs: (n, ...).
        targets: (n,), as :func:`gisgd_ray.networks.losses.per_sample_loss` takes them.
        loss: which.
        seed: of the start vectors, which are drawn on the model's device.
        tolerance: of the residual, relative to |theta|; float32 may not reach less than 1e-5.
        max_iterations: Hessian-vector products in all, at least 1; where they do not do,
            ``converged`` is false.
        chunk: samples differentiated at once; by default 5,000, or 500 with convolutions. If one
            chunk holds all, the gradient's graph is built once and kept.

    Raises:
        ValueError: no samples, nothing trainable, a tolerance not above 0, or no iterations.
    """
    parameters = trainable(model)
    if len(inputs) == 0 or not parameters:
        raise ValueError("smoothness needs samples and trainable parameters")
    if not tolerance > 0 or max_iterations < 1:
        raise ValueError(
            "smoothness needs tolerance > 0 and max_iterations >= 1, not "
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

        def start() -> Tensor:
            parts = [
                torch.randn(p.numel(), generator=generator, device=device, dtype=p.dtype)
                for p in parameters
            ]
            return torch.cat(parts)

        shapes = [p.shape for p in parameters]

        def flat_product(v: Tensor) -> Tensor:
            parts = v.split([shape.numel() for shape in shapes])
            image = product([part.view(shape) for part, shape in zip(parts, shapes, strict=True)])
            return torch.cat([part.reshape(-1) for part in image])

        return _largest(flat_product, start, tolerance, max_iterations)


def _largest(
    product: Callable[[Tensor], Tensor],
    start: Callable[[], Tensor],
    tolerance: float,
    max_iterations: int,
) -> Smoothness:
    """The eigenvalue of largest size of v -> H v, v (d,), by searches from two starts (d,)."""
    found, x = _lanczos(product, start(), tolerance, max_iterations)
    left = max_iterations - found.iterations
    if not found.converged or len(x) == 1:
        return found
    if left < 2:  # nothing to look further with
        return replace(found, converged=False)

    def outside(v: Tensor) -> Tensor:
        return v - _dot(x, v).to(v.dtype) * x

    other, y = _lanczos(
        lambda v: outside(product(v)), outside(start()), tolerance, left - 1, least=found.value
    )
    taken = found.iterations + other.iterations
    if other.value > found.value:
        found, _ = _lanczos(product, y, tolerance, max_iterations - taken)
        taken += found.iterations
    return replace(found, iterations=taken, converged=found.converged and other.converged)


def _lanczos(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    tolerance: float,
    max_iterations: int,
    *,
    least: float = 0.0,
) -> tuple[Smoothness, Tensor]:
    """One search in the symmetric v -> H v, v and ``start`` (d,), and the unit vector found, (d,).

    It ends where the residual is at most ``tolerance`` of |theta|, or of ``least`` if that is more.
    """
    basis = start.new_empty(BASIS + 1, len(start))
    basis[0] = start / _norm(start)
    projected = np.zeros((BASIS, BASIS))
    last = 0  # place of the newest vector
    iteration = 0
    while True:
        known = basis[: last + 1]
        image = product(known[last])
        iteration += 1
        # Twice, so that rounding leaves nothing of the basis in what is new.
        column = torch.zeros(last + 1, dtype=torch.float64, device=start.device)
        for _ in range(2):
            overlaps = torch.stack([_dot(q, image) for q in known])
            image = image - overlaps.to(image.dtype) @ known
            column += overlaps
        new = _norm(image)
        if not (math.isfinite(new) and column.isfinite().all()):
            return Smoothness(math.nan, math.nan, iteration, False), known[last]
        projected[: last + 1, last] = projected[last, : last + 1] = column.cpu().numpy()
        values, vectors = np.linalg.eigh(projected[: last + 1, : last + 1])
        order = np.argsort(-np.abs(values))
        theta, top = float(values[order[0]]), vectors[:, order[0]]
        residual = new * abs(float(top[-1]))  # H Q = Q T + image e_last^T
        # A start that is nearly one of many equal eigenvectors has a small residual at once, be the
        # largest another: the first basis is filled, if there is anything left to fill it with.
        eps = torch.finfo(start.dtype).eps
        spent = iteration >= min(BASIS, len(start)) or new <= 10 * eps * abs(theta)
        converged = spent and residual <= tolerance * max(abs(theta), least)
        if converged or iteration == max_iterations:
            x = torch.from_numpy(top).to(start) @ known
            return Smoothness(abs(theta), residual, iteration, converged), x / _norm(x)
        last += 1
        basis[last] = image / new
        if last == BASIS:
            kept = torch.from_numpy(vectors[:, order[:KEPT]]).to(start)
            ritz = [basis[:last].T @ combination for combination in kept.T]
            basis[KEPT] = basis[last]
            basis[:KEPT] = torch.stack(ritz)
            projected[:] = 0.0
            projected[range(KEPT), range(KEPT)] = values[order[:KEPT]]
            last = KEPT


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


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b, () float64: of millions of numbers a float32 sum would be off."""
    return (a * b).sum(dtype=torch.float64)


def _norm(vector: Tensor) -> float:
    return math.sqrt(float(_dot(vector, vector)))
