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

Where samples have no gradients of their own (BatchNorm in train mode), s2 is estimated between
groups of the batch instead: :mod:`gisgd_ray.measures.groups`.

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
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from gisgd_ray.measures.activation import ActiveUnits
from gisgd_ray.measures.step_series import Array, StepSeries
from gisgd_ray.networks.models import trainable
from gisgd_ray.networks.per_sample import gradient_norm_parts, num_norm_parts, per_sample_norms


class StepMeter:
    """Collects one :class:`StepSeries` row per training step at the price of a few small copies.

    Raw per-sample losses and norms go into buffers on the device; sums are taken in float64 when
    the buffers are drained, a few hundred steps at once, so that a step neither waits for a GPU
    nor pays for a dozen scalar operations.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batch_size: int,
        dispersion: bool,
        estimator: Literal["per_sample", "groups"] = "per_sample",
        applied: bool = False,
        composite: bool = False,
        activation: bool = False,
        capacity: int = 256,
    ):
        self._parameters = trainable(model)
        by_sample = dispersion and estimator == "per_sample"
        self._norms = per_sample_norms(model) if by_sample else None
        # What is no multiple of the plain gradient is measured itself; else the factor serves.
        self._dispersion, self._scaled, self._composite = dispersion, applied, composite
        self._active = ActiveUnits(model) if activation else None
        device = self._parameters[0].device
        dtype = self._parameters[0].dtype
        self._capacity = capacity
        self._losses = torch.empty(capacity, batch_size, device=device, dtype=dtype)
        self._squared = torch.empty_like(self._losses) if by_sample else None
        self._counts = torch.empty_like(self._losses) if activation else None
        parts = num_norm_parts(self._parameters)
        self._grad_parts = torch.empty(capacity, parts, device=device, dtype=dtype)
        # By groups s2 and by every scheme its factor, one number each.
        self._numbers = torch.empty(capacity, 2, device=device, dtype=torch.float64)
        self._size = 0
        self._sizes: list[int] = []
        self._learning_rates: list[float] = []
        self._drained: list[StepSeries] = []

    def watch(self) -> AbstractContextManager[object]:
        """Context in which the plain batch-mean loss is differentiated."""
        return nullcontext() if self._norms is None else self._norms.watch()

    @property
    def measures_gradients(self) -> bool:
        """Whether the plain gradient is needed: not if the dispersion is of a composite one."""
        return self._dispersion and not self._composite

    @torch.no_grad()
    def see(self, losses: Tensor) -> None:
        """Note the per-sample losses (b,), and the plain gradient if it is still in ``.grad``."""
        row, b = len(self._sizes), len(losses)
        self._size = b
        self._losses[row, :b] = losses
        if self._norms is not None and self._squared is not None:
            self._squared[row, :b] = self._norms.squared(b)
        if self.measures_gradients:
            self._grad_parts[row] = gradient_norm_parts(self._parameters)
        if self._active is not None and self._counts is not None:
            self._counts[row, :b] = self._active.counts()

    def gradient_norm(self) -> Tensor | None:
        """||g||, shape (), of the plain gradient seen last; None if it is not measured."""
        if not self.measures_gradients:
            return None
        norm: Tensor = torch.linalg.vector_norm(self._grad_parts[len(self._sizes)])
        return norm

    @torch.no_grad()
    def close(
        self,
        *,
        learning_rate: float,
        factor: Tensor | None = None,
        group_dispersion: Tensor | None = None,
    ) -> None:
        """End the step seen last, the scheme's gradient being in ``.grad``.

        Args:
            learning_rate: lambda_t.
            factor: of the scheme's gradient to the plain one, (); None if it is no multiple of it.
            group_dispersion: s2 between groups, (); None if it comes from per-sample norms.
        """
        row = len(self._sizes)
        if self._dispersion and self._composite:
            self._grad_parts[row] = gradient_norm_parts(self._parameters)
        self._numbers[row, 0] = math.nan if group_dispersion is None else group_dispersion
        self._numbers[row, 1] = math.nan if factor is None else factor
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
        # A ragged last batch leaves the tail of its row unused.
        used = np.arange(self._losses.shape[1]) < sizes[:, None]
        losses = _to_float64(self._losses[:rows])
        nothing = np.full(rows, np.nan)
        mean_squared = gradient = active_loss = nothing
        group_dispersion, factor = _to_float64(self._numbers[:rows].T)
        if self._squared is not None:
            mean_squared = _to_float64(self._squared[:rows]).sum(axis=1, where=used) / sizes
        if self._dispersion:
            gradient = np.square(_to_float64(self._grad_parts[:rows])).sum(axis=1)
        if self._scaled:
            squared_factor = np.where(np.isnan(factor), 1.0, factor**2)
            mean_squared = mean_squared * squared_factor
            group_dispersion = group_dispersion * squared_factor
            gradient = gradient * squared_factor  # 1 where it is that of a composite itself
        if self._counts is not None:
            counts = _to_float64(self._counts[:rows])
            active_loss = (counts * losses).sum(axis=1, where=used) / sizes
        self._drained.append(
            StepSeries(
                learning_rate=np.array(self._learning_rates),
                batch_size=sizes,
                loss=losses.sum(axis=1, where=used) / sizes,
                loss_min=losses.min(axis=1, where=used, initial=np.inf),
                loss_max=losses.max(axis=1, where=used, initial=-np.inf),
                squared_gradient_norm=gradient,
                mean_squared_norm=mean_squared,
                replica_dispersion=nothing,
                active_loss=active_loss,
                group_dispersion=group_dispersion,
                gradient_factor=factor,
            )
        )
        self._sizes, self._learning_rates = [], []


def _to_float64(values: Tensor) -> Array:
    # Always a copy: the buffers are written again, and the series must not change with them.
    return values.to("cpu", torch.float64, copy=True).numpy()
