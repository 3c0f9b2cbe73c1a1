"""What the driver makes of reports: journal, display and tables, and how far each trial got."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables, row_of
from gisgd_ray.runner import recorder
from gisgd_ray.runner.checkpoints import Checkpoints
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.payload import Payload
from gisgd_ray.runner.progress import Progress
from gisgd_ray.runner.recorder import TABLES_EVERY_S, TABLES_SHARE, Recorder
from tests.support.journals import series
from tests.support.runs import config

TRIAL, OTHER = config(), config({"seed": 1})
ID = TRIAL.trial_id


def make(folder: Path, *, mirror: Any = None, retries: int = 3) -> Recorder:
    display = Progress(
        total=2,
        done=0,
        title="It",
        labels={},
        console=Console(file=io.StringIO(), width=200, color_system=None),
    )
    return Recorder(Location(folder, str(folder), mirror), [TRIAL, OTHER], display, retries=retries)


def result(step: int, **payload: Any) -> Payload:
    """What a trial reports: by default the five steps up to ``step`` and the point there."""
    told: dict[str, Any] = {
        "points": [{"step": step, "train/loss": 0.5, "gap/loss": 0.1}],
        "first_step": max(step - 5, 0),
        "steps": series(min(step, 5)),
    }
    return Payload(**({"step": step} | told | payload))


def nothing(**payload: Any) -> Payload:
    return result(payload.pop("step", 0), points=[], steps=StepSeries.empty(), **payload)


def row(status: str = "finished", trial: TrialConfig = TRIAL) -> dict[str, Any]:
    metrics = {"status": status, "stop_reason": "max_epochs", "steps": 10, "train/loss": 0.5}
    return row_of(trial, metrics | {"gap/loss": 0.1, "bound/theorem2_closed_form": 1.0})


def save(folder: Path, step: int, trial: TrialConfig = TRIAL) -> Path:
    path = folder / "checkpoints" / trial.trial_id / f"{step:012d}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    return path


def shown(given: Recorder) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(given.progress.render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---------------------------------------------------------------- how far a trial got


def test_a_report_gets_further_when_its_step_is_beyond_any_before(tmp_path: Path) -> None:
    made = make(tmp_path)
    steps = [0, 5, 5, 3, 4, 10, 8, 11]
    assert [made.report(ID, result(step)) for step in steps] == [
        True,
        True,
        False,
        False,
        False,
        True,
        False,
        True,
    ]


def test_trials_are_told_apart(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.report(ID, result(10))
    assert made.report(OTHER.trial_id, result(5))
    save(tmp_path, 20, OTHER)
    assert not made.begun_again(ID)
    assert made.begun_again(OTHER.trial_id)


def test_an_attempt_that_left_no_checkpoint_got_nowhere(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert not made.begun_again(ID)
    assert made.report(ID, result(0))
    assert not made.begun_again(ID)
    assert made.lost == 2


def test_an_attempt_gets_further_by_its_newest_checkpoint(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.report(ID, result(10))
    save(tmp_path, 8)
    assert not made.begun_again(ID)
    save(tmp_path, 10)
    assert not made.begun_again(ID)
    save(tmp_path, 14)
    (tmp_path / "checkpoints" / ID / "000000000099.ckpt.host-1.partial").write_bytes(b"half")
    assert made.begun_again(ID)
    assert not made.begun_again(ID)
    # Going over steps that an earlier attempt saved is no progress.
    assert not made.report(ID, result(14))
    assert made.report(ID, result(15))
    assert made.lost == 4


def test_the_first_attempt_counts_by_its_checkpoint_alone(tmp_path: Path) -> None:
    """As when it was lost before its first report, or the driver was."""
    made = make(tmp_path)
    save(tmp_path, 0)
    assert made.begun_again(ID)


def test_what_failed_and_what_was_lost_are_counted_apart(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.report(ID, result(10))
    # Further than ever, but not to be had again: it counts by its checkpoints alone.
    assert not made.report(ID, nothing(fault="step 12: ValueError: no", step=12))
    assert made.faults == {ID: "step 12: ValueError: no"}
    assert not made.begun_again(ID)
    assert (made.lost, made.tried_again) == (0, 1)
    assert not made.begun_again(ID)
    assert not made.begun_again(OTHER.trial_id)
    assert (made.lost, made.tried_again) == (2, 1)
    assert made.report(ID, result(11))
    assert Journal(tmp_path).read_row(ID) is None


def test_a_trial_that_was_lost_is_not_shown_as_running(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.started(ID)
    made.report(ID, result(5))
    assert ID in shown(made)
    made.begun_again(ID)
    assert ID not in shown(made)


# ---------------------------------------------------------------- what a report brings


def test_points_and_steps_go_to_the_journal_and_the_display(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.started(ID)
    made.report(ID, result(0))
    made.report(ID, result(5))
    made.report(ID, result(10))
    record = Journal(tmp_path).read(ID)
    assert [point["step"] for point in record.points] == [0, 5, 10]
    assert len(record.steps) == 10
    assert record.row is None
    assert shown(made).splitlines()[-1].split()[:2] == [ID, "10"]


def test_memory_that_ran_out_is_noted_and_is_no_end(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.started(ID)
    path = save(tmp_path, 5)
    assert made.report(ID, nothing(out_of_memory="Traceback: no room"))
    assert made.out_of_memory == {ID: "Traceback: no room"}
    assert Journal(tmp_path).trial_ids() == []
    assert ID not in shown(made)
    assert path.exists()
    assert made.progress.counts == {"finished": 0, "diverged": 0, "failed": 0}


def test_a_failure_ends_the_trial_with_its_traceback(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.report(ID, result(5))
    path = save(tmp_path, 5)
    assert made.report(ID, nothing(failure="Traceback: a setting that does not work"))
    found = Journal(tmp_path).read_row(ID)
    assert found is not None
    assert found["status"] == "failed"
    assert found["error"] == "Traceback: a setting that does not work"
    assert found["training.learning_rate"] == TRIAL.training.learning_rate
    assert len(ResultTables(tmp_path).steps(ID)) == 5
    assert path.exists()  # tried again, it goes on from there
    assert made.progress.counts["failed"] == 1


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_the_row_ends_the_trial_and_its_checkpoints(tmp_path: Path, status: str) -> None:
    made = make(tmp_path)
    mine, others = save(tmp_path, 5), save(tmp_path, 5, OTHER)
    made.report(ID, result(5))
    assert mine.exists()
    assert made.report(ID, result(10, row=row(status)))
    assert Journal(tmp_path).read_row(ID) == row(status)
    assert len(ResultTables(tmp_path).steps(ID)) == 10
    assert not mine.exists()
    assert others.exists()
    assert made.progress.counts[status] == 1


def test_checkpoints_that_cannot_be_deleted_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_self: object) -> None:
        raise OSError(errno.EIO, "the bucket does not answer")

    monkeypatch.setattr(Checkpoints, "clear", away)
    made = make(tmp_path)
    assert made.report(ID, result(5, row=row()))
    assert made.fault is None
    assert len(ResultTables(tmp_path).steps(ID)) == 5


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("Journal.add_report", {}),
        ("Journal.add_row", {"row": row()}),
        ("Journal.add_row", {"failure": "Traceback"}),
        ("write_steps", {"row": row()}),
        ("write_tables", {}),
    ],
)
def test_what_cannot_be_written_is_raised_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, given: dict[str, Any]
) -> None:
    made = make(tmp_path)
    assert made.fault is None
    monkeypatch.setattr(f"gisgd_ray.runner.recorder.{where}", full)
    with pytest.raises(OSError, match="No space left") as caught:
        made.report(ID, result(5, **given))
    assert made.fault is caught.value


# ---------------------------------------------------------------- the tables


class Clock:
    """The time that the recorder sees; making the tables takes ``taken`` seconds of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, taken: float):
        self.now, self.taken = 1000.0, taken
        self.written: list[float] = []
        monkeypatch.setattr("gisgd_ray.runner.recorder.time.monotonic", lambda: self.now)
        monkeypatch.setattr(recorder, "write_tables", self._write)

    def _write(self, *_: Any) -> None:
        self.written.append(self.now)
        self.now += self.taken


@pytest.mark.parametrize(
    ("taken", "pause"),
    [(0.0, TABLES_EVERY_S), (0.5, TABLES_EVERY_S), (3.0, 3.0 / TABLES_SHARE)],
)
def test_the_tables_are_made_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: float, pause: float
) -> None:
    clock = Clock(monkeypatch, taken)
    made = make(tmp_path)
    made.report(ID, result(5))
    assert clock.written == [1000.0]
    for seconds in (0.0, pause / 2, pause - 0.01):
        clock.now = 1000.0 + taken + seconds
        made.report(ID, result(5))
    assert clock.written == [1000.0]
    clock.now = 1000.0 + taken + pause
    made.report(ID, result(5))
    assert clock.written == [1000.0, 1000.0 + taken + pause]


def test_the_tables_hold_what_was_reported(tmp_path: Path) -> None:
    made = make(tmp_path)
    made.report(ID, result(5, row=row()))
    tables = ResultTables(tmp_path)
    assert list(tables.trials["trial_id"]) == [ID]
    assert list(tables.history["step"]) == [5]
    made.report(OTHER.trial_id, result(5, row=row(trial=OTHER)))
    assert list(tables.trials["trial_id"]) == [ID]  # not due yet


class Bucket:
    """Stands for a mirror whose bucket is away, or another driver's."""

    def __init__(self, fault: Exception | None = None):
        self.fault, self.pushes = fault, 0

    def push(self) -> int:
        self.pushes += 1
        if self.fault is not None:
            raise self.fault
        return 1


def test_the_copy_in_a_bucket_goes_with_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, bucket = Clock(monkeypatch, taken=0.0), Bucket()
    made = make(tmp_path, mirror=bucket)
    for seconds in (0.0, 1.0, TABLES_EVERY_S, TABLES_EVERY_S + 1):
        clock.now = 1000.0 + seconds
        made.report(ID, result(5))
    assert bucket.pushes == len(clock.written) == 2


def test_a_bucket_that_is_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, bucket = Clock(monkeypatch, taken=0.0), Bucket(OSError("no route to the bucket"))
    made = make(tmp_path, mirror=bucket)
    for seconds in (0.0, 1.0, TABLES_EVERY_S):
        clock.now = 1000.0 + seconds
        made.report(ID, result(5))
    assert bucket.pushes == 2
    assert made.fault is None


def test_a_bucket_that_another_driver_has_taken_over_ends_this_one(tmp_path: Path) -> None:
    made = make(tmp_path, mirror=Bucket(UserError("another driver has begun to write")))
    with pytest.raises(UserError, match="another driver"):
        made.report(ID, result(5))
