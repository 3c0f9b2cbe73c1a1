"""Ray Tune around a list of trials: started, lost ones again, stopped by a signal."""

import contextlib
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.runner.cluster_watch import ClusterLostError, ClusterWatch
from gisgd_ray.runner.private_folder import make_private_folder, remove_private_folder
from gisgd_ray.runner.recorder import Recorder
from gisgd_ray.runner.settings import RunSettings


def tune_trials(trials: Sequence[TrialConfig], run: RunSettings, recorder: Recorder) -> bool:
    """Run the Tuner over the trials until all have ended; whether a signal stopped it before.

    Args:
        recorder: is told what becomes of each trial.

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
            param_space=param_space(trials, run, recorder.progress.labels),
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                trial_name_creator=lambda trial: _id_of(trial),
                trial_dirname_creator=lambda trial: _id_of(trial),
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

        def on_trial_start(self, trial: Any, **_info: Any) -> None:
            if self.recorder is not None:
                self.recorder.started(_id_of(trial))

        def on_trial_result(self, trial: Any, result: Any, **_info: Any) -> None:
            if self.recorder is None or self.watch.lost:
                return
            if self.recorder.report(_id_of(trial), result):
                trial.max_failures = trial.num_failures + self.recorder.retries
            # Tune remembers every trial's last result; the journal has this one.
            result.pop("payload", None)

        def on_trial_recover(self, trial: Any, **_info: Any) -> None:
            if self.recorder is None or self.is_over():
                return
            name = _id_of(trial)
            if self.recorder.begun_again(name):
                # This attempt is the first of those allowed; one at least.
                more = max(self.recorder.retries - 1, 1)
                trial.max_failures = trial.num_failures + more
            # With the same fault once more the next attempt ends the trial by itself.
            trial.config["trial"]["fault_before"] = self.recorder.faults.get(name)

        def on_trial_error(self, trial: Any, **_info: Any) -> None:
            if self.recorder is None or self.is_over():
                return
            name, told = _id_of(trial), _traceback_of(trial)
            if "OutOfMemory" in told:  # Ray kills the largest when a machine's memory runs out
                self.recorder.out_of_memory[name] = told
                self.recorder.progress.stopped(name)
            else:
                self.recorder.failed(name, told)

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


def _id_of(trial: Any) -> str:
    """Our name of a trial of Ray's."""
    return TrialConfig.model_validate(trial.config["trial"]["config"]).trial_id


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
    trials: Iterable[TrialConfig], run: RunSettings, names: Mapping[str, str]
) -> dict[str, Any]:
    """Ray Tune's ``param_space``: a grid over the trials, each with its name for people, and
    ``run`` the same for all.

    The trials are expanded here and not by Ray, so that they are known, checked and counted before
    anything starts, and finished ones can be left out.
    """
    from ray import tune

    each = [
        {"config": t.model_dump(mode="json"), "name": names.get(t.trial_id, t.trial_id)}
        for t in trials
    ]
    return {"trial": tune.grid_search(each), "run": run.plain()}
