"""Peak resident memory of one trial at 60,000 samples of MNIST's shape, in a fresh process.

With everything a trial's process holds: torch, Ray's Trainable class and the W&B client are
imported, the data come from IDX files, one epoch is trained and measured, the trace taken.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import idx
from benchmarks.timing import verdict

TRIAL = """
import resource
import torch
import gisgd_ray.runner.trainable
from gisgd_ray.training import loop as training
from gisgd_ray.config.trial import TrialConfig
torch.set_num_threads(1)
state = training.start(TrialConfig.model_validate({
    "data": {"dataset": "mnist"}, "training": {"batch_size": 60, "max_epochs": 1}}))
while state.stopped is None:
    training.advance(state)
assert training.summary(state)["bound/theorem2_closed_form"] > 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
"""


def run() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        idx.write_mnist(Path(folder))
        done = subprocess.run(
            [sys.executable, "-c", TRIAL],
            env={**os.environ, "GISGD_DATA": folder, "WANDB_MODE": "disabled"},
            capture_output=True,
            text=True,
            check=True,
        )
    print("memory: one trial, 60,000 samples, MLP 784-512-10")
    return verdict("peak resident GB", float(done.stdout.split()[-1]), at_most=1.2)
