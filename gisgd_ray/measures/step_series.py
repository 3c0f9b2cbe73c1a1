"""What each training step left, as columns of numbers; numpy only, for whoever reads results."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ILL_CONDITIONED = 1e-4
"""Below this ratio of s2 to the mean squared norm, float32 rounding (about 1e-7 of the latter)
may exceed 0.1 % of s2; such steps are counted, so that a row cannot hide them."""

ROUNDING = 1e-6
"""Below this ratio an s2 may be rounding and nothing else (of equal samples: up to 4e-7)."""


@dataclass(frozen=True)
class StepSeries:
    """One value per training step t, in order; all columns (T,), float64.

    The gradients' columns are NaN when dispersion is not measured, and None is a column of another
    estimator or setting. With replicas, every column is the mean over them, but for the extremes of
    the loss, which are over all.
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
    replica_dispersion: Array | None
    """V_t of Eq. 1 across the replicas; None in the deterministic setting, where it is s2 / b."""
    active_loss: Array
    """(1/b) sum_i l(W_{t-1}, z_i) sum_r 1{w_{t-1,r}.x_i >= 0}, for Theorem 4; else NaN."""
    group_dispersion: Array | None
    """s2 between groups of the batch; None where it comes from per-sample norms."""
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
        if self.group_dispersion is not None:
            return self.group_dispersion
        b = self.batch_size
        with np.errstate(divide="ignore", invalid="ignore"):
            s2 = b / (b - 1) * (self.mean_squared_norm - self.squared_gradient_norm)
        s2 = np.where(s2 < 0, 0.0, s2)
        return np.where(b > 1, s2, np.nan)

    @property
    def gradient_dispersion(self) -> Array:
        """V_t (Eq. 1), of the batch-mean gradient: about its mean over W and Z."""
        between = self.replica_dispersion
        return self.gradient_dispersion_neu if between is None else between

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

    @property
    def of_applied_gradient(self) -> "StepSeries":
        """The same of the gradient that a scheme made of the plain one by its factor."""
        squared, between = self.gradient_factor**2, self.group_dispersion
        return replace(
            self,
            squared_gradient_norm=self.squared_gradient_norm * squared,
            mean_squared_norm=self.mean_squared_norm * squared,
            group_dispersion=None if between is None else between * squared,
        )

    @staticmethod
    def of(columns: Mapping[str, Array]) -> "StepSeries":
        """From columns by name as a file has them: what is not there is NaN throughout, and one
        that is missing (an older journal's) likewise."""
        unknown = np.full(len(columns["learning_rate"]), np.nan)
        known: dict[str, Any] = {name: columns.get(name, unknown) for name in _COLUMNS}
        for name in ("replica_dispersion", "group_dispersion"):
            if np.isnan(known[name]).all():
                known[name] = None
        return StepSeries(**known)

    @staticmethod
    def empty() -> "StepSeries":
        return StepSeries.of({name: np.empty(0) for name in _COLUMNS})

    @staticmethod
    def concatenate(parts: list["StepSeries"]) -> "StepSeries":
        parts = [part for part in parts if len(part)]
        if not parts:
            return StepSeries.empty()
        columns = [part.columns() for part in parts]
        whole = StepSeries.of({n: np.concatenate([c[n] for c in columns]) for n in _COLUMNS})
        draws = [p.conditional_dispersions for p in parts if p.conditional_dispersions is not None]
        if len(draws) < len(parts):
            return whole
        return replace(whole, conditional_dispersions=np.concatenate(draws))

    def head(self, steps: int) -> "StepSeries":
        """The first ``steps`` steps."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {n: v if v is None else v[:steps] for n, v in known.items()}
        return StepSeries(**cut)

    def columns(self) -> dict[str, Array]:
        """By name, as a file has them: NaN throughout where there is none."""
        known = {name: getattr(self, name) for name in _COLUMNS}
        return {
            name: np.full(len(self), np.nan) if column is None else column
            for name, column in known.items()
        }

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
