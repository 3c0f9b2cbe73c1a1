"""Sums over the steps of a run, kept up as they come: a row needs no step a second time."""

from dataclasses import dataclass
from math import inf, isfinite, nan

import numpy as np

from gisgd_ray.measures.step_series import ROUNDING, StepSeries

Metrics = dict[str, float]


@dataclass(kw_only=True)
class StepSums:
    """Everything about steps 1..T that a row tells of them without the noise stds.

    Of a dispersion that was not measured at every step, or was not finite, the sums are not either.
    """

    steps: int = 0
    """T."""
    loss_min: float = inf
    loss_max: float = -inf
    dispersion: float = 0.0
    """sum_t V_t"""
    dispersion_neu: float = 0.0
    """sum_t V~_t"""
    per_sample_dispersion: float = 0.0
    """sum_t s2, between groups where it is so measured"""
    gradient_norm: float = 0.0
    """sum_t ||g_t||"""
    gradient_factor: float = 0.0
    """sum_t of what the scheme multiplied the plain gradient by"""
    lr2_dispersion: float = 0.0
    """sum_t lambda_t^2 V_t"""
    lr2_dispersion_neu: float = 0.0
    """sum_t lambda_t^2 V~_t"""
    lr2_gradient_norm2: float = 0.0
    """sum_t lambda_t^2 ||g_t||^2"""
    lr2_loss: float = 0.0
    """sum_t lambda_t^2 l_t, of the batches' mean losses"""
    lr2_active_loss: float = 0.0
    """The same of Theorem 4's losses times active units; NaN of other networks."""
    by_groups: bool = False
    """Whether s2 is from between groups at some step."""
    shortened: bool = False
    """Whether the scheme's factor was below 1 at some step."""
    is_rounding: bool = True
    """Whether no step has a dispersion within its batch beyond what rounding alone may make."""
    is_alike: bool = True
    """Whether none has a V_t beyond that, over replicas or not."""
    ill_conditioned_steps: int = 0
    """Steps at which the gradients agreed so well that float32 cancels."""
    single_sample: int = 0
    """The first step whose V_t is undefined, its batch being a single sample; 0: none."""
    single_sample_within: int = 0
    """The first whose V~_t is, where V_t is not."""

    @property
    def radius(self) -> float:
        """R = (max l - min l) / 2 over every loss of a sample met so far (appendix E.1)."""
        return (self.loss_max - self.loss_min) / 2

    @property
    def is_measured(self) -> bool:
        """Whether R and V are known at every step, and there is one."""
        return self.steps > 0 and isfinite(self.dispersion) and isfinite(self.radius)

    def add(self, steps: StepSeries) -> None:
        """Take the next steps in."""
        if len(steps) == 0:
            return
        lr2, norms2 = steps.learning_rate**2, steps.squared_gradient_norm
        v, neu = steps.gradient_dispersion, steps.gradient_dispersion_neu
        alone = steps.batch_size == 1
        for name, undefined in (
            ("single_sample", alone & np.isnan(v) & np.isfinite(norms2)),
            ("single_sample_within", alone & np.isnan(neu) & np.isfinite(v)),
        ):
            if not getattr(self, name) and undefined.any():
                setattr(self, name, self.steps + int(undefined.argmax()) + 1)
        self.steps += len(steps)
        self.loss_min = min(self.loss_min, float(steps.loss_min.min()))
        self.loss_max = max(self.loss_max, float(steps.loss_max.max()))
        self.dispersion += float(v.sum())
        self.dispersion_neu += float(neu.sum())
        self.per_sample_dispersion += float(steps.per_sample_dispersion.sum())
        self.gradient_norm += float((norms2**0.5).sum())
        self.gradient_factor += float(steps.gradient_factor.sum())
        self.lr2_dispersion += float((lr2 * v).sum())
        self.lr2_dispersion_neu += float((lr2 * neu).sum())
        self.lr2_gradient_norm2 += float((lr2 * norms2).sum())
        self.lr2_loss += float((lr2 * steps.loss).sum())
        self.lr2_active_loss += float((lr2 * steps.active_loss).sum())
        self.by_groups |= steps.group_dispersion is not None
        self.shortened |= bool((steps.gradient_factor < 1).any())
        self.is_rounding &= steps.is_rounding
        self.is_alike &= bool((v <= ROUNDING * steps.mean_squared_norm).all())
        self.ill_conditioned_steps += steps.ill_conditioned_steps

    def means(self) -> Metrics:
        """The per-step measures, each its mean over the steps; NaN without any.

        s2 between groups of the batch has a name of its own: with BatchNorm in train mode there is
        no gradient by sample that it could be the dispersion of.
        """
        s2 = "between_group_dispersion" if self.by_groups else "per_sample_dispersion"
        sums = {
            "measure/gradient_dispersion": self.dispersion,
            "measure/gradient_dispersion_neu": self.dispersion_neu,
            f"measure/{s2}": self.per_sample_dispersion,
            "measure/gradient_norm": self.gradient_norm,
        }
        if self.shortened:
            sums["measure/gradient_factor"] = self.gradient_factor
        return {name: value / self.steps if self.steps else nan for name, value in sums.items()}
