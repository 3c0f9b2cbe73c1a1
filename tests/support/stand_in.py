"""A CPU that counts as a GPU of so many bytes, in every process of a rehearsal.

``GISGD_RAY_GPU=tests.support.stand_in:StandIn`` puts it in the place of CUDA's; ``GISGD_STAND_IN``
names a folder, in which ``bytes`` holds how many it has. Nothing but the device is replaced:
tensors are the CPU's, their memory is that of the process, measured, and what all processes on it
take together is checked in every forward pass. Whoever takes too much gets PyTorch's own error.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gisgd_ray.device import GPU, STAND_IN, Device
from tests.support import kinds

FOLDER = "GISGD_STAND_IN"
NUM_TRAIN = 60
CONTEXT = 1_000_000_000
"""Bytes that each process takes by using it at all, as with CUDA."""


class StandIn(GPU):
    def __init__(self) -> None:
        Device.__init__(self, "cpu")
        folder = Path(os.environ[FOLDER])
        few_samples(folder)
        self._ledger = folder / "taken"
        self._before = resident()
        nn.modules.module.register_module_forward_pre_hook(lambda *_: self._check())
        self._check()

    @property
    def name(self) -> str:
        return "stand-in"

    @property
    def memory(self) -> int:
        return int((self._ledger.parent / "bytes").read_text())

    def reset_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return CONTEXT + max(0, resident("VmHWM") - self._before)

    def _check(self) -> None:
        """Write down what this process takes, and see whether that of all is there.

        Raises:
            torch.OutOfMemoryError: it is not.
        """
        mine = CONTEXT + max(0, resident() - self._before)
        (self._ledger / str(os.getpid())).write_text(str(mine))
        taken = sum(int(path.read_text() or 0) for path in self._ledger.iterdir() if holds(path))
        if taken > self.memory:
            raise torch.OutOfMemoryError(
                f"the stand-in has {self.memory} bytes, and {taken} are taken"
            )


def holds(path: Path) -> bool:
    """Whether the process that wrote this is alive; other programs go by names."""
    return not path.name.isdigit() or Path("/proc", path.name).exists()


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process in memory; ``VmHWM``: at most."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def few_samples(folder: Path) -> None:
    """In this process, for good: the data are those of :func:`prepared`."""
    kinds.few_samples(folder / "data", pytest.MonkeyPatch(), num_train=NUM_TRAIN)


def prepared(folder: Path, *, memory: int) -> dict[str, str]:
    """Lays out the folder; the environment of a rehearsal."""
    (folder / "taken").mkdir(parents=True)
    (folder / "bytes").write_text(str(memory))
    return {STAND_IN: f"{__name__}:{StandIn.__name__}", FOLDER: str(folder)}
