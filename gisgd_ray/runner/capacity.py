"""How many trials run at once on the cluster at hand, and what that means for the time."""

from collections.abc import Sequence
from typing import NamedTuple

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import gpu
from gisgd_ray.errors import DataError
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
from gisgd_ray.runner.estimate import Cost, estimate, measured_cost, require_here
from gisgd_ray.runner.packing import Resources, dearest, gpu_share, peak_bytes
from gisgd_ray.runner.plan import cost_lines


def chosen_resources(
    trials: Sequence[TrialConfig], options: Options, *, may_download: bool = True
) -> tuple[Resources, str]:
    """What each trial takes on the connected cluster, and the reason if it is not the user's.

    Raises:
        UserError: not even one trial fits on a GPU, or PyTorch can use none of them.
        DataError: to know it takes a dataset that is not there.
    """
    cpus = options.cpus_per_trial
    if options.gpus_per_trial is not None:
        if options.gpus_per_trial > 0 and trials and gpu_machines():
            run_on_a_gpu(_gpu_name)
        return Resources(cpus=cpus, gpus=options.gpus_per_trial), ""
    if cluster_gpus() == 0 or not trials:
        return Resources(cpus=cpus), ""
    probed = dearest(trials)
    # One after the other, each alone on a GPU; where none is up, this is what brings one up.
    measured = [run_on_a_gpu(_probe, config, may_download) for config in probed]
    peak = max(probed.peak for probed in measured)
    smallest = min(measured, key=lambda probed: probed.memory)
    cpus_to_a_gpu = min(machine.cpus / machine.gpus for machine in gpu_machines())
    share = gpu_share(peak, memory=smallest.memory, cpus_to_a_gpu=cpus_to_a_gpu, cpus=cpus)
    reason = (
        f"the dearest takes {peak / 1e9:.2f} GB of a GPU's {smallest.memory / 1e9:.1f} GB "
        f"({smallest.name}, measured), and there are {cpus_to_a_gpu:g} CPUs to a GPU"
    )
    return Resources(cpus=cpus, gpus=share), reason


def told_cost(trials: Sequence[TrialConfig], options: Options, *, connected: bool) -> list[str]:
    """What these trials would take, and about how long; a few of them are tried out.

    Raises:
        UserError: a trial does not fit on a GPU.
    """
    try:
        return _told_cost(trials, options, connected=connected)
    except DataError as fault:
        return [f"Time: not known, since a trial cannot be tried out: {fault}"]


def _told_cost(trials: Sequence[TrialConfig], options: Options, *, connected: bool) -> list[str]:
    cpus = options.cpus_per_trial
    if not connected:
        here = usable_cpus()
        on = f"this machine ({counted(here, 'CPU')}; its GPUs, if any, are found when Ray starts)"
        resources, together = Resources(cpus=cpus), here // cpus
    else:
        with_gpu = gpu_machines()
        if cluster_gpus() > 0 and not with_gpu:
            return [
                "No machine with a GPU is up yet: what a trial takes, and how long, is measured "
                "when the sweep has brought one up."
            ]
        resources, _ = chosen_resources(trials, options, may_download=False)
        require_room(cpus=resources.cpus, gpus=resources.gpus)
        together = sum(slots(count, resources) for count in machines())
        on = counted(sum(count.cpus for count in machines()), "CPU")
        if resources.gpus > 0:
            on = counted(sum(count.gpus for count in machines()), "GPU")
    together = max(1, together)

    def on_a_gpu(trial: TrialConfig) -> Cost:
        cost: Cost = run_on_a_gpu(_cost_on_a_gpu, trial)
        return cost

    calibrate = on_a_gpu if resources.gpus > 0 else None
    found = estimate(trials, together=together, threads=cpus, calibrate=calibrate)
    return cost_lines(found, resources, together=together, machines=on)


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
