"""What a trial does about its own failures, without Ray's processes."""

import doctest
import pickle
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.errors import DataError, UserError
from gisgd_ray.runner import trainable
from gisgd_ray.runner.handover import Handover
from gisgd_ray.runner.resources import Resources
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.runner.trainable import Payload, TrialTrainable, fault_of
from gisgd_ray.tracking.run import WandbSettings
from tests.support.runs import config


def trial(folder: Path, error: Exception, fault_before: str | None = None) -> TrialTrainable:
    """A trial that fails in its first step."""
    wandb = WandbSettings("disabled", str(folder), "", group=None, project="p")
    run = RunSettings(Resources(), str(folder), 60.0, wandb)
    given = {"config": config().model_dump(mode="json"), "name": "it", "fault_before": fault_before}

    class Failing(TrialTrainable):
        def _advance(self) -> Payload:
            raise error

    return Failing({"trial": given, "run": run.plain()})


def told(result: dict[str, Any]) -> Payload:
    payload = pickle.loads(result["payload"])
    assert isinstance(payload, Payload)
    return payload


@pytest.fixture(autouse=True)
def _told_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"WANDB_MODE": "disabled"}
    monkeypatch.setattr(trainable, "take", lambda storage: Handover(storage, environment))


BROKEN = ZeroDivisionError("division by zero")


def test_a_failure_is_told_and_then_raised(tmp_path: Path) -> None:
    """For the driver to know of it, and Ray to start the trial again."""
    made = trial(tmp_path, BROKEN)
    result = made.step()
    assert not result["done"]
    assert told(result).fault == "step 0: ZeroDivisionError: division by zero"
    assert told(result).failure is None
    with pytest.raises(ZeroDivisionError):
        made.step()


def test_the_same_failure_at_the_same_step_is_the_end(tmp_path: Path) -> None:
    result = trial(tmp_path, BROKEN, fault_of(BROKEN, step=0)).step()
    assert result["done"]
    assert "ZeroDivisionError: division by zero" in (told(result).failure or "")


@pytest.mark.parametrize(
    ("error", "before"),
    [
        (BROKEN, fault_of(BROKEN, step=1)),
        (BROKEN, fault_of(ZeroDivisionError("float division"), step=0)),
        (BROKEN, fault_of(ArithmeticError("division by zero"), step=0)),
        # These may go well in a while, however often they come.
        (ConnectionError("no network"), fault_of(ConnectionError("no network"), step=0)),
        (OSError(5, "I/O"), fault_of(OSError(5, "I/O"), step=0)),
        (DataError("no file"), fault_of(DataError("no file"), step=0)),
    ],
)
def test_another_failure_is_tried_again(tmp_path: Path, error: Exception, before: str) -> None:
    result = trial(tmp_path, error, before).step()
    assert not result["done"]
    assert told(result).fault is not None


def test_bad_input_is_the_end_at_once(tmp_path: Path) -> None:
    result = trial(tmp_path, UserError("no such layer")).step()
    assert result["done"]
    assert "no such layer" in (told(result).failure or "")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_is_no_failure(tmp_path: Path, error: Exception) -> None:
    result = trial(tmp_path, error, fault_of(error, step=0)).step()
    assert result["done"]
    assert told(result).out_of_memory
    assert told(result).failure is None


def test_doctests() -> None:
    assert doctest.testmod(trainable).failed == 0
