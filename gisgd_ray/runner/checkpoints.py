"""The checkpoints of the trials of a sweep: written by the trials, found again by whoever goes on.

``checkpoints/<trial_id>/<step>.ckpt`` below the sweep's storage. Their order is that of the steps:
clocks of machines may be apart. A trial finds its own, on whatever machine it is started again,
so that a lost process, machine or driver are one and the same case. What the trial has
measured, its points and steps, lies below them in pieces that are written once,
``measured/<number of points>.pt``, each of which says where the one before it ends.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

import torch

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import Device
from gisgd_ray.results.storage import CHECKPOINTS as FOLDER
from gisgd_ray.results.storage import Storage
from gisgd_ray.training import checkpoint
from gisgd_ray.training.checkpoint import CheckpointError
from gisgd_ray.training.state import TrainState

KEPT = 2
"""How many of a trial are kept: the newest may turn out to be damaged."""
TRIES_AFTER_S = (0.5, 2.0, 5.0)
"""A storage that does not answer is asked again after so many seconds each."""

T = TypeVar("T")


def step_of(name: str) -> int:
    """t of a checkpoint by its name.

    >>> step_of("checkpoints/0123456789ab/000000004000.ckpt")
    4000
    """
    return int(PurePosixPath(name).stem)


def clear_all(storage: Storage, trial_ids: set[str]) -> None:
    """Delete the checkpoints of these trials, wherever there are any."""
    kept = {name.split("/")[1] for name in storage.names(FOLDER, recursive=True)}
    for trial_id in kept & trial_ids:
        storage.delete_folder(f"{FOLDER}/{trial_id}")


class Checkpoints:
    """The checkpoints of one trial."""

    def __init__(self, storage: Storage, config: TrialConfig):
        self._storage, self._config = storage, config
        self._folder = f"{FOLDER}/{config.trial_id}"
        self._unreadable: set[str] = set()
        self._points_saved = 0
        """Measuring points that lie there in pieces."""

    def save(self, state: TrainState) -> str:
        """Add one, and delete all but the newest :data:`KEPT` that can be read; its name.

        Those that could not be read may be of later steps; this one is the newest written.

        Raises:
            OSError: it could not be written; those before are as they were.
        """
        name, points = f"{self._folder}/{state.step:012d}.ckpt", len(state.history)
        if points > self._points_saved:
            self._storage.write(
                self._piece(points), checkpoint.dump_measured(state, self._points_saved)
            )
            self._points_saved = points
        self._storage.write(name, checkpoint.dump(state, without=points))
        self._unreadable.discard(name)
        names = self.names()
        good = [each for each in names if each not in self._unreadable]
        for old in {*good[KEPT:], *(self._unreadable & set(names))}:
            self._storage.delete(old)
        return name

    def names(self) -> list[str]:
        """Those there are, newest first."""
        names = self._storage.names(self._folder)
        return [n for n in names if re.fullmatch(r"\d+\.ckpt", PurePosixPath(n).name)][::-1]

    def newest(self, device: Device | torch.device | str = "cpu") -> TrainState | None:
        """The run at the newest checkpoint that can be read; None if there is none.

        Raises:
            OSError: the storage does not answer. What it holds is not known, and to begin anew
                would cost all that the trial has done.
        """
        for name in _insist(self.names):
            try:
                content = self._read(name)
                state = checkpoint.load(
                    self._config,
                    content,
                    device=device,
                    pieces=lambda end: self._read(self._piece(end)),
                )
            # It may be deleted since, by an attempt believed dead.
            except (FileNotFoundError, CheckpointError):
                # The one before does, or the trial starts anew, with the same result.
                self._unreadable.add(name)
            else:
                self._points_saved = len(state.history)
                return state
        return None

    def _piece(self, points: int) -> str:
        return f"{self._folder}/measured/{points:012d}.pt"

    def _read(self, name: str) -> bytes:
        return _insist(partial(self._storage.read, name))

    def clear(self) -> None:
        """Delete all: the trial has ended."""
        self._storage.delete_folder(self._folder)


def _insist(ask: Callable[[], T]) -> T:
    """The answer of a storage that may be away for a moment.

    Raises:
        OSError: of the last try; FileNotFoundError of the first, since that is an answer.
    """
    for pause in TRIES_AFTER_S:
        try:
            return ask()
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(pause)
    return ask()
