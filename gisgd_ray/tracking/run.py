"""One Weights & Biases run per trial, opened in the trial's own process.

Nothing here may fail or stall a trial: the first fault switches logging off for that trial, and
its row says so in ``wandb/status``. The tables are the record; W&B is a copy of it.

A run's id is made of the results folder's and the trial's, so that a run of that id is this trial's
and no other's: a trial that goes on opens it again and sends what it lacks.
"""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import wandb

from gisgd_ray.errors import one_line
from gisgd_ray.results.journal import Status
from gisgd_ray.results.tables import steps_parquet
from gisgd_ray.theory.quantities import QUANTITIES
from gisgd_ray.tracking.access import Mode
from gisgd_ray.tracking.environment import account, put_on
from gisgd_ray.tracking.status import WandbStatus, Where

INIT_TIMEOUT_S = 15.0
RETRY_ONLINE_S = 600.0
FINISH_TIMEOUT_S = 60.0
LEAST_EVERY_S = 5.0
MOST_EVERY_S = 29.0
"""Longer saves no request: W&B's client gives a sign of life of a run that has sent nothing for
30 s, and nothing turns that off."""
FLUSH_S = 1.0
"""What a process that is killed may not have written of an offline run."""
LONGEST_NAME, LONGEST_TAG = 128, 64
"""Characters that W&B takes; it refuses a run with more."""

BEST = {
    q.name: "min" if q.lower_is_better else "max"
    for q in QUANTITIES.values()
    if q.lower_is_better is not None
}
"""Metrics whose best value is kept beside the last one; in the summary as ``min/train/loss``."""


@dataclass(frozen=True)
class WandbSettings:
    """What every run of a sweep shares; a plain dict crosses to the trial's process."""

    mode: Mode
    folder: str
    """Absolute; a trial's own working directory is not kept."""
    folder_id: str
    """Of the results in it; empty where a run's id is the trial's, as with earlier versions."""
    group: str | None
    project: str
    entity: str | None = None
    every_s: float = 15.0
    """Between two requests with a trial's new points; no point is left out."""


def run_id(folder_id: str, trial_id: str) -> str:
    """A trial's run.

    >>> run_id("0123456789ab", "84637dcd552e")
    '0123456789ab-84637dcd552e'
    """
    return f"{folder_id}-{trial_id}" if folder_id else trial_id


def seconds_between(trials_at_once: int, requests_per_minute: float) -> float:
    """How long each of so many trials waits between two requests that send its new points.

    >>> seconds_between(2, 120), seconds_between(20, 120), seconds_between(400, 120)
    (5.0, 10.0, 29.0)
    """
    wanted = trials_at_once * 60 / requests_per_minute
    return min(MOST_EVERY_S, max(LEAST_EVERY_S, wanted))


def beyond_rate(trials_at_once: int, requests_per_minute: float) -> str:
    """What to say where W&B's client makes more requests than it was asked to; "" if it does not.

    >>> beyond_rate(58, 120)
    ''
    >>> beyond_rate(400, 120).split(";")[0]
    'W&B: 400 trials at once make about 828 requests a minute, not 120'
    """
    least = trials_at_once * 60 / MOST_EVERY_S
    if least <= requests_per_minute * 1.005:
        return ""
    return (
        f"W&B: {trials_at_once} trials at once make about {least:.0f} requests a minute, not "
        f"{requests_per_minute:g}; its client reports on every run twice a minute, points or none. "
        "If that is too much for your W&B, use WANDB_MODE=offline, and make sync afterwards."
    )


class WandbRun:
    """The run of one trial: points as they come, the row as its summary.

    ``earlier`` are the points of a trial that continues from a checkpoint.

    ``status`` has a fault where an online run could not be opened and was kept offline instead, and
    where logging ended. ``path`` is ``[ENTITY/]PROJECT/ID``, or None if no run was opened.
    """

    _unreachable_until = 0.0
    """No online run is tried in this process before this time: the wait would add up."""
    _open_here: ClassVar[set[str]] = set()
    """Ids of the runs that are open in this process."""

    def __init__(
        self,
        settings: WandbSettings,
        *,
        trial_id: str,
        name: str | None,
        config: Mapping[str, Any],
        earlier: Sequence[Mapping[str, Any]] = (),
    ):
        self.status = WandbStatus(Where(settings.mode))
        self.path: str | None = None
        self._run: Any = None
        self._settings, self._name, self._config = settings, name and named(name, trial_id), config
        self._id = run_id(settings.folder_id, trial_id)
        self._best: dict[str, float] = {}
        self._seen = 0
        self._sent = 0
        """The first so many points are there already. (The summary does not say: it may come
        through before them.)"""
        if settings.mode == "disabled":
            return
        with self._contained():
            self._run = self._open()
            WandbRun._open_here.add(self._id)
            self.path = "/".join(filter(None, (settings.entity, settings.project, self._id)))
            if self._run.resumed:
                self._sent = int(self._run.starting_step)
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
            for metric, best in BEST.items():
                self._run.define_metric(metric, step_metric="step", summary=f"{best},last")
        # A new offline run has the trial from the start; a server's run has the points that
        # came through, which may be more or fewer than the checkpoint has.
        for point in earlier:
            self.log(point)

    def _open(self) -> Any:
        """The run as asked for; where it cannot be had online, kept offline."""
        put_on(account())
        os.makedirs(self._settings.folder, exist_ok=True)
        # What an artifact is made of waits there, and an offline run needs it until it is synced.
        os.environ["WANDB_DATA_DIR"] = self._settings.folder
        if self._settings.mode != "online":
            return self._init("offline")
        reason = "the server did not answer an earlier trial"
        if time.monotonic() >= WandbRun._unreachable_until:
            try:
                return self._init("online")
            except Exception as fault:  # as in _contained
                reason = _explained(fault)
            WandbRun._unreachable_until = time.monotonic() + RETRY_ONLINE_S
            if not WandbRun._open_here:  # it would end those of other trials of this process
                wandb.teardown()  # the failed attempt holds on to the run's id
        self.status = WandbStatus(Where.OFFLINE, reason)
        return self._init("offline")

    def _init(self, mode: Mode) -> Any:
        settings, config = self._settings, self._config
        tagged = ("scheme.name", "model.name", "data.dataset")
        tags = [str(config[field])[:LONGEST_TAG] for field in tagged if config.get(field)]
        if mode == "offline":
            # What a broken-off trial left, which the new run sends again in full.
            for left in Path(settings.folder).glob(f"wandb/offline-run-*-{self._id}"):
                shutil.rmtree(left, ignore_errors=True)
        run = wandb.init(
            entity=settings.entity,
            project=settings.project,
            id=self._id,
            name=self._name,
            group=settings.group[:LONGEST_NAME] if settings.group else None,
            job_type=tags[0] if config.get("scheme.name") else None,
            tags=tags or None,
            dir=settings.folder,
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=_slim(settings.every_s),
        )
        run.config.update(dict(config), allow_val_change=True)  # type: ignore[no-untyped-call]
        return run

    def log(self, point: Mapping[str, Any]) -> None:
        """One measuring point; ``step`` is the axis."""
        for metric, best in BEST.items():
            value = point.get(metric)
            if value is not None and not math.isnan(value):
                better = min if best == "min" else max
                key = f"{best}/{metric}"
                self._best[key] = better(value, self._best.get(key, value))
        self._seen += 1
        if self._run is None or self._seen <= self._sent:
            return
        with self._contained():
            self._run.log(dict(point))

    def finish(
        self,
        row: Mapping[str, Any] | None,
        *,
        failed: bool = False,
        steps: Mapping[str, Any] | None = None,
    ) -> None:
        """The row becomes the summary; a trial that failed or diverged is marked so.

        Args:
            steps: columns of numbers, each as long as the run has steps: kept as a Parquet file.
        """
        if self._run is None:
            return
        with self._contained():
            if row is not None:
                # The row's own names hold its values alone, whatever they held while it ran.
                # A run that had failed before, and went on, has an error no more.
                before = {"error": None} if self._run.resumed else {}
                self._run.summary.update({**before, **row, **self._best})
                if row["status"] != Status.FINISHED:
                    self._run.tags = (*(self._run.tags or ()), str(row["status"]))
            if steps:
                artifact = wandb.Artifact(f"steps-{self._id}", type="steps")
                with artifact.new_file("steps.parquet", mode="wb") as file:
                    file.write(steps_parquet(steps))
                self._run.log_artifact(artifact)
            try:
                self._run.finish(exit_code=int(failed))
            except TimeoutError:
                raise TimeoutError(
                    f"W&B did not take the run within {FINISH_TIMEOUT_S:g} s; make sync uploads "
                    "the rest"
                ) from None
            self._close()

    def _close(self) -> None:
        self._run = None
        WandbRun._open_here.discard(self._id)

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """A fault inside ends the logging of this trial, and its row says so.

        W&B's client raises what its libraries do, and other types with every version: here, where
        a trial must go on, any exception is meant.
        """
        try:
            yield
        except Exception as fault:
            self._close()
            self.status = WandbStatus(Where.OFF, _explained(fault))


def named(name: str, trial_id: str) -> str:
    """A run's name, cut where W&B would refuse it, and then made its own by the trial's id.

    >>> named("lr=0.1", "ab12"), len(named("x" * 200, "ab12")), named("x" * 200, "ab12")[-8:]
    ('lr=0.1', 128, 'xxx ab12')
    """
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - len(trial_id) - 1]} {trial_id}"


def _explained(fault: Exception) -> str:
    return one_line(f"{type(fault).__name__}: {fault}", 300)


def _slim(every_s: float) -> wandb.Settings:
    """Settings with which a run costs tens of milliseconds: only what a sweep reads later."""
    return wandb.Settings(
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        disable_job_creation=True,
        x_disable_stats=True,
        x_disable_meta=True,
        x_save_requirements=False,
        x_file_stream_transmit_interval=every_s,
        x_transaction_log_flush_interval=FLUSH_S,
        silent=True,
        init_timeout=INIT_TIMEOUT_S,
        # An unreachable server would hold finish() for as long as it retries.
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
    )
