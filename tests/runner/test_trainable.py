"""What a trial does about its own failures, without Ray's processes."""

import doctest
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.runner import trainable
from gisgd_ray.runner.handover import Handover
from gisgd_ray.runner.payload import Payload
from gisgd_ray.runner.resources import Resources
from gisgd_ray.runner.settings import RunSettings
from gisgd_ray.runner.trainable import TrialTrainable, fault_of
from gisgd_ray.schemes.base import Batch
from gisgd_ray.tracking.run import WandbSettings
from gisgd_ray.training import loop as training
from gisgd_ray.training.state import TrainState
from gisgd_ray.training.stepping import DenseRun
from tests.support.runs import config


def made_of(folder: Path, *given: dict[str, Any], **more: Any) -> TrialTrainable:
    wandb = WandbSettings("disabled", str(folder), "", group=None, project="p")
    run = RunSettings(Resources(), str(folder), 60.0, wandb)
    return TrialTrainable({"trials": list(given), "run": run.plain(), **more})


def given(changes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """One trial as the driver hands it over."""
    return {"config": config(changes).model_dump(mode="json"), "name": "it", **more}


def trial(folder: Path, error: Exception, fault_before: str | None = None) -> TrialTrainable:
    """A trial that fails in its first step."""
    made = made_of(folder, given(fault_before=fault_before))

    def failing() -> None:
        raise error

    made._advance = failing  # type: ignore[method-assign]
    return made


def reports(result: dict[str, Any]) -> dict[str, Payload]:
    found: dict[str, Payload] = pickle.loads(result["payload"])
    return found


def told(result: dict[str, Any]) -> Payload:
    (payload,) = reports(result).values()
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


# ---------------------------------------------------------------- stacks

SHORT = {"training.max_epochs": 2, "measurement.sensitivity": False, "measurement.flatness": False}


def ended(made: TrialTrainable) -> tuple[dict[str, list[Payload]], bool]:
    """All its reports by trial, up to the end or a fault."""
    found: dict[str, list[Payload]] = {}
    while True:
        result = made.step()
        for trial_id, payload in reports(result).items():
            found.setdefault(trial_id, []).append(payload)
        if result["done"]:
            return found, True
        if any(payload.fault for payload in reports(result).values()):
            return found, False


def test_each_trial_of_a_stack_has_its_own_reports_and_row(tmp_path: Path) -> None:
    own: list[dict[str, Any]] = [{}, {"seed": 3}, {"training.max_epochs": 1, "seed": 4}]
    trials = [given(SHORT | each) for each in own]
    found, _ = ended(made_of(tmp_path, *trials))
    assert len(found) == 3
    for each in own:
        alone, _ = ended(made_of(tmp_path / "alone", given(SHORT | each)))
        ((trial_id, expected),) = alone.items()
        last, other = found[trial_id][-1], expected[-1]
        assert last.row is not None
        assert other.row is not None
        assert last.row.keys() == other.row.keys()
        for name in ("train/loss", "test/loss", "measure/gradient_dispersion", "steps"):
            assert last.row[name] == pytest.approx(other.row[name], rel=1e-5)
        points = [point["step"] for payload in found[trial_id] for point in payload.points]
        assert points == [point["step"] for payload in expected for point in payload.points]
        assert sum(len(payload.steps) for payload in found[trial_id]) == last.row["steps"]


def test_one_that_cannot_begin_ends_alone(tmp_path: Path) -> None:
    trials = [given(SHORT), given(SHORT | {"seed": 1})]
    trials[0]["config"]["training"]["batch_size"] = 199  # leaves a batch of one sample
    found, done = ended(made_of(tmp_path, *trials))
    assert done
    (failed,), *_, (*_, other) = found.values()
    assert "training.batch_size = 199" in (failed.failure or "")
    assert other.row is not None
    assert other.row["status"] == "finished"


class BrokenError(Exception):
    pass


def test_where_one_fails_in_a_step_all_are_told_of_and_gone_on_with_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descend = DenseRun.descend

    def broken(run: DenseRun, batch: Batch, learning_rate: float) -> None:
        if learning_rate == 0.3:
            raise BrokenError("no such rate")
        descend(run, batch, learning_rate)

    monkeypatch.setattr(DenseRun, "descend", broken)
    trials = [given(SHORT), given(SHORT | {"training.learning_rate": 0.3}), given({"seed": 1})]
    found, done = ended(made_of(tmp_path, *trials))
    assert not done
    faults = {trial_id: payloads[-1].fault for trial_id, payloads in found.items()}
    assert len(faults) == 3
    assert faults[id_of(trials[1])] == "step 0: BrokenError: no such rate"
    assert all((fault or "").endswith(": no such rate") for fault in faults.values())
    again = [each | {"fault_before": faults[id_of(each)]} for each in trials]
    found, done = ended(made_of(tmp_path, *again, apart=True))
    assert done
    failures = {trial_id: payloads[-1].failure for trial_id, payloads in found.items()}
    assert [failures[id_of(each)] is None for each in trials] == [True, False, True]
    assert "BrokenError: no such rate" in (failures[id_of(trials[1])] or "")


def id_of(trial: dict[str, Any]) -> str:
    return TrialConfig.model_validate(trial["config"]).trial_id


def test_where_measuring_one_fails_the_others_are_saved_and_it_fails_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = training.measure

    def broken(state: TrainState) -> Any:
        if state.config.seed == 1 and state.step > 0:
            raise BrokenError("cannot be measured")
        return measure(state)

    monkeypatch.setattr(training, "measure", broken)
    trials = [given(SHORT), given(SHORT | {"seed": 1})]
    found, done = ended(made_of(tmp_path, *trials))
    assert not done
    fault = found[id_of(trials[1])][-1].fault
    assert fault == "step 4: BrokenError: cannot be measured"
    assert found[id_of(trials[0])][-1].fault is None
    assert list((tmp_path / "checkpoints" / id_of(trials[0])).glob("*.ckpt"))
    trials[1]["fault_before"] = fault
    found, done = ended(made_of(tmp_path, *trials))
    assert done
    assert "cannot be measured" in (found[id_of(trials[1])][-1].failure or "")
    assert found[id_of(trials[0])][0].resumed
    row = found[id_of(trials[0])][-1].row
    assert row is not None
    assert row["status"] == "finished"


def test_a_stack_that_was_saved_goes_on_each_from_its_own(tmp_path: Path) -> None:
    trials = [given(SHORT | {"training.max_epochs": 40, "seed": seed}) for seed in range(3)]
    whole, _ = ended(made_of(tmp_path / "whole", *trials))
    made = made_of(tmp_path, *trials)
    made._run = replace(made._run, checkpoint_every_s=0.0)
    made._schedule_save()
    made.step()
    found, done = ended(made_of(tmp_path, *trials))
    assert done
    for trial_id, payloads in found.items():
        assert payloads[0].resumed
        row, expected = payloads[-1].row, whole[trial_id][-1].row
        assert row is not None
        assert expected is not None
        assert row["steps"] == expected["steps"]
        assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-4)


def test_doctests() -> None:
    assert doctest.testmod(trainable).failed == 0
