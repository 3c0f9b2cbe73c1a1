"""What a trial takes of a machine: CPUs, memory, a share of a GPU; how many run at once, and how
long that takes.

Of memory, what grows without bound with a setting is known before a trial starts: the replicas'
weights, and the draws of Psi. Data and activations come on top, so that a trial which passes may
still not fit.
"""

import contextlib
import ctypes
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch

from gisgd_ray.config.catalogue import DATASETS, SCHEMES
from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.config.model import ModelConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import GPU, gpu
from gisgd_ray.errors import UserError
from gisgd_ray.networks.models import build_model, num_parameters
from gisgd_ray.numbers import counted
from gisgd_ray.runner.cli import Options
from gisgd_ray.runner.cluster import (
    Machine,
    cluster_gpus,
    gpu_machines,
    machines,
    require_room,
    run_on_a_gpu,
)
from gisgd_ray.runner.cpus import usable_cpus
from gisgd_ray.runner.estimate import (
    Cost,
    Estimate,
    estimate,
    measured_cost,
    require_here,
    with_few_draws,
)
from gisgd_ray.runner.stacks import fastest_size, most_alike, step_seconds
from gisgd_ray.training import loop as training

MARGIN = 1.15
"""Of the memory measured; allocators fragment, and no two batches of kernels choose alike."""
PROBED = 3
"""So many of the largest configurations are tried out."""
PROBE_STEPS = 3


SCALAR = 8
WEIGHT = 4
"""Bytes."""


@dataclass(frozen=True)
class Resources:
    """What one trial takes: whole CPUs and a fraction of a GPU.

    ``threads`` are those of torch (None: as many as CPUs), which stay as they are when a trial is
    given more room: the order of sums, and so every bit of a result, depends on them.
    """

    cpus: int = 1
    gpus: float = 0.0
    threads: int | None = None

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
            f"the largest trial takes {peak / 1e9:.3g} GB of GPU memory, and the GPU has "
            f"{memory / 1e9:.3g} GB; choose a smaller batch or network, or a larger GPU"
        )
    together = max(1, min(by_memory, math.floor(cpus_to_a_gpu / cpus)))
    return math.floor(1e4 / together) / 1e4


def largest_trials(trials: Sequence[TrialConfig], count: int = PROBED) -> list[TrialConfig]:
    """The configurations that take most memory, by a rough estimate.

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


@dataclass(frozen=True)
class Measured:
    """What the largest trial took of the smallest GPU; both in bytes."""

    peak: int
    memory: int
    gpu: str
    cpus_to_a_gpu: float

    def __str__(self) -> str:
        return (
            f"the largest takes {self.peak / 1e9:.2f} GB of a GPU's {self.memory / 1e9:.1f} GB "
            f"({self.gpu}, measured), and there are {self.cpus_to_a_gpu:g} CPUs to a GPU"
        )


@dataclass(frozen=True)
class Chosen:
    """What each trial takes."""

    resources: Resources
    why: Measured | None = None
    """None where it is what the user asks for, or there is no GPU."""
    per_stack: int = 1
    """How many trials of one shape share that."""


def chosen_resources(
    trials: Sequence[TrialConfig], options: Options, *, may_download: bool = True
) -> Chosen:
    """What each trial takes on the connected cluster.

    Raises:
        UserError: not even one trial fits on a GPU, or PyTorch can use none of them.
        DataError: to know it takes a dataset that is not there.
    """
    cpus, asked = options.cpus_per_trial, options.trials_per_stack
    per_stack, of_stack = 1 if asked == "auto" else asked, 0
    on_gpus = bool(trials) and options.gpus_per_trial != 0 and cluster_gpus() > 0
    if on_gpus and asked != 1 and len(alike := most_alike(trials)) > 1:
        size = None if asked == "auto" else asked
        per_stack, of_stack = run_on_a_gpu(_probe_stack, alike, size, may_download)
    if options.gpus_per_trial != "auto":
        if options.gpus_per_trial > 0 and trials and gpu_machines():
            run_on_a_gpu(_gpu_name)
        return Chosen(Resources(cpus=cpus, gpus=options.gpus_per_trial), per_stack=per_stack)
    if not on_gpus:
        return Chosen(Resources(cpus=cpus), per_stack=per_stack)
    probed = largest_trials(trials)
    # One after the other, each alone on a GPU; where none is up, this is what brings one up.
    measured = [run_on_a_gpu(_probe, config, may_download) for config in probed]
    # A stack's members are measured one at a time, beside the stack.
    peak = max(probed.peak for probed in measured) + of_stack
    smallest = min(measured, key=lambda probed: probed.memory)
    cpus_to_a_gpu = min(machine.cpus / machine.gpus for machine in gpu_machines())
    share = gpu_share(peak, memory=smallest.memory, cpus_to_a_gpu=cpus_to_a_gpu, cpus=cpus)
    why = Measured(peak, smallest.memory, smallest.name, cpus_to_a_gpu)
    return Chosen(Resources(cpus=cpus, gpus=share), why, per_stack)


@dataclass(frozen=True)
class SweepCost:
    """What the trials of a sweep take, and how long."""

    estimate: Estimate
    resources: Resources
    machines: Sequence[Machine]
    joined: bool
    """Whether those are a cluster's; else it is this machine, before Ray has counted its GPUs."""
    per_stack: int = 1
    """How many trials of one shape share what each takes."""

    @property
    def together(self) -> int:
        return at_once(self.machines, self.resources)

    def lines(self) -> list[str]:
        """In words: what each takes, how many run at once, how long it takes, and how to stop."""
        found = self.estimate
        cpus = counted(sum(machine.cpus for machine in self.machines), "CPU")
        gpus = counted(sum(machine.gpus for machine in self.machines), "GPU")
        on = gpus if self.resources.gpus > 0 else cpus
        if not self.joined:
            on = f"this machine ({cpus}; its GPUs, if any, are found when Ray starts)"
        rate = found.points / max(found.high_s, 1)
        often = f"{rate:.2g}" if rate < 99.5 else f"{rate:,.0f}"
        points = f"about {counted(found.points, 'point')} in " if not found.unknown else ""
        each = "Each" if self.per_stack == 1 else f"Each stack of up to {self.per_stack}"
        return [
            f"{each} takes {self.resources}; {self.together} at once on {on}.",
            f"Time: {found}.",
            f"W&B: {points}{counted(found.trials, 'run')}"
            + (f", {often} a second" if found.points else "")
            + ".",
            "To stop a sweep: Ctrl-C once; --resume goes on later, from where each trial was.",
        ]


def sweep_cost(
    trials: Sequence[TrialConfig], options: Options, *, connected: bool
) -> SweepCost | None:
    """What these trials would take, and about how long; a few of them are tried out.

    None where that can be measured only once the cluster has brought up a machine with a GPU.

    Raises:
        UserError: a trial does not fit on a GPU, or on any machine.
        DataError: none can be tried out, since a dataset is missing.
    """
    cpus, per_stack = options.cpus_per_trial, options.trials_per_stack
    if not connected:
        resources, on = Resources(cpus=cpus), [Machine(usable_cpus(), 0)]
        chosen = Chosen(resources, per_stack=1 if per_stack == "auto" else per_stack)
        require_room(cpus=cpus, gpus=0, on=on)
    else:
        if cluster_gpus() > 0 and not gpu_machines():
            return None
        chosen, on = chosen_resources(trials, options, may_download=False), machines()
        resources = chosen.resources
        require_room(cpus=resources.cpus, gpus=resources.gpus)

    def on_a_gpu(trial: TrialConfig) -> Cost:
        cost: Cost = run_on_a_gpu(_cost_on_a_gpu, trial)
        return cost

    calibrate = on_a_gpu if resources.gpus > 0 else None
    together = at_once(on, resources)
    found = estimate(trials, together=together, threads=cpus, calibrate=calibrate)
    return SweepCost(found, resources, on, joined=connected, per_stack=chosen.per_stack)


def at_once(machines: Sequence[Machine], resources: Resources) -> int:
    """How many trials run at once on these machines, at least one."""
    return max(1, sum(slots(machine, resources) for machine in machines))


def slots(machine: Machine, resources: Resources) -> int:
    """How many trials run at once on a machine."""
    by_cpus = int(machine.cpus // resources.cpus)
    return min(by_cpus, int(machine.gpus / resources.gpus)) if resources.gpus > 0 else by_cpus


class Probed(NamedTuple):
    """What was found out on a GPU."""

    peak: int
    """Bytes that a trial takes of it."""
    memory: int
    """Bytes it has."""
    name: str


# Each in a process of its own, on a GPU that it has to itself.


def _probe(config: TrialConfig, may_download: bool) -> Probed:
    found = gpu()
    if not may_download:
        require_here(config)
    return Probed(peak_bytes(config, found), found.memory, found.name)


def _probe_stack(
    alike: Sequence[TrialConfig], size: int | None, may_download: bool
) -> tuple[int, int]:
    """How many of these a stack has, as asked for or as is fastest; and the bytes that it takes.

    Raises:
        UserError: as many as asked for do not fit.
    """
    found = gpu()
    if not may_download:
        require_here(alike[0])
    size = size or fastest_size(alike, found)
    found.empty_cache()
    found.reset_peak()
    try:
        step_seconds(alike[:size], found)
    except torch.OutOfMemoryError:
        raise UserError(
            f"--trials-per-stack {size}: a stack of so many (trial {alike[0].trial_id} and others) "
            f"takes more than a GPU's {found.memory / 1e9:.3g} GB ({found.name}); choose fewer"
        ) from None
    return size, found.peak() if size > 1 else 0


def _cost_on_a_gpu(config: TrialConfig) -> Cost:
    return measured_cost(config, gpu())


def _gpu_name() -> str:
    return gpu().name


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def give_back_freed() -> None:
    """Return to the system what this process has freed: glibc keeps it, by the tens of megabytes
    after a table of thousands of points. Nothing happens with another C library."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def count_parameters(config: TrialConfig) -> int:
    """d of a trial's network, from its shape alone: no weights are made.

    Raises:
        UserError: the network does not suit the data.
    """
    return _parameters(config.model, config.data.dataset)


@lru_cache(maxsize=1024)
def _parameters(model: ModelConfig, dataset: str) -> int:
    data = DATASETS[dataset]
    with torch.device("meta"):
        return num_parameters(build_model(model, data.shape, data.outputs, seed=0))


def replicas_bytes(config: TrialConfig, parameters: int) -> int:
    """Weights of all runs of the trial, and one gradient."""
    return WEIGHT * parameters * ((config.replicas or 1) + 1)


def draws_bytes(config: TrialConfig) -> dict[str, int]:
    """The scalars of every draw, which are kept for the standard error, by the field that asks.

    A draw itself is gone before the next is made.
    """
    m = config.measurement
    per_std = SCALAR * len(m.noise_stds)
    return {
        "sensitivity_draws": 2 * per_std * m.sensitivity_draws if m.sensitivity else 0,
        "flatness_draws": per_std * m.flatness_draws if m.flatness else 0,
        "hessian_probes": SCALAR * m.hessian_probes if m.hessian_trace == "pyhessian" else 0,
    }


def require_memory(trials: Iterable[TrialConfig], available: int) -> None:
    """See that every trial fits into ``available`` bytes.

    Raises:
        UserError: one does not; says what it takes, and how much of the setting would fit.
    """
    for config in trials:
        parameters = count_parameters(config)
        runs, each = replicas_bytes(config, parameters), draws_bytes(config)
        draws = sum(each.values())
        if runs + draws <= available:
            continue
        if draws > runs:
            name = max(each, key=lambda field: each[field])
            field, value = f"measurement.{name}", getattr(config.measurement, name)
            usual = MeasurementConfig.model_fields[name].default
            raise UserError(
                f"{field} = {value} takes {_text(runs + draws)} of memory, and there are "
                f"{_text(available)}; choose fewer, as in the default of {usual}"
            )
        if config.replicas is not None:
            field, value = "replicas", config.replicas
            most = (available - draws) // (WEIGHT * parameters) - 1
        else:
            raise UserError(
                f"model.name = {config.model.name!r} with {parameters:,} parameters takes "
                f"{_text(runs)} of memory, and there are {_text(available)}; choose a smaller one"
            )
        raise UserError(
            f"{field} = {value} takes {_text(runs + draws)} of memory, and there are "
            f"{_text(available)}; choose at most {most}"
        )


def _text(count: int) -> str:
    """Bytes for people: 1.6 GB."""
    size, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB", "EB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
