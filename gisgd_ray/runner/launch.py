"""Runs a list of trials under Ray Tune and keeps what they measure as it arrives.

The driver alone writes the results: trials send their points with each report, so nothing but the
network lies between a worker on another node and the journal. Checkpoints the trials write
themselves, to a storage that all nodes share.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.downloads import data_folder, ensure_files
from gisgd_ray.errors import UserError
from gisgd_ray.file_locks import LockedError, file_lock
from gisgd_ray.numbers import counted
from gisgd_ray.results.journal import Journal, Row
from gisgd_ray.results.storage import Storage, is_uri
from gisgd_ray.results.tables import (
    ResultTables,
    finished_ids,
    require_own_rows,
    reuse,
    write_tables,
)
from gisgd_ray.runner.capacity import slots
from gisgd_ray.runner.checkpoints import clear_all
from gisgd_ray.runner.cluster import abandon, machines, most_cpus, num_nodes, require_shared
from gisgd_ray.runner.cluster_watch import ClusterLostError
from gisgd_ray.runner.handover import Handover, account, handed_over
from gisgd_ray.runner.memory import give_back_freed
from gisgd_ray.runner.packing import Resources
from gisgd_ray.runner.place import Place
from gisgd_ray.runner.progress import Progress
from gisgd_ray.runner.recorder import Recorder
from gisgd_ray.runner.tuning import TuneFailedError, tune_trials
from gisgd_ray.tracking import launch as wandb_launch
from gisgd_ray.tracking.run import WandbSettings

RETRIES = 3
WANDB_REQUESTS_PER_MINUTE = 120.0
TOLD = ("trial_id", "status", "error", "wandb/status")
"""What the closing words are made from."""


@dataclass
class Outcome:
    """What a launch came to."""

    tables: ResultTables
    reused: int
    interrupted: bool
    rows: list[Row] = field(default_factory=list)
    """Of every trial that has ended, :data:`TOLD`; the tables have the rest."""
    wandb_faults: list[str] = field(default_factory=list)
    """What W&B does not have in the end, in sentences."""
    cluster_lost: str = ""
    """Why the cluster is gone, if that was what broke the launch off."""
    lost: int = 0
    """How often a trial was lost, and went on from its last checkpoint."""
    tried_again: int = 0
    """How often one failed, and was tried again from there."""
    resources: Resources | None = None
    """What the trials took in the end, if any ran."""

    def count(self, status: str) -> int:
        return sum(row["status"] == status for row in self.rows)


def launch(
    trials: Sequence[TrialConfig],
    *,
    name: str,
    place: Place,
    resources: Resources,
    resume: bool = False,
    reused_folders: Sequence[Path] = (),
    labels: dict[str, str] | None = None,
    checkpoint_every_s: float = 60.0,
    retries: int = RETRIES,
    title: str | None = None,
    on_start: Callable[[], None] = lambda: None,
    wandb_requests_per_minute: float = WANDB_REQUESTS_PER_MINUTE,
) -> Outcome:
    """Run every trial that has no complete row in the place; Ray must be connected.

    A trial that was lost or failed goes on from its last checkpoint; one that gets no further in
    ``retries`` further attempts, or fails in the same way at the same step again, costs only its
    own row. One that does not fit into memory beside others is run again with more room. Ctrl-C
    stops cleanly with what finished kept, and so does the loss of the whole cluster.

    Args:
        reused_folders: sweeps' folders whose finished trials are taken from there.
        on_start: called once the folder is this launch's own.
        wandb_requests_per_minute: that all trials together make to tell W&B their points.

    Raises:
        UserError: the folder holds results and ``resume`` is false, another sweep uses it, or
            another node cannot see it.
    """
    folder = place.folder
    with _sole_driver(folder):
        journal = Journal(folder)
        if journal.trial_ids() and not resume:
            raise UserError(
                f"{folder} already holds {len(finished_ids(folder, trials))} finished of these "
                f"{len(trials)} trials; add --resume to run only what is missing, or choose "
                "another folder with --out"
            )
        if foreign := require_own_rows(folder, trials):
            print(
                f"{counted(len(foreign), 'trial')} in {folder} ({foreign[0]}"
                f"{', ...' * (len(foreign) > 1)}) with settings of another version of gisgd-ray: "
                "kept and shown, and not taken for any of this launch's.",
                flush=True,
            )
        if not is_uri(place.storage):
            require_shared(folder)
        on_start()
        reuse(folder, trials, reused_folders)
        done = finished_ids(folder, trials)
        _clear_leftovers(place, done)
        waiting = [t for t in trials if t.trial_id not in done]
        outcome = Outcome(ResultTables(folder), reused=len(done), interrupted=False)
        wandb: WandbSettings | None = None
        if waiting:
            _fetch_data(waiting)
            with Progress(
                total=len(trials), done=len(done), title=title or name, labels=labels or {}
            ) as progress:
                recorder = Recorder(place, trials, progress, retries=retries)
                wandb = wandb_launch.begin(
                    folder,
                    name,
                    waiting,
                    trials_at_once=_at_once(resources),
                    requests_per_minute=wandb_requests_per_minute,
                    note=progress.note,
                )
                run = {
                    "threads": resources.threads or resources.cpus,
                    "checkpoint_every_s": checkpoint_every_s,
                    "wandb": asdict(wandb),
                }
                try:
                    with handed_over(Handover(place.storage, account())) as name:
                        run["handover"] = name
                        outcome.resources = _rounds(waiting, run, place, resources, recorder)
                except ClusterLostError as fault:
                    abandon()
                    outcome.cluster_lost = "" if fault.stopped else str(fault)
            outcome.lost, outcome.tried_again = recorder.lost, recorder.tried_again
        try:
            outcome.tables = write_tables(folder, trials)
        except OSError as error:
            _raise_if_storage_failed(folder, error)
        if wandb is not None:
            outcome.wandb_faults = wandb_launch.end(
                wandb, outcome.tables, [t.trial_id for t in waiting]
            )
        for trial in trials:
            row = journal.read_row(trial.trial_id)
            if row is not None:
                outcome.rows.append({name: row[name] for name in TOLD if name in row})
        outcome.interrupted = len(outcome.rows) < len(trials)
        give_back_freed()
        return outcome


def _at_once(resources: Resources) -> int:
    """How many trials the cluster runs at once as it is now, at least one."""
    return max(1, sum(slots(machine, resources) for machine in machines()))


def _clear_leftovers(place: Place, done: set[str]) -> None:
    """Checkpoints of finished trials and halves of files: left by a driver lost on the way."""
    for path in (place.folder / "journal").glob("*.partial"):
        path.unlink()
    with contextlib.suppress(OSError):
        clear_all(Storage(place.storage), done)


def _fetch_data(trials: Sequence[TrialConfig]) -> None:
    """On one machine, have the data before the trials start: they would wait for it in turn.

    On a cluster each node fetches its own, the driver's may have no use for it.

    Raises:
        DataError: a dataset is missing and cannot be had.
    """
    if num_nodes() == 1:
        for name in {t.data.dataset for t in trials}:
            ensure_files(name, data_folder())


def _rounds(
    trials: Sequence[TrialConfig],
    run: dict[str, Any],
    place: Place,
    resources: Resources,
    recorder: Recorder,
) -> Resources:
    """Run the trials, and those again, with more room, that ran out of memory; the room at last."""
    waiting = list(trials)
    while True:
        try:
            stopped = tune_trials(waiting, run, resources, recorder)
        except (OSError, TuneFailedError) as error:
            _raise_if_storage_failed(place.folder, recorder.fault or error)
            raise
        waiting = [t for t in waiting if t.trial_id in recorder.out_of_memory]
        if not waiting or stopped:
            return resources
        roomier = resources.roomier(most_cpus=most_cpus())
        if roomier is None:
            try:
                for trial in waiting:
                    recorder.failed(trial.trial_id, recorder.out_of_memory[trial.trial_id])
            except OSError as error:
                _raise_if_storage_failed(place.folder, error)
            return resources
        recorder.progress.note(
            f"{counted(len(waiting), 'trial')} ran out of memory with {resources} each; run again "
            f"with {roomier}"
        )
        resources = roomier
        recorder.out_of_memory.clear()


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


@contextlib.contextmanager
def _sole_driver(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / ".lock", wait=False))
        except LockedError as fault:
            raise UserError(
                f"another sweep is writing to {folder}{fault}; wait for it or choose another --out"
            ) from None
        yield
