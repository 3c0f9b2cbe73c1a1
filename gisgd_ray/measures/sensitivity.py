"""Local gradient sensitivity of Neu et al.'s Lemma 2.

With zeta ~ N(0, tau^2 I), tau^2 = sum_{s<t} sigma_s^2, at w = W_{t-1} (PAPER section 2)::

    Psi(w) = E_zeta || G(w) - G(w + zeta) ||^2,   G(w) = E_Z grad l(w, Z)

E_Z is the mean over the n training samples. With k draws zeta_i and E_i = G(w + zeta_i) - G(w)::

    Psi = 1/k sum_i ||E_i||^2,   standard error = std(||E_i||^2) / sqrt(k)

unbiased over the draws. Over m < n of the samples alone, ||E_i||^2 would also hold their noise,
(1/m - 1/n) s^2, s^2 being the variance of one sample's difference: many times Psi where tau is
small. Two halves A and B of the m samples tell the two apart. With E^A and E^B over m/2 each,

    Psi_i = <E^A, E^B> + (m/n) || (E^A - E^B) / 2 ||^2
          = || (E^A + E^B) / 2 ||^2 - (1 - m/n) || (E^A - E^B) / 2 ||^2

takes the place of ||E_i||^2. If the m are drawn at random, its expectation is ||E_i||^2 over all n:
E || (E^A - E^B) / 2 ||^2 = s^2 / m, and E <E^A, E^B> falls short by s^2 / n, for the halves, having
no sample in common, are not quite independent. With m = n it is ||E_i||^2 itself. Every draw takes
samples of its own, so that the standard error holds their noise as well: were they the same for all
draws, it would not (in a smooth network of 1,000 samples a tenth of them was 27 % off, 5 times the
spread over draws). Being unbiased, an estimate may be below 0 where Psi is small: it is reported as
it is.

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

from gisgd_ray.measures.displaced import (
    DisplacedModel,
    Samples,
    WeightNoise,
    native_dtype,
)
from gisgd_ray.measures.invisible import invisible
from gisgd_ray.randomness import generator

PRECISION_TOLERANCE = 1e-4
"""Largest ||E32 - E64||^2 / ||E64||^2 at which the passes stay in float32 (see
:func:`local_gradient_sensitivity`)."""

_CHECKED_SAMPLES = 125
"""Samples, evenly spread, on which that ratio is measured: a quarter of a pass over 4,000."""


@dataclass(frozen=True)
class SensitivityEstimate:
    """Psi at one perturbation std."""

    perturbation_std: float
    """tau, the std of every entry of zeta: sqrt(sum_s sigma_s^2)."""
    value: float
    """Psi = E_zeta ||E_Z grad l(w, Z) - E_Z grad l(w + zeta, Z)||^2; from halves maybe below 0."""
    standard_error: float
    """Of ``value``, over the draws of zeta and, where they are drawn, of the samples."""


def local_gradient_sensitivity(
    model: nn.Module,
    data: Samples,
    noise: WeightNoise,
    *,
    draws: int,
    step: int,
    samples: int | None = None,
) -> tuple[SensitivityEstimate, ...]:
    """Psi at the current weights, one entry per perturbation std; leaves no trace itself.

    Draw i is zeta_i = tau u_i, one standard normal u_i of all trainable weights for every tau.
    It depends on (seed, step, i) and on the kind of device, where it is drawn; one draw exists at
    a time. A std of 0 needs no draw: Psi = 0.

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
        data: the n samples that stand for Z.
        noise: zeta at every tau, seeded by the run.
        draws: k, at least 2; the paper's experiments use 20.
        step: t, so that every step has draws of its own.
        samples: m, even, which each draw takes at random; by default, or if it is n, all of them.

    Raises:
        ValueError: fewer than 2 draws, no samples, ``samples`` that cannot be drawn and halved, or
            nothing trainable.
    """
    n = len(data)
    m = n if samples is None else samples
    _check(draws=draws, samples=m, whole=n)
    found: dict[float, list[Tensor]] = {std: [] for std in noise.stds if std}
    with invisible(model, seed=noise.seed, purpose="sensitivity"), disable():
        native = _Passes(model, native_dtype(model))
        passes: dict[float, _Passes] = {}
        for i in range(draws if found else 0):
            like = native.model
            u = noise.direction(like.weights, "sensitivity", step, i, dtype=like.dtype)
            if i == 0:
                passes = _chosen_precision(model, native, data, u, list(found))
            if i == 0 or m < n:
                purpose = ("samples of the sensitivity", step, i)
                parts = [data] if m == n else _halves(data, m, generator(noise.seed, *purpose))
                for each in set(passes.values()):
                    each.start(parts)
            for std, squares in found.items():
                squares.append(_square(passes[std].differences(u, std), noise=1 - m / n))
    return tuple(_result(std, found.get(std, [])) for std in noise.stds)


def _halves(data: Samples, samples: int, random: torch.Generator) -> list[Samples]:
    """Two halves of so many of the samples, drawn without replacement."""
    chosen = torch.randperm(len(data), generator=random)[:samples]
    return [data.at(half) for half in chosen.to(data.inputs.device).chunk(2)]


class _Passes:
    """Passes over parts of the samples in one precision, and how they differ from those at w."""

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        self.model = DisplacedModel(model, dtype)
        self._parts: Sequence[Samples] = ()
        self._centres: list[list[Tensor]] = []

    def start(self, parts: Sequence[Samples]) -> "_Passes":
        """Take these parts of the samples from here on."""
        self.model.move()
        self._parts, self._centres = parts, [part.gradient(self.model) for part in parts]
        return self

    @torch.no_grad()
    def differences(self, u: list[Tensor], std: float) -> list[list[Tensor]]:
        """E = G(w + std u) - G(w) of each part."""
        self.model.move(u, std=std)
        found = []
        for part, centre in zip(self._parts, self._centres, strict=True):
            with torch.enable_grad():
                moved = part.gradient(self.model)
            torch._foreach_sub_(moved, centre)
            found.append(moved)
        return found


def _square(parts: list[list[Tensor]], noise: float) -> Tensor:
    """||E||^2 or, of two halves, Psi_i with ``noise`` = 1 - m/n; the halves are overwritten."""
    if len(parts) == 1:
        return _squared_norm(parts[0])
    first, second = parts
    torch._foreach_sub_(first, second)
    apart = _squared_norm(first)
    torch._foreach_add_(first, second, alpha=2)
    return (_squared_norm(first) - noise * apart) / 4


def _result(std: float, squares: list[Tensor]) -> SensitivityEstimate:
    if not squares:
        return SensitivityEstimate(std, 0.0, 0.0)
    of_draws = torch.stack(squares)
    error = of_draws.std(correction=1) / math.sqrt(len(squares))
    return SensitivityEstimate(std, float(of_draws.mean()), float(error))


def _chosen_precision(
    model: nn.Module, native: _Passes, data: Samples, u: list[Tensor], stds: Sequence[float]
) -> dict[float, _Passes]:
    """The passes of every std, in the precision that it needs."""
    if native.model.dtype == torch.float64:
        return dict.fromkeys(stds, native)
    fast, exact = (
        _Passes(model, dtype).start([data.thinned(_CHECKED_SAMPLES)])
        for dtype in (native.model.dtype, torch.float64)
    )

    def suffices(std: float) -> bool:
        (found,), (truth,) = fast.differences(u, std), exact.differences(u, std)
        error = _squared_norm(f.double() - t for f, t in zip(found, truth, strict=True))
        # Not so where either is NaN: float64 may still hold what float32 cannot.
        return bool(error <= PRECISION_TOLERANCE * _squared_norm(truth))

    in_float32 = {std: suffices(std) for std in stds}
    if all(in_float32.values()):
        return dict.fromkeys(stds, native)
    double = _Passes(model, torch.float64)
    return {std: native if in_float32[std] else double for std in stds}


def _check(*, draws: int, samples: int, whole: int) -> None:
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    if whole == 0:
        raise ValueError("there are no samples to differentiate the loss on")
    if samples != whole and (samples % 2 or not 2 <= samples < whole):
        raise ValueError(f"samples must be all {whole}, or an even number of them, not {samples}")


def _squared_norm(parts: Iterable[Tensor]) -> Tensor:
    """Of one vector in parts: float32 norms of rows, which are short, summed in float64."""
    rows = [p.flatten(1) if p.dim() > 1 else p.reshape(1, -1) for p in parts]
    norms = torch.cat([torch.linalg.vector_norm(r, dim=1) for r in rows])
    return norms.double().square().sum()
