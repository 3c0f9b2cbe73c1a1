"""What Ray Tune keeps of a sweep in the driver, where hundreds of trials add up."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.cluster import connect
from gisgd_ray.runner.launch import launch
from gisgd_ray.runner.location import Location
from tests.support.launches import joining
from tests.support.runs import config
from tests.support.shared_ray import Head
from tests.support.sweep_runs import job


@pytest.mark.ray
def test_the_driver_lets_go_of_what_a_trial_reported(
    shared_ray: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.tune.execution.tune_controller import TuneController

    kept: list[dict[str, Any]] = []

    def cleanup(controller: TuneController) -> None:
        kept.extend(dict(trial.last_result) for trial in controller.get_trials())
        end(controller)

    end = TuneController.cleanup
    monkeypatch.setattr(TuneController, "cleanup", cleanup)
    trials = [config({"seed": seed}) for seed in range(3)]
    location = Location.of(str(tmp_path), "kept")
    with joining(shared_ray.environment):
        assert connect().joined
        launch(job(trials, location))
    assert set(ResultTables(location.folder).trials["trial_id"]) == {t.trial_id for t in trials}
    assert [result["done"] for result in kept] == [True] * 3
    assert not any("payload" in result for result in kept)
    # Series and points would be megabytes of a long trial; their place is the journal.
    assert all(len(pickle.dumps(result)) < 10_000 for result in kept)
