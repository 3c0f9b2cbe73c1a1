"""The terms of Lemma 2, Corollary 1 and Theorem 1 from Psi measured at some of the steps.

Psi(W_{t-1}) and the perturbed dispersion D(W_{t-1}) are measured at W_0 and then on a schedule; for
the steps t in between both are taken as linear in t.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite, nan

import numpy as np

from gisgd_ray import bounds
from gisgd_ray.terms import Metrics, TrajectoryTerms, at


@dataclass
class SensitivityTerms:
    """Sums over the steps up to the last measuring point of Psi, kept up as points come."""

    noise_stds: tuple[float, ...]
    points: int = 0
    """Measuring points so far."""
    longest: int = 0
    """Most steps between two of them; 1: measured at every step."""
    rates: list[float] = field(default_factory=list)
    """lambda_t of the steps since the last point."""
    batch_sizes: list[float] = field(default_factory=list)
    """b_t of those steps."""
    covered: int = 0
    """Steps up to the last point."""
    last: list[list[float]] = field(default_factory=list)
    """At the last point, for each noise std: Psi, and D's two parts, s2 and that between draws."""
    sensitivity: list[float] = field(default_factory=list)
    """sum_t Psi_t"""
    lr2_sensitivity: list[float] = field(default_factory=list)
    """sum_t lambda_t^2 Psi_t"""
    perturbed_dispersion: list[float] = field(default_factory=list)
    """sum_t D_t"""
    theorem1_squares: list[float] = field(default_factory=list)
    """Square of Theorem 1's trajectory term at R = 1: additive in t."""

    def add_steps(self, learning_rates: np.ndarray, batch_sizes: np.ndarray) -> None:
        """The next steps; they count once the next point is known."""
        self.rates += [float(rate) for rate in learning_rates]
        self.batch_sizes += [float(size) for size in batch_sizes]

    def add_point(
        self,
        measured: Sequence[Sequence[float]],
        *,
        num_samples: int,
        num_parameters: int,
    ) -> None:
        """What belongs to step t + 1, at the present weights W_t.

        ``measured``: for each noise std Psi, E s2(w + zeta) and the dispersion between draws, of
        which D is made for every step by its own batch size.
        """
        zeros = [0.0] * len(self.noise_stds)
        if self.points == 0:
            self.sensitivity, self.lr2_sensitivity = [*zeros], [*zeros]
            self.perturbed_dispersion, self.theorem1_squares = [*zeros], [*zeros]
        else:
            self._close(measured, num_samples, num_parameters)
        self.points += 1
        self.longest = max(self.longest, len(self.rates))
        self.covered += len(self.rates)
        self.rates, self.batch_sizes = [], []
        self.last = [[*values] for values in measured]

    def _close(self, measured: Sequence[Sequence[float]], num_samples: int, size: int) -> None:
        """Add the steps since the last point, all running from its values to these."""
        steps = len(self.rates)
        if steps == 0:
            return
        rates = np.array(self.rates)
        share = np.arange(steps) / steps  # of the way: 0 at the first step, W_{t-1} being the last
        for i, noise_std in enumerate(self.noise_stds):
            psi, s2, between = (
                (1 - share) * a + share * b for a, b in zip(self.last[i], measured[i], strict=True)
            )
            self.sensitivity[i] += float(psi.sum())
            self.lr2_sensitivity[i] += float((rates**2 * psi).sum())
            dispersions = s2 / np.array(self.batch_sizes) + between
            self.perturbed_dispersion[i] += float(dispersions.sum())
            term = nan
            if np.isfinite(dispersions).all():
                term = bounds.theorem1_trajectory(
                    subgaussian_constant=1.0,
                    num_samples=num_samples,
                    num_parameters=size,
                    learning_rates=rates,
                    noise_stds=[noise_std] * steps,
                    perturbed_dispersions=dispersions,
                )
            self.theorem1_squares[i] += term**2

    def metrics(self, terms: TrajectoryTerms) -> Metrics:
        """The terms at a measuring point of Psi; NaN before the first step."""
        metrics: Metrics = {}
        known = terms.steps > 0 and isfinite(terms.radius)
        for i, noise_std in enumerate(self.noise_stds):
            lr2 = self.lr2_sensitivity[i]
            values = {
                "measure/local_gradient_sensitivity": self.last[i][0],
                "sum/sensitivity": self.sensitivity[i],
                "sum/lr2_sensitivity": lr2,
                "sum/perturbed_dispersion": self.perturbed_dispersion[i],
                "term/lemma2_trajectory": terms.lemma2_trajectory(lr2, noise_std) if known else nan,
                "term/corollary1_trajectory": (
                    terms.corollary1_trajectory(lr2, noise_std) if known else nan
                ),
                "term/theorem1_trajectory": (
                    terms.radius * self.theorem1_squares[i] ** 0.5 if known else nan
                ),
            }
            metrics |= {at(name, noise_std): value for name, value in values.items()}
        return metrics

    def means(self, steps: int) -> Metrics:
        """Psi and D as means over all steps, for the row; NaN where not known for all of them."""
        names = {
            "measure/local_gradient_sensitivity": self.sensitivity,
            "measure/perturbed_dispersion": self.perturbed_dispersion,
        }
        return {
            at(name, noise_std): total / steps if steps and self.covered == steps else nan
            for name, totals in names.items()
            for noise_std, total in zip(self.noise_stds, totals, strict=False)
        }

    @property
    def interpolation(self) -> str:
        """How Psi was filled in between the points, for the row."""
        if self.covered == 0:
            return "none: measured at no step"
        if self.longest <= 1:
            return "none: measured at every step"
        return f"linear in t between {self.points} points, at most {self.longest} steps apart"
