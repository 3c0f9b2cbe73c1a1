"""What the driver does with the trials' reports, and with trials that are lost or fail."""

import contextlib
import math
import time
from collections.abc import Sequence

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Journal, Row, Status
from gisgd_ray.results.storage import Storage
from gisgd_ray.results.tables import row_of, write_steps, write_tables
from gisgd_ray.runner.checkpoints import Checkpoints, step_of
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.payload import Payload
from gisgd_ray.runner.progress import Progress
from gisgd_ray.runner.resources import give_back_freed

TABLES_EVERY_S = 30.0
"""The tables are rebuilt at most this often while trials run; the journals are always current."""
TABLES_SHARE = 0.03
"""Nor may it take more than this share of the time: ten thousand trials fill large tables."""


class Recorder:
    """Takes each report apart: journal, progress display, tables.

    Args:
        location: where the results go.
        retries: how often in a row a trial may be lost or fail without getting further than ever
            before; then it ends as ``failed``. Machines that come and go count for nothing as long
            as the trial advances.
    """

    def __init__(
        self,
        location: Location,
        trials: Sequence[TrialConfig],
        progress: Progress,
        *,
        retries: int,
    ):
        self.by_id = {t.trial_id: t for t in trials}
        self.journal = Journal(location.folder)
        self.folder, self.trials = location.folder, trials
        self.progress = progress
        self.retries = retries
        self.fault: OSError | None = None
        """What kept a report from being written; Tune wraps it beyond recognition."""
        self.out_of_memory: dict[str, str] = {}
        """Trials that did not fit beside the others, with their tracebacks."""
        self.lost = 0
        """How often a trial was lost, with its process or machine, and begun again."""
        self.tried_again = 0
        """How often one failed and was begun again."""
        self.faults: dict[str, str] = {}
        """What each trial failed with last, if it was begun again: step and error."""
        self.over: set[str] = set()
        """Trials that have ended here."""
        self.failing: set[str] = set()
        """Trials that have failed and wait to be begun again."""
        self._storage, self._mirror = Storage(location.storage), location.mirror
        self._furthest: dict[str, int] = {}
        self._tables_due = time.monotonic()

    def started(self, trial_id: str) -> None:
        self.progress.started(trial_id)

    def report(self, trial_id: str, payload: Payload) -> bool:
        """Note one report; whether the trial is further than it ever was."""
        if payload.out_of_memory is not None:
            self.out_of_memory[trial_id] = payload.out_of_memory
            self.progress.stopped(trial_id)
            return True
        if payload.fault is not None:
            self.faults[trial_id] = payload.fault
            self.failing.add(trial_id)
            return False
        try:
            if payload.failure is not None:
                self.failed(trial_id, payload.failure)
                return True
            self.journal.add_report(
                trial_id,
                first_step=payload.first_step,
                steps=payload.steps,
                points=payload.points,
                whole=payload.resumed,
            )
            self.progress.report(trial_id, payload.points)
            if payload.row is not None:
                self._finish(trial_id, payload.row)
            self.write_tables_if_due()
        except OSError as fault:
            self.fault = fault
            raise
        before = self._furthest.get(trial_id, -1)
        self._furthest[trial_id] = max(payload.step, before)
        return payload.step > before

    def begun_again(self, trial_id: str) -> bool:
        """The trial was lost, or failed, and waits to be started again; whether the attempt that
        has ended got further than any before, by its checkpoints."""
        if trial_id in self.failing:
            self.failing.remove(trial_id)
            self.tried_again += 1
        else:
            self.lost += 1
        self.progress.stopped(trial_id)
        try:
            names = Checkpoints(self._storage, self.by_id[trial_id]).names()
        except OSError:  # away for a moment: the trial's reports will tell
            names = []
        before = self._furthest.get(trial_id, -1)
        reached = max([step_of(name) for name in names], default=-1)
        self._furthest[trial_id] = max(reached, before)
        return reached > before

    def failed(self, trial_id: str, error: str) -> None:
        """The trial has failed for good."""
        row = row_of(self.by_id[trial_id], {"status": Status.FAILED.value, "error": error})
        try:
            self._finish(trial_id, row)
        except OSError as fault:
            self.fault = fault
            raise

    def _finish(self, trial_id: str, row: Row) -> None:
        self.journal.add_row(trial_id, row)
        self.over.add(trial_id)
        self.progress.finished(trial_id, row)
        if row["status"] != Status.FAILED:  # a failed one goes on from there if it is tried again
            with contextlib.suppress(OSError):  # what is left behind the next launch clears
                if self._mirror is not None:
                    self._mirror.push_file(self.journal.path(trial_id))
                Checkpoints(self._storage, self.by_id[trial_id]).clear()
        write_steps(self.folder, self.journal, trial_id)

    def write_tables_if_due(self) -> None:
        """Bring the tables, and their copy in a bucket, up to date now and then."""
        begun = time.monotonic()
        if begun < self._tables_due:
            return
        try:
            write_tables(self.folder, self.trials)
        except UserError as fault:  # the trials go on: their journals are what counts
            self.progress.note(f"the tables wait for the end: {fault}")
            self._tables_due = math.inf
            return
        give_back_freed()
        if self._mirror is not None:
            with contextlib.suppress(OSError):  # away for a while: the next push makes up for it
                self._mirror.push()
        taken = time.monotonic() - begun
        self._tables_due = time.monotonic() + max(TABLES_EVERY_S, taken / TABLES_SHARE)
