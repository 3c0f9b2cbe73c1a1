"""Gradient dispersion, gradient norm and loss range at every training step.

For batch B_t of size b with per-sample gradients g_i at w = W_{t-1} and mean g (PAPER section 2)::

    per-sample dispersion   s2  = 1/(b-1) sum_i ||g_i - g||^2
                                = b/(b-1) ( (1/b) sum_i ||g_i||^2 - ||g||^2 )
    gradient dispersion     V_t = s2 / b

V_t estimates E||g(w, B_t) - E g||^2, the dispersion of the batch mean: what every bound takes (Wang
& Mao, Eq. 1, deterministic setting). About which mean: of a w that does not depend on S, about the
population's, E_Z grad l(w, Z) with Z ~ mu. Once W depends on S, about the training sample's, drawn
from with replacement (without, inside an epoch, there would be a further factor (n-b)/n); about
the population's it is larger by what :mod:`gisgd_ray.measures.mean_gradient_gap` measures. Eq. 1
allows the former, its inner mean being over W as well; Lemma 2's V~_t asks for the latter.

s2 is close to what the authors' code logs as "Grad-Var" (which divides by b, not b-1). Both are of
the plain gradient of the loss, whatever the training scheme makes of it, unless
``measurement.dispersion_of`` asks for the applied one: then of the plain gradient times the factor
of the step, the factor held.

Each way to estimate s2 is a class of its own: :class:`BySample` here; the same from a Gram matrix,
where the step is written out, in :mod:`gisgd_ray.training.dense`; between groups of the batch,
where samples have no gradients of their own (BatchNorm in train mode), in
:mod:`gisgd_ray.measures.groups`.

In the stochastic setting, with R replicas W^(r) of the run, the inner mean of Eq. 1 is over W and
Z, that of Neu et al. over Z alone, and the two part::

    V~_t  = mean_r s2^(r) / b                                                (Neu et al.)
    V_t   = 1/(R-1) sum_r ||g(W^(r), B^(r)) - mean_r g(W^(r), B^(r))||^2 + (b/n) V~_t    (Eq. 1)

of which V_t exceeds V~_t by the dispersion over W of E_Z grad l(W, Z), up to sampling error. Each
batch being drawn without replacement from n samples, the first summand holds (1 - b/n) of s2/b: the
second makes up for it, so that V_t like V~_t is of a batch drawn with replacement. That is exact
for an epoch's first batch. The later ones are of samples that the epoch has not come to yet, less
fitted than those which W_{t-1} was just trained on: V_t as the runs meet it is larger then (at
laptop scale by up to a fifth late in an epoch and a tenth in the sum over steps, more where b is a
good part of n or the rate is high), and V~_t by a few per cent.

Of replicas with samples of their own (teacher data) there is nothing to make up for, and it is left
out; of labels of their own (label noise) it is too much, by (b/n) times the part of V~_t that is
theirs.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gisgd_ray.measures.step_series import Array, StepSeries
from gisgd_ray.networks.models import trainable
from gisgd_ray.networks.per_sample import gradient_norm_parts, per_sample_norms
from gisgd_ray.schemes.base import Number, Scheme, Step


class Dispersion:
    """Keeps of every step what s2 is made of: this one nothing, so that it is not known.

    Used by :class:`StepMeter`, which asks for the columns every so many steps.
    """

    needs_plain_gradient = False
    """Whether the plain gradient must be in ``.grad`` at :meth:`see`."""

    def watch(self) -> AbstractContextManager[object]:
        """Context in which the plain batch-mean loss is differentiated."""
        return nullcontext()

    def before(self, step: Step, scheme: Scheme) -> None:
        """Before the passes that the scheme makes; ``step`` is without a meter."""

    def see(self, batch_size: int) -> None:
        """After the plain loss was differentiated."""

    def close(self) -> None:
        """The scheme's gradient is in ``.grad``."""

    def gradient_norm(self) -> Number | None:
        """||g|| of the plain gradient seen last; None if it is not measured."""

    def columns(self, sizes: Array) -> dict[str, Array]:
        """The columns that it knows of the steps since the last call, whose batches are of these
        sizes."""
        del sizes
        return {}


class GradientNorm:
    """||g||^2 of the gradient in ``.grad`` at every step, by parts whose squares are summed in
    float64 (see :func:`gisgd_ray.networks.per_sample.gradient_norm_parts`)."""

    def __init__(self, parameters: list[Tensor]):
        self._parameters = parameters
        self._parts: list[Tensor] = []

    def note(self) -> None:
        self._parts.append(gradient_norm_parts(self._parameters))

    def norm(self) -> Tensor:
        """(), of the step noted last."""
        norm: Tensor = torch.linalg.vector_norm(self._parts[-1])
        return norm

    def squares(self) -> Array:
        """||g||^2 of the steps since the last call, (T,)."""
        squares: Array = np.square(to_float64(torch.stack(self._parts))).sum(axis=1)
        self._parts = []
        return squares


class BySample(Dispersion):
    """s2 of the plain gradient from the norms of its parts by sample.

    Raises:
        UserError: a layer of which they are not known.
    """

    needs_plain_gradient = True

    def __init__(self, model: nn.Module):
        self._norms = per_sample_norms(model)
        self._gradient = GradientNorm(trainable(model))
        self._squared: list[Tensor] = []

    def watch(self) -> AbstractContextManager[object]:
        return self._norms.watch()

    def see(self, batch_size: int) -> None:
        self._squared.append(self._norms.squared(batch_size))
        self._gradient.note()

    def gradient_norm(self) -> Tensor:
        return self._gradient.norm()

    def columns(self, sizes: Array) -> dict[str, Array]:
        squared = to_float64(torch.cat(self._squared))
        self._squared = []
        return {
            "mean_squared_norm": np.add.reduceat(squared, starts(sizes)) / sizes,
            "squared_gradient_norm": self._gradient.squares(),
        }


class StepMeter:
    """Collects one :class:`StepSeries` row per training step at next to no price.

    Losses and norms stay where and as they are; joined they are, and summed in float64, a few
    hundred steps at once, so that a step neither waits for a GPU nor pays for a dozen small
    operations.

    Args:
        dispersion: how s2 is estimated.
        active: Theorem 4's active units of the last batch by sample, (b,), if they are asked for.
        capacity: steps that are joined at once.
    """

    def __init__(
        self,
        *,
        dispersion: Dispersion,
        active: Callable[[], Tensor] | None = None,
        capacity: int = 256,
    ):
        self._dispersion, self._active, self._capacity = dispersion, active, capacity
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._factors: list[Number | None] = []
        self._learning_rates: list[float] = []
        self._drained: list[StepSeries] = []

    def watch(self) -> AbstractContextManager[object]:
        """Context in which the plain batch-mean loss is differentiated."""
        return self._dispersion.watch()

    @property
    def measures_gradients(self) -> bool:
        """Whether the plain gradient is needed: not if the dispersion is of another one."""
        return self._dispersion.needs_plain_gradient

    def before(self, step: Step, scheme: Scheme) -> None:
        """What the next step is to be measured by besides its own passes."""
        self._dispersion.before(step, scheme)

    def see(self, losses: Tensor) -> None:
        """Note the per-sample losses (b,), not written to afterwards, and the plain gradient if it
        is still in ``.grad``."""
        self._losses.append(losses)
        self._dispersion.see(len(losses))
        if self._active is not None:
            self._counts.append(self._active())

    def gradient_norm(self) -> Number | None:
        """||g|| of the plain gradient seen last; None if it is not measured."""
        return self._dispersion.gradient_norm()

    def close(self, *, learning_rate: float, factor: Number | None = None) -> None:
        """End the step seen last, the scheme's gradient being in ``.grad``.

        Args:
            learning_rate: lambda_t.
            factor: of the scheme's gradient to the plain one; None if it is no multiple of it.
        """
        self._dispersion.close()
        self._factors.append(factor)
        self._learning_rates.append(learning_rate)
        if len(self._factors) == self._capacity:
            self._flush()

    def drain(self) -> StepSeries:
        """The steps recorded since the last call."""
        self._flush()
        drained = StepSeries.concatenate(self._drained)
        self._drained = []
        return drained

    def _flush(self) -> None:
        if not self._factors:
            return
        sizes = np.array([len(losses) for losses in self._losses], dtype=np.float64)
        losses, first = to_float64(torch.cat(self._losses)), starts(sizes)
        active_loss = nothing = np.full(len(sizes), np.nan)
        if self._active is not None:
            counts = to_float64(torch.cat(self._counts))
            active_loss = np.add.reduceat(counts * losses, first) / sizes
        gradients = {"mean_squared_norm": nothing, "squared_gradient_norm": nothing}
        of_step = StepSeries(
            learning_rate=np.array(self._learning_rates),
            batch_size=sizes,
            loss=np.add.reduceat(losses, first) / sizes,
            loss_min=np.minimum.reduceat(losses, first),
            loss_max=np.maximum.reduceat(losses, first),
            **gradients,
            replica_dispersion=None,
            active_loss=active_loss,
            group_dispersion=None,
            gradient_factor=numbers(self._factors),
        )
        self._drained.append(replace(of_step, **self._dispersion.columns(sizes)))
        self._losses, self._counts, self._factors, self._learning_rates = [], [], [], []


def starts(sizes: Array) -> NDArray[np.intp]:
    """Where each step's samples begin when all are joined."""
    return np.cumsum([0, *sizes[:-1]]).astype(np.intp)


def to_float64(values: Tensor) -> Array:
    """Always a copy: the series must not change with what it is of."""
    return values.detach().to("cpu", torch.float64, copy=True).numpy()


def numbers(values: Sequence[Number | None]) -> Array:
    """One of each, NaN for None; tensors in one copy from their device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    copied = iter(to_float64(torch.stack(tensors)) if tensors else ())
    known = [next(copied) if isinstance(value, Tensor) else value for value in values]
    return np.array([np.nan if value is None else value for value in known])
