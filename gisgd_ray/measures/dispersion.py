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

Each way to estimate s2 is a class of its own: :class:`BySample` here; between groups of the batch,
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

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gisgd_ray.measures.activation import ActiveUnits
from gisgd_ray.measures.step_series import Array, StepSeries
from gisgd_ray.networks.models import trainable
from gisgd_ray.networks.per_sample import gradient_norm_parts, num_norm_parts, per_sample_norms
from gisgd_ray.schemes.base import Scheme, Step


class Dispersion:
    """Keeps of every step what s2 is made of: this one nothing, so that it is not known.

    Used by :class:`StepMeter`, ``row`` being the place of a step among those not drained yet.
    """

    needs_plain_gradient = False
    """Whether the plain gradient must be in ``.grad`` at :meth:`see`."""

    def reserve(self, capacity: int, batch_size: int) -> None:
        """Make buffers for so many steps, of batches no larger than that."""

    def watch(self) -> AbstractContextManager[object]:
        """Context in which the plain batch-mean loss is differentiated."""
        return nullcontext()

    def before(self, row: int, step: Step, scheme: Scheme) -> None:
        """Before the passes that the scheme makes; ``step`` is without a meter."""

    def see(self, row: int, batch_size: int) -> None:
        """After the plain loss was differentiated."""

    def close(self, row: int) -> None:
        """The scheme's gradient is in ``.grad``."""

    def gradient_norm(self, row: int) -> Tensor | None:
        """||g||, (), of the plain gradient seen; None if it is not measured."""

    def columns(self, sizes: Array) -> dict[str, Array]:
        """The columns that it knows of the steps kept, whose batches are of these sizes."""
        del sizes
        return {}


class GradientNorm:
    """||g||^2 of the gradient in ``.grad`` at every step, by parts whose squares are summed in
    float64 (see :func:`gisgd_ray.networks.per_sample.gradient_norm_parts`)."""

    def __init__(self, parameters: list[Tensor], capacity: int):
        self._parameters, like = parameters, parameters[0]
        count = num_norm_parts(parameters)
        self._parts = torch.empty(capacity, count, device=like.device, dtype=like.dtype)

    def note(self, row: int) -> None:
        self._parts[row] = gradient_norm_parts(self._parameters)

    def norm(self, row: int) -> Tensor:
        """(), of a step noted."""
        norm: Tensor = torch.linalg.vector_norm(self._parts[row])
        return norm

    def squares(self, rows: int) -> Array:
        """||g||^2 of the first so many steps, (rows,)."""
        squares: Array = np.square(to_float64(self._parts[:rows])).sum(axis=1)
        return squares


class BySample(Dispersion):
    """s2 of the plain gradient from the norms of its parts by sample.

    Raises:
        UserError: a layer of which they are not known.
    """

    needs_plain_gradient = True

    def __init__(self, model: nn.Module):
        self._parameters = trainable(model)
        self._norms = per_sample_norms(model)

    def reserve(self, capacity: int, batch_size: int) -> None:
        like = self._parameters[0]
        self._squared = torch.empty(capacity, batch_size, device=like.device, dtype=like.dtype)
        self._gradient = GradientNorm(self._parameters, capacity)

    def watch(self) -> AbstractContextManager[object]:
        return self._norms.watch()

    def see(self, row: int, batch_size: int) -> None:
        self._squared[row, :batch_size] = self._norms.squared(batch_size)
        self._gradient.note(row)

    def gradient_norm(self, row: int) -> Tensor:
        return self._gradient.norm(row)

    def columns(self, sizes: Array) -> dict[str, Array]:
        squared = to_float64(self._squared[: len(sizes)])
        return {
            "mean_squared_norm": squared.sum(axis=1, where=_used(squared, sizes)) / sizes,
            "squared_gradient_norm": self._gradient.squares(len(sizes)),
        }


class StepMeter:
    """Collects one :class:`StepSeries` row per training step at the price of a few small copies.

    Raw per-sample losses and norms go into buffers on the device; sums are taken in float64 when
    the buffers are drained, a few hundred steps at once, so that a step neither waits for a GPU
    nor pays for a dozen scalar operations.

    Args:
        model: which is trained.
        batch_size: of the largest batch.
        dispersion: how s2 is estimated.
        active: Theorem 4's active units, if they are asked for.
        capacity: steps between two drains of the buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int,
        dispersion: Dispersion,
        active: ActiveUnits | None = None,
        capacity: int = 256,
    ):
        like = trainable(model)[0]
        self._dispersion, self._active, self._capacity = dispersion, active, capacity
        self._losses = torch.empty(capacity, batch_size, device=like.device, dtype=like.dtype)
        self._counts = torch.empty_like(self._losses) if active is not None else None
        self._factors = torch.empty(capacity, device=like.device, dtype=torch.float64)
        self._dispersion.reserve(capacity, batch_size)
        self._size = 0
        self._sizes: list[int] = []
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
        self._dispersion.before(len(self._sizes), step, scheme)

    @torch.no_grad()
    def see(self, losses: Tensor) -> None:
        """Note the per-sample losses (b,), and the plain gradient if it is still in ``.grad``."""
        row, b = len(self._sizes), len(losses)
        self._size = b
        self._losses[row, :b] = losses
        self._dispersion.see(row, b)
        if self._active is not None and self._counts is not None:
            self._counts[row, :b] = self._active.counts()

    def gradient_norm(self) -> Tensor | None:
        """||g||, shape (), of the plain gradient seen last; None if it is not measured."""
        return self._dispersion.gradient_norm(len(self._sizes))

    @torch.no_grad()
    def close(self, *, learning_rate: float, factor: Tensor | None = None) -> None:
        """End the step seen last, the scheme's gradient being in ``.grad``.

        Args:
            learning_rate: lambda_t.
            factor: of the scheme's gradient to the plain one, (); None if it is no multiple of it.
        """
        row = len(self._sizes)
        self._dispersion.close(row)
        self._factors[row] = math.nan if factor is None else factor
        self._sizes.append(self._size)
        self._learning_rates.append(learning_rate)
        if len(self._sizes) == self._capacity:
            self._flush()

    def drain(self) -> StepSeries:
        """The steps recorded since the last call."""
        self._flush()
        drained = StepSeries.concatenate(self._drained)
        self._drained = []
        return drained

    def _flush(self) -> None:
        rows = len(self._sizes)
        if rows == 0:
            return
        sizes = np.array(self._sizes, dtype=np.float64)
        losses = to_float64(self._losses[:rows])
        used = _used(losses, sizes)
        active_loss = nothing = np.full(rows, np.nan)
        if self._counts is not None:
            counts = to_float64(self._counts[:rows])
            active_loss = (counts * losses).sum(axis=1, where=used) / sizes
        gradients = {"mean_squared_norm": nothing, "squared_gradient_norm": nothing}
        of_step = StepSeries(
            learning_rate=np.array(self._learning_rates),
            batch_size=sizes,
            loss=losses.sum(axis=1, where=used) / sizes,
            loss_min=losses.min(axis=1, where=used, initial=np.inf),
            loss_max=losses.max(axis=1, where=used, initial=-np.inf),
            **gradients,
            replica_dispersion=None,
            active_loss=active_loss,
            group_dispersion=None,
            gradient_factor=to_float64(self._factors[:rows]),
        )
        self._drained.append(replace(of_step, **self._dispersion.columns(sizes)))
        self._sizes, self._learning_rates = [], []


def _used(by_sample: Array, sizes: Array) -> NDArray[np.bool_]:
    """Which entries are of a sample: a ragged last batch leaves the tail of its row unused."""
    return np.asarray(np.arange(by_sample.shape[1]) < sizes[:, None])


def to_float64(values: Tensor) -> Array:
    """Always a copy: the buffers are written again, and the series must not change with them."""
    return values.to("cpu", torch.float64, copy=True).numpy()
