"""What a quantity that is measured at the weights of a run has to say of itself."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from statistics import stdev

from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.training.state import Point, TrainState


class Measure(ABC):
    """One quantity, or some that are measured together, at the end of a run and maybe before.

    With replicas a metric is the mean over them, an expectation over W. The columns are described
    in :mod:`gisgd_ray.theory.quantities`.
    """

    at_every_point = False
    """Whether it is measured wherever anything is."""
    after: tuple[type["Measure"], ...] = ()
    """Those whose columns it takes."""

    def is_on(self, config: TrialConfig) -> bool:
        """Whether the trial asks for it."""
        del config
        return True

    def schedules(self, config: TrialConfig) -> Sequence[Schedule]:
        """When it is measured although the run goes on."""
        del config
        return ()

    @property
    def name(self) -> str:
        return type(self).__name__

    def cost(self, config: TrialConfig) -> float:
        """What its time is in proportion to: passes over the samples, say."""
        del config
        return 1

    @abstractmethod
    def measure(self, state: TrainState, point: Point) -> Point:
        """Its columns at the present weights, of which ``point`` holds what is known already."""

    def row(self, state: TrainState) -> Point:
        """What the finished run's row has of it besides the columns of the last point."""
        del state
        return {}

    def remark(self, state: TrainState) -> str | None:
        """What must be known of a bound of the row that is a number, or of its error, or None."""
        del state
        return None

    def undefined_reason(self, state: TrainState) -> str | None:
        """Why a bound that takes it has no value in the row, or None."""
        del state
        return None

    def is_due(self, state: TrainState) -> bool:
        """Whether it asks to be measured after the current step."""
        config = state.config
        return self.is_on(config) and any(map(state.is_due, self.schedules(config)))


def standard_error(values: Sequence[float]) -> float:
    """Of a mean over replicas."""
    return stdev(values) / len(values) ** 0.5 if all(map(math.isfinite, values)) else math.nan
