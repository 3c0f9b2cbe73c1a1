"""Flatness gap: how much more a perturbation of the weights costs on the training sample.

For Delta ~ N(0, tau^2 I), tau^2 = sum_{t<=T} sigma_t^2 (Wang & Mao 2022; PAPER sections 2 and 3)::

    gamma(w, s) = E_Delta[ L_s(w + Delta) - L_s(w) ]
    flatness gap = | E[ gamma(W_T, S) - gamma(W_T, S') ] |        (Lemma 2, Theorems 1 and 2, ...)

S is the training sample, S' a fresh one (the test split); the outer mean is over runs, within the
absolute value, so that runs are combined before it is taken (:func:`combined`).

Draws come in antithetic pairs, for which the linear term of the loss cancels exactly::

    gamma = 1/P sum_p [ (L(w + Delta_p) + L(w - Delta_p)) / 2 - L(w) ]

What is left is about tau^2 Tr(H) / 2, which at tau = 1e-6 is 1e-11 of the loss or so. Float32 does
not know that, but it does at tau = 0.1, at half the price (an eighth, of convolutions on a CPU):
its error is measured, on some samples, for every tau (:data:`PRECISION_TOLERANCE`). Differences are
taken sample by sample before their mean.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from backpack import disable
from numpy.typing import NDArray
from torch import Tensor, nn

from gisgd_ray.losses import LossName, per_sample_loss
from gisgd_ray.measures.displaced import (
    DisplacedModel,
    check_stds,
    default_chunk,
    native_dtype,
)
from gisgd_ray.measures.invisible import invisible

PRECISION_TOLERANCE = 1e-3
"""Largest relative error of the float32 differences, ||d32 - d64|| / ||d64|| over samples, at which
their losses are evaluated in float32. Rounding is independent from sample to sample, so that gamma,
the mean over n of them, is more exact by about sqrt(n): to some 3e-5 at n = 1,000."""

_CHECKED_SAMPLES = 100
"""Samples of either split, evenly spread, on which it is measured."""


@dataclass(frozen=True)
class FlatnessGap:
    """E[gamma(w, S) - gamma(w, S')] at one perturbation std and one weight vector."""

    perturbation_std: float
    """tau, the std of every entry of Delta: sqrt(sum_t sigma_t^2)."""
    train: NDArray[np.float64]
    """gamma(w, S) by antithetic pair, (P,)."""
    test: NDArray[np.float64]
    """gamma(w, S') by the same pairs, (P,)."""

    @property
    def signed(self) -> float:
        """Mean over pairs of gamma(w, S) - gamma(w, S'); inf or NaN where a loss is not finite."""
        return _mean_and_error(self._differences)[0]

    @property
    def value(self) -> float:
        """|signed|."""
        return abs(self.signed)

    @property
    def standard_error(self) -> float:
        """Of ``signed``, over the pairs."""
        return _mean_and_error(self._differences)[1]

    @property
    def _differences(self) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and says so
            return self.train - self.test


def flatness_gap(
    model: nn.Module,
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    loss: LossName,
    perturbation_stds: Sequence[float],
    draws: int,
    seed: int,
    chunk: int | None = None,
) -> tuple[FlatnessGap, ...]:
    """The gap at the current weights, one entry per perturbation std; leaves no trace itself.

    Pair p is +- tau u_p, with one standard normal u_p of all trainable weights, the same for every
    tau and for both samples. It depends on (seed, p) and on the kind of device, where it is drawn.

    Args:
        model: any network; in evaluation mode while measured.
        train_x, train_y: S, (n, ...) and (n,).
        test_x, test_y: S', (n', ...) and (n',).
        loss: which.
        perturbation_stds: the values of tau, non-negative.
        draws: evaluations of each loss per tau, even and at least 4: draws / 2 pairs.
        seed: of the run.
        chunk: samples evaluated at once; by default 1,000, or 200 with convolutions. It changes
            memory and time, not the result.

    Raises:
        ValueError: an odd number of draws or fewer than 4, a negative or non-finite std, an empty
            sample, or nothing trainable.
    """
    if draws < 4 or draws % 2:
        raise ValueError(f"draws must be even, in pairs, and at least 4, not {draws}")
    check_stds(perturbation_stds)
    if len(train_x) == 0 or len(test_x) == 0:
        raise ValueError("the flatness gap needs training and test samples")
    samples = [_Sample(train_x, train_y, loss), _Sample(test_x, test_y, loss)]
    chunk = chunk or default_chunk(model)
    gammas: list[list[tuple[float, float]]] = [[] for _ in perturbation_stds]
    with invisible(model, seed=seed, purpose="flatness"), disable(), torch.no_grad():
        exact = _Pairs(model, torch.float64, samples, chunk)
        chosen = [exact for _ in perturbation_stds]
        for pair in range(draws // 2):
            u = exact.moved.normal("flatness", pair, dtype=torch.float64, seed=seed)
            if pair == 0:
                chosen = _chosen_precision(model, exact, u, perturbation_stds)
            for found, std, pairs in zip(gammas, perturbation_stds, chosen, strict=True):
                train, test = (
                    float(d.mean(dtype=torch.float64)) for d in pairs.differences(u, std)
                )
                found.append((train, test))
    return tuple(
        FlatnessGap(std, *np.array(found, dtype=np.float64).T)
        for std, found in zip(perturbation_stds, gammas, strict=True)
    )


def combined(gaps: Sequence[FlatnessGap]) -> tuple[float, float]:
    """|E[gamma(W_T, S) - gamma(W_T, S')]| over the runs of one configuration, with its error.

    ``|mean_r signed_r|`` over the R runs, the absolute value last as in the bounds, and the
    standard error over runs, std(signed_r) / sqrt(R), which holds that of the draws as well; of a
    single run that over its pairs.

    Raises:
        ValueError: no runs.
    """
    if not gaps:
        raise ValueError("no flatness gap to combine")
    if len(gaps) == 1:
        return gaps[0].value, gaps[0].standard_error
    mean, error = _mean_and_error(np.array([gap.signed for gap in gaps]))
    return abs(mean), error


@dataclass(frozen=True)
class _Sample:
    """S or S'."""

    inputs: Tensor
    targets: Tensor
    loss: LossName

    def thinned(self) -> "_Sample":
        some = slice(None, None, math.ceil(len(self.inputs) / _CHECKED_SAMPLES))
        return _Sample(self.inputs[some], self.targets[some], self.loss)

    def losses(self, model: DisplacedModel, chunk: int) -> Tensor:
        """l(w, z_i) in the model's precision, (n,)."""
        parts = []
        for x, y in zip(self.inputs.split(chunk), self.targets.split(chunk), strict=True):
            y = y.to(model.dtype) if y.is_floating_point() else y
            parts.append(per_sample_loss(self.loss, model(x), y))
        return torch.cat(parts)


class _Pairs:
    """Differences at antithetic pairs in one precision."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, samples: Sequence[_Sample], chunk: int
    ):
        self.samples, self.chunk = samples, chunk
        self.moved = DisplacedModel(model, dtype)
        self._at_w = [sample.losses(self.moved, chunk) for sample in samples]

    def differences(self, u: Sequence[Tensor], std: float) -> list[Tensor]:
        """(l(w + Delta, z_i) + l(w - Delta, z_i)) / 2 - l(w, z_i), (n,) of either sample."""
        self.moved.move(u, std=std)
        plus = [sample.losses(self.moved, self.chunk) for sample in self.samples]
        self.moved.move(u, std=-std)
        minus = [sample.losses(self.moved, self.chunk) for sample in self.samples]
        return [0.5 * (p + m) - c for p, m, c in zip(plus, minus, self._at_w, strict=True)]


def _chosen_precision(
    model: nn.Module, exact: _Pairs, u: Sequence[Tensor], stds: Sequence[float]
) -> list[_Pairs]:
    """What evaluates the losses at each std: float32 where it is as good, else float64."""
    dtype = native_dtype(model)
    if dtype == torch.float64:
        return [exact for _ in stds]
    some = [sample.thinned() for sample in exact.samples]
    fast, truth = (_Pairs(model, kind, some, exact.chunk) for kind in (dtype, torch.float64))

    def suffices(std: float) -> bool:
        found, right = (torch.cat(p.differences(u, std)).double() for p in (fast, truth))
        # Not so where either is NaN: float64 may still hold what float32 cannot.
        return bool((found - right).norm() <= PRECISION_TOLERANCE * right.norm())

    in_float32 = [suffices(std) for std in stds]
    native = _Pairs(model, dtype, exact.samples, exact.chunk) if any(in_float32) else exact
    return [native if enough else exact for enough in in_float32]


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error; NaN error where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
