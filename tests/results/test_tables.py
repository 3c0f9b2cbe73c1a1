"""The journal survives crashes, retries and full disks; the tables are rebuilt from it."""

import dataclasses
import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results import tables as results
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables, results_folder, row_of, write_tables
from tests.support.journals import add_point, add_steps, series
from tests.support.runs import config

METRICS = {"status": "finished", "steps": 5, "train/loss": 0.5, "stop_reason": "stop_loss"}


def told(journal: Journal, trial_id: str = "a") -> list[tuple[int, Any]]:
    return [(point["step"], point["loss"]) for point in journal.read(trial_id).points]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def path_of(journal: Journal, trial_id: str = "a") -> Path:
    return journal.folder / f"{trial_id}.jsonl"


# ---------------------------------------------------------------- what is written is read


def test_every_kind_of_value_comes_back(journal: Journal) -> None:
    values = {
        "status": "finished",
        "floats": [math.nan, math.inf, -math.inf, 5e-324, 1 / 3, -0.0],
        "others": [None, True, 2**60, [], [[1]]],
        "text": 'two\nlines, "quotes", ρ and \x00; {"kind": "row"}',
    }
    journal.add_row("a", values)
    for found in (journal.read("a").row, journal.read_row("a")):
        assert repr(found) == repr(values)
    assert len(path_of(journal).read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        (np.float64(0.1), 0.1),
        (np.float32(0.5), 0.5),
        (np.int64(2**60), 2**60),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        ((1, np.int32(2)), [1, 2]),
        ({"a": np.float64(1.5), 3: None}, {"a": 1.5, "3": None}),
    ],
)
def test_numpy_scalars_become_plain(journal: Journal, given: Any, plain: Any) -> None:
    add_point(journal, "a", {"step": 1, "v": given})
    (point,) = journal.read("a").points
    assert point == {"step": 1, "v": plain}
    assert type(point["v"]) is type(plain)


def test_steps_come_back_bit_for_bit(journal: Journal) -> None:
    loss = np.array([0.1, math.nan, math.inf, -0.0, 5e-324, 1e308, 1])
    whole = dataclasses.replace(series(7), loss=loss, gradient_factor=-loss)
    add_steps(journal, "a", 0, whole.head(3))
    add_steps(journal, "a", 3, StepSeries.of({k: v[3:] for k, v in whole.columns().items()}))
    steps = journal.read("a").steps.columns()
    assert all(steps[k].tobytes() == v.tobytes() for k, v in whole.columns().items())
    assert all(values.flags.writeable for values in steps.values())


def test_points_steps_and_row_are_kept_apart(journal: Journal) -> None:
    add_steps(journal, "a", 0, series(2))
    add_point(journal, "a", {"step": 2, "loss": 1.0})
    journal.add_row("a", {"status": "diverged"})
    add_point(journal, "b", {"step": 9, "loss": 2.0})
    a, b = journal.read("a"), journal.read("b")
    assert (a.points, len(a.steps)) == ([{"step": 2, "loss": 1.0}], 2)
    assert a.row == {"status": "diverged"}
    assert (b.points, len(b.steps), b.row) == ([{"step": 9, "loss": 2.0}], 0, None)
    nothing = journal.read("c")
    assert (nothing.points, len(nothing.steps), nothing.row) == ([], 0, None)
    assert journal.read_row("b") is journal.read_row("c") is None
    assert journal.trial_ids() == ["a", "b"]


# ---------------------------------------------------------------- crashes, retries, resumes


def test_a_torn_line_is_dropped_on_read_and_cut_on_append(journal: Journal) -> None:
    add_point(journal, "a", {"step": 1, "loss": 1.0})
    intact = path_of(journal).read_bytes()
    add_point(journal, "a", {"step": 2, "loss": 2.0})
    whole = path_of(journal).read_bytes()
    for length in range(len(intact), len(whole)):  # a crash after every byte of the second line
        path_of(journal).write_bytes(whole[:length])
        assert told(journal) == [(1, 1.0)]
        assert journal.read_row("a") is None
        add_point(journal, "a", {"step": 3, "loss": 3.0})
        assert told(journal) == [(1, 1.0), (3, 3.0)]
        assert path_of(journal).read_bytes().startswith(intact + b'{"crc32"')
    path_of(journal).write_bytes(intact[:5])  # the very first line
    assert told(journal) == []
    add_point(journal, "a", {"step": 3, "loss": 3.0})
    assert told(journal) == [(3, 3.0)]


def test_a_torn_row_is_no_row(journal: Journal) -> None:
    journal.add_row("a", {"status": "failed"})
    journal.add_row("a", {"status": "finished"})
    path_of(journal).write_bytes(path_of(journal).read_bytes()[:-1])
    assert journal.read_row("a") == journal.read("a").row == {"status": "failed"}


def test_a_resumed_trial_counts_once_and_the_later_wins(journal: Journal) -> None:
    add_steps(journal, "a", 0, series(3))
    add_point(journal, "a", {"step": 3, "loss": 0.3})
    add_steps(journal, "a", 3, series(3, start=50))
    add_point(journal, "a", {"step": 6, "loss": 0.6})
    # Back to a checkpoint at step 4, and differently from there on.
    add_steps(journal, "a", 4, series(2, start=100))
    add_point(journal, "a", {"step": 6, "loss": 66.0})
    record = journal.read("a")
    rates = record.steps.learning_rate.tolist()
    assert rates == [0, 1, 2, 50, 100, 101]
    assert told(journal) == [(3, 0.3), (6, 66.0)]


def test_a_trial_begun_anew_forgets_the_first_attempt(journal: Journal) -> None:
    add_steps(journal, "a", 0, series(9))
    add_point(journal, "a", {"step": 9, "loss": 0.9})
    journal.add_row("a", {"status": "failed", "error": "lost"})
    add_steps(journal, "a", 0, series(4, start=100))
    add_point(journal, "a", {"step": 4, "loss": 44.0})
    record = journal.read("a")
    assert told(journal) == [(4, 44.0)]
    assert record.steps.learning_rate.tolist() == [100, 101, 102, 103]
    assert record.row == {"status": "failed", "error": "lost"}
    journal.add_row("a", {"status": "finished"})
    assert journal.read("a").row == journal.read_row("a") == {"status": "finished"}


def test_steps_that_nobody_told_are_nan_not_shifted(journal: Journal) -> None:
    add_steps(journal, "a", 0, series(2))
    add_steps(journal, "a", 4, series(1, start=100))
    rates = journal.read("a").steps.learning_rate
    assert np.array_equal(rates, [0, 1, math.nan, math.nan, 100], equal_nan=True)


def test_reading_a_row_decodes_no_steps(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    add_steps(journal, "a", 0, series(3))
    add_point(journal, "a", {"step": 3, "note": '"kind": "row"'})
    journal.add_row("a", {"status": "finished"})
    loads, seen = json.loads, []
    monkeypatch.setattr(json, "loads", lambda text: seen.append(text) or loads(text))
    assert journal.read_row("a") == {"status": "finished"}
    assert len(seen) == 1


def no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_on_a_full_disk(path: Path, mode: str, **options: Any) -> Any:
    """A file that takes half of what is written to it."""
    file: Any = open(path, mode, **options)  # noqa: SIM115
    whole = file.write

    def write(text: bytes) -> None:
        whole(text[: len(text) // 2])
        file.flush()
        no_space()

    file.write = write
    return file


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_is_told_and_costs_at_most_the_line(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    add_steps(journal, "a", 0, series(3))
    add_point(journal, "a", {"step": 3, "loss": 0.3})
    with monkeypatch.context() as full:
        if where == "fsync":
            full.setattr(os, "fsync", no_space)
        else:
            full.setattr("gisgd_ray.results.journal.open", open_on_a_full_disk, raising=False)
        with pytest.raises(OSError, match="No space left"):
            add_point(journal, "a", {"step": 6, "loss": 0.6})
    assert told(journal)[0] == (3, 0.3)
    assert len(journal.read("a").steps) == 3
    add_point(journal, "a", {"step": 9, "loss": 0.9})
    assert told(journal) == [(3, 0.3), *([(6, 0.6)] if where == "fsync" else []), (9, 0.9)]


def test_every_line_is_on_disk_when_it_is_told(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda number: sizes.append(os.fstat(number).st_size))
    add_point(journal, "a", {"step": 1})
    journal.add_row("a", {"status": "finished"})
    lines = path_of(journal).read_bytes().splitlines(keepends=True)
    assert sizes == np.cumsum([len(line) for line in lines]).tolist()


def test_five_hundred_trials_are_read_in_two_seconds(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    add_steps(journal, "0", 0, series(200))
    for step in range(10):
        add_point(journal, "0", {"step": 20 * step, "loss": 1.0})
    journal.add_row("0", row_of(TrialConfig(), METRICS))
    content = path_of(journal, "0").read_bytes()
    for number in range(1, 500):
        path_of(journal, str(number)).write_bytes(content)
    begun = time.perf_counter()
    records = [journal.read(trial_id) for trial_id in journal.trial_ids()]
    rows = [journal.read_row(trial_id) for trial_id in journal.trial_ids()]
    assert time.perf_counter() - begun < 2  # 0.2 s here
    assert len(records) == len(rows) == 500
    assert all(len(r.steps) == 200 and len(r.points) == 10 and r.row for r in records)


# ---------------------------------------------------------------- the tables


def filled(folder: Path) -> list[TrialConfig]:
    """Five trials: finished, diverged, failed, running and not begun."""
    trials = [TrialConfig(seed=seed) for seed in range(5)]
    journal = Journal(folder)
    for seed, status in enumerate(("finished", "diverged", "failed", None)):
        config = trials[seed]
        for step in (2, 4):
            add_steps(journal, config.trial_id, step - 2, series(2, start=step))
            add_point(journal, config.trial_id, {"step": step, "train/loss": step + seed / 10})
        metrics = {**METRICS, "status": status}
        if status == "failed":
            metrics = {"status": "failed", "error": "CUDA out of memory"}
        if status is not None:
            journal.add_row(config.trial_id, row_of(config, metrics))
    return trials


def test_tables_of_a_sweep(tmp_path: Path) -> None:
    trials = filled(tmp_path)
    tables = write_tables(tmp_path, trials)
    table = tables.trials
    assert table["status"].tolist() == ["finished", "diverged", "failed"]
    assert table["trial_id"].tolist() == [t.trial_id for t in trials[:3]]
    assert table["seed"].tolist() == [0, 1, 2]
    has_values = set(table.columns[table.notna().any()])
    settings = {k for k, v in TrialConfig().flat().items() if v is not None}
    assert has_values == {"trial_id", "settings", *METRICS, "error", *settings}
    assert table["measurement.noise_stds"].tolist()[0].tolist() == [1e-2, 1e-4, 1e-6]
    assert table["training.max_steps"].isna().all()
    assert table["train/loss"].isna().tolist() == [False, False, True]
    assert table["error"].tolist()[2] == "CUDA out of memory"
    history = tables.history
    assert list(history) == ["trial_id", "step", "train/loss"]
    assert history["step"].tolist() == [2, 4] * 4
    assert history["trial_id"].tolist() == [t.trial_id for t in trials[:4] for _ in range(2)]
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"journal", "steps", "history.parquet", "trials.parquet"}
    others = write_tables(tmp_path, [trials[1], trials[0]])  # asked for now; the rest was earlier
    assert others.trials["seed"].tolist() == [1, 0, 2]
    assert set(others.history["trial_id"]) == {t.trial_id for t in trials[:3]}


@pytest.mark.parametrize("line", [0, 1, -1])
def test_a_damaged_line_is_named(tmp_path: Path, line: int) -> None:
    trials = filled(tmp_path)
    path = tmp_path / "journal" / f"{trials[0].trial_id}.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    number = range(1, len(lines) + 1)[line]
    lines[line] = b'{"kind": "row", \xff\xff\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=f"line {number} of {path} is damaged; delete that file"):
        write_tables(tmp_path, trials)


def test_tables_are_rebuilt_equal(tmp_path: Path) -> None:
    trials = filled(tmp_path)

    def rebuilt() -> list[pd.DataFrame]:
        tables = write_tables(tmp_path, trials)
        return [tables.trials, tables.history, tables.steps(trials[0].trial_id)]

    first = rebuilt()
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    for before, after in zip(first, rebuilt(), strict=True):
        pd.testing.assert_frame_equal(before, after)


def test_step_table(tmp_path: Path) -> None:
    trials = filled(tmp_path)
    steps = write_tables(tmp_path, trials).steps(trials[1].trial_id)
    derived = ["gradient_dispersion", "gradient_dispersion_neu", "per_sample_dispersion"]
    assert list(steps) == ["step", *StepSeries.empty().columns(), *derived]
    assert steps[["step", "learning_rate"]].to_numpy().T.tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert steps["per_sample_dispersion"].tolist() == pytest.approx([20 / 19 * 3] * 4)
    assert steps["gradient_dispersion_neu"].tolist() == pytest.approx([3 / 19] * 4)
    assert steps["gradient_dispersion"].equals(steps["replica_dispersion"])
    assert not results.steps_path(tmp_path, trials[3].trial_id).exists()  # still running


def test_step_table_of_an_earlier_attempt_is_replaced(tmp_path: Path) -> None:
    trials = filled(tmp_path)
    path = results.steps_path(tmp_path, trials[2].trial_id)
    write_tables(tmp_path, trials)
    unchanged = path.stat().st_mtime_ns
    write_tables(tmp_path, trials)
    assert path.stat().st_mtime_ns == unchanged
    os.utime(path, (1, 1))
    add_steps(Journal(tmp_path), trials[2].trial_id, 4, series(3))
    Journal(tmp_path).add_row(trials[2].trial_id, row_of(trials[2], METRICS))
    tables = write_tables(tmp_path, trials)
    assert len(tables.steps(trials[2].trial_id)) == 7
    assert tables.trials["status"].tolist() == ["finished", "diverged", "finished"]


def test_a_table_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = filled(tmp_path)
    tables = write_tables(tmp_path, trials[:1])
    before = tables.trials
    seen: list[pd.DataFrame] = []

    def broken(_: object, file: BinaryIO, **__: object) -> None:
        file.write(b"PAR1 half a table")
        file.flush()
        seen.append(tables.trials)
        no_space()

    with monkeypatch.context() as full:
        full.setattr(results.parquet, "write_table", broken)
        with pytest.raises(OSError, match="No space left"):
            write_tables(tmp_path, trials[:1])
    for frame in (*seen, tables.trials):
        pd.testing.assert_frame_equal(frame, before)
    assert (len(seen), list(tmp_path.rglob("*.partial"))) == (1, [])


def test_tables_that_are_not_there(tmp_path: Path) -> None:
    tables = ResultTables(tmp_path)
    for name, read in (
        ("trials.parquet", lambda: tables.trials),
        ("history.parquet", lambda: tables.history),
        ("steps/x.parquet", lambda: tables.steps("x")),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{tmp_path / name} does not exist; run the sweep first"


# ---------------------------------------------------------------- the folder


def test_a_results_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert results_folder(Path("a/b")) == tmp_path / "a" / "b"
    assert results_folder(Path("~/c")) == tmp_path / "home" / "c"
    assert results_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize(("name", "reason"), [("f", "File exists"), ("f/x", "Not a directory")])
def test_a_folder_that_cannot_be_made(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError) as caught:
        results_folder(tmp_path / name)
    assert str(caught.value) == (
        f"output folder {tmp_path / name} cannot be written ({reason}); choose another with --out"
    )


def test_a_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", no_space)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        results_folder(tmp_path)


def test_a_measure_that_is_a_word_in_one_trial_and_a_number_in_another_is_kept_as_words(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path)
    for seed, value in enumerate(("flat", 3.5, None)):
        trial = config({"seed": seed})
        journal.add_row(trial.trial_id, row_of(trial, {"status": "finished", "mine": value}))
    tables = write_tables(tmp_path, [config({"seed": seed}) for seed in range(3)])
    assert tables.trials["mine"].fillna("-").tolist() == ["flat", "3.5", "-"]


def test_a_table_that_somebody_wrote_beside_a_journal_is_made_again(tmp_path: Path) -> None:
    trial = config()
    Journal(tmp_path).add_row(trial.trial_id, row_of(trial, {"status": "finished", "mine": 1.0}))
    write_tables(tmp_path, [trial])
    path = tmp_path / "trials.parquet"
    pd.read_parquet(path).assign(mine=2.0).to_parquet(path)
    assert ResultTables(tmp_path).trials["mine"].tolist() == [1.0]
