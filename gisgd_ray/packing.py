"""How many trials share a machine or a GPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gisgd_ray import training
from gisgd_ray.config import TrialConfig
from gisgd_ray.consistency import INPUTS_AND_OUTPUTS
from gisgd_ray.errors import UserError
from gisgd_ray.memory import WEIGHT, count_parameters, replicas_bytes
from gisgd_ray.models import build_model

MARGIN = 1.15
"""Of the memory measured; allocators fragment, and no two batches of kernels choose alike."""
PROBED = 3
"""So many of the dearest configurations are tried out."""
PROBE_STEPS = 3


@dataclass(frozen=True)
class Resources:
    """What one trial takes: whole CPUs and a fraction of a GPU.

    ``threads`` are those of torch, which stay as they are when a trial is given more room.
    """

    cpus: int = 1
    gpus: float = 0.0
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError(f"--cpus-per-trial = {self.cpus} must be at least 1")
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise UserError(
                f"--gpus-per-trial = {self.gpus:g} must be auto, 0, a fraction up to 1 or a whole "
                "number"
            )

    def roomier(self, *, most_cpus: int) -> "Resources | None":
        """Twice the room beside other trials; None if a trial has a machine or GPU to itself."""
        threads = self.threads or self.cpus
        if 0 < self.gpus < 1:
            return replace(self, gpus=min(1.0, 2 * self.gpus), threads=threads)
        if self.gpus == 0 and self.cpus < most_cpus:
            return replace(self, cpus=min(most_cpus, 2 * self.cpus), threads=threads)
        return None

    def __str__(self) -> str:
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus} CPUs"
        return f"{cpus} and {self.gpus:g} of a GPU" if self.gpus else cpus


@dataclass(frozen=True)
class GPU:
    """A GPU that trials are to share, and the machine it is in.

    Attributes:
        memory: bytes.
        cpus: of the machine, per GPU.
    """

    memory: int
    cpus: float


def gpu_share(peak: int, gpu: GPU, *, cpus: int) -> float:
    """The fraction of a GPU for trials that take ``peak`` bytes and ``cpus`` CPUs each.

    Rounded down to what Ray can count, so that as many fit as are meant to.

    Raises:
        UserError: not even one fits.
    """
    by_memory = math.floor(gpu.memory / (MARGIN * peak))
    if by_memory < 1:
        raise UserError(
            f"the dearest trial takes {peak / 1e9:.3g} GB of GPU memory, and the GPU has "
            f"{gpu.memory / 1e9:.3g} GB; choose a smaller batch or network, or a larger GPU"
        )
    together = max(1, min(by_memory, math.floor(gpu.cpus / cpus)))
    return math.floor(1e4 / together) / 1e4


def dearest(trials: Sequence[TrialConfig], count: int = PROBED) -> list[TrialConfig]:
    """The configurations that take most memory, by a rough reckoning; seeds do not matter."""
    alike = {t.model_copy(update={"seed": 0}): t for t in trials}
    return sorted(alike.values(), key=rough_bytes, reverse=True)[:count]


def rough_bytes(config: TrialConfig) -> int:
    """Weights, gradients and copies of them; and what a batch leaves in every layer. To compare."""
    shape, outputs = INPUTS_AND_OUTPUTS[config.data.dataset]
    with torch.device("meta"):
        model = build_model(config.model, shape, outputs, seed=0)
        kept = 0

        def count(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            nonlocal kept
            kept += output.numel()

        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        model(torch.empty(2, *shape))
    copies = 2 + (config.training.momentum > 0) + (config.scheme.name in ("gmp", "amp", "sam"))
    by_batch = WEIGHT * (kept // 2) * config.training.batch_size
    return replicas_bytes(config, copies * count_parameters(config)) + by_batch * (
        config.replicas or 1
    )


def peak_bytes(config: TrialConfig) -> int:
    """GPU memory that a trial takes at its worst moment, its CUDA context included.

    Takes :data:`PROBE_STEPS` steps and every measurement of a trial, with few draws: those are
    taken one after the other. To be called in a process of its own on the GPU.
    """
    m = config.measurement.model_copy(
        update={"sensitivity_draws": 2, "flatness_draws": 2, "hessian_probes": 2}
    )
    short = config.model_copy(
        update={
            "training": config.training.model_copy(update={"max_steps": PROBE_STEPS}),
            "measurement": m,
        }
    )
    torch.cuda.reset_peak_memory_stats()
    state = training.start(short, device="cuda")
    while state.stopped is None:
        training.advance(state)
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    # Besides torch's own pool: the context, kernels, libraries; and what other programs hold.
    besides = total - free - torch.cuda.memory_reserved()
    return int(torch.cuda.max_memory_reserved()) + max(0, besides)
