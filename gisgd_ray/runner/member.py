"""One trial in a worker's process: its run, its checkpoints, its W&B run, and what it reports."""

import os
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import Device
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.journal import Row, Status
from gisgd_ray.results.storage import Storage
from gisgd_ray.results.tables import row_of
from gisgd_ray.runner.checkpoints import Checkpoints
from gisgd_ray.runner.payload import Payload
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.tracking.run import WandbRun
from gisgd_ray.training import loop as training
from gisgd_ray.training.state import Point, TrainState


class Member:
    """A trial, from its newest checkpoint or its start to its row.

    Args:
        given: ``config`` and ``name``; ``fault_before`` is what it failed with last.
        run: what all trials of the launch are run with.
        shared: where checkpoints go.
        in_bucket: whether that is a bucket, as for all results then.
    """

    state: TrainState

    def __init__(
        self, given: Mapping[str, Any], run: RunSettings, shared: Storage, *, in_bucket: bool
    ):
        self.trial = TrialConfig.model_validate(given["config"])
        self.fault_before: str | None = given.get("fault_before")
        self.begun = False
        self.ended: Payload | None = None
        """How it ended, if it did without a row: to be reported next."""
        self._name, self._run, self._shared, self._in_bucket = given["name"], run, shared, in_bucket
        self._checkpoints = Checkpoints(shared, self.trial)
        self._wandb: WandbRun | None = None
        self._points: list[Point] = []
        self._steps: list[StepSeries] = []
        self._first_step, self._resumed = 0, False
        self._row: Row | None = None

    @property
    def step(self) -> int:
        return self.state.step if self.begun else 0

    @property
    def over(self) -> bool:
        return self._row is not None or self.ended is not None

    def begin(self, device: Device) -> None:
        """From the newest checkpoint, or the start."""
        found = self._checkpoints.newest(device)
        self._resumed = found is not None
        self.state = found if found is not None else training.start(self.trial, device=device)
        self.begun = True
        self._points, self._steps = list(self.state.history), [self.state.series]
        self._wandb = WandbRun(
            self._run.wandb,
            trial_id=self.trial.trial_id,
            name=self._name,
            config=self.trial.flat(),
            earlier=self.state.history,
        )
        self._end_if_stopped()

    def measure(self) -> None:
        """What there is to measure at the point reached; at the last, the row."""
        assert self._wandb is not None
        point, new_steps = training.measure(self.state)
        self._points.append(point)
        self._steps.append(new_steps)
        self._wandb.log(point)
        self._end_if_stopped()

    def save(self) -> None:
        """A checkpoint."""
        try:
            self._checkpoints.save(self.state)
        except OSError:
            # No room, or no way to the storage, for now: the trial itself needs neither.
            traceback.print_exc()

    def report(self) -> Payload:
        """What was measured since the last report."""
        if self.ended is not None:
            return self.ended
        steps, points = StepSeries.concatenate(self._steps), self._points
        found = Payload(
            self.step, points, self._first_step, steps, self._row, resumed=self._resumed
        )
        self._first_step += len(steps)
        self._points, self._steps, self._resumed = [], [], False
        return found

    def nothing(self) -> Payload:
        """A report of nothing measured: what has become of the trial is to be put in."""
        return Payload(self.step, [], 0, StepSeries.empty())

    def _end_if_stopped(self) -> None:
        if self.state.stopped is not None:
            self._row = self._finish()

    def _finish(self) -> Row:
        assert self._wandb is not None
        state, wandb, resources = self.state, self._wandb, self._run.resources
        row = row_of(self.trial, training.summary(state))
        row["device"] = state.dataset.train_x.device.type
        row["hostname"] = os.uname().nodename
        row |= {"resources/cpus": resources.cpus, "resources/gpus": resources.gpus}
        failed = row["status"] != Status.FINISHED
        wandb.finish(row, failed=failed, steps=state.series.table())
        self._keep_wandb()
        return row | {"wandb/status": str(wandb.status), "wandb/run": wandb.path}

    def _keep_wandb(self) -> None:
        """Bring an offline run to the bucket, if results go to one: this machine may not last."""
        if not self._in_bucket:
            return
        folder = Path(self._run.wandb.folder)
        try:
            for path in folder.glob(f"wandb/offline-run-*-{self.trial.trial_id}/**/*"):
                if path.is_file() and not path.is_symlink():
                    self._shared.write(path.relative_to(folder).as_posix(), path.read_bytes())
        except OSError:
            traceback.print_exc()

    def end(self) -> None:
        """Whatever became of it: it is not gone on with here."""
        if self._wandb is not None:
            self._wandb.finish(None, failed=True)
            self._wandb = None
        if self.begun:
            del self.state
            self.begun = False
