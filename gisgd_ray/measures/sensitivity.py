"""Local gradient sensitivity, and the dispersion of the gradient at perturbed weights.

With zeta ~ N(0, tau^2 I), tau^2 = sum_{s<t} sigma_s^2, at w = W_{t-1} and over the samples given
(Wang & Mao 2022; PAPER sections 2 and 3)::

    Psi(w) = E_zeta || G(w) - G(w + zeta) ||^2,   G(w) = E_Z grad l(w, Z)          (Lemma 2)
    D(w)   = E || g(w + zeta, B) - E_{zeta,Z} grad l(w + zeta, Z) ||^2             (Theorem 1)
           = E_zeta[ s2(w + zeta) ] / b + E_zeta || G(w + zeta) - E_zeta G(w + zeta) ||^2

b = b_t is the size of the step's batch, s2 the per-sample dispersion of the gradient, as in
:mod:`gisgd_ray.measures.dispersion`. With k draws zeta_i and E_i = G(w + zeta_i) - G(w)::

    Psi = 1/k sum_i ||E_i||^2,   standard error = std(||E_i||^2) / sqrt(k)
    D   = 1/(k b) sum_i s2(w + zeta_i) + k/(k-1) ( 1/k sum_i ||E_i||^2 - || 1/k sum_i E_i ||^2 )

Both are unbiased over the draws. The second part of D is 1/(k-1) sum_i ||G_i - mean G||^2, shifted
by G(w) so that it does not cancel: the E_i are independent in their leading, linear term, hence
the square of their mean is about 1/k of the mean of their squares. D is of Theorem 1 about the
run's own w, W~ - Delta ~ N(w, tau^2 I).

How Psi falls with tau. Where the loss is smooth, Psi is about ||H||_F^2 tau^2. G over a finite
sample of a ReLU network is not: it jumps where a unit's input changes sign on a sample. A jump is
of size 1/n and the expected number of jumps of order n tau, so they add a term of order tau / n
to Psi, which outweighs tau^2 at small tau and comes in few, large amounts: the standard error is
then a large part of Psi, and itself uncertain.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from backpack import disable
from torch import Tensor, nn

from gisgd_ray.losses import LossName, per_sample_loss
from gisgd_ray.measures.displaced import (
    DisplacedModel,
    check_stds,
    default_chunk,
    native_dtype,
)
from gisgd_ray.measures.invisible import invisible
from gisgd_ray.measures.per_sample import LayerNorms, uncovered_layer

PRECISION_TOLERANCE = 1e-4
"""Largest ||E32 - E64||^2 / ||E64||^2 at which the passes stay in float32 (see
:func:`local_gradient_sensitivity`)."""

_CHECKED_SAMPLES = 125
"""Samples, evenly spread, on which that ratio is measured: a quarter of a pass over 4,000."""


@dataclass(frozen=True)
class Sensitivity:
    """Psi at one perturbation std, and the perturbed dispersion from the same draws."""

    perturbation_std: float
    """tau, the std of every entry of zeta: sqrt(sum_s sigma_s^2)."""
    value: float
    """Psi = E_zeta ||E_Z grad l(w, Z) - E_Z grad l(w + zeta, Z)||^2."""
    standard_error: float
    """Of ``value``, over the draws."""
    per_sample_dispersion: float
    """E_zeta s2(w + zeta); NaN where per-sample norms do not cover the model, or of one sample."""
    between_draws: float
    """E_zeta || G(w + zeta) - E_zeta G(w + zeta) ||^2."""

    def perturbed_dispersion(self, batch_size: float) -> float:
        """D of Theorem 1 for a step whose batch has so many samples."""
        return self.per_sample_dispersion / batch_size + self.between_draws


def local_gradient_sensitivity(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: LossName,
    perturbation_stds: Sequence[float],
    draws: int,
    seed: int,
    step: int,
    chunk: int | None = None,
) -> tuple[Sensitivity, ...]:
    """Psi and D at the current weights, one entry per perturbation std; leaves no trace itself.

    Draw i is zeta_i = tau u_i, one standard normal u_i of all trainable weights for every tau.
    It depends on (seed, step, i) and on the kind of device, where it is drawn; one draw exists at
    a time. A std of 0 needs no draw: Psi = 0 and D = s2(w) / b_t.

    Precision. E is a difference of nearly equal gradients, and at tau = 1e-6 it may drown in the
    rounding of float32, above all near interpolation, where 1 - softmax is known to 6e-8 at best.
    No threshold on tau serves every network, so the error is measured: on at most 125 samples the
    first draw's E is computed in both precisions, and where ||E32 - E64||^2 exceeds
    ``PRECISION_TOLERANCE`` of ||E64||^2 all passes at that tau are in float64 (twice the time).
    What rounding remains changes Psi by 1e-4 of itself, or at worst, were it parallel to E, 2 %.
    The sign of a ReLU unit's input next to 0 is another matter: where float32 sees it on the other
    side, a draw gains or loses a jump, while Psi, its mean, stays. On MLPs of 4,000 digits and 20
    draws this moved the estimate by 0.7 % at most, once 2 %, and never by half its standard error.
    A ``PRECISION_TOLERANCE`` of 0 has everything in float64.

    Args:
        model: any network; in evaluation mode while measured.
        inputs: (n, ...), the samples that stand for Z.
        targets: (n,), as :func:`gisgd_ray.losses.per_sample_loss` takes them.
        loss: which.
        perturbation_stds: the values of tau, non-negative.
        draws: k, at least 2; the paper's experiments use 20.
        seed: of the run.
        step: t, so that every step has draws of its own.
        chunk: samples differentiated at once; by default 1,000, or 200 with convolutions. It
            changes memory and time, not the result.

    Raises:
        ValueError: fewer than 2 draws, a negative or non-finite std, no samples, or
            nothing trainable.
    """
    _check(perturbation_stds, draws=draws, samples=len(inputs))
    chunk = chunk or default_chunk(model)
    with invisible(model, seed=seed, purpose="sensitivity"), disable():
        norms = LayerNorms(model) if uncovered_layer(model) is None else None
        try:
            data = _Data(inputs, targets, loss, chunk, norms)
            return _measure(
                model,
                data,
                perturbation_stds,
                draws=draws,
                seed=seed,
                step=step,
            )
        finally:
            if norms is not None:
                norms.remove()


@dataclass(frozen=True)
class _Data:
    """The samples, their loss, and how a pass over them is made."""

    inputs: Tensor
    targets: Tensor
    loss: LossName
    chunk: int
    norms: LayerNorms | None

    def thinned(self) -> "_Data":
        """Some of the samples, and no norms."""
        some = slice(None, None, math.ceil(len(self.inputs) / _CHECKED_SAMPLES))
        return _Data(self.inputs[some], self.targets[some], self.loss, self.chunk, None)

    def differentiate(self, model: DisplacedModel) -> Tensor:
        """Leave G in ``.grad`` of the model's weights; returns s2 (NaN without norms)."""
        n, norms = len(self.inputs), self.norms
        squares = torch.zeros((), dtype=torch.float64, device=self.inputs.device)
        for weight in model.weights:
            weight.grad = None
        for x, y in zip(self.inputs.split(self.chunk), self.targets.split(self.chunk), strict=True):
            y = y.to(model.dtype) if y.is_floating_point() else y
            part = per_sample_loss(self.loss, model(x), y).sum() / n
            if norms is None:
                part.backward()
                continue
            with norms.watch():
                part.backward()
            # The losses were divided by n, whatever the chunk, and the norms are as a mean's of n.
            squares += norms.squared(n).sum(dtype=torch.float64)
        if norms is None or n < 2:
            return torch.full_like(squares, math.nan)
        centred = squares / n - _squared_norm(model.gradient())
        return centred.clamp(min=0) * (n / (n - 1))


class _Passes:
    """Passes over the samples in one precision, and what they differ by from the pass at w."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, data: _Data):
        self.model = DisplacedModel(model, dtype)
        self._data = data
        self.dispersion = data.differentiate(self.model)
        """s2(w)."""
        self._centre = self.model.gradient()

    @torch.no_grad()
    def difference(self, u: list[Tensor], std: float) -> Tensor:
        """Leave E = G(w + std u) - G(w) in ``.grad`` of the weights; returns s2(w + std u)."""
        self.model.move(u, std=std)
        with torch.enable_grad():
            dispersion = self._data.differentiate(self.model)
        torch._foreach_sub_(self.model.gradient(), self._centre)
        return dispersion


class _Moments:
    """Of the E_i at one std: their squared norms and their sum, besides the s2(w + zeta_i)."""

    def __init__(self, passes: _Passes):
        self._passes = passes
        self._squares: list[Tensor] = []
        self._dispersions: list[Tensor] = []
        self._sum: list[Tensor] = []

    def add(self, u: list[Tensor], std: float) -> None:
        self._dispersions.append(self._passes.difference(u, std))
        difference = self._passes.model.gradient()
        self._squares.append(_squared_norm(difference))
        if self._sum:
            torch._foreach_add_(self._sum, difference)
        else:
            self._sum = difference

    def result(self, std: float) -> Sensitivity:
        squares, k = torch.stack(self._squares), len(self._squares)
        mean = squares.mean()
        square_of_mean = _squared_norm(self._sum) / k**2
        between = (mean - square_of_mean).clamp(min=0) * (k / (k - 1))
        within = torch.stack(self._dispersions).mean()
        error = squares.std(correction=1) / math.sqrt(k)
        return Sensitivity(std, float(mean), float(error), float(within), float(between))


def _measure(
    model: nn.Module,
    data: _Data,
    stds: Sequence[float],
    *,
    draws: int,
    seed: int,
    step: int,
) -> tuple[Sensitivity, ...]:
    native = _Passes(model, native_dtype(model), data)
    nothing = Sensitivity(0.0, 0.0, 0.0, float(native.dispersion), 0.0)
    found: dict[float, _Moments] = {}
    for i in range(draws if any(stds) else 0):
        u = native.model.normal("sensitivity", step, i, dtype=native.model.dtype, seed=seed)
        if i == 0:
            found = _chosen_precision(model, native, data, u, stds)
        for std, moments in found.items():
            moments.add(u, std)
    return tuple(found[std].result(std) if std else nothing for std in stds)


def _chosen_precision(
    model: nn.Module, native: _Passes, data: _Data, u: list[Tensor], stds: Sequence[float]
) -> dict[float, _Moments]:
    """The moments, still empty, of every std above 0, in the precision that it needs."""
    positive = [std for std in dict.fromkeys(stds) if std]
    if native.model.dtype == torch.float64:
        return {std: _Moments(native) for std in positive}
    fast, exact = (
        _Passes(model, dtype, data.thinned()) for dtype in (native.model.dtype, torch.float64)
    )

    def suffices(std: float) -> bool:
        fast.difference(u, std)
        exact.difference(u, std)
        found, truth = fast.model.gradient(), exact.model.gradient()
        error = _squared_norm(f.double() - t for f, t in zip(found, truth, strict=True))
        # Not so where either is NaN: float64 may still hold what float32 cannot.
        return bool(error <= PRECISION_TOLERANCE * _squared_norm(truth))

    in_float32 = {std: suffices(std) for std in positive}
    if all(in_float32.values()):
        return {std: _Moments(native) for std in positive}
    double = _Passes(model, torch.float64, data)
    return {std: _Moments(native if in_float32[std] else double) for std in positive}


def _check(stds: Sequence[float], *, draws: int, samples: int) -> None:
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    check_stds(stds)
    if samples == 0:
        raise ValueError("there are no samples to differentiate the loss on")


def _squared_norm(parts: Iterable[Tensor]) -> Tensor:
    """Of one vector in parts: float32 norms of rows, which are short, summed in float64."""
    rows = [p.flatten(1) if p.dim() > 1 else p.reshape(1, -1) for p in parts]
    norms = torch.cat([torch.linalg.vector_norm(r, dim=1) for r in rows])
    return norms.double().square().sum()
