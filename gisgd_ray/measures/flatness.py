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

The mean has two errors, which are told apart: that of the draws of Delta, and that of S and S'
standing for the distribution that they are from. Pairs are drawn until the first is small, or as
many as there may be; of several runs, until the error of the runs' mean is (:func:`flatness_gaps`).
One after the other: what takes the time is their arithmetic, and several in one pass
(``torch.func.vmap``) were no faster.

The same draws say over what range the losses at w + Delta lie, for which Lemma 1 needs R, and how
far the loss of S' rises, which Eq. 3 takes not to fall.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from backpack import disable
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from gisgd_ray.measures.displaced import (
    DisplacedModel,
    Samples,
    WeightNoise,
    native_dtype,
)
from gisgd_ray.measures.invisible import invisible

PRECISION_TOLERANCE = 1e-3
"""Largest relative error of the float32 differences, ||d32 - d64|| / ||d64|| over samples, at which
their losses are evaluated in float32. Rounding is independent from sample to sample, so that gamma,
the mean over n of them, is more exact by about sqrt(n): to some 3e-5 at n = 1,000."""

_CHECKED_SAMPLES = 100
"""Samples of either split, evenly spread, on which it is measured."""


LEAST_DRAWS = 16
"""Taken before anything is made of their scatter, if there may be so many. Draws that end where
they look sure end too often where they only look it, and the more so the fewer they are: from 8
pairs on the 95 % interval still covers 93 to 95 %, over the means of two or three runs 92 to 95 %
with the 32 draws that there are by default (``tests/measures/test_flatness_draws.py``)."""

COVERAGE = 0.95
"""Of the intervals."""


@dataclass(frozen=True)
class FlatnessGap:
    """E[gamma(w, S) - gamma(w, S')] at one perturbation std and one weight vector."""

    perturbation_std: float
    """tau, the std of every entry of Delta: sqrt(sum_t sigma_t^2)."""
    train: NDArray[np.float64]
    """gamma(w, S) by antithetic pair, (P,)."""
    test: NDArray[np.float64]
    """gamma(w, S') by the same pairs, (P,)."""
    train_samples: NDArray[np.float64]
    """E_Delta[l(w + Delta, z) - l(w, z)] by sample of S, (n,): the mean over the pairs."""
    test_samples: NDArray[np.float64]
    """Likewise of S', (n',)."""
    loss_range: tuple[float, float]
    """The least and the largest l(w + Delta, z) over both samples and all draws."""

    @property
    def draws(self) -> int:
        """Draws of Delta, two a pair."""
        return 2 * len(self.train)

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


@dataclass(frozen=True)
class FlatnessEstimate:
    """What the draws of one configuration's runs say at one perturbation std."""

    signed: float
    """E[gamma(W_T, S) - gamma(W_T, S')]; the bounds take its absolute value."""
    standard_error: float
    """Of ``signed``: over the pairs of a single run, over the runs of several."""
    sampling_error: float
    """Standard error of ``signed`` from S and S' being samples: by the scatter of their samples'
    differences, each a mean over the draws. The fewer draws, the more it is too large."""
    draws: int
    """Of Delta, over all runs."""
    test_increase: float
    """gamma(W_T, S'): how far the loss of S' rises."""
    test_increase_error: float
    """Its standard error, both kinds together."""
    subgaussian_constant: float
    """(max l - min l) / 2 over S, S', draws and runs: R of the losses at W_T + Delta_T."""


class FlatnessRun:
    """One weight vector, its samples, and what its draws have given so far; leaves no trace itself.

    Pair p is +- tau u_p, with one standard normal u_p of all trainable weights, the same for every
    tau and for both samples. It depends on (seed, p) and on the kind of device, where it is drawn.
    Between two calls of :meth:`draw` it holds the model and some numbers by sample, and no further
    copy of the weights.

    Args:
        model: any network; in evaluation mode while measured.
        train: S.
        test: S'.
        noise: Delta at every tau, seeded by the run.

    Raises:
        ValueError: an empty sample; when drawn from, nothing trainable.
    """

    def __init__(self, model: nn.Module, train: Samples, test: Samples, noise: WeightNoise):
        if len(train) == 0 or len(test) == 0:
            raise ValueError("the flatness gap needs training and test samples")
        self._model, self._samples, self._noise = model, (train, test), noise
        self._found = [_Found(std) for std in noise.stds]
        self._precisions: list[torch.dtype] = []
        """Of the losses at each std; known with the first pair."""

    def draw(self, due: Sequence[int]) -> None:
        """Take pairs until there are so many at every std."""
        lacking = [found.pairs < count for found, count in zip(self._found, due, strict=True)]
        if not any(lacking):
            return
        with (
            invisible(self._model, seed=self._noise.seed, purpose="flatness"),
            disable(),
            torch.no_grad(),
        ):
            by_precision: dict[torch.dtype, _Pairs] = {}
            if not self._precisions:
                exact = by_precision[torch.float64] = self._pairs(torch.float64)
                u = self._direction(exact, 0)
                self._precisions = _chosen_precisions(self._model, exact, u, self._noise.stds)
            for precision, lacks in zip(self._precisions, lacking, strict=True):
                if lacks and precision not in by_precision:
                    by_precision[precision] = self._pairs(precision)
            for pair in range(max(due)):
                wanted = [
                    (found, by_precision[precision])
                    for found, precision, count in zip(
                        self._found, self._precisions, due, strict=True
                    )
                    if found.pairs == pair < count
                ]
                if not wanted:
                    continue
                u = self._direction(wanted[0][1], pair)
                for found, pairs in wanted:
                    found.add(pairs.losses(u, found.std), pairs.at_w)

    def gaps(self) -> list[FlatnessGap]:
        """One for every std, from the pairs so far."""
        return [found.gap() for found in self._found]

    def _pairs(self, precision: torch.dtype) -> "_Pairs":
        return _Pairs(self._model, precision, self._samples)

    def _direction(self, pairs: "_Pairs", pair: int) -> list[Tensor]:
        """u of one pair, the same in any precision of the losses."""
        weights = pairs.moved.weights
        return self._noise.direction(weights, "flatness", pair, dtype=torch.float64)


def flatness_gaps(
    runs: Sequence[FlatnessRun], *, draws: Sequence[int], target: float
) -> list[tuple[FlatnessGap, ...]]:
    """The gaps of all runs of one configuration, by std: drawn until their mean is known, or the
    draws are used up.

    Every run takes as many pairs. What ends them is the error of :func:`combined`, over the pairs
    of a single run and over the runs of several: it holds what the runs differ by, which no draws
    reduce, and which may well be more than the target.

    Args:
        runs: at least one, none of which has been drawn from.
        draws: evaluations of each loss at every std, even and at least 4, of all runs together at
            most; but two pairs of each at least.
        target: a tau has enough draws once the standard error of its mean over them is at most
            this fraction of it. Looked at after :data:`LEAST_DRAWS` and whenever they have doubled.

    Raises:
        ValueError: an odd number of draws or fewer than 4.
    """
    for count in draws:
        if count < 4 or count % 2:
            raise ValueError(f"draws must be even, in pairs, and at least 4, not {count}")
    most = [max(2, count // (2 * len(runs))) for count in draws]
    least = max(2, math.ceil(LEAST_DRAWS / (2 * len(runs))))
    due = [min(least, count) for count in most]
    while True:
        for run in runs:
            run.draw(due)
        found = list(zip(*(run.gaps() for run in runs), strict=True))
        further = [
            pairs_due(_differences_of(gaps), pairs, target=target, most=limit)
            for gaps, pairs, limit in zip(found, due, most, strict=True)
        ]
        if further == due:
            return found
        due = further


def pairs_due(differences: NDArray[np.float64], pairs: int, *, target: float, most: int) -> int:
    """How many pairs each run should have, if it has ``pairs``: no more where they do.

    ``differences`` are what the error of the mean is over: those of the pairs, or the runs' means.
    Twice as many, up to ``most``, while that error is above ``target`` times the mean's absolute
    value. No further one helps where a loss is not finite.
    """
    mean, error = _mean_and_error(differences)
    return min(2 * pairs, most) if error > target * abs(mean) else pairs


def _differences_of(gaps: Sequence[FlatnessGap]) -> NDArray[np.float64]:
    """gamma(w, S) - gamma(w, S') by pair of a single run, or by run of several."""
    return gaps[0]._differences if len(gaps) == 1 else np.array([gap.signed for gap in gaps])


def combined(gaps: Sequence[FlatnessGap]) -> FlatnessEstimate:
    """E[gamma(W_T, S) - gamma(W_T, S')] over the runs of one configuration, with its errors.

    The mean over the R runs, of which the absolute value is taken last, as in the bounds. The
    standard error over runs, std / sqrt(R), holds that of their draws as well; of a single run it
    is that over its pairs. The sampling error is that of the runs' common S and S', or of as many
    independent ones: either way the scatter of the mean over runs of the i-th samples.

    Raises:
        ValueError: no runs.
    """
    if not gaps:
        raise ValueError("no flatness gap to combine")
    increases = gaps[0].test if len(gaps) == 1 else np.array([gap.test.mean() for gap in gaps])
    train, test = (
        _mean_and_error(np.mean(samples, axis=0))[1] if len(samples[0]) > 1 else math.nan
        for samples in ([g.train_samples for g in gaps], [g.test_samples for g in gaps])
    )
    signed, standard_error = _mean_and_error(_differences_of(gaps))
    increase, increase_error = _mean_and_error(increases)
    lowest, highest = np.array([gap.loss_range for gap in gaps]).T
    return FlatnessEstimate(
        signed=signed,
        standard_error=standard_error,
        sampling_error=math.hypot(train, test),
        draws=sum(gap.draws for gap in gaps),
        test_increase=increase,
        test_increase_error=math.hypot(increase_error, test),
        subgaussian_constant=float(highest.max() - lowest.min()) / 2,
    )


def independent_estimates(replicas: float | None, draws: float | None) -> int:
    """The runs, or the pairs of one run, that a standard error over draws is from; 0: unknown."""
    return int(replicas or (draws or 0) // 2)


def half_widths(
    standard_error: float, sampling_error: float, *, independent: int
) -> tuple[float, float]:
    """Half widths of the :data:`COVERAGE` intervals about a mean, by each of its errors alone.

    (t * standard_error, z * sampling_error), t being Student's quantile for the ``independent``
    pairs or runs that the first is from, z the normal one, as samples are many. Zero is inside the
    interval by both where |mean| is no larger than the root of the sum of their squares.
    """
    t = float(stats.t.ppf((1 + COVERAGE) / 2, independent - 1))
    z = float(stats.norm.ppf((1 + COVERAGE) / 2))
    return t * standard_error, z * sampling_error


class _Pairs:
    """Losses at antithetic pairs in one precision."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, samples: Sequence[Samples]):
        self.samples = samples
        self.moved = DisplacedModel(model, dtype)
        self.at_w = [sample.losses(self.moved) for sample in samples]
        """l(w, z_i), (n,) of either sample."""

    def losses(self, u: Sequence[Tensor], std: float) -> list[list[Tensor]]:
        """l(w + Delta, z_i) and l(w - Delta, z_i), (n,) each, of either sample."""
        found = []
        for signed_std in (std, -std):
            self.moved.move(u, std=signed_std)
            found.append([sample.losses(self.moved) for sample in self.samples])
        return [list(pair) for pair in zip(*found, strict=True)]

    def differences(self, u: Sequence[Tensor], std: float) -> list[Tensor]:
        return _differences(self.losses(u, std), self.at_w)


def _differences(losses: Sequence[Sequence[Tensor]], at_w: Sequence[Tensor]) -> list[Tensor]:
    """(l(w + Delta, z_i) + l(w - Delta, z_i)) / 2 - l(w, z_i), (n,) of either sample."""
    return [0.5 * (p + m) - c for (p, m), c in zip(losses, at_w, strict=True)]


class _Found:
    """What the pairs so far have given at one std."""

    def __init__(self, std: float):
        self.std = std
        self._gammas: list[tuple[float, float]] = []
        self._sums: list[Tensor] = []
        self._extremes: list[Tensor] = []

    @property
    def pairs(self) -> int:
        return len(self._gammas)

    def add(self, losses: Sequence[Sequence[Tensor]], at_w: Sequence[Tensor]) -> None:
        differences = [d.double() for d in _differences(losses, at_w)]
        train, test = (float(d.mean()) for d in differences)
        self._gammas.append((train, test))
        sums = self._sums or [torch.zeros_like(d) for d in differences]
        self._sums = [a + b for a, b in zip(sums, differences, strict=True)]
        self._extremes += [torch.stack(loss.aminmax()).double() for pair in losses for loss in pair]

    def gap(self) -> FlatnessGap:
        train, test = np.array(self._gammas, dtype=np.float64).T
        train_samples, test_samples = ((s / len(train)).cpu().numpy() for s in self._sums)
        lowest, highest = torch.stack(self._extremes).unbind(dim=1)
        loss_range = float(lowest.min()), float(highest.max())
        return FlatnessGap(self.std, train, test, train_samples, test_samples, loss_range)


def _chosen_precisions(
    model: nn.Module, exact: _Pairs, u: Sequence[Tensor], stds: Sequence[float]
) -> list[torch.dtype]:
    """Of the losses at each std: that of the weights where it is as good, else float64."""
    dtype = native_dtype(model)
    if dtype == torch.float64:
        return [dtype for _ in stds]
    some = [sample.thinned(_CHECKED_SAMPLES) for sample in exact.samples]
    fast, truth = (_Pairs(model, kind, some) for kind in (dtype, torch.float64))

    def suffices(std: float) -> bool:
        found, right = (torch.cat(p.differences(u, std)).double() for p in (fast, truth))
        # Not so where either is NaN: float64 may still hold what float32 cannot.
        return bool((found - right).norm() <= PRECISION_TOLERANCE * right.norm())

    return [dtype if suffices(std) else torch.float64 for std in stds]


def _mean_and_error(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and its standard error; NaN error where a value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
