"""Which trials share a process."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import Device
from gisgd_ray.runner import launch, stacks
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.progress import Progress
from gisgd_ray.runner.recorder import Recorder
from gisgd_ray.runner.resources import Chosen, Resources
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.tracking.run import WandbSettings
from tests.support.runs import config
from tests.support.sweep_runs import job


def trials(*changes: dict[str, Any]) -> list[TrialConfig]:
    return [config(each) for each in changes]


def test_those_of_one_shape_in_about_equal_parts() -> None:
    wide = [{"model.width": 8, "seed": seed} for seed in range(7)]
    others: list[dict[str, Any]] = [
        {"scheme.name": "gmp"},
        {"training.batch_size": 50},
        {"training.batch_size": 50, "scheme.name": "clipping"},
        {"scheme.name": "gmp", "seed": 1},
    ]
    given = trials(*wide, *others)
    found = stacks.formed(given, 3)
    assert [len(each) for each in found] == [3, 3, 1, 1, 2, 1]
    assert sorted(t.trial_id for each in found for t in each) == sorted(t.trial_id for t in given)
    assert found[0] == given[:3]
    assert [len(each) for each in stacks.formed(given, 5)] == [4, 3, 1, 2, 1]
    assert stacks.formed(given, 1) == [[trial] for trial in sorted(given, key=given.index)]
    assert stacks.most_alike(given) == given[:7]
    assert stacks.formed([], 4) == []


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({1: 1.0, 8: 0.5, 16: 0.3, 20: 0.2}, 20),
        ({1: 1.0, 8: 0.5, 16: 0.49}, 8),
        ({1: 1.0, 8: 0.95}, 1),
        ({1: 1.0, 8: 0.5, 16: None}, 8),
    ],
)
def test_a_stack_grows_while_that_is_faster_and_memory_holds_it(
    seconds: dict[int, float | None], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(given: list[TrialConfig], _: Device) -> float:
        found = seconds[len(given)]
        if found is None:
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(stacks, "step_seconds", timed)
    alike = trials(*({"seed": seed} for seed in range(20)))
    assert stacks.fastest_size(alike, Device()) == size


def test_stacks_that_memory_does_not_hold_are_halved_and_then_have_more_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the largest that ran out of it, however many were asked for."""
    trials_ = trials(*({"seed": seed} for seed in range(5)), {"scheme.name": "gmp"})
    ran: list[tuple[list[int], int]] = []

    def tuned(given: list[list[TrialConfig]], run: RunSettings, recorder: Recorder) -> bool:
        ran.append(([len(stack) for stack in given], run.resources.cpus))
        for trial in (trial for stack in given if len(stack) > 1 for trial in stack):
            recorder.out_of_memory[trial.trial_id] = "no room"
        if run.resources.cpus == 1:
            recorder.out_of_memory[trials_[0].trial_id] = "no room"
        return False

    monkeypatch.setattr(launch, "tune_trials", tuned)
    monkeypatch.setattr(launch, "most_cpus", lambda: 2)
    given = job(trials_, Location.of(str(tmp_path), "one"))
    given = replace(given, chosen=Chosen(Resources(), per_stack=20))
    said = io.StringIO()
    console = Console(file=said, width=200)
    with Progress(total=6, done=0, title="", labels={}, console=console) as progress:
        recorder = Recorder(given.location, trials_, progress, retries=1)
        wandb = WandbSettings("disabled", str(tmp_path), "", group=None, project="p")
        run = RunSettings(Resources(), "name", 60.0, wandb)
        assert launch._rounds(given, run, recorder) == Resources(2, threads=1)
    assert ran == [([5, 1], 1), ([2, 2, 1], 1), ([1, 1, 1, 1], 1), ([1], 2)]
    assert "5 trials ran out of memory with up to 5 in a stack; run again with 2" in said.getvalue()


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_takes_some_time(count: int) -> None:
    given = trials(*({"seed": seed} for seed in range(count)))
    assert 1e-6 < stacks.step_seconds(given, Device()) < 1
