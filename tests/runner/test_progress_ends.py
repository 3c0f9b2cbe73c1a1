"""The closing words of a sweep, and the display in a notebook."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from gisgd_ray.errors import LONGEST
from gisgd_ray.results.journal import Status
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner import progress
from gisgd_ray.runner.closing import FAILURES_SHOWN, show
from gisgd_ray.runner.launch import Ended, Outcome, Ran
from gisgd_ray.tracking.status import WandbStatus, Where
from tests.runner.test_progress import DIVERGED, FINISHED, LABELS, POINT, display, written

PAGE = Path("results/my sweeps/lr_batch/report.html")


def closing(*rows: dict[str, Any], seconds: float = 7, interrupted: bool = False) -> None:
    ended = [Ended(f"id{i}", **row) for i, row in enumerate(rows)]
    show(Outcome(ResultTables(PAGE.parent), 0, interrupted, ended), PAGE, seconds)


# ---------------------------------------------------------------- the closing words


@pytest.mark.parametrize(
    ("seconds", "told"), [(7.2, "7 s"), (150, "2.5 min"), (8000, "2.2 h"), (200_000, "2.3 d")]
)
def test_long_sweeps_are_not_told_in_seconds(
    seconds: float, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    closing({"status": Status.FINISHED}, seconds=seconds)
    assert capsys.readouterr().out.startswith(f"1 finished in {told}.\n")


def test_the_page_comes_last_and_a_path_with_spaces_can_be_pasted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    closing({"status": Status.FINISHED, "wandb": WandbStatus(Where.OFFLINE)}, interrupted=True)
    counts, stopped, upload, page = capsys.readouterr().out.splitlines()
    assert counts == "1 finished in 7 s."
    assert stopped.startswith("Stopped before the end")
    assert upload.endswith("upload with: make sync ARGS='results/my sweeps/lr_batch'")
    assert page == f"Tables, figures and page: {PAGE}"


def test_failures_are_a_line_each_and_never_crowd_out_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    silent = {"status": Status.FAILED, "error": " \n"}
    loud = {"status": Status.FAILED, "error": "Traceback:\n  here\nRuntimeError: no\n"}
    closing(silent, *[loud] * (FAILURES_SHOWN + 4))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "failed: trial id0: without a message",
        "failed: trial id1: RuntimeError: no",
    ]
    assert lines[FAILURES_SHOWN:] == ["and 5 more failed; all of them are on the page"]


def test_a_failure_is_told_to_the_end_of_its_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU()))
    failing = "Traceback (most recent call last):\n  File x\nRuntimeError: it knows no\n"
    text = f"{failing}{net}; choose\n  another\n\nNOTE: of somebody else's\n"
    closing(
        {"status": Status.FAILED, "error": text}, {"status": Status.FAILED, "error": "x" * 2000}
    )
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "failed: trial id0: RuntimeError: it knows no Sequential( (0): Linear(in_features=2, "
        "out_features=3, bias=True) (1): Sequential( (0): ReLU() ) ); choose another"
    )
    assert second.endswith(f"{'x' * LONGEST} ...")


@pytest.mark.parametrize(
    ("lost", "tried_again", "said"),
    [
        (0, 0, []),
        (1, 0, ["Once a trial was lost, and taken up again."]),
        (0, 1, ["Once a trial failed, and was tried again."]),
        (
            2,
            3,
            [
                "2 times a trial was lost, and taken up again.",
                "3 times a trial failed, and was tried again.",
            ],
        ),
    ],
)
def test_lost_and_failed_are_told_apart(
    lost: int, tried_again: int, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Ran(lost=lost, tried_again=tried_again)
    show(Outcome(ResultTables(PAGE.parent), 0, False, ran=ran), PAGE, 7)
    assert capsys.readouterr().out.splitlines()[1:-1] == said


def test_what_kept_runs_from_wandb_is_told_once_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    statuses = [
        None,
        WandbStatus(Where.ONLINE),
        WandbStatus(Where.OFF, "TimeoutError"),
        WandbStatus(Where.OFF, "CommError"),
        WandbStatus(Where.OFF, "CommError"),
        WandbStatus(Where.OFFLINE, "no answer"),
    ]
    closing(*({"status": Status.FINISHED, "wandb": status} for status in statuses))
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "W&B was switched off for some trials: CommError (and 1 like it)",
        "W&B was kept offline for some trials: no answer",
    ]
    assert "W&B runs are offline; upload with: make sync" in out


class Stream:
    """A standard stream into a log."""

    def __init__(self, log: list[str], *, buffered: bool):
        self.log, self.buffered = log, buffered
        self.held: list[str] = []

    def write(self, text: str) -> int:
        self.held.append(text)
        if not self.buffered:
            self.flush()
        return len(text)

    def flush(self) -> None:
        self.log.extend(self.held)
        self.held.clear()


def test_failures_follow_the_counts_in_one_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stdout into a file is buffered and stderr is not."""
    log: list[str] = []
    monkeypatch.setattr(sys, "stdout", Stream(log, buffered=True))
    monkeypatch.setattr(sys, "stderr", Stream(log, buffered=False))
    closing({"status": Status.FAILED, "error": "RuntimeError: no"})
    assert [line.split()[0] for line in "".join(log).splitlines()] == ["1", "failed:", "Tables,"]


# ---------------------------------------------------------------- in a notebook


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As in a Jupyter kernel; what is shown there other than by its text streams."""
    shown: list[Any] = []
    module = ModuleType("IPython.display")
    monkeypatch.setattr(module, "display", lambda *given, **_: shown.extend(given), raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as ipykernel does
    monkeypatch.setenv("TERM", "xterm-color")
    return shown


def test_in_a_notebook_the_display_is_plain_lines_of_its_output(
    notebook: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """On stdout, among the other words: stderr is shown in red, and a display apart."""
    assert Console(stderr=True).is_jupyter
    with progress.Progress(total=2, done=0, title="Figure 6", labels=LABELS) as shown:
        shown.note("W&B: offline")
        for trial_id in ("id0", "id1"):
            shown.started(trial_id)
        for _ in range(100):
            shown.report("id0", [POINT])
        shown.finished("id0", FINISHED)
        shown.finished("id1", DIVERGED)
    out, err = capsys.readouterr()
    assert (notebook, err) == ([], "")
    assert "\x1b" not in out
    lines = out.splitlines()
    assert [line[:12] for line in lines] == ["W&B: offline", "1/2 finished", "2/2 diverged"]
    assert lines[1].endswith("0 s")


def test_elsewhere_the_display_is_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress(total=1, done=0, title="Figure 6", labels=LABELS) as shown:
        shown.finished("id0", FINISHED)
    out, err = capsys.readouterr()
    assert (out, err.split()[:2]) == ("", ["1/1", "finished"])


# ---------------------------------------------------------------- numbers on a line


@pytest.mark.parametrize("width", range(60, 161, 4))
def test_numbers_stand_whole_or_not_at_all(width: int) -> None:
    shown = display(width=width, terminal=True)
    shown.finished("id0", FINISHED)
    (line,) = written(shown).splitlines()
    assert len(line) <= width
    numbers = ["gap 0.0312", "bound 1.23", "loss 0.000123", "123,456 steps", "0 s"]
    said = line.split("  ")[1:]
    assert said
    assert said == numbers[: len(said)]
