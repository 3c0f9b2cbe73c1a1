"""How many trials share a machine or a GPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from annotated_types import Ge

from gisgd_ray.config.catalogue import DATASETS, SCHEMES
from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import GPU
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import build_model
from gisgd_ray.runner.memory import WEIGHT, count_parameters, replicas_bytes
from gisgd_ray.training import loop as training

MARGIN = 1.15
"""Of the memory measured; allocators fragment, and no two batches of kernels choose alike."""
PROBED = 3
"""So many of the dearest configurations are tried out."""
PROBE_STEPS = 3


@dataclass(frozen=True)
class Resources:
    """What one trial takes: whole CPUs and a fraction of a GPU.

    ``threads`` are those of torch (None: as many as CPUs), which stay as they are when a trial is
    given more room: the order of sums, and so every bit of a result, depends on them.
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


def gpu_share(peak: int, *, memory: int, cpus_to_a_gpu: float, cpus: int) -> float:
    """The fraction of a GPU for trials that take ``peak`` bytes and ``cpus`` CPUs each.

    ``memory`` is that of the GPU, in bytes, ``cpus_to_a_gpu`` are those of its machine. Rounded
    down to what Ray can count, so that as many fit as are meant to.

    Raises:
        UserError: not even one fits.
    """
    by_memory = math.floor(memory / (MARGIN * peak))
    if by_memory < 1:
        raise UserError(
            f"the dearest trial takes {peak / 1e9:.3g} GB of GPU memory, and the GPU has "
            f"{memory / 1e9:.3g} GB; choose a smaller batch or network, or a larger GPU"
        )
    together = max(1, min(by_memory, math.floor(cpus_to_a_gpu / cpus)))
    return math.floor(1e4 / together) / 1e4


def dearest(trials: Sequence[TrialConfig], count: int = PROBED) -> list[TrialConfig]:
    """The configurations that take most memory, by a rough reckoning.

    Seeds and learning rates do not matter.
    """
    alike = {t.changed({"seed": 0, "training.learning_rate": 1.0}): t for t in trials}
    return sorted(alike.values(), key=rough_bytes, reverse=True)[:count]


def rough_bytes(config: TrialConfig) -> int:
    """Weights, gradients and copies of them; and what a batch leaves in every layer. To compare."""
    data = DATASETS[config.data.dataset]
    with torch.device("meta"):
        model = build_model(config.model, data.shape, data.outputs, seed=0)
        kept = 0

        def count(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
            nonlocal kept
            kept += output.numel()

        for module in model.modules():
            if not list(module.children()):
                module.register_forward_hook(count)
        model(torch.empty(2, *data.shape))
    copies = 2 + (config.training.momentum > 0) + SCHEMES[config.scheme.name].keeps_weights
    by_batch = WEIGHT * (kept // 2) * config.training.batch_size
    return replicas_bytes(config, copies * count_parameters(config)) + by_batch * (
        config.replicas or 1
    )


def peak_bytes(config: TrialConfig, gpu: GPU) -> int:
    """GPU memory that a trial takes at its worst moment, all that comes with CUDA included.

    Takes :data:`PROBE_STEPS` steps and every measurement of a trial, with few draws: those are
    taken one after the other. To be called in a process of its own on the GPU.

    Raises:
        UserError: it does not fit.
    """
    gpu.reset_peak()
    try:
        training.try_out(training.start(with_few_draws(config), device=gpu), PROBE_STEPS)
    except torch.OutOfMemoryError:
        raise UserError(
            f"trial {config.trial_id} ({config.model.name}, batches of "
            f"{config.training.batch_size}) takes more than a GPU's {gpu.memory / 1e9:.3g} GB "
            f"({gpu.name}); choose a smaller batch or network, or a larger GPU"
        ) from None
    return gpu.peak()


def with_few_draws(config: TrialConfig) -> TrialConfig:
    """The trial with as few draws in its measurements as they can be made of."""
    fewest = {
        f"measurement.{name}": next(rule.ge for rule in field.metadata if isinstance(rule, Ge))
        for name, field in MeasurementConfig.model_fields.items()
        if name in ("sensitivity_draws", "flatness_draws", "hessian_probes")
    }
    return config.changed(fewest)
