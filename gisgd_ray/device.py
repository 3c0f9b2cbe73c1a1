"""The device that a run is on, and everything that is asked of it: nothing else names CUDA.

On a GPU, PyTorch computes the convolutions of float32 networks in TF32 (10 bits of mantissa) unless
told otherwise; a gradient dispersion close to convergence is then mostly rounding. Here float32
means float32, and TF32 is a choice like bfloat16. Of the algorithms PyTorch has for an operation,
one that gives the same bits every time is taken where there is one.
"""

import importlib
import os
import socket
from typing import Literal

import torch

from gisgd_ray.errors import UserError

Precision = Literal["float32", "tf32", "bfloat16"]

STAND_IN = "GISGD_RAY_GPU"
"""Environment variable of the tests: the class, as ``module:name``, that stands in for GPUs."""


class Device:
    """A device of PyTorch's, by its name; that of which nothing but tensors is asked, as the CPU.

    Attributes:
        torch: where tensors go.
    """

    def __init__(self, where: torch.device | str = "cpu"):
        self.torch = torch.device(where)

    def set_arithmetic(self, precision: Precision) -> None:
        """How this process multiplies float32 numbers from now on, and that it can repeat it."""

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""

    def empty_cache(self) -> None:
        """Give back memory that no tensor holds."""


class GPU(Device):
    """A GPU; by default that which Ray lets this process see.

    Raises:
        UserError: PyTorch can use none here.
    """

    def __init__(self, where: torch.device | str = "cuda"):
        super().__init__(where)
        # Read when CUDA starts: with it cuBLAS adds up in the same order every time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as fault:
            raise UserError(
                f"PyTorch {torch.__version__} can use no GPU on {socket.gethostname()} "
                f"({str(fault).splitlines()[0].rstrip('.')}); see that nvidia-smi lists one there, "
                "or run on CPUs with --gpus-per-trial 0"
            ) from None

    @property
    def name(self) -> str:
        """As its maker calls it."""
        return str(torch.cuda.get_device_name(self.torch))

    @property
    def memory(self) -> int:
        """Bytes it has."""
        return int(torch.cuda.mem_get_info(self.torch)[1])

    def reset_peak(self) -> None:
        """Begin to watch for the worst moment."""
        torch.cuda.reset_peak_memory_stats(self.torch)

    def peak(self) -> int:
        """Bytes taken at the worst moment since, the context and libraries of CUDA included."""
        self.synchronize()
        free, total = torch.cuda.mem_get_info(self.torch)
        # Besides torch's own pool: the context, kernels, libraries; and what other programs hold.
        besides = total - free - torch.cuda.memory_reserved(self.torch)
        return int(torch.cuda.max_memory_reserved(self.torch)) + max(0, besides)

    def set_arithmetic(self, precision: Precision) -> None:
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # Where an operation has no such algorithm PyTorch warns, and goes on.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch)

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()


def gpu() -> GPU:
    """The GPU of this process, or what a test has put in its place.

    Raises:
        UserError: PyTorch can use none here.
    """
    if stand_in := os.environ.get(STAND_IN):
        module, _, name = stand_in.partition(":")
        found: GPU = getattr(importlib.import_module(module), name)()
        return found
    return GPU()


def device_of(where: Device | torch.device | str) -> Device:
    """The device of a name of PyTorch's: ``"cpu"``, ``"cuda"``.

    Raises:
        UserError: a GPU, and PyTorch can use none here.
    """
    if isinstance(where, Device):
        return where
    return GPU(where) if torch.device(where).type == "cuda" else Device(where)


def started_gpus() -> list[int]:
    """GPUs that this process computes on, by their numbers: their random generators have states."""
    return list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
