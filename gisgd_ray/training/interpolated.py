"""A sum over all steps of what is measured at some of them."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class InterpolatedSum:
    """sum_t lambda_t^2 x(W_{t-1}) up to the last measuring point of x, linear in t in between.

    x must be measured at W_0, before the first step.
    """

    total: float = 0.0
    """The sum."""
    points: int = 0
    """Measuring points so far."""
    last: float = 0.0
    """x at the last of them."""
    rates: list[float] = field(default_factory=list)
    """lambda_t of the steps since."""

    def add_steps(self, learning_rates: np.ndarray) -> None:
        """The next steps; they count once the next point is known."""
        self.rates += [float(rate) for rate in learning_rates]

    def add_point(self, value: float) -> None:
        """x at the present weights W_t, which belongs to step t + 1."""
        if self.points:
            rates = np.array(self.rates)
            # Of the way to this point: 0 at the first step since the last, whose W_{t-1} that was.
            share = np.arange(len(rates)) / max(len(rates), 1)
            self.total += float((rates**2 * ((1 - share) * self.last + share * value)).sum())
        self.points, self.last, self.rates = self.points + 1, value, []
