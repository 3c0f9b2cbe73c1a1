"""Base of every configuration model, and schedules along training."""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError


class Frozen(BaseModel):
    """Base of every configuration model: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits_a_table(cls, value: Any) -> Any:
        """No integer beyond 64 bits: the tables could not be written once the trial is over."""
        if isinstance(value, int) and value >= 2**63:
            raise PydanticCustomError("too_large", "input should be less than 2**63")
        return value


class Schedule(Frozen):
    """When something happens along training: every so many epochs or steps, or log-spaced."""

    every: int = Field(
        1,
        ge=1,
        description="how many epochs or steps lie between two points; with unit log, how many "
        "points lie in a factor of ten of steps",
    )
    unit: Literal["epoch", "step", "log"] = Field(
        "epoch", description="what `every` counts; log: points log-spaced in steps, from step 1"
    )

    def is_due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether it fires after update ``step``; it always does before the first (step 0)."""
        if self.unit == "log":
            # Points round(10^(j / every)); rounding makes neighbours coincide at the start.
            j = round(self.every * math.log10(step)) if step else 0
            near = {round(10 ** (i / self.every)) for i in range(j - 1, j + 2)}
            return step == 0 or step in near
        return step % self.period(steps_per_epoch) == 0

    def count(self, steps: float, steps_per_epoch: int) -> float:
        """About how many points lie after step 0 and up to ``steps``."""
        if self.unit == "log":
            return self.every * math.log10(max(steps, 1))
        return steps / self.period(steps_per_epoch)

    def period(self, steps_per_epoch: int) -> int:
        """Steps up to the first point."""
        if self.unit == "log":
            return 1
        return self.every * (steps_per_epoch if self.unit == "epoch" else 1)
