"""The terms of Lemma 2 and Corollary 1 from Psi measured at some of the steps.

Psi(W_{t-1}) is measured at W_0 and then on a schedule; for the steps t in between it is taken as
linear in t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, nan, sqrt
from statistics import fmean, stdev

from gisgd_ray.theory.quantities import at
from gisgd_ray.training.interpolated import Interpolation
from gisgd_ray.training.terms import LINEAR, Metrics, TrajectoryTerms

PSI = "measure/local_gradient_sensitivity"


@dataclass
class SensitivityTerms(Interpolation):
    """Sums over the steps up to the last measuring point of Psi, kept up as points come."""

    noise_stds: tuple[float, ...]
    last: list[list[float]] = field(default_factory=list)
    """Psi at the last point, for each noise std and replica."""
    last_errors: list[float] = field(default_factory=list)
    """Its standard error over the draws there, of the first replica."""
    last_weight: float = 0.0
    """Weight of the last point in the sum over the steps before it."""
    sensitivity: list[list[float]] = field(default_factory=list)
    """sum_t Psi_t, for each noise std and replica"""
    lr2_sensitivity: list[float] = field(default_factory=list)
    """sum_t lambda_t^2 Psi_t"""
    variances: list[float] = field(default_factory=list)
    """Of sum_t Psi_t over the draws, the last point's share not yet in it."""

    def add_point(self, values: Sequence[Sequence[float]], errors: Sequence[float]) -> None:
        """What belongs to step t + 1, at the present weights W_t.

        Args:
            values: Psi, for each noise std and replica.
            errors: for each noise std, the first replica's standard error over the draws.
        """
        if self.points == 0:
            self.sensitivity = [[0.0] * len(group) for group in values]
            self.lr2_sensitivity, self.variances = ([0.0] * len(values) for _ in range(2))
        squares, share = self.close()
        if len(share):
            here = float(share.sum())
            before, lr2_before = len(share) - here, float((squares * (1 - share)).sum())
            lr2_here = float((squares * share).sum())
            for i, (old, new) in enumerate(zip(self.last, values, strict=True)):
                for r, (a, b) in enumerate(zip(old, new, strict=True)):
                    self.sensitivity[i][r] += before * a + here * b
                self.lr2_sensitivity[i] += lr2_before * fmean(old) + lr2_here * fmean(new)
                self.variances[i] += ((self.last_weight + before) * self.last_errors[i]) ** 2
            self.last_weight = here
        self.last, self.last_errors = [[*group] for group in values], [*errors]

    def metrics(self, terms: TrajectoryTerms) -> Metrics:
        """The terms at a measuring point of Psi; NaN before the first step."""
        metrics: Metrics = {}
        known = terms.steps > 0 and isfinite(terms.radius)
        for i, noise_std in enumerate(self.noise_stds):
            lr2 = self.lr2_sensitivity[i]
            values = {
                PSI: fmean(self.last[i]),
                "sum/sensitivity": fmean(self.sensitivity[i]),
                "sum/lr2_sensitivity": lr2,
                **{name: terms.linear(name, lr2, noise_std) if known else nan for name in LINEAR},
            }
            metrics |= {at(name, noise_std): value for name, value in values.items()}
        return metrics

    def means(self, steps: int) -> Metrics:
        """Psi's mean over all steps, for the row, and its standard error; NaN where not known.

        The error is over the replicas or, of a single run, over the draws, which are independent
        from point to point.
        """
        found: Metrics = {}
        for i, noise_std in enumerate(self.noise_stds[: len(self.sensitivity)]):
            sums, known = self.sensitivity[i], steps > 0 and self.covered == steps
            if len(sums) > 1:
                error = stdev(sums) / sqrt(len(sums)) if all(map(isfinite, sums)) else nan
            else:
                error = sqrt(self.variances[i] + (self.last_weight * self.last_errors[i]) ** 2)
            found[at(PSI, noise_std)] = fmean(sums) / steps if known else nan
            found[at(f"{PSI}_stderr", noise_std)] = error / steps if known else nan
        return found

    def undefined_reason(self) -> str | None:
        """Why Lemma 2 and Corollary 1 have no value at some noise std, or None."""
        below = [
            f"{noise_std:g}"
            for noise_std, lr2 in zip(self.noise_stds, self.lr2_sensitivity, strict=False)
            if lr2 < 0
        ]
        if not below:
            return None
        return (
            f"Lemma 2 and Corollary 1 at sigma = {', '.join(below)}: the local gradient "
            "sensitivity, estimated from two halves of some of the samples, sums to less than 0; "
            "a larger measurement.sensitivity_fraction or more sensitivity_draws would do"
        )
