"""The checkpoints of the trials of a sweep: written by the trials, found again by whoever goes on.

``checkpoints/<trial_id>/<step>.ckpt`` below the sweep's storage. Their order is that of the steps:
clocks of machines may be apart. A trial finds its own, on whatever machine it is started again,
so that a lost process, machine or driver are one and the same case.
"""

from pathlib import PurePosixPath

import torch

from gisgd_ray import checkpoint
from gisgd_ray.config import TrialConfig
from gisgd_ray.device import Device
from gisgd_ray.state import TrainState
from gisgd_ray.storage import Storage

KEPT = 2
"""How many of a trial are kept: the newest may turn out to be damaged."""
FOLDER = "checkpoints"


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

    def save(self, state: TrainState) -> str:
        """Add one, and delete all but the newest :data:`KEPT`; its name.

        Raises:
            OSError: it could not be written; those before are as they were.
        """
        name = f"{self._folder}/{state.step:012d}.ckpt"
        self._storage.write(name, checkpoint.dump(state))
        for old in self.names()[KEPT:]:
            self._storage.delete(old)
        return name

    def names(self) -> list[str]:
        """Those there are, newest first."""
        return [n for n in self._storage.names(self._folder) if n.endswith(".ckpt")][::-1]

    def newest(self, device: Device | torch.device | str = "cpu") -> TrainState | None:
        """The run at the newest checkpoint that can be read; None if there is none."""
        for name in self.names():
            try:
                return checkpoint.load(self._config, self._storage.read(name), device=device)
            except Exception:
                # Damaged, or of a version that had other contents: the one before does, or the
                # trial starts anew, with the same result.
                continue
        return None

    def clear(self) -> None:
        """Delete all: the trial has ended."""
        self._storage.delete_folder(self._folder)
