"""Everything a training run consists of between two measuring points."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.training.interpolated import InterpolatedSum
from gisgd_ray.training.sensitivity_terms import SensitivityTerms
from gisgd_ray.training.stepping import Replica, Stepper
from gisgd_ray.training.terms import TrajectoryTerms

Point = dict[str, Any]
"""One measuring point: ``step``, ``epoch`` and every metric known there."""


@dataclass
class TrainState:
    """A run, or its replicas in lockstep, at W_t."""

    config: TrialConfig
    stepper: Stepper
    steps_per_epoch: int
    num_samples: int
    num_parameters: int
    terms: TrajectoryTerms
    sensitivity: SensitivityTerms
    mean_gradient_gap: InterpolatedSum = field(default_factory=InterpolatedSum)
    step: int = 0
    """Updates applied so far, t; the weights are W_t."""
    stretches: list[StepSeries] = field(default_factory=list)
    """The steps up to the last measuring point, in pieces that end at one; read them as
    ``series``."""
    unmeasured: list[StepSeries] = field(default_factory=list)
    """The steps since, in pieces: sums over steps are taken at measuring points, where a run that
    was paused in between adds the same numbers in the same order."""
    history: list[Point] = field(default_factory=list)
    """All measuring points so far."""
    own_data: bool = False
    """Whether it trains on data given to it, and not on the configured set."""
    stopped: str | None = None
    """Why the run is over, or None while it goes on."""
    diverged: bool = False
    last_seconds: dict[str, float] = field(default_factory=dict)
    """What the last evaluation took, and each measure the last time, by its name."""
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(
            ("time/training_s", "time/training_cpu_s", "time/measuring_s"), 0.0
        )
    )

    @property
    def replicas(self) -> Sequence[Replica]:
        """The runs: one in the deterministic setting."""
        return self.stepper.replicas

    @property
    def model(self) -> nn.Module:
        """The network of the (first) run."""
        return self.replicas[0].model

    @property
    def dataset(self) -> Dataset:
        """The data of the (first) run."""
        return self.replicas[0].dataset

    @property
    def series(self) -> StepSeries:
        """Every step up to the last measuring point; joined on demand, for that copies them."""
        return StepSeries.concatenate(self.stretches)

    def measured_since(self, points: int) -> tuple[list[Point], StepSeries]:
        """The measuring points behind the first so many, and the steps behind those.

        It takes what they take, and no longer the longer the run is.
        """
        taken: list[StepSeries] = []
        left = self.terms.steps - (self.history[points - 1]["step"] if points else 0)
        while left > 0:
            taken.append(self.stretches[-len(taken) - 1])
            left -= len(taken[-1])
        return self.history[points:], StepSeries.concatenate(taken[::-1])

    def add_steps(self, steps: StepSeries) -> None:
        """Append the next steps."""
        self.terms.add(steps)
        self.stretches.append(replace(steps, conditional_dispersions=None))
        if self.config.measurement.sensitivity:
            self.mean_gradient_gap.add_steps(steps.learning_rate)
            self.sensitivity.add_steps(steps.learning_rate)

    def is_due(self, schedule: Schedule) -> bool:
        """Whether the schedule fires after the current step."""
        at_limit = self.step >= self.config.training.max_epochs * self.steps_per_epoch
        return at_limit or schedule.is_due(self.step, self.steps_per_epoch)

    @property
    def last_point(self) -> Point:
        """The latest measuring point, empty before the first."""
        return self.history[-1] if self.history else {}

    @property
    def epoch(self) -> float:
        """Epochs completed, a fraction inside one."""
        return self.step / self.steps_per_epoch
