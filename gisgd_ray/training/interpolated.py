"""Sums over all steps of what is measured at some of them, linear in t in between."""

from dataclasses import dataclass, field

import numpy as np

from gisgd_ray.measures.step_series import Array


@dataclass(kw_only=True)
class Interpolation:
    """The steps between the measuring points of an x(W_{t-1}), which begin at W_0."""

    points: int = 0
    """Measuring points so far."""
    longest: int = 0
    """Most steps between two of them; 1: measured at every step."""
    covered: int = 0
    """Steps up to the last point."""
    rates: list[float] = field(default_factory=list)
    """lambda_t of the steps since."""

    def add_steps(self, learning_rates: Array) -> None:
        """The next steps; they count once the next point is known."""
        self.rates += [float(rate) for rate in learning_rates]

    def close(self) -> tuple[Array, Array]:
        """Of the steps between the last point and one at the present weights: lambda_t^2, and how
        much of the way each has come, from 0 at the first, whose W_{t-1} the last point was.

        x at the present weights W_t belongs to step t + 1.
        """
        steps = len(self.rates)
        squares, share = np.array(self.rates) ** 2, np.arange(steps) / max(steps, 1)
        self.points, self.longest = self.points + 1, max(self.longest, steps)
        self.covered, self.rates = self.covered + steps, []
        return squares, share

    @property
    def interpolation(self) -> str:
        """How x was filled in between the points, for the row."""
        if self.covered == 0:
            return "none: measured at no step"
        if self.longest <= 1:
            return "none: measured at every step"
        return f"linear in t between {self.points} points, at most {self.longest} steps apart"


@dataclass(kw_only=True)
class InterpolatedSum(Interpolation):
    """sum_t lambda_t^2 x(W_{t-1}) up to the last measuring point of x."""

    total: float = 0.0
    """The sum."""
    last: float = 0.0
    """x at the last point."""

    def add_point(self, value: float) -> None:
        """x at the present weights."""
        squares, share = self.close()
        self.total += float((squares * ((1 - share) * self.last + share * value)).sum())
        self.last = value
