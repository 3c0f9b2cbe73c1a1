"""The tables of whole sweeps with the metrics of tiny real trials, one for each space."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.space import SearchSpace, validated
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.data.dataset import Dataset, load_dataset
from gisgd_ray.results.tables import row_of
from gisgd_ray.runner import cli
from gisgd_ray.runner.launch import Job
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.plan import Plan
from gisgd_ray.runner.resources import Chosen, Resources
from gisgd_ray.sweep import Sweep
from gisgd_ray.training import loop as training
from tests.support import runs
from tests.support.tables import Tables

TINY = {
    "data.train_fraction": 0.01,
    "training.max_steps": 4,
    "training.max_epochs": 4,
    "training.batch_size": 20,
    "training.evaluation.unit": "step",
    "training.evaluation.every": 2,
    "model.width": 8,
    "model.filters": 2,
    "model.hidden": 8,
    "replicas": 2,
    "scheme.start_epoch": 0,
    "scheme.lag": 1,
    "measurement.sensitivity_draws": 2,
    "measurement.sensitivity_schedule.every": 1,
    "measurement.flatness_draws": 4,
}


def tiny(trial: TrialConfig) -> TrialConfig:
    """The same kind of trial over in a second: of the settings it has, some are smaller."""
    flat = trial.flat()
    asked = {path: value for path, value in TINY.items() if flat.get(path) is not None}
    if flat["scheme.name"] == "clipping":
        asked["scheme.start_epoch"] = 0
    if flat["data.dataset"] == "teacher":
        asked |= {"training.max_epochs": 1, "training.batch_size": 100}
    return validated(flat | asked | {"training.max_steps": 4})


def job(trials: list[TrialConfig], location: Location) -> Job:
    """A launch of those of these trials that have not finished, a CPU for each."""
    plan, options = Plan(trials, {}, []), cli.parse([], prog="", description="")
    chosen = Chosen(Resources())
    return Job("one", "One", plan, plan.left(location.folder), location, options, chosen)


def measured(trial: TrialConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and points of a tiny trial of this kind."""
    return _measured(tiny(trial))


@lru_cache(maxsize=64)
def _measured(trial: TrialConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_dataset", _with_few_to_test)
        run = runs.finish(training.start(trial))
    return run.row, run.points


def _with_few_to_test(config: DataConfig, **more: Any) -> Dataset:
    """What takes the time of a tiny trial of a convolutional network is the test split."""
    data = load_dataset(config, **more)
    return replace(data, test_x=data.test_x[:40], test_y=data.test_y[:40])


def tables(sweep: Sweep, scale: str = "laptop") -> tuple[Tables, list[str]]:
    """All trials of a sweep, each with the metrics of its space's first; and what is swept."""
    rows, points = [], []
    for space in sweep.spaces(scale).values():
        trials = space.trials()
        summary, history = measured(trials[0])
        for trial in trials:
            rows.append(row_of(trial, summary))
            points += [{"trial_id": trial.trial_id, **point} for point in history]
    plan = plan_of(sweep, scale)
    return Tables(pd.DataFrame(rows), pd.DataFrame(points)), plan.swept


def plan_of(sweep: Sweep, scale: str) -> Plan:
    from gisgd_ray.runner import cli
    from gisgd_ray.runner.plan import make_plan

    options = cli.parse(["--scale", scale], prog=sweep.name, description="")
    return make_plan(sweep.spaces(scale), options, scale)


__all__ = ["SearchSpace", "measured", "plan_of", "tables", "tiny"]
