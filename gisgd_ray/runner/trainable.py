"""The Ray Tune Trainable: a thin class around :mod:`gisgd_ray.training.loop`; no mathematics here.

Actors are reused (a fresh one imports torch, which takes seconds), so ``reset_config`` starts the
next trial in place. A result carries plain numbers for the display and, in ``payload``, what was
measured since the last one.

A trial saves itself, on a schedule and when its process gets SIGTERM, and looks for its own
checkpoints when it begins. Ray starts a lost trial anew; that it goes on is decided here.
"""

import os
import pickle
import re
import signal
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import tune

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import Device, gpu
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.journal import Row, Status
from gisgd_ray.results.storage import Storage, is_uri
from gisgd_ray.results.tables import row_of
from gisgd_ray.runner.checkpoints import Checkpoints
from gisgd_ray.runner.handover import take
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.tracking.environment import put_on
from gisgd_ray.tracking.run import WandbRun
from gisgd_ray.training import loop as training
from gisgd_ray.training.state import Point, TrainState

REPORT_S = 2.0
"""A report covers whole measuring points and at least about this much time."""
NOTICE_S = 5.0
"""Seconds between checkpoints after a SIGTERM: when the process will be killed is not known."""


class Payload(NamedTuple):
    """What one report brings to the driver.

    Of a trial that continues from a checkpoint the first report holds all since its first step:
    the driver may have been lost with what was reported last.
    """

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


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """One trial at a time; its ``config`` is that of :func:`gisgd_ray.runner.launch.param_space`,
    with a plain :class:`RunSettings` for ``run``."""

    _notified = False

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What Ray is to set aside for a trial. (``tune.with_resources`` would do as well, but the
        processes would then not bear this class's name.)"""
        resources = RunSettings.of(config["run"]).resources
        return tune.PlacementGroupFactory([{"CPU": resources.cpus, "GPU": resources.gpus}])

    def setup(self, config: dict[str, Any]) -> None:
        # A machine that is taken away sends SIGTERM first; Ray's own answer would be to die.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_notice)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def _on_notice(self, *_: Any) -> None:
        self._notified = True
        self._save_at = 0.0

    def _begin(self, config: dict[str, Any]) -> None:
        self._run = RunSettings.of(config["run"])
        self._resources = self._run.resources
        # Ray counts CPUs, torch does not: without this every trial would use every core.
        torch.set_num_threads(self._resources.threads or self._resources.cpus)
        self._trial = TrialConfig.model_validate(config["trial"]["config"])
        self._name = config["trial"]["name"]
        self._device: Device | None = None
        handover = take(self._run.handover)
        put_on(handover.environment)
        self._in_bucket = is_uri(handover.storage)
        self._shared = Storage(handover.storage)
        self._checkpoints = Checkpoints(self._shared, self._trial)
        self._wandb: WandbRun | None = None
        self._state: TrainState | None = None
        self._fault: Exception | None = None
        self._fault_before = config["trial"].get("fault_before")
        self._schedule_save()

    def step(self) -> dict[str, Any]:
        """Train for about :data:`REPORT_S`, to a measuring point."""
        if self._fault is not None:
            raise self._fault
        try:
            return self._result(self._advance())
        # A scheme or a model may raise anything. It ends the trial, here or in the next call.
        except Exception as error:
            payload = Payload([], 0, StepSeries.empty())
            fault = fault_of(error, step=self._state.step if self._state is not None else 0)
            if is_out_of_memory(error):
                payload = payload._replace(out_of_memory=traceback.format_exc())
            elif is_final(error) or (fault == self._fault_before and not may_go_well(error)):
                payload = payload._replace(failure=traceback.format_exc())
            else:
                # The driver hears of it first, so as to know whether it comes again.
                self._fault = error
                return self._result(payload._replace(fault=fault))
            result = self._result(payload)
            self._end()
            if self._device is not None:
                self._device.empty_cache()
            return result

    def _advance(self) -> Payload:
        """The measuring points of the next seconds, and the row if the trial is over."""
        resumed = False
        if self._state is None:
            self._device = gpu() if self._resources.gpus > 0 else Device()
            self._state = self._checkpoints.newest(self._device)
            resumed = self._state is not None
            if self._state is None:
                self._state = training.start(self._trial, device=self._device)
        state = self._state
        if self._wandb is None:
            self._wandb = self._open_wandb(state)
        first_step = 0 if resumed else state.terms.steps
        points: list[Point] = list(state.history) if resumed else []
        steps: list[StepSeries] = [state.series] if resumed else []
        deadline = time.monotonic() + REPORT_S
        while state.stopped is None and (not points or time.monotonic() < deadline):
            if not training.train(state, pause=self._save_is_due):
                self._save(state)
                continue
            if self._save_is_due():
                self._save(state)  # before measuring, which may take longer than is left
            point, new_steps = training.measure(state)
            points.append(point)
            steps.append(new_steps)
            self._wandb.log(point)
        row = None if state.stopped is None else self._row(state)
        return Payload(points, first_step, StepSeries.concatenate(steps), row, resumed=resumed)

    def _result(self, payload: Payload) -> dict[str, Any]:
        """A result as Tune takes it."""
        over = (payload.row, payload.failure, payload.out_of_memory) != (None, None, None)
        step = self._state.step if self._state is not None else 0
        return {"payload": pickle.dumps(payload), "step": step, "done": over}

    def _save_is_due(self) -> bool:
        return time.monotonic() >= self._save_at

    def _schedule_save(self) -> None:
        every = self._run.checkpoint_every_s
        if self._notified:
            every = min(every, NOTICE_S)
        self._save_at = time.monotonic() + every

    def _save(self, state: TrainState) -> None:
        try:
            self._checkpoints.save(state)
        except OSError:
            # No room, or no way to the storage, for now: the trial itself needs neither.
            traceback.print_exc()
        self._schedule_save()

    def cleanup(self) -> None:
        self._end()

    def _open_wandb(self, state: TrainState) -> WandbRun:
        return WandbRun(
            self._run.wandb,
            trial_id=self._trial.trial_id,
            name=self._name,
            config=self._trial.flat(),
            earlier=state.history,
        )

    def _row(self, state: TrainState) -> Row:
        assert self._wandb is not None
        row = row_of(self._trial, training.summary(state))
        assert self._device is not None
        row["device"] = self._device.torch.type
        row["hostname"] = os.uname().nodename
        row |= {"resources/cpus": self._resources.cpus, "resources/gpus": self._resources.gpus}
        failed = row["status"] != Status.FINISHED
        self._wandb.finish(row, failed=failed, steps=state.series.table())
        self._keep_wandb()
        return row | {"wandb/status": str(self._wandb.status), "wandb/run": self._wandb.path}

    def _keep_wandb(self) -> None:
        """Bring an offline run to the bucket, if results go to one: this machine may not last."""
        if not self._in_bucket:
            return
        folder = Path(self._run.wandb.folder)
        try:
            for path in folder.glob(f"wandb/offline-run-*-{self._trial.trial_id}/**/*"):
                if path.is_file() and not path.is_symlink():
                    self._shared.write(path.relative_to(folder).as_posix(), path.read_bytes())
        except OSError:
            traceback.print_exc()

    def _end(self) -> None:
        if self._wandb is not None:
            self._wandb.finish(None, failed=True)
            self._wandb = None
        self._state = None


def fault_of(error: Exception, *, step: int) -> str:
    """What a failure is known again by: its step, its type and its words, without addresses.

    >>> fault_of(ValueError("no <f at 0x7f12>"), step=3)
    'step 3: ValueError: no <f at 0x>'
    """
    return f"step {step}: {type(error).__name__}: {re.sub('0x[0-9a-f]+', '0x', str(error))}"


def is_final(error: Exception) -> bool:
    """Whether another attempt would end in the same way, as one with such a setting does.

    >>> is_final(UserError("no such layer")), is_final(DataError("a file is missing"))
    (True, False)
    """
    return isinstance(error, UserError) and not isinstance(error, DataError)


def may_go_well(error: Exception) -> bool:
    """Whether the cause is outside the trial, and time may mend it: a storage, a network, a file.

    >>> may_go_well(ConnectionError()), may_go_well(ValueError())
    (True, False)
    """
    return isinstance(error, OSError | DataError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was what the trial lacked, a GPU's or the machine's.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(ValueError("bad"))
    (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
