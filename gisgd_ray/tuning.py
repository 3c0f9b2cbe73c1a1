"""Ray Tune around a list of trials: started, lost ones again, stopped by a signal."""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gisgd_ray.config import TrialConfig
from gisgd_ray.packing import Resources
from gisgd_ray.recorder import Recorder
from gisgd_ray.search_space import param_space
from gisgd_ray.storage import Storage, joined


def tune_trials(
    trials: Sequence[TrialConfig],
    run: dict[str, Any],
    storage: str,
    resources: Resources,
    recorder: Recorder,
) -> bool:
    """Run the Tuner over the trials until all have ended; whether a signal stopped it before.

    Args:
        run: what all trials are run with, resources aside.
        storage: where Tune may keep notes of its own.
        recorder: is told what becomes of each trial.
    """
    from ray import tune

    from gisgd_ray.trainable import TrialTrainable

    notes = Storage(joined(storage, "ray"))
    attempts = {name.split("/")[0] for name in notes.names(recursive=True)}
    tuner = tune.Tuner(
        TrialTrainable,
        param_space=param_space(
            trials, {**run, "cpus": resources.cpus, "gpus": resources.gpus}, recorder.names
        ),
        tune_config=tune.TuneConfig(
            reuse_actors=True,
            trial_name_creator=lambda trial: _id_of(trial),
            trial_dirname_creator=lambda trial: _id_of(trial),
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{len(attempts) + 1}",
            storage_path=notes.where,
            verbose=0,
            callbacks=[_tune_callback(recorder)],
            progress_reporter=_no_reporter(),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=recorder.retries),
        ),
    )
    with _quiet_tune(), _stop_on_signal() as received:
        tuner.fit()
    return bool(received)


def _tune_callback(recorder: Recorder) -> Any:
    """Ray's callback interface around the recorder (a class made here: Ray is imported late)."""
    from ray import tune

    class Callback(tune.Callback):  # type: ignore[misc,unused-ignore]
        def __init__(self, recorder: Recorder | None) -> None:
            self.recorder = recorder

        def __getstate__(self) -> dict[str, Any]:
            # Ray pickles its callbacks to restore an experiment, which we do from the journals.
            return {"recorder": None}

        def on_trial_start(self, trial: Any, **_info: Any) -> None:
            if self.recorder is not None:
                self.recorder.started(_id_of(trial))

        def on_trial_result(self, trial: Any, result: Any, **_info: Any) -> None:
            if self.recorder is not None and self.recorder.report(_id_of(trial), result):
                trial.max_failures = trial.num_failures + self.recorder.retries
            # Tune remembers every trial's last result; the journal has this one.
            result.pop("payload", None)

        def on_trial_recover(self, trial: Any, **_info: Any) -> None:
            if self.recorder is None:
                return
            name = _id_of(trial)
            if self.recorder.begun_again(name):
                # This attempt is the first of those allowed; one at least.
                more = max(self.recorder.retries - 1, 1)
                trial.max_failures = trial.num_failures + more
            # With the same fault once more the next attempt ends the trial by itself.
            trial.config["trial"]["fault_before"] = self.recorder.faults.get(name)

        def on_trial_error(self, trial: Any, **_info: Any) -> None:
            if self.recorder is None:
                return
            name, told = _id_of(trial), _traceback_of(trial)
            if "OutOfMemory" in told:  # Ray kills the largest when a machine's memory runs out
                self.recorder.out_of_memory[name] = told
                self.recorder.progress.stopped(name)
            else:
                self.recorder.failed(name, told)

    return Callback(recorder)


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
def _stop_on_signal() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) ends the sweep cleanly, the second at once.

    Tune's clean end answers SIGUSR1 as well; our own handler in front says what is going on.
    Yields the signals received so far.
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
        yield received  # only the main thread may set handlers
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    originals = [signal.getsignal(number) for number in handled]
    for number in handled[:2]:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, original in zip(handled, originals, strict=True):
            signal.signal(number, original)
