"""The eigenvalue of largest absolute value of a symmetric matrix, from its products alone.

Lanczos' method with thick restarts (Wu & Simon 2000). Products H v span an orthonormal basis Q of
at most :data:`BASIS` vectors, in which H is the small matrix T = Q^T H Q; its eigenpair (theta, s)
of largest |theta|, of either sign, gives the unit vector x = Q s with::

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
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

BASIS = 8
"""Vectors of the basis at most."""
KEPT = 3
"""Of them, as Ritz vectors, at a restart."""

Product = Callable[[Tensor], Tensor]
"""v -> H v, (d,) each, H symmetric."""


@dataclass(frozen=True)
class Eigenvalue:
    """max_i |lambda_i(H)|, and how well it is known."""

    value: float
    """|theta|, a lower bound of it up to rounding."""
    residual: float
    """||H x - theta x|| of the unit vector x found: some eigenvalue is as close to theta, though it
    need not be the largest. At most the tolerance times ``value`` where converged."""
    iterations: int
    """Products taken, by all searches."""
    converged: bool
    """Whether every search came to its end: the residual is small, and a second start found no
    more."""


def largest_eigenvalue(
    product: Product,
    start: Callable[[], Tensor],
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> Eigenvalue:
    """max_i |lambda_i(H)| by searches from two starts.

    A search stops when its basis has been full and the residual is at most ``tolerance`` of the
    largest |theta| so far. That it is the largest eigenvalue is very likely after the second
    search, and not certain.

    Args:
        product: v -> H v.
        start: draws a vector (d,) at every call, of which d and the precision are taken.
        tolerance: of the residual, relative to |theta|; float32 may not reach less than 1e-5.
        max_iterations: products in all, at least 1; where they do not do, ``converged`` is false.

    Raises:
        ValueError: a tolerance not above 0, or no iterations.
    """
    if not tolerance > 0 or max_iterations < 1:
        raise ValueError(
            "Lanczos' method needs tolerance > 0 and max_iterations >= 1, not "
            f"{tolerance} and {max_iterations}"
        )
    found, x = search(product, start(), tolerance, max_iterations)
    left = max_iterations - found.iterations
    if not found.converged or len(x) == 1:
        return found
    if left < 2:  # nothing to look further with
        return replace(found, converged=False)

    def outside(v: Tensor) -> Tensor:
        return v - _dot(x, v).to(v.dtype) * x

    other, y = search(
        lambda v: outside(product(v)), outside(start()), tolerance, left - 1, least=found.value
    )
    taken = found.iterations + other.iterations
    if other.value > found.value:
        found, _ = search(product, y, tolerance, max_iterations - taken)
        taken += found.iterations
    return replace(found, iterations=taken, converged=found.converged and other.converged)


def search(
    product: Product,
    start: Tensor,
    tolerance: float,
    max_iterations: int,
    *,
    least: float = 0.0,
) -> tuple[Eigenvalue, Tensor]:
    """One search from ``start`` (d,), and the unit vector found, (d,).

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
            return Eigenvalue(math.nan, math.nan, iteration, False), known[last]
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
            return Eigenvalue(abs(theta), residual, iteration, converged), x / _norm(x)
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


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b, () float64: of millions of numbers a float32 sum would be off."""
    return (a * b).sum(dtype=torch.float64)


def _norm(vector: Tensor) -> float:
    return math.sqrt(float(_dot(vector, vector)))
