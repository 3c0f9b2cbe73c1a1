"""Runs a list of trials under Ray Tune and keeps what they measure as it arrives.

The driver alone writes the results: trials send their points with each report, so nothing but the
network lies between a worker on another node and the journal.
"""

import contextlib
import logging
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gisgd_ray.cluster import num_nodes
from gisgd_ray.config import TrialConfig
from gisgd_ray.downloads import data_folder, ensure_files
from gisgd_ray.errors import UserError
from gisgd_ray.reporting.progress import Progress
from gisgd_ray.reporting.wandb_runs import WandbSettings, chosen_mode, project
from gisgd_ray.results import (
    COMPLETE,
    Journal,
    ResultTables,
    Row,
    row_of,
    write_steps,
    write_tables,
)
from gisgd_ray.search_space import param_space

TABLES_EVERY_S = 30.0
"""The tables are rebuilt at most this often while trials run; the journals are always current."""


@dataclass(frozen=True)
class Resources:
    """What one trial takes: whole CPUs (torch threads) and a fraction of a GPU."""

    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError(f"--cpus-per-trial = {self.cpus} must be at least 1")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise UserError(
                f"--gpus-per-trial = {self.gpus:g} must be 0, a fraction up to 1 or a whole number"
            )


@dataclass
class Outcome:
    """What a launch came to."""

    tables: ResultTables
    reused: int
    interrupted: bool
    rows: list[Row] = field(default_factory=list)

    def count(self, status: str) -> int:
        return sum(row["status"] == status for row in self.rows)


def finished_ids(folder: Path, trials: Sequence[TrialConfig]) -> set[str]:
    """Trials that an earlier launch into this folder has completed."""
    if not (folder / "journal").exists():
        return set()
    journal = Journal(folder)
    rows = {t.trial_id: journal.read_row(t.trial_id) for t in trials}
    return {name for name, row in rows.items() if row is not None and row["status"] in COMPLETE}


def launch(
    trials: Sequence[TrialConfig],
    *,
    name: str,
    folder: Path,
    resources: Resources,
    resume: bool = False,
    labels: dict[str, str] | None = None,
    checkpoint_every_s: float = 60.0,
    title: str | None = None,
) -> Outcome:
    """Run every trial that has no complete row in ``folder``; Ray must be connected.

    A failed trial costs only its own row. Ctrl-C stops cleanly with what finished kept.

    Raises:
        UserError: the folder holds results and ``resume`` is false, or another sweep uses it.
    """
    with _sole_driver(folder):
        journal = Journal(folder)
        if journal.trial_ids() and not resume:
            raise UserError(
                f"{folder} already holds {len(finished_ids(folder, trials))} finished of these "
                f"{len(trials)} trials; add --resume to run only what is missing, or choose "
                "another folder with --out"
            )
        done = finished_ids(folder, trials)
        waiting = [t for t in trials if t.trial_id not in done]
        outcome = Outcome(ResultTables(folder), reused=len(done), interrupted=False)
        if waiting:
            _fetch_data(waiting)
            with Progress(
                total=len(trials), done=len(done), title=title or name, labels=labels or {}
            ) as progress:
                recorder = _Recorder(folder, trials, progress)
                _tune(
                    waiting,
                    name=name,
                    folder=folder,
                    resources=resources,
                    recorder=recorder,
                    labels=labels or {},
                    checkpoint_every_s=checkpoint_every_s,
                )
        try:
            outcome.tables = write_tables(folder, trials)
        except OSError as error:
            _raise_if_storage_failed(folder, error)
        rows = (journal.read_row(t.trial_id) for t in trials)
        outcome.rows = [row for row in rows if row is not None]
        outcome.interrupted = len(outcome.rows) < len(trials)
        return outcome


def _fetch_data(trials: Sequence[TrialConfig]) -> None:
    """On one machine, have the data before the trials start: they would wait for it in turn.

    On a cluster each node fetches its own, the driver's may have no use for it.

    Raises:
        DataError: a dataset is missing and cannot be had.
    """
    if num_nodes() == 1:
        for name in {t.data.dataset for t in trials}:
            ensure_files(name, data_folder())


def _tune(
    trials: Sequence[TrialConfig],
    *,
    name: str,
    folder: Path,
    resources: Resources,
    recorder: "_Recorder",
    labels: dict[str, str],
    checkpoint_every_s: float,
) -> None:
    """Run the Tuner over the trials until all are done or a signal stops it."""
    from ray import tune

    from gisgd_ray.trainable import TrialTrainable

    wandb = WandbSettings(mode=chosen_mode()[0], folder=str(folder), group=name, project=project())
    space = param_space(
        list(trials),
        cpus=resources.cpus,
        gpus=resources.gpus,
        wandb=asdict(wandb),
        names=labels,
        checkpoints=earlier_checkpoints(folder),
        checkpoint_every_s=checkpoint_every_s,
    )
    attempt = len(list((folder / "ray").glob("attempt-*"))) + 1
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space=space,
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_name_creator=lambda trial: _id_of(trial),
            trial_dirname_creator=lambda trial: _id_of(trial),
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{attempt}",
            storage_path=str(folder / "ray"),
            verbose=0,
            callbacks=[_tune_callback(recorder)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2, checkpoint_at_end=False),
            # On one machine a failure repeats itself; on many, a node may have gone.
            failure_config=tune.FailureConfig(max_failures=0 if num_nodes() == 1 else 2),
        ),
    )
    with _quiet_tune(), _stop_on_signal():
        try:
            tuner.fit()
        except Exception as error:
            _raise_if_storage_failed(folder, recorder.fault or error)
            raise


def _raise_if_storage_failed(folder: Path, error: Exception) -> None:
    """Tell a full or lost disk as such.

    Raises:
        UserError: the results can no longer be written.
    """
    full = shutil.disk_usage(folder).free < 2**20
    if isinstance(error, OSError) or full:
        reason = error.strerror or error if isinstance(error, OSError) else "the disk is full"
        raise UserError(
            f"results can no longer be written to {folder} ({reason}); what was measured before is "
            "kept: make room, then run the same command with --resume"
        ) from error


def earlier_checkpoints(folder: Path) -> dict[str, list[str]]:
    """Checkpoint folders of each trial from earlier launches into ``folder``, newest first."""
    found: dict[str, list[tuple[float, str]]] = {}
    for path in (folder / "ray").glob("attempt-*/*/checkpoint_*/state.pt"):
        candidate = (path.stat().st_mtime, str(path.parent))
        found.setdefault(path.parent.parent.name, []).append(candidate)
    return {
        trial_id: [path for _, path in sorted(candidates, reverse=True)]
        for trial_id, candidates in found.items()
    }


class _Recorder:
    """Takes each report apart: journal, progress display, tables."""

    def __init__(self, folder: Path, trials: Sequence[TrialConfig], progress: Progress):
        self.folder = folder
        self.trials = trials
        self.by_id = {t.trial_id: t for t in trials}
        self.journal = Journal(folder)
        self.progress = progress
        self.tables_written = -TABLES_EVERY_S
        self.fault: OSError | None = None
        """What kept a report from being written; Tune wraps it beyond recognition."""

    def started(self, trial_id: str) -> None:
        self.progress.started(trial_id)

    def report(self, trial_id: str, result: dict[str, Any]) -> None:
        payload = pickle.loads(result["payload"])
        try:
            self.journal.add_report(
                trial_id,
                first_step=payload.first_step,
                steps=payload.steps,
                points=payload.points,
            )
            self.progress.report(trial_id, payload.points)
            if payload.row is not None:
                self._finish(trial_id, payload.row)
        except OSError as fault:
            self.fault = fault
            raise

    def failed(self, trial_id: str, error: str) -> None:
        row = row_of(self.by_id[trial_id], {"status": "failed", "error": error})
        self._finish(trial_id, row)

    def _finish(self, trial_id: str, row: Row) -> None:
        self.journal.add_row(trial_id, row)
        write_steps(self.folder, self.journal.read(trial_id))
        self.progress.finished(trial_id, row)
        if time.monotonic() - self.tables_written > TABLES_EVERY_S:
            write_tables(self.folder, self.trials)
            self.tables_written = time.monotonic()


def _tune_callback(recorder: _Recorder) -> Any:
    """Ray's callback interface around the recorder (a class made here: Ray is imported late)."""
    from ray import tune

    class Callback(tune.Callback):  # type: ignore[misc,unused-ignore]
        def __init__(self, recorder: _Recorder | None) -> None:
            self.recorder = recorder

        def __getstate__(self) -> dict[str, Any]:
            # Ray pickles its callbacks to restore an experiment, which we do from the journals.
            return {"recorder": None}

        def on_trial_start(self, trial: Any, **_info: Any) -> None:
            if self.recorder is not None:
                self.recorder.started(_id_of(trial))

        def on_trial_result(self, trial: Any, result: Any, **_info: Any) -> None:
            if self.recorder is not None:
                self.recorder.report(_id_of(trial), result)

        def on_trial_error(self, trial: Any, **_info: Any) -> None:
            if self.recorder is not None:
                self.recorder.failed(_id_of(trial), _traceback_of(trial))

    return Callback(recorder)


def _traceback_of(trial: Any) -> str:
    """The failure as Ray wrote it on this machine; its storage has it only later."""
    try:
        return Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return "the worker was lost, and no traceback with it"


def _id_of(trial: Any) -> str:
    return TrialConfig.model_validate(trial.config["trial"]).trial_id


@contextlib.contextmanager
def _sole_driver(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another sweep is writing to {folder}; wait for it or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Only our own words on the terminal: Tune's log lines repeat what the display shows."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the sweep cleanly, the second at once.

    Tune's clean end answers SIGUSR1 as well; our own handler in front says what is going on.
    """
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        print("\nStopping; what is finished is kept. Ctrl-C again quits at once.", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGUSR1)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    originals = [signal.getsignal(number) for number in handled]
    for number in handled[:2]:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, original in zip(handled, originals, strict=True):
            signal.signal(number, original)
