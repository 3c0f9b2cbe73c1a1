"""Short training runs for the tests: 200 digits, a narrow network, a few epochs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.training import loop as training

SMALL: dict[str, Any] = {
    "data.train_fraction": 0.05,
    "model.name": "mlp",
    "model.width": 16,
    "training.learning_rate": 0.1,
    "training.max_epochs": 3,
    "measurement.flatness_draws": 4,
}
"""n = 200 and b = 60: four steps an epoch, the last one of 20 samples."""


def config(changes: dict[str, Any] | None = None) -> TrialConfig:
    """The small trial with some of its fields changed, by dotted name."""
    return TrialConfig.model_validate(unflatten(SMALL | (changes or {})))


@dataclass
class Finished:
    """A run that is over."""

    state: training.TrainState
    points: list[training.Point]
    steps: StepSeries
    """What the calls of ``advance`` handed out, one after the other."""

    @property
    def series(self) -> StepSeries:
        return self.state.series

    @property
    def row(self) -> dict[str, Any]:
        return training.summary(self.state)


def finish(state: training.TrainState) -> Finished:
    """Train to the end, from wherever the state is."""
    points, steps = [], []
    while state.stopped is None:
        point, new_steps = training.advance(state)
        points.append(point)
        steps.append(new_steps)
    return Finished(state, points, StepSeries.concatenate(steps))


def run(changes: dict[str, Any] | None = None) -> Finished:
    """The whole run; the same object for equal changes, so leave it as it is."""
    return _run(config(changes))


@lru_cache(maxsize=64)
def _run(trial: TrialConfig) -> Finished:
    return finish(training.start(trial))


def weight_bits(state: training.TrainState) -> bytes:
    """All that the models hold, to the bit."""
    models = [replica.model.state_dict() for replica in state.replicas]
    return b"".join(value.numpy().tobytes() for model in models for value in model.values())


def series_bits(series: StepSeries) -> dict[str, bytes]:
    return {name: column.tobytes() for name, column in series.columns().items()}


def optimizer_bits(state: training.TrainState) -> list[bytes]:
    """What the optimizer remembers; nothing where the step of plain SGD is written out."""
    optimizer = getattr(state.stepper, "optimizer", None)
    if optimizer is None:
        return []
    entries = [entry for values in optimizer.state.values() for entry in values.values()]
    return [
        e.numpy().tobytes() if isinstance(e, torch.Tensor) else repr(e).encode() for e in entries
    ]


def untimed(row: dict[str, Any]) -> str:
    """A point or row as text that is equal when every bit of it is, wall-clock times apart."""
    return repr({name: value for name, value in row.items() if not name.startswith("time/")})
