"""Twenty replicas in lockstep against the same twenty runs one after another: time and memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.timing import least_seconds, random_mnist, verdict
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset
from gisgd_ray.training import loop as training
from gisgd_ray.training.state import TrainState

REPLICAS = 20
SAMPLES = 500
BATCH = 60
RATE = 0.01
ROOT = Path(__file__).parents[1]

MEMORY = """
import sys
import torch
from benchmarks import lockstep
from benchmarks.timing import random_mnist
torch.set_num_threads(1)
replicas = eval(sys.argv[1])
data = random_mnist(lockstep.SAMPLES)
# Libraries and code that the first steps of any network bring in.
lockstep.epochs(lockstep.started(data, replicas=replicas, width=2))
before = lockstep.resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
lockstep.epochs(lockstep.started(data, replicas=replicas, width=512))
print(lockstep.resident("VmHWM") - before)
"""


def started(data: Dataset, *, replicas: int | None, seed: int = 0, width: int = 512) -> TrainState:
    """One trial before its first step, measuring dispersion at every one."""
    config = {
        "seed": seed,
        "replicas": replicas,
        "data": {"dataset": "mnist"},
        "model": {"name": "mlp", "width": width},
        "training": {"batch_size": BATCH, "learning_rate": RATE},
    }
    return training.start(TrialConfig.model_validate(config), dataset=data)


def epochs(state: TrainState, *, count: int = 3) -> None:
    """The steps alone, as the step loop takes them; the last one of an epoch has 20 samples."""
    first, number = state.step, count * state.steps_per_epoch
    for step in range(first, first + number):
        state.stepper.step(step, learning_rate=RATE)
    state.step += number
    assert len(state.stepper.drain()) == number


def one_after_another(data: Dataset) -> Callable[[], None]:
    """Every run by itself, as twenty trials would."""
    states = [started(data, replicas=None, seed=seed) for seed in range(REPLICAS)]

    def run() -> None:
        for state in states:
            epochs(state)

    return run


def in_lockstep(data: Dataset) -> Callable[[], None]:
    state = started(data, replicas=REPLICAS)
    return lambda: epochs(state)


def resident(which: str) -> float:
    """Megabytes of this process, now (``VmRSS``) or at its peak (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(which)


def peak_growth(replicas: int | None) -> float:
    """What a run, or its replicas, add to a fresh process: weights, gradients, activations, all."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(replicas)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def run() -> bool:
    torch.set_num_threads(1)  # as in a trial
    data = random_mnist(SAMPLES)
    seconds = least_seconds(
        {"alone": one_after_another(data), "lockstep": in_lockstep(data)}, repetitions=6
    )
    print(f"lockstep: {REPLICAS} x MLP 784-512-10, batch {BATCH}, {SAMPLES} samples, 1 thread")
    steps = 3 * -(-SAMPLES // BATCH)
    for name, s in seconds.items():
        print(f"  {name}: {1000 * s / steps:.1f} ms a step of all")
    met = verdict("lockstep / alone, time", seconds["lockstep"] / seconds["alone"], at_most=1.1)
    one, all_ = peak_growth(None), peak_growth(REPLICAS)
    print(f"  peak memory: one run {one:.1f} MB, {REPLICAS} in lockstep {all_:.1f} MB")
    return verdict("lockstep / alone, memory", all_ / (REPLICAS * one), at_most=1.2) and met
