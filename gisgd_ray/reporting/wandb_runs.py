"""One Weights & Biases run per trial, opened in the trial's own process.

Nothing here may fail or stall a trial: the first fault switches logging off for that trial, and
its row says so in ``wandb/status``. The tables are the record; W&B is a copy of it.
"""

import os
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import wandb

Mode = Literal["online", "offline", "disabled"]

INIT_TIMEOUT_S = 15.0
RETRY_ONLINE_S = 600.0
FINISH_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class WandbSettings:
    """What every run of a sweep shares; a plain dict crosses to the trial's process."""

    mode: Mode
    folder: str
    """Absolute; a trial's own working directory is not kept."""
    group: str
    project: str


def project() -> str:
    """The W&B project of all sweeps: ``WANDB_PROJECT`` or gisgd-ray."""
    return os.environ.get("WANDB_PROJECT") or "gisgd-ray"


def chosen_mode() -> tuple[Mode, str]:
    """``WANDB_MODE`` if set, else online when this user has logged in, else offline; and why."""
    chosen = os.environ.get("WANDB_MODE", "").lower()
    modes: dict[str, Mode] = {
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
        "online": "online",
        "run": "online",
    }
    if chosen in modes:
        return modes[chosen], f"WANDB_MODE is {chosen}"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "this user has logged in"
    except Exception as fault:
        return "offline", f"the login does not work: {str(fault).strip()[:200]}"
    return "offline", "nobody has logged in with wandb login"


class WandbRun:
    """The run of one trial: points as they come, the row as its summary.

    ``earlier`` are the points of a trial that continues from a checkpoint.

    ``status`` is ``online``, ``offline``, ``disabled``, ``offline: <fault>`` where an online run
    could not be opened and was kept offline instead, or ``off: <fault>`` once logging ended.
    """

    _unreachable_until = 0.0
    """No online run is tried in this process before this time: the wait would add up."""

    def __init__(
        self,
        settings: WandbSettings,
        *,
        trial_id: str,
        name: str,
        config: Mapping[str, Any],
        earlier: Sequence[Mapping[str, Any]] = (),
    ):
        self.status: str = settings.mode
        self._run: Any = None
        self._told = -1
        """The last training step of which the run has a point."""
        if settings.mode == "disabled":
            return
        try:
            self._run = self._open(settings, trial_id=trial_id, name=name, config=config)
            if self._run.resumed:
                self._told = int(self._run.summary.get("step", -1))
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as fault:
            self._give_up(fault)
        # A new offline run tells the trial from the start; a server's run has the points that
        # came through, which may be more or fewer than the checkpoint has.
        for point in earlier:
            self.log(point)

    def _open(
        self, settings: WandbSettings, *, trial_id: str, name: str, config: Mapping[str, Any]
    ) -> Any:
        os.makedirs(settings.folder, exist_ok=True)

        def init(mode: Mode) -> Any:
            if mode == "offline":
                # What a broken-off trial left, which the new run tells again in full.
                for left in Path(settings.folder).glob(f"wandb/offline-run-*-{trial_id}*"):
                    shutil.rmtree(left, ignore_errors=True)
            return wandb.init(
                project=settings.project,
                id=trial_id,
                name=name,
                group=settings.group,
                job_type=str(config.get("scheme.name")),
                dir=settings.folder,
                mode=mode,
                resume="allow" if mode == "online" else None,
                reinit="create_new",
                config=dict(config),
                settings=_slim(),
            )

        if settings.mode != "online":
            return init(settings.mode)
        reason = "the server did not answer an earlier trial"
        if time.monotonic() >= WandbRun._unreachable_until:
            try:
                return init("online")
            except Exception as fault:
                reason = _told(fault)
                WandbRun._unreachable_until = time.monotonic() + RETRY_ONLINE_S
        self.status = f"offline: {reason}"
        for attempt in range(5):
            try:
                return init("offline")
            except Exception as fault:
                # The failed attempt holds on to the run id until its service process has ended.
                if "in use" not in str(fault) or attempt == 4:
                    raise
                wandb.teardown()
                time.sleep(0.2 * attempt)
        raise AssertionError("unreachable")

    def log(self, point: Mapping[str, Any]) -> None:
        """One measuring point; ``step`` is the axis."""
        if self._run is None or point["step"] <= self._told:
            return
        try:
            self._run.log(dict(point))
            self._told = point["step"]
        except Exception as fault:
            self._give_up(fault)

    def finish(self, row: Mapping[str, Any] | None, *, failed: bool = False) -> None:
        """The row becomes the summary; a trial that failed or diverged is marked so."""
        if self._run is None:
            return
        try:
            if row is not None:
                self._run.summary.update(dict(row))
            # An unreachable server would hold finish() for as long as it retries.
            closing = threading.Thread(
                target=self._run.finish, kwargs={"exit_code": int(failed)}, daemon=True
            )
            closing.start()
            closing.join(FINISH_TIMEOUT_S)
            if closing.is_alive():
                raise TimeoutError(f"W&B did not take the run within {FINISH_TIMEOUT_S:g} s")
            self._run = None
        except Exception as fault:
            self._give_up(fault)

    def _give_up(self, fault: BaseException) -> None:
        self._run = None
        self.status = f"off: {_told(fault)}"


def _told(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines() or [""]
    return f"{type(fault).__name__}: {lines[0][:300]}"


def _slim() -> wandb.Settings:
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
        silent=True,
        init_timeout=INIT_TIMEOUT_S,
    )
