"""Runs a list of trials under Ray Tune and keeps what they measure as it arrives.

The driver alone writes the results: trials send their points with each report, so nothing but the
network lies between a worker on another node and the journal. Checkpoints the trials write
themselves, to a storage that all nodes share.
"""

import contextlib
import logging
import pickle
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.downloads import data_folder, ensure_files
from gisgd_ray.errors import UserError
from gisgd_ray.file_locks import LockedError, file_lock
from gisgd_ray.numbers import counted
from gisgd_ray.results.journal import Journal, Row, Status
from gisgd_ray.results.storage import Storage, is_uri
from gisgd_ray.results.tables import (
    ResultTables,
    require_own_rows,
    reuse,
    write_tables,
)
from gisgd_ray.runner.checkpoints import clear_all
from gisgd_ray.runner.cli import Options
from gisgd_ray.runner.cluster import abandon, machines, most_cpus, num_nodes, require_shared
from gisgd_ray.runner.cluster_watch import ClusterLostError, ClusterWatch
from gisgd_ray.runner.handover import Handover, handed_over
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.plan import Left, Plan
from gisgd_ray.runner.private_folder import make_private_folder, remove_private_folder
from gisgd_ray.runner.progress import Progress
from gisgd_ray.runner.recorder import Recorder
from gisgd_ray.runner.resources import Chosen, Resources, at_once, give_back_freed
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.runner.stacks import formed
from gisgd_ray.tracking import launch as wandb_launch
from gisgd_ray.tracking.environment import account
from gisgd_ray.tracking.run import WandbSettings
from gisgd_ray.tracking.status import WandbStatus


@dataclass(frozen=True)
class Job:
    """What a launch runs: all that is decided before the first trial starts."""

    name: str
    """The sweep's."""
    title: str
    plan: Plan
    left: Left
    location: Location
    options: Options
    chosen: Chosen


@dataclass(frozen=True)
class Ran:
    """How the trials that were left have run."""

    resources: Resources | None = None
    """What each took in the end; None if none ran, or the cluster was lost."""
    lost: int = 0
    """How often a trial was lost, and went on from its last checkpoint."""
    tried_again: int = 0
    """How often one failed, and was tried again from there."""
    cluster_lost: str = ""
    """Why the cluster is gone, if that was what broke the launch off."""
    wandb: WandbSettings | None = None
    """None if none ran."""


@dataclass(frozen=True)
class Ended:
    """What the closing words say of a trial that has ended; the tables have the rest."""

    trial_id: str
    status: Status
    error: str | None = None
    wandb: WandbStatus | None = None


@dataclass(frozen=True)
class Outcome:
    """What a launch came to."""

    tables: ResultTables
    reused: int
    interrupted: bool
    ended: Sequence[Ended] = ()
    ran: Ran = field(default_factory=Ran)
    wandb_faults: Sequence[str] = ()
    """What W&B does not have in the end, in sentences."""

    def count(self, status: Status) -> int:
        return sum(each.status is status for each in self.ended)


@contextlib.contextmanager
def sole_driver(folder: Path) -> Iterator[None]:
    """Context in which no other launch writes to the folder.

    Raises:
        UserError: another one does.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(file_lock(folder / ".lock", wait=False))
        except LockedError as fault:
            raise UserError(
                f"another sweep is writing to {folder}{fault}; wait for it or choose another --out"
            ) from None
        yield


def require_startable(job: Job) -> None:
    """See that this launch may write to the folder; say which trials in it another version made.

    Raises:
        UserError: it holds results and is not to be resumed, a row in it is not its trial's, or
            another node cannot see it.
    """
    folder, trials = job.location.folder, job.plan.trials
    if Journal(folder).trial_ids() and not job.options.resume:
        raise UserError(
            f"{folder} already holds {len(job.left.own)} finished of these {len(trials)} trials; "
            "add --resume to run only what is missing, or choose another folder with --out"
        )
    if foreign := require_own_rows(folder, trials):
        print(
            f"{counted(len(foreign), 'trial')} in {folder} ({foreign[0]}"
            f"{', ...' * (len(foreign) > 1)}) with settings of another version of gisgd-ray: "
            "kept and shown, and not taken for any of this launch's.",
            flush=True,
        )
    if not is_uri(job.location.storage):
        require_shared(folder)


def launch(job: Job) -> Outcome:
    """Run every trial that is left; Ray must be connected, and the folder this launch's own.

    A trial that was lost or failed goes on from its last checkpoint; one that gets no further in
    ``retries`` further attempts, or fails in the same way at the same step again, costs only its
    own row. One that does not fit into memory beside others is run again with more room. Ctrl-C
    stops cleanly with what finished kept, and so does the loss of the whole cluster.

    Raises:
        UserError: the results can no longer be written.
        DataError: a dataset is missing and cannot be had.
    """
    folder, trials, waiting = job.location.folder, job.plan.trials, job.left.waiting
    # No more than was looked up: what another sweep has completed since is among those that wait.
    reuse(folder, job.left.done, job.options.reuse)
    _clear_leftovers(job)
    ran = _run(job) if waiting else Ran()
    tables, faults = ResultTables(folder), list[str]()
    try:
        tables = write_tables(folder, trials)
    except OSError as error:
        _raise_if_storage_failed(folder, error)
    if ran.wandb is not None:
        faults = wandb_launch.end(ran.wandb, tables, [t.trial_id for t in waiting])
    rows = map(Journal(folder).read_row, (trial.trial_id for trial in trials))
    ended = [_ended(row) for row in rows if row is not None]
    give_back_freed()
    return Outcome(
        tables,
        reused=len(job.left.done),
        interrupted=len(ended) < len(trials),
        ended=ended,
        ran=ran,
        wandb_faults=faults,
    )


def _ended(row: Row) -> Ended:
    wandb = WandbStatus.of(row.get("wandb/status"))
    return Ended(row["trial_id"], Status(row["status"]), row.get("error"), wandb)


def _run(job: Job) -> Ran:
    """Run the trials that are left, as often as it takes."""
    waiting, done, options = job.left.waiting, len(job.left.done), job.options
    trials, labels, resources = job.plan.trials, job.plan.labels, job.chosen.resources
    _fetch_data(waiting)
    taken, cluster_lost = None, ""
    with Progress(total=len(trials), done=done, title=job.title, labels=labels) as progress:
        recorder = Recorder(job.location, trials, progress, retries=options.retries)
        wandb = wandb_launch.begin(
            job.location.folder,
            job.name,
            trials_at_once=at_once(machines(), resources)
            * max(map(len, formed(waiting, job.chosen.per_stack))),
            requests_per_minute=options.wandb_requests,
            note=progress.note,
        )
        try:
            with handed_over(Handover(job.location.storage, account())) as name:
                run = RunSettings(resources, name, options.checkpoint_every, wandb)
                taken = _rounds(job, run, recorder)
        except ClusterLostError as fault:
            abandon()
            cluster_lost = "" if fault.stopped else str(fault)
    return Ran(taken, recorder.lost, recorder.tried_again, cluster_lost, wandb)


def _clear_leftovers(job: Job) -> None:
    """Checkpoints of finished trials and halves of files: left by a driver lost on the way."""
    for path in (job.location.folder / "journal").glob("*.partial"):
        path.unlink()
    with contextlib.suppress(OSError):
        clear_all(Storage(job.location.storage), {t.trial_id for t in job.left.done})


def _fetch_data(trials: Sequence[TrialConfig]) -> None:
    """On one machine, have the data before the trials start: they would wait for it in turn.

    On a cluster each node fetches its own, the driver's may have no use for it.

    Raises:
        DataError: a dataset is missing and cannot be had.
    """
    if num_nodes() == 1:
        for name in {t.data.dataset for t in trials}:
            ensure_files(name, data_folder())


def _rounds(job: Job, run: RunSettings, recorder: Recorder) -> Resources:
    """Run the trials, and those again, with more room, that ran out of memory; the room at last."""
    waiting, folder, per_stack = job.left.waiting, job.location.folder, job.chosen.per_stack
    while True:
        try:
            stacks = formed(waiting, per_stack)
            stopped = tune_trials(stacks, run, recorder)
        except (OSError, TuneFailedError) as error:
            _raise_if_storage_failed(folder, recorder.fault or error)
            raise
        waiting = [t for t in waiting if t.trial_id in recorder.out_of_memory]
        if not waiting or stopped:
            return run.resources
        some = f"{counted(len(waiting), 'trial')} ran out of memory with"
        # Those that could share none, or found too few of their shape, had no stack to be cut.
        again = {t.trial_id for t in waiting}
        largest = max(len(s) for s in stacks if not again.isdisjoint(t.trial_id for t in s))
        if largest > 1:
            per_stack = largest // 2
            recorder.progress.note(
                f"{some} up to {largest} in a stack; run again with {per_stack} in one at most"
            )
            recorder.out_of_memory.clear()
            continue
        roomier = run.resources.roomier(most_cpus=most_cpus())
        if roomier is None:
            try:
                for trial in waiting:
                    recorder.failed(trial.trial_id, recorder.out_of_memory[trial.trial_id])
            except OSError as error:
                _raise_if_storage_failed(folder, error)
            return run.resources
        recorder.progress.note(f"{some} {run.resources} each; run again with {roomier}")
        run = replace(run, resources=roomier)
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


def tune_trials(
    stacks: Sequence[Sequence[TrialConfig]], run: RunSettings, recorder: Recorder
) -> bool:
    """Run the Tuner over the trials until all have ended; whether a signal stopped it before.

    Args:
        stacks: the trials, those together that share a process.
        recorder: notes what becomes of each trial.

    Raises:
        ClusterLostError: the cluster is gone.
        TuneFailedError: Tune or Ray has failed.
    """
    from ray import tune

    from gisgd_ray.runner.trainable import TrialTrainable

    watch, received = ClusterWatch(), list[int]()
    # Tune's own notes, which nobody reads: trials go on from their journals and checkpoints.
    notes = make_private_folder()
    try:
        tuner = tune.Tuner(
            TrialTrainable,
            param_space=param_space(stacks, run, recorder.progress.labels),
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                trial_name_creator=lambda trial: _ids_of(trial.config)[0],
                trial_dirname_creator=lambda trial: _ids_of(trial.config)[0],
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(notes),
                verbose=0,
                callbacks=[_tune_callback(recorder, watch, received)],
                progress_reporter=_no_reporter(),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=recorder.retries),
            ),
        )
        with _quiet_tune(), _stop_on_signal(received), watch:
            _fit(tuner, watch, received)
    finally:
        remove_private_folder(notes)
    return bool(received)


class TuneFailedError(Exception):
    """Tune or Ray has failed, and no trial; the cause is what they raised."""


class _StoppedError(Exception):
    """Ends Tune's loop from within."""


def _fit(tuner: Any, watch: ClusterWatch, received: Sequence[int]) -> None:
    """``tuner.fit()`` in a thread: of a lost cluster it may wait for an answer for ever.

    Raises:
        ClusterLostError: the cluster is gone.
        TuneFailedError, Exception: whatever ended Tune.
    """
    from ray import tune
    from ray.exceptions import RayError

    faults: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as fault:  # for the thread that waits
            faults.append(fault)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() and not watch.lost:
        thread.join(0.2)
    if watch.look():
        thread.join(2)  # with a report that it is writing down
        raise ClusterLostError(watch.lost, stopped=bool(received))
    if faults and not received:
        if isinstance(faults[0], tune.TuneError | RayError):
            raise TuneFailedError(str(faults[0])) from faults[0]
        raise faults[0]


def _tune_callback(recorder: Recorder, watch: ClusterWatch, received: Sequence[int]) -> Any:
    """Ray's callback interface around the recorder (a class made here: Ray is imported late)."""
    from ray import tune

    class Callback(tune.Callback):  # type: ignore[misc,unused-ignore]
        def __init__(
            self, recorder: Recorder | None, watch: ClusterWatch, received: Sequence[int]
        ) -> None:
            self.recorder = recorder
            self.watch, self.received = watch, received

        def __getstate__(self) -> dict[str, Any]:
            # Ray pickles its callbacks to restore an experiment, which we do from the journals.
            return {"recorder": None}

        def is_over(self) -> bool:
            """Whether a trial that ends now does so because the sweep does."""
            return bool(self.received or self.watch.look())

        def on_step_begin(self, **_info: Any) -> None:
            if self.is_over():
                raise _StoppedError

        def left(self, trial: Any) -> list[str]:
            """Those of its trials that have not ended."""
            over = self.recorder.over if self.recorder is not None else set()
            return [trial_id for trial_id in _ids_of(trial.config) if trial_id not in over]

        def on_trial_start(self, trial: Any, **_info: Any) -> None:
            if self.recorder is not None:
                for name in self.left(trial):
                    self.recorder.started(name)

        def on_trial_result(self, trial: Any, result: Any, **_info: Any) -> None:
            if self.recorder is None or self.watch.lost:
                return
            # Tune remembers every trial's last result; the journal has this one.
            for name, payload in pickle.loads(result.pop("payload")).items():
                if self.recorder.report(name, payload):
                    trial.max_failures = trial.num_failures + self.recorder.retries

        def on_trial_recover(self, trial: Any, **_info: Any) -> None:
            if self.recorder is None or self.is_over():
                return
            left = self.left(trial)
            failed = any(name in self.recorder.failing for name in left)
            further = [self.recorder.begun_again(name) for name in left]
            if any(further):
                # This attempt is the first of those allowed; one at least.
                more = max(self.recorder.retries - 1, 1)
                trial.max_failures = trial.num_failures + more
            # What has ended is not begun again. With the same fault once more the next attempt
            # ends a trial by itself; of several that share a stack, which fails is found apart.
            given = zip(_ids_of(trial.config), trial.config["trials"], strict=True)
            trial.config["trials"] = [
                each | {"fault_before": self.recorder.faults.get(name)}
                for name, each in given
                if name in left
            ]
            if failed:
                trial.config["apart"] = True

        def on_trial_error(self, trial: Any, **_info: Any) -> None:
            if self.recorder is None or self.is_over():
                return
            failure = _traceback_of(trial)
            for name in self.left(trial):
                if "OutOfMemory" in failure:  # Ray kills the largest when a machine has no more
                    self.recorder.out_of_memory[name] = failure
                    self.recorder.progress.stopped(name)
                else:
                    self.recorder.failed(name, failure)

    return Callback(recorder, watch, received)


def _no_reporter() -> Any:
    """In place of Tune's own, which in a notebook clears what our display has printed."""
    from ray import tune

    class Silent(tune.ProgressReporter):  # type: ignore[misc,unused-ignore]
        def should_report(self, trials: Any, done: bool = False) -> bool:
            del trials, done
            return False

        def report(self, trials: Any, done: bool, *sys_info: Any) -> None:
            """Nothing."""

    return Silent()


def _ids_of(config: Mapping[str, Any]) -> list[str]:
    """Of the trials that one of Ray's carries."""
    return [TrialConfig.model_validate(each["config"]).trial_id for each in config["trials"]]


def _traceback_of(trial: Any) -> str:
    """The failure as Ray wrote it on this machine; its storage has it only later."""
    try:
        return Path(trial.error_file).read_text()
    except (OSError, TypeError):
        return "the worker was lost, and no traceback with it"


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
def _stop_on_signal(received: list[int]) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the sweep cleanly, the second at once.

    Each is added to ``received``. ``timeout`` sends its SIGTERM twice, to the process and to its
    group: what comes within a second is the same.
    """
    first = 0.0

    def stop(number: int, frame: Any) -> None:
        del frame
        nonlocal first
        if received and time.monotonic() - first > 1:
            raise KeyboardInterrupt
        if not received:
            first = time.monotonic()
            print(
                "\nStopping; what is finished is kept. Ctrl-C again quits at once.",
                file=sys.stderr,
            )
        received.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    handled = (signal.SIGINT, signal.SIGTERM)
    originals = [signal.getsignal(number) for number in handled]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, original in zip(handled, originals, strict=True):
            signal.signal(number, original)


def param_space(
    stacks: Iterable[Sequence[TrialConfig]], run: RunSettings, names: Mapping[str, str]
) -> dict[str, Any]:
    """Ray Tune's ``param_space``: a grid over the stacks of trials, each trial with its name for
    people, and ``run`` the same for all.

    The trials are expanded here and not by Ray, so that they are known, checked and counted before
    anything starts, and finished ones can be left out.
    """
    from ray import tune

    each = [
        [
            {"config": t.model_dump(mode="json"), "name": names.get(t.trial_id, t.trial_id)}
            for t in stack
        ]
        for stack in stacks
    ]
    return {"trials": tune.grid_search(each), "run": run.plain()}
