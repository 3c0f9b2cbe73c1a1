"""The live display at narrow and wide terminals, and the plain lines where there is none."""

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.runner.progress import MAX_RUNNING_SHOWN, Progress, setting_label

LABELS = {
    f"id{i}": f"dataset=mnist5k name=mlp learning_rate=0.{i:02} batch_size={20 * i + 20} "
    f"label_noise=0.25 initialization=xavier seed={i}"
    for i in range(30)
}
POINT = {"step": 123_456, "train/loss": 1.23456e-4, "gap/loss": -0.0123456}
FINISHED = {
    "status": "finished",
    "steps": 123_456,
    "train/loss": 1.23456e-4,
    "gap/loss": 0.031234,
    "bound/theorem2_closed_form": 1.23456,
}
DIVERGED = {"status": "diverged", "stop_reason": "batch loss 1.2e+05 at step 12"}
FAILED = {"status": "failed", "error": "Traceback:\n  here\nRuntimeError: CUDA out [of] memory\n"}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the time that the display sees, in seconds since its begin."""
    now = [1000.0]
    monkeypatch.setattr("gisgd_ray.runner.progress.time.monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = 1000.0 + seconds

    return at


def display(*, width: int = 80, terminal: bool = False, **given: Any) -> Progress:
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)
    settings: dict[str, Any] = {
        "total": 40,
        "done": 0,
        "title": "Figure 6",
        "labels": LABELS,
    } | given
    return Progress(**settings, console=console)


def written(progress: Progress) -> str:
    file = progress.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def shown(progress: Progress, width: int) -> list[str]:
    """The lines of the display, drawn once."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(progress.render())
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def busy(width: int = 80) -> Progress:
    """Five from before, one of each end, fifteen running of which two have reported."""
    progress = display(width=width, done=5)
    for i in range(18):
        progress.started(f"id{i}")
    progress.report("id0", [{"step": 1, "train/loss": 9.0, "gap/loss": 9.0}, POINT])
    progress.report("id1", [POINT | {"step": 12, "train/loss": float("nan")}])
    for trial_id, row in (("id2", FINISHED), ("id3", DIVERGED), ("id4", FAILED)):
        progress.finished(trial_id, row)
    return progress


# ---------------------------------------------------------------- the table


def test_the_numbers_show_on_a_narrow_terminal() -> None:
    """Long labels are cut, not wrapped, and never at the price of the numbers."""
    lines = shown(busy(), 80)
    header, first, second, third = lines[2:6]
    assert header.split() == ["running", "step", "train", "loss", "gap"]
    assert first.endswith("…   123,456    0.000123  -0.0123")
    assert second.split()[-3:] == ["12", "nan", "-0.0123"]
    assert third.endswith("…  starting")
    assert first.startswith("dataset=mnist5k name=mlp learning_rate=0.00 ba")
    assert len(lines) == 3 + MAX_RUNNING_SHOWN + 1
    assert lines[-1] == "and 3 more"


def test_labels_are_whole_on_a_wide_terminal() -> None:
    lines = shown(busy(), 200)
    assert lines[3].startswith(LABELS["id0"] + "  ")
    assert "…" not in "".join(lines)
    assert len(lines) == 3 + MAX_RUNNING_SHOWN + 1


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_nothing_wraps(width: int) -> None:
    assert len(shown(busy(), width)) == 3 + MAX_RUNNING_SHOWN + 1


def test_counts_are_shown() -> None:
    head, details = shown(busy(), 80)[:2]
    assert re.fullmatch(r"Figure 6 ━+╸? +8/40 done, about 0:00:00 left", head)
    assert details == "1 diverged, 1 failed, 5 from before, 0:00:00 so far"


def test_at_the_beginning_and_at_the_end(clock: Callable[[float], None]) -> None:
    progress = display(total=2)
    assert [line.split("  ")[-1].strip() for line in shown(progress, 80)] == [
        "0/2 done",
        "waiting for the first trial to start, 0:00:00 so far",
    ]
    clock(3723)
    progress.finished("id0", FINISHED)
    progress.finished("id1", FINISHED)
    head, details = shown(progress, 80)
    assert head.endswith("2/2 done")
    assert details == "1:02:03 so far"


def test_an_unlabelled_trial_goes_by_its_id() -> None:
    progress = display(labels={})
    progress.started("0123456789ab")
    assert shown(progress, 80)[-1].split() == ["0123456789ab", "starting"]


def test_reports_of_unknown_trials_and_empty_reports_change_nothing() -> None:
    progress = display()
    progress.report("id0", [POINT])
    progress.started("id0")
    progress.report("id0", [])
    assert shown(progress, 80)[-1].endswith("starting")


# ---------------------------------------------------------------- the time left


@pytest.mark.parametrize(
    ("ended", "running", "reused", "left"),
    [
        (1, 0, 0, "0:15:00"),  # 100 s a trial, 9 to go
        (5, 0, 0, "0:01:40"),
        (4, 2, 0, "0:01:40"),  # those running are half done
        (4, 2, 2, "0:01:00"),  # those from before took no time
        (9, 1, 0, "0:00:05"),
    ],
)
def test_time_left(
    clock: Callable[[float], None], ended: int, running: int, reused: int, left: str
) -> None:
    progress = display(total=10, done=reused)
    for i in range(ended + running):
        progress.started(f"id{i}")
    clock(100)
    for i in range(ended):
        progress.finished(f"id{i}", FINISHED)
    assert shown(progress, 100)[0].endswith(f"{ended + reused}/10 done, about {left} left")


def test_no_time_left_is_told_before_the_first_end(clock: Callable[[float], None]) -> None:
    progress = display(total=10, done=4)
    progress.started("id0")
    clock(1000)
    head, details = shown(progress, 80)[:2]
    assert head.endswith("4/10 done")
    assert details == "4 from before, 0:16:40 so far"


# ---------------------------------------------------------------- lines of trials that ended


def test_without_a_terminal_each_trial_is_one_plain_line(clock: Callable[[float], None]) -> None:
    with display(total=12, done=8, width=40) as progress:
        for i in range(4):
            progress.started(f"id{i}")
        progress.report("id0", [POINT])
        clock(12.4)
        progress.finished("id0", FINISHED)
        progress.finished("id1", DIVERGED)
        progress.finished("id2", FAILED)
    text = written(progress)
    assert "\x1b" not in text
    assert text.splitlines() == [
        f" 9/12 finished {LABELS['id0']}  gap 0.0312  bound 1.23  loss 0.000123  123,456 steps  "
        "12 s",
        f"10/12 diverged {LABELS['id1']}  batch loss 1.2e+05 at step 12  12 s",
        f"11/12 failed   {LABELS['id2']}  RuntimeError: CUDA out [of] memory",
    ]


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_each_trial_is_one_line_that_fits(width: int) -> None:
    progress = display(width=width, terminal=True)
    for trial_id, row in (("id0", FINISHED), ("id1", DIVERGED), ("id2", FAILED)):
        progress.finished(trial_id, row)
    lines = written(progress).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert [line.split()[:2] for line in lines] == [
        ["1/40", "finished"],
        ["2/40", "diverged"],
        ["3/40", "failed"],
    ]
    if width == 80:
        cut = "dataset=mnist5k name=mlp learning_rate=…  "
        assert lines[0][15:] == cut + "gap 0.0312  bound 1.23"  # no number is cut
        assert lines[1][15:] == cut + "batch loss 1.2e+05 at …"
        assert lines[2][15:] == cut + "RuntimeError: CUDA out…"
    else:
        assert lines[0].endswith("123,456 steps  0 s")
        assert lines[2].endswith("RuntimeError: CUDA out [of] memory")


@pytest.mark.parametrize("error", ["", " \n ", "\n"])
def test_a_failure_without_words(error: str) -> None:
    progress = display()
    progress.finished("id0", {"status": "failed", "error": error})
    assert written(progress) == f" 1/40 failed   {LABELS['id0']}  without a message\n"


def test_a_trial_that_ends_before_it_was_seen_to_start() -> None:
    progress = display()
    progress.finished("id0", DIVERGED)
    assert written(progress).endswith(f"{LABELS['id0']}  batch loss 1.2e+05 at step 12  0 s\n")
    assert progress.counts == {"finished": 0, "diverged": 1, "failed": 0}


def test_a_row_that_is_all_nan() -> None:
    progress = display()
    numbers = dict.fromkeys(("train/loss", "gap/loss", "bound/theorem2_closed_form"), float("nan"))
    progress.finished("id0", FINISHED | numbers)
    assert "gap nan  bound nan  loss nan" in written(progress)


def test_the_live_display_ends_with_its_last_state() -> None:
    with display(total=3, terminal=True, width=80) as progress:
        progress.started("id0")
        progress.started("id1")
        progress.finished("id0", FINISHED)
        progress.report("id1", [POINT])
    last = written(progress).split("\x1b[?25h")[0].splitlines()[-1]
    assert "123,456    0.000123  -0.0123" in last
    assert "1/3 finished" in written(progress)


def test_the_live_display_is_left_when_the_sweep_breaks() -> None:
    progress = display(terminal=True)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert written(progress).endswith("\x1b[?25h")  # the cursor is back


# ---------------------------------------------------------------- labels


def test_a_label_is_the_fields_in_which_trials_differ() -> None:
    config = TrialConfig.model_validate(
        {"training": {"learning_rate": 1e-3, "lr_milestones": [5, 9]}, "seed": 2}
    )
    swept = ["training.learning_rate", "training.batch_size", "training.lr_milestones"]
    assert setting_label(config, swept) == (
        "learning_rate=0.001 batch_size=60 lr_milestones=[5, 9] seed=2"
    )
    assert setting_label(config, []) == "seed=2"
    assert setting_label(config, ["seed", "model.name", "model.name"]) == "seed=2 model=mlp"
    names = ["scheme.name", "scheme.rho", "model.name"]  # two sections have a name
    assert setting_label(config, names) == "scheme=sgd model=mlp seed=2"
    assert setting_label(config, ["model.filters"]) == "seed=2"  # another panel's field


def test_a_label_names_an_optional_section_by_its_fields() -> None:
    path = "measurement.hessian_schedule"
    off = TrialConfig()
    on = TrialConfig.model_validate({"measurement": {"hessian_schedule": {"every": 3}}})
    assert setting_label(off, [path]) == "hessian_schedule=None seed=0"
    assert setting_label(on, [path]) == "every=3 unit=epoch seed=0"
