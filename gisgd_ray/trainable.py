"""The Ray Tune Trainable: a thin class around :mod:`gisgd_ray.training`; no mathematics here.

Actors are reused (a fresh one imports torch, which takes seconds), so ``reset_config`` starts the
next trial in place. A result carries plain numbers for the display and, in ``payload``, what was
measured since the last one.
"""

import contextlib
import math
import os
import pickle
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import tune
from ray.tune.result import SHOULD_CHECKPOINT

from gisgd_ray import checkpoint, training
from gisgd_ray.config import TrialConfig
from gisgd_ray.measures.dispersion import StepSeries
from gisgd_ray.reporting.wandb_runs import WandbRun, WandbSettings
from gisgd_ray.results import Row, row_of
from gisgd_ray.state import Point, TrainState

REPORT_S = 2.0
"""A report covers whole measuring points and at least about this much time."""


class Payload(NamedTuple):
    """What one report brings to the driver."""

    points: list[Point]
    first_step: int
    steps: StepSeries
    row: Row | None


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """One trial at a time; ``config`` = {"trial": TrialConfig as a dict, "run": settings}."""

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        run = config["run"]
        # Ray counts CPUs, torch does not: without this every trial would use every core. It also
        # fixes the order of sums, so that a restored trial repeats them bit for bit.
        torch.set_num_threads(run["cpus"])
        self.trial = TrialConfig.model_validate(config["trial"])
        self.device = "cuda" if run["gpus"] > 0 else "cpu"
        self.checkpoint_every_s = run["checkpoint_every_s"]
        self.last_checkpoint = time.monotonic()
        self.wandb: WandbRun | None = None
        self.state: TrainState | None = None
        self.run = run
        for folder in run["checkpoints"].get(self.trial.trial_id, []):
            # A checkpoint cut off by a crash does not load: the one before does, or the trial
            # starts anew, with the same result.
            with contextlib.suppress(Exception):
                self.state = checkpoint.load(self.trial, Path(folder), device=self.device)
                break

    def step(self) -> dict[str, Any]:
        """Train for about :data:`REPORT_S`, to a measuring point."""
        if self.state is None:
            self.state = training.start(self.trial, device=self.device)
        if self.wandb is None:
            self.wandb = self._open_wandb()
        state = self.state
        first_step = state.terms.steps
        points: list[Point] = []
        steps: list[StepSeries] = []
        deadline = time.monotonic() + REPORT_S
        while state.stopped is None and (not points or time.monotonic() < deadline):
            point, new_steps = training.advance(state)
            points.append(point)
            steps.append(new_steps)
            self.wandb.log(point)
        row = self._row() if state.stopped is not None else None
        payload = Payload(points, first_step, StepSeries.concatenate(steps), row)
        result = {
            "payload": pickle.dumps(payload),
            "step": state.step,
            "train_loss": state.last_point.get("train/loss", math.nan),
            "gap": state.last_point.get("gap/loss", math.nan),
            "done": row is not None,
        }
        if row is None and time.monotonic() - self.last_checkpoint >= self.checkpoint_every_s:
            result[SHOULD_CHECKPOINT] = True
            self.last_checkpoint = time.monotonic()
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        assert self.state is not None
        checkpoint.save(self.state, Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        self.state = checkpoint.load(self.trial, Path(checkpoint_dir), device=self.device)

    def cleanup(self) -> None:
        self._end()

    def _open_wandb(self) -> WandbRun:
        assert self.state is not None
        return WandbRun(
            WandbSettings(**self.run["wandb"]),
            trial_id=self.trial.trial_id,
            name=self.run["names"].get(self.trial.trial_id, self.trial.trial_id),
            config=self.trial.flat(),
            earlier=self.state.history,
        )

    def _row(self) -> Row:
        assert self.state is not None
        assert self.wandb is not None
        row = row_of(self.trial, training.summary(self.state))
        row["device"] = self.device
        row["hostname"] = os.uname().nodename
        self.wandb.finish(row, failed=row["status"] != "finished")
        return row | {"wandb/status": self.wandb.status}

    def _end(self) -> None:
        if self.wandb is not None:
            self.wandb.finish(None, failed=True)
            self.wandb = None
        self.state = None
