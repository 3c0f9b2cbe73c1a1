"""What a trial tells the driver."""

from typing import NamedTuple

from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.journal import Row
from gisgd_ray.training.state import Point


class Payload(NamedTuple):
    """What one report brings of one trial.

    Of a trial that continues from a checkpoint the first report holds all since its first step:
    the driver may have been lost with what was reported last.
    """

    step: int
    """Updates so far."""
    points: list[Point]
    first_step: int
    steps: StepSeries
    row: Row | None = None
    failure: str | None = None
    """A traceback: the trial has failed in a way that another attempt would repeat."""
    out_of_memory: str | None = None
    """A traceback: the trial did not fit beside the others."""
    resumed: bool = False
    """Whether this is such a first report."""
    fault: str | None = None
    """What the trial will fail with at once, to be tried again: step and error."""
