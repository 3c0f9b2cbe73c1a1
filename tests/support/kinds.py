"""Every kind of trial that the sweeps launch at the paper's scale, on a few samples.

Two trials are of one kind if they differ in numbers alone: the same network, scheme, data and
measurements. Of each kind there is one here, with networks as narrow and batches as small as they
come, and otherwise as the sweep has it.
"""

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.sweep import Sweep
from tests.support import ondisk
from tests.support.sweep_runs import plan_of

SWEEPS: dict[str, Sweep] = {
    path.stem: import_module(f"sweeps.{path.stem}").SWEEP
    for path in sorted(Path(__file__).parents[2].glob("sweeps/*.py"))
}
SAMPLES = 24
SMALL: dict[str, Any] = {
    "data.train_fraction": 1.0,
    "model.width": 8,
    "model.filters": 2,
    "model.hidden": 8,
    "training.batch_size": 10,  # a last batch of 4
    "training.learning_rate": 0.01,
    "replicas": 2,
    "measurement.sensitivity_draws": 2,
    "measurement.flatness_draws": 4,
}


@lru_cache
def paper_trials(name: str) -> list[TrialConfig]:
    """All trials of a sweep at the paper's scale, seeds apart."""
    trials = plan_of(SWEEPS[name], "paper").trials
    return list({trial.changed({"seed": 0}): trial for trial in trials}.values())


def small(trial: TrialConfig) -> TrialConfig:
    """The one that stands for the trial's kind; to be called where :func:`few_samples` holds."""
    flat = trial.flat()
    changes = {path: value for path, value in SMALL.items() if flat.get(path) is not None}
    if trial.data.label_noise > 0:
        changes["data.label_noise"] = 0.5
    return trial.changed({**changes, "seed": 0})


def kinds(name: str) -> list[TrialConfig]:
    """One trial of every kind in a sweep."""
    return list(dict.fromkeys(map(small, paper_trials(name))))


def few_samples(folder: Path, patch: pytest.MonkeyPatch, *, num_train: int = SAMPLES) -> None:
    """Every dataset of the paper as small files of the true format, from here on the real ones."""
    patch.setenv("GISGD_DATA", str(folder))
    for name in ("mnist", "cifar10", "cifar100", "svhn"):
        data = ondisk.make(name, num_train=num_train, num_test=SAMPLES)
        files = ondisk.contents(name, data)
        if not (folder / next(iter(files))).exists():
            ondisk.put(folder, files)
        ondisk.trust(patch, name, data, files)
    ondisk.resize(patch, "teacher", train=num_train, test=SAMPLES)


def on_few_samples(folder: Path) -> Iterator[None]:
    """For a fixture: :func:`few_samples` while it lasts."""
    for name in SWEEPS:
        paper_trials(name)  # planned with the true sizes
    with pytest.MonkeyPatch.context() as patch:
        few_samples(folder, patch)
        yield
