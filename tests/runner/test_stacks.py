"""Which trials share a process."""

from typing import Any

import pytest
import torch

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.device import Device
from gisgd_ray.runner import stacks
from tests.support.runs import config


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


@pytest.mark.parametrize("count", [1, 3])
def test_a_step_takes_some_time(count: int) -> None:
    given = trials(*({"seed": seed} for seed in range(count)))
    assert 1e-6 < stacks.step_seconds(given, Device()) < 1
