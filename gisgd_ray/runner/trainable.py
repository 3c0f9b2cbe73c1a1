"""The Ray Tune Trainable: a thin class around :mod:`gisgd_ray.training`; no mathematics here.

A trial of Ray's carries one of ours, or a stack of them (:mod:`gisgd_ray.training.stack`), each
with its own reports, checkpoints and end. Actors are reused (a fresh one imports torch, which takes
seconds), so ``reset_config`` starts the next in place. A result carries in ``payload`` what was
measured of each trial since the last one.

A trial saves itself, on a schedule and when its process gets SIGTERM, and looks for its own
checkpoints when it begins. Ray starts a lost process's trials anew; that they go on is decided
here.
"""

import pickle
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from ray import tune

from gisgd_ray.device import Device, gpu
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.results.storage import Storage, is_uri
from gisgd_ray.runner.handover import take
from gisgd_ray.runner.member import Member
from gisgd_ray.runner.payload import Payload
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.tracking.environment import put_on
from gisgd_ray.training import loop as training
from gisgd_ray.training.stack import Stack

REPORT_S = 2.0
"""A report covers whole measuring points and at least about this much time."""
NOTICE_S = 5.0
"""Seconds between checkpoints after a SIGTERM: when the process will be killed is not known."""


class TrialTrainable(tune.Trainable):  # type: ignore[misc]
    """One trial or stack at a time; its ``config`` is that of
    :func:`gisgd_ray.runner.launch.param_space`, with a plain :class:`RunSettings` for ``run``.

    Trials of a stack that has failed are gone on with one after the other (``apart``), so that it
    is known which of them fails.
    """

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
        self.cleanup()
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
        self._device: Device | None = None
        handover = take(self._run.handover)
        put_on(handover.environment)
        shared, in_bucket = Storage(handover.storage), is_uri(handover.storage)
        self._members = [
            Member(given, self._run, shared, in_bucket=in_bucket) for given in config["trials"]
        ]
        self._stacked = len(self._members) > 1 and not config.get("apart", False)
        self._stack: Stack | None = None
        self._acting: Sequence[Member] = self._members
        """Whose work is being done: a failure is theirs."""
        self._fault: Exception | None = None
        self._schedule_save()

    def step(self) -> dict[str, Any]:
        """Train for about :data:`REPORT_S`, to a measuring point."""
        if self._fault is not None:
            raise self._fault
        faults: dict[str, str] = {}
        try:
            self._advance()
        # A scheme or a model may raise anything. It ends the trial, here or in the next call.
        except Exception as error:
            if is_out_of_memory(error):  # which of them is too large cannot be told
                for member in self._live():
                    member.ended = member.nothing()._replace(out_of_memory=traceback.format_exc())
            elif len(self._acting) == 1 and self._is_final(error, self._acting[0]):
                (member,), self._stack = self._acting, None
                member.ended = member.nothing()._replace(failure=traceback.format_exc())
            else:
                # The driver hears of it first, so as to know whether it comes again.
                self._fault = error
                faults = {m.trial.trial_id: fault_of(error, step=m.step) for m in self._acting}
                self._save([m for m in self._live() if m not in self._acting])
        result = self._result(faults)
        if result["done"] and self._device is not None:
            self._device.empty_cache()
        return result

    def _is_final(self, error: Exception, member: Member) -> bool:
        """Whether another attempt would end in the same way."""
        again = fault_of(error, step=member.step) == member.fault_before
        return is_final(error) or (again and not may_go_well(error))

    def _live(self) -> list[Member]:
        return [member for member in self._members if not member.over]

    def _advance(self) -> None:
        """Train and measure for some seconds, or until all are over."""
        if self._device is None:
            self._device = gpu() if self._resources.gpus > 0 else Device()
        for member in self._live():
            if not member.begun:
                with self._of(member):
                    member.begin(self._device)
        deadline, measured = time.monotonic() + REPORT_S, False
        while (live := self._live()) and (not measured or time.monotonic() < deadline):
            # Apart, one after the other.
            active = live if self._stacked else live[:1]
            due = self._train(active)
            if self._save_is_due():  # before measuring, which may take longer than is left
                self._save(active)
            for member in due:
                with self._of(member):
                    member.measure()
                measured = True

    def _train(self, members: Sequence[Member]) -> list[Member]:
        """Take steps of these; which of them are at a measuring point, none if a save is due."""
        self._acting = members
        if not self._stacked:
            due = training.train(members[0].state, pause=self._save_is_due)
            return list(members) if due else []
        if self._stack is None or len(self._stack.states) != len(members):
            self._stack = Stack([member.state for member in members])
        found = {id(state) for state in self._stack.train(pause=self._save_is_due)}
        return [member for member in members if id(member.state) in found]

    @contextmanager
    def _of(self, member: Member) -> Iterator[None]:
        self._acting = [member]
        yield
        self._acting = self._live()

    def _result(self, faults: dict[str, str]) -> dict[str, Any]:
        """A result as Tune takes it: of every trial that has something to report."""
        payloads: dict[str, Payload] = {}
        for member in self._members:
            trial_id = member.trial.trial_id
            if trial_id in faults:
                payloads[trial_id] = member.nothing()._replace(fault=faults[trial_id])
            elif member.begun or member.over:
                payloads[trial_id] = member.report()
            if member.over:
                member.end()
        self._members = self._live()
        return {"payload": pickle.dumps(payloads), "done": not self._members}

    def _save_is_due(self) -> bool:
        return time.monotonic() >= self._save_at

    def _schedule_save(self) -> None:
        every = self._run.checkpoint_every_s
        if self._notified:
            every = min(every, NOTICE_S)
        self._save_at = time.monotonic() + every

    def _save(self, members: Sequence[Member]) -> None:
        for member in members:
            if member.begun:
                member.save()
        self._schedule_save()

    def cleanup(self) -> None:
        for member in self._members:
            member.end()
        self._members, self._stack = [], None


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
