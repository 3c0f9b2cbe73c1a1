"""How many trials run at once on the cluster at hand, and what that means for the time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import gpu
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
from gisgd_ray.runner.estimate import Cost, Estimate, estimate, measured_cost, require_here
from gisgd_ray.runner.packing import Resources, dearest, gpu_share, peak_bytes


@dataclass(frozen=True)
class Measured:
    """What the dearest trial took of the smallest GPU; both in bytes."""

    peak: int
    memory: int
    gpu: str
    cpus_to_a_gpu: float

    def __str__(self) -> str:
        return (
            f"the dearest takes {self.peak / 1e9:.2f} GB of a GPU's {self.memory / 1e9:.1f} GB "
            f"({self.gpu}, measured), and there are {self.cpus_to_a_gpu:g} CPUs to a GPU"
        )


@dataclass(frozen=True)
class Chosen:
    """What each trial takes."""

    resources: Resources
    why: Measured | None = None
    """None where it is what the user asks for, or there is no GPU."""


def chosen_resources(
    trials: Sequence[TrialConfig], options: Options, *, may_download: bool = True
) -> Chosen:
    """What each trial takes on the connected cluster.

    Raises:
        UserError: not even one trial fits on a GPU, or PyTorch can use none of them.
        DataError: to know it takes a dataset that is not there.
    """
    cpus = options.cpus_per_trial
    if options.gpus_per_trial is not None:
        if options.gpus_per_trial > 0 and trials and gpu_machines():
            run_on_a_gpu(_gpu_name)
        return Chosen(Resources(cpus=cpus, gpus=options.gpus_per_trial))
    if cluster_gpus() == 0 or not trials:
        return Chosen(Resources(cpus=cpus))
    probed = dearest(trials)
    # One after the other, each alone on a GPU; where none is up, this is what brings one up.
    measured = [run_on_a_gpu(_probe, config, may_download) for config in probed]
    peak = max(probed.peak for probed in measured)
    smallest = min(measured, key=lambda probed: probed.memory)
    cpus_to_a_gpu = min(machine.cpus / machine.gpus for machine in gpu_machines())
    share = gpu_share(peak, memory=smallest.memory, cpus_to_a_gpu=cpus_to_a_gpu, cpus=cpus)
    why = Measured(peak, smallest.memory, smallest.name, cpus_to_a_gpu)
    return Chosen(Resources(cpus=cpus, gpus=share), why)


@dataclass(frozen=True)
class SweepCost:
    """What the trials of a sweep take, and how long."""

    estimate: Estimate
    resources: Resources
    machines: Sequence[Machine]
    joined: bool
    """Whether those are a cluster's; else it is this machine, before Ray has counted its GPUs."""

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
        return [
            f"Each takes {self.resources}; {self.together} at once on {on}.",
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
        UserError: a trial does not fit on a GPU.
        DataError: none can be tried out, since a dataset is missing.
    """
    cpus = options.cpus_per_trial
    if not connected:
        resources, on = Resources(cpus=cpus), [Machine(usable_cpus(), 0)]
    else:
        if cluster_gpus() > 0 and not gpu_machines():
            return None
        resources = chosen_resources(trials, options, may_download=False).resources
        require_room(cpus=resources.cpus, gpus=resources.gpus)
        on = machines()

    def on_a_gpu(trial: TrialConfig) -> Cost:
        cost: Cost = run_on_a_gpu(_cost_on_a_gpu, trial)
        return cost

    calibrate = on_a_gpu if resources.gpus > 0 else None
    together = at_once(on, resources)
    found = estimate(trials, together=together, threads=cpus, calibrate=calibrate)
    return SweepCost(found, resources, on, joined=connected)


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


def _cost_on_a_gpu(config: TrialConfig) -> Cost:
    return measured_cost(config, gpu())


def _gpu_name() -> str:
    return gpu().name
