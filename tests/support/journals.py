"""Journal lines for tests."""

import dataclasses
from typing import Any

import numpy as np

from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.journal import Journal


def add_point(journal: Journal, trial_id: str, point: dict[str, Any]) -> None:
    journal.add_report(trial_id, first_step=0, steps=StepSeries.empty(), points=[point])


def add_steps(journal: Journal, trial_id: str, first_step: int, steps: StepSeries) -> None:
    journal.add_report(trial_id, first_step=first_step, steps=steps, points=[])


def series(steps: int, *, start: float = 0.0) -> StepSeries:
    """Plain SGD's steps, every other value different; gradients spread enough for a dispersion."""
    names = [f.name for f in dataclasses.fields(StepSeries)]
    columns: dict[str, Any] = {
        name: start + i / 7 + np.arange(steps) for i, name in enumerate(names)
    }
    columns["batch_size"] = np.full(steps, 20.0)
    columns["mean_squared_norm"] = columns["squared_gradient_norm"] + 3
    columns["group_dispersion"] = None
    columns["gradient_factor"] = np.ones(steps)
    return StepSeries(**columns)
