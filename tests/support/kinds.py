"""Every kind of trial that the sweeps launch at the paper's scale, on a few samples.

Two trials are of one kind if the same code runs in them: they may differ in numbers, and in the
data, of which there is one trial with each network. They have networks as narrow and batches as
small as they come, and are otherwise as the sweep has them.
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
    trials = list(map(small, paper_trials(name)))
    of_code = {differences(trial): trial for trial in trials}
    of_data = {(trial.data.dataset, trial.model.name): trial for trial in of_code.values()}
    others = {(trial.data.dataset, trial.model.name): trial for trial in trials}
    return [*of_code.values(), *(others[pair] for pair in others.keys() - of_data.keys())]


def differences(trial: TrialConfig) -> tuple[Any, ...]:
    """What decides which code runs: not the data, nor how long."""
    training = trial.training
    return (
        trial.model.name,
        trial.scheme,
        trial.measurement,
        trial.replicas,
        trial.data.augmented,
        trial.data.label_noise > 0,
        training.momentum > 0,
        training.max_gradient_norm,
        training.initialization,
    )


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
