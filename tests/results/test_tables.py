"""The tables are rebuilt from the journal, each as a whole, into a folder that can be written."""

import os
from pathlib import Path
from typing import BinaryIO

import pandas as pd
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results import tables as results
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import (
    ResultTables,
    results_folder,
    row_of,
    varying_fields,
    write_tables,
)
from tests.results.test_journal import no_space
from tests.support.journals import add_point, add_steps, series
from tests.support.runs import config

METRICS = {"status": "finished", "steps": 5, "train/loss": 0.5, "stop_reason": "stop_loss"}


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


def test_a_field_newer_than_a_row_had_its_default_there(tmp_path: Path) -> None:
    """Else one configuration would be two panels, and its seeds apart."""
    old, new = TrialConfig(seed=0), TrialConfig(seed=1)
    assert old.training.momentum == 0
    written = row_of(old, METRICS)
    del written["training.momentum"]
    journal = Journal(tmp_path)
    journal.add_row(old.trial_id, written)
    journal.add_row(new.trial_id, row_of(new, METRICS))
    trials = write_tables(tmp_path, [old, new]).trials
    assert trials["training.momentum"].tolist() == [0, 0]
    assert varying_fields(trials, besides=["seed"]) == []


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
