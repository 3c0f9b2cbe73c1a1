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
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gisgd_ray.measures.activation import ActiveUnits
from gisgd_ray.networks.models import trainable
from gisgd_ray.networks.per_sample import gradient_norm_parts, num_norm_parts, per_sample_norms

Array = NDArray[np.float64]

ILL_CONDITIONED = 1e-4
"""Below this ratio of s2 to the mean squared norm, float32 rounding (about 1e-7 of the latter)
may exceed 0.1 % of s2; such steps are counted, so that a row cannot hide them."""

ROUNDING = 1e-6
"""Below this ratio an s2 may be rounding and nothing else (of equal samples: up to 4e-7)."""


@dataclass(frozen=True)
class StepSeries:
    """One value per training step t, in order; all columns (T,), float64.

    The dispersion columns are NaN when dispersion is not measured. With replicas, every column is
    the mean over them, but for the extremes of the loss, which are over all.
    """

    learning_rate: Array
    batch_size: Array
    loss: Array
    """Mean loss of batch B_t at W_{t-1}, nats for cross-entropy."""
    loss_min: Array
    loss_max: Array
    squared_gradient_norm: Array
    """||g(W_{t-1}, B_t)||^2."""
    mean_squared_norm: Array
    """(1/b) sum_i ||grad l(W_{t-1}, z_i)||^2."""
    replica_dispersion: Array
    """V_t of Eq. 1 across the replicas; NaN in the deterministic setting, where it is s2 / b."""
    active_loss: Array
    """(1/b) sum_i l(W_{t-1}, z_i) sum_r 1{w_{t-1,r}.x_i >= 0}, for Theorem 4; else NaN."""
    group_dispersion: Array
    """s2 between groups of the batch; NaN where it comes from per-sample norms."""
    gradient_factor: Array
    """What the scheme multiplied the plain gradient by; NaN where it did something else."""
    conditional_dispersions: Array | None = None
    """With replicas, D_t(W~) of Theorem 1 for each noise std and each replica's draw of W~_{t-1},
    (T, S, R): no column, and None once it has been summed (see :mod:`.posterior`)."""

    def __len__(self) -> int:
        return len(self.learning_rate)

    @property
    def per_sample_dispersion(self) -> Array:
        """s2, unbiased; rounding below zero, possible when all gradients agree, reads as 0.

        NaN of a batch of one sample, whatever rounding makes of 0 / 0.
        """
        b = self.batch_size
        with np.errstate(divide="ignore", invalid="ignore"):
            s2 = b / (b - 1) * (self.mean_squared_norm - self.squared_gradient_norm)
        s2 = np.where(s2 < 0, 0.0, s2)
        s2 = np.where(b > 1, s2, np.nan)
        return np.where(np.isnan(self.group_dispersion), s2, self.group_dispersion)

    @property
    def gradient_dispersion(self) -> Array:
        """V_t (Eq. 1), of the batch-mean gradient: about its mean over W and Z."""
        conditional = self.gradient_dispersion_neu
        return np.where(np.isnan(self.replica_dispersion), conditional, self.replica_dispersion)

    @property
    def gradient_dispersion_neu(self) -> Array:
        """V~_t = s2 / b (Neu et al.), of the batch-mean gradient: about its mean over Z alone."""
        return self.per_sample_dispersion / self.batch_size

    @property
    def ill_conditioned_steps(self) -> int:
        """Steps at which the gradients agreed so well that float32 cancels (see above)."""
        return int(self._agreeing(ILL_CONDITIONED).sum())

    @property
    def is_rounding(self) -> bool:
        """Whether no step has a dispersion within its batch beyond what rounding alone may make."""
        return bool((self._agreeing(ROUNDING) | (self.gradient_dispersion_neu == 0)).all())

    def _agreeing(self, ratio: float) -> NDArray[np.bool_]:
        centred = self.mean_squared_norm - self.squared_gradient_norm
        return np.asarray(centred < ratio * self.mean_squared_norm)

    @staticmethod
    def of(columns: Mapping[str, Array]) -> "StepSeries":
        """From columns by name; one that is missing (an older journal's) is NaN throughout."""
        length = len(columns["learning_rate"])
        return StepSeries(**{name: columns.get(name, np.full(length, np.nan)) for name in _COLUMNS})

    @staticmethod
    def empty() -> "StepSeries":
        return StepSeries(**{name: np.empty(0) for name in _COLUMNS})

    @staticmethod
    def concatenate(parts: list["StepSeries"]) -> "StepSeries":
        parts = [part for part in parts if len(part)]
        if not parts:
            return StepSeries.empty()
        draws = [p.conditional_dispersions for p in parts if p.conditional_dispersions is not None]
        return StepSeries(
            **{name: np.concatenate([getattr(p, name) for p in parts]) for name in _COLUMNS},
            conditional_dispersions=np.concatenate(draws) if len(draws) == len(parts) else None,
        )

    def head(self, steps: int) -> "StepSeries":
        """The first ``steps`` steps."""
        draws = self.conditional_dispersions
        return StepSeries(
            **{name: column[:steps] for name, column in self.columns().items()},
            conditional_dispersions=None if draws is None else draws[:steps],
        )

    def columns(self) -> dict[str, Array]:
        return {name: getattr(self, name) for name in _COLUMNS}

    def table(self) -> dict[str, Any]:
        """All that is known of each step, by column: its number, what was measured, dispersions."""
        return {
            "step": np.arange(1, len(self) + 1),
            **self.columns(),
            "gradient_dispersion": self.gradient_dispersion,
            "gradient_dispersion_neu": self.gradient_dispersion_neu,
            "per_sample_dispersion": self.per_sample_dispersion,
        }


_COLUMNS = tuple(f.name for f in fields(StepSeries) if f.name != "conditional_dispersions")


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
