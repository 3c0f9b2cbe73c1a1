"""What saving a trial costs after 10^3 steps and after 10^7, a measuring point every 10^3."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.timing import least_seconds, verdict
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.storage import Storage
from gisgd_ray.runner.checkpoints import Checkpoints
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training

CONFIG = {"model": {"name": "mlp", "width": 64}, "data": {"train_fraction": 0.05}}
APART = 1000


def after(points: int, folder: str) -> tuple[Checkpoints, training.TrainState]:
    """A trial that stands behind so many measuring points, and its checkpoints."""
    config = TrialConfig.model_validate(CONFIG)
    state = training.start(config)
    training.advance(state)
    first = state.last_point
    # Without memory of their own: 10^7 steps would take a gigabyte.
    stretch = StepSeries.of({n: np.full(APART, 0.5) for n in StepSeries.empty().columns()})
    state.step = state.terms.steps = points * APART
    state.history = [first | {"step": i * APART} for i in range(points + 1)]
    state.stretches = [replace(stretch) for _ in range(points)]
    return Checkpoints(Storage(folder), config), state


def run() -> bool:
    print(f"checkpoint: saving with {APART:,} new steps, by the steps before them")
    with tempfile.TemporaryDirectory() as folder:
        trials = {points: after(points, f"{folder}/{points}") for points in (1, 10_000)}

        def save(points: int) -> None:
            kept, state = trials[points]
            kept._points_saved = points  # the last point and the steps to it have not been saved
            kept.save(state)

        seconds = least_seconds(
            {str(points): lambda points=points: save(points) for points in trials}, repetitions=20
        )
        sizes = {
            points: sum(p.stat().st_size for p in Path(folder, str(points)).rglob("*.*"))
            for points in trials
        }
    for points, size in sizes.items():
        steps = points * APART
        print(f"  {steps:>12,} steps: {size / 1e6:.2f} MB, {seconds[str(points)] * 1e3:.1f} ms")
    whole = len(checkpoint.dump(trials[10_000][1])) / 1e6
    print(f"  with all that was measured in it: {whole:,.0f} MB")
    same = verdict("size at 10^7 steps to that at 10^3", sizes[10_000] / sizes[1], at_most=1.1)
    as_fast = seconds["10000"] / seconds["1"]
    return verdict("time at 10^7 steps to that at 10^3", as_fast, at_most=1.5) and same
