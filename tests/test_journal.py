"""Reports that take the place of all before, and journals taken from elsewhere."""

import os
from pathlib import Path

import numpy as np
import pytest

from gisgd_ray.config import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.journal import Journal
from gisgd_ray.results import ResultTables, reuse, row_of, write_steps, write_tables
from tests.journals import add_point, add_steps, series

METRICS = {"status": "finished", "steps": 4}


def told_again(journal: Journal, steps: int) -> None:
    """What a trial that goes on from a checkpoint after so many steps reports first."""
    points = [{"step": step} for step in range(0, steps + 1, 2)]
    journal.add_report("a", first_step=0, steps=series(steps), points=points, whole=True)


class TestWholeReports:
    def test_what_was_told_before_is_told_once(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        add_steps(journal, "a", 0, series(3, start=100.0))
        add_point(journal, "a", {"step": 3})
        told_again(journal, 4)
        first = journal.size("a")
        assert [point["step"] for point in journal.read("a").points] == [0, 2, 4]
        np.testing.assert_array_equal(journal.read("a").steps.loss, series(4).loss)
        for _ in range(5):  # lost again and again: the journal does not grow
            told_again(journal, 4)
        assert journal.size("a") == first
        add_steps(journal, "a", 4, series(2, start=9.0))
        assert len(journal.read("a").steps) == 6

    def test_a_crash_on_the_way_leaves_what_there_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal = Journal(tmp_path)
        add_steps(journal, "a", 0, series(3))

        def full(_: int) -> None:
            raise OSError("No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                told_again(journal, 4)
        assert len(journal.read("a").steps) == 3
        assert [path.name for path in journal.folder.iterdir()] == ["a.jsonl"]

    def test_steps_are_left_out_where_they_are_not_wanted(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path)
        told_again(journal, 4)
        record = journal.read("a", with_steps=False)
        assert (len(record.steps), len(record.points)) == (0, 3)


class TestStepTables:
    """A table is known to be up to date by the size of the journal it was made from."""

    def test_a_newer_journal_is_seen_whatever_the_clocks_say(self, tmp_path: Path) -> None:
        trial = TrialConfig()
        journal = Journal(tmp_path)
        add_steps(journal, trial.trial_id, 0, series(4))
        journal.add_row(trial.trial_id, row_of(trial, METRICS))
        write_steps(tmp_path, journal, trial.trial_id)
        path = tmp_path / "steps" / f"{trial.trial_id}.parquet"
        add_steps(journal, trial.trial_id, 4, series(3))
        journal.add_row(trial.trial_id, row_of(trial, {**METRICS, "steps": 7}))
        in_an_hour = path.stat().st_mtime + 3600
        os.utime(path, (in_an_hour, in_an_hour))  # from a machine whose clock is ahead
        assert len(write_tables(tmp_path, [trial]).steps(trial.trial_id)) == 7

    @pytest.mark.parametrize("name", ["trials.parquet", "history.parquet", "steps/{}.parquet"])
    def test_half_a_table_is_made_again(self, tmp_path: Path, name: str) -> None:
        trial = TrialConfig()
        journal = Journal(tmp_path)
        add_steps(journal, trial.trial_id, 0, series(4))
        add_point(journal, trial.trial_id, {"step": 4})
        journal.add_row(trial.trial_id, row_of(trial, METRICS))
        tables = write_tables(tmp_path, [trial])
        path = tmp_path / name.format(trial.trial_id)
        for damaged in (path.read_bytes()[:-20], b""):
            path.write_bytes(damaged)
            assert len(tables.trials) == len(tables.history) == 1
            assert len(tables.steps(trial.trial_id)) == 4
        for left in journal.folder.iterdir():
            left.unlink()
        path.write_bytes(b"PAR1")
        with pytest.raises(UserError, match="cut off or damaged, and there is no journal"):
            ResultTables(tmp_path)._read(path.relative_to(tmp_path).as_posix())


class TestReuse:
    def folder_of(self, folder: Path, **statuses: str) -> list[TrialConfig]:
        """A folder with trials of these statuses, their seeds counting from 0."""
        journal = Journal(folder)
        trials = [TrialConfig(seed=seed) for seed in range(len(statuses))]
        for trial, status in zip(trials, statuses.values(), strict=True):
            add_steps(journal, trial.trial_id, 0, series(2))
            if status != "running":
                journal.add_row(trial.trial_id, row_of(trial, {"status": status}))
        return trials

    def test_what_has_ended_elsewhere_is_taken_to_the_byte(self, tmp_path: Path) -> None:
        trials = self.folder_of(
            tmp_path / "theirs", a="finished", b="diverged", c="failed", d="running"
        )
        theirs, mine = Journal(tmp_path / "theirs"), Journal(tmp_path / "mine")
        assert reuse(tmp_path / "mine", trials, [tmp_path / "theirs"]) == 2
        assert mine.trial_ids() == sorted(t.trial_id for t in trials[:2])
        for trial in trials[:2]:
            paths = [j.folder / f"{trial.trial_id}.jsonl" for j in (mine, theirs)]
            assert paths[0].read_bytes() == paths[1].read_bytes()
        assert reuse(tmp_path / "mine", trials, [tmp_path / "theirs"]) == 0

    def test_what_is_here_already_stays(self, tmp_path: Path) -> None:
        trials = self.folder_of(tmp_path / "theirs", a="finished", b="finished")
        mine = Journal(tmp_path / "mine")
        mine.add_row(trials[0].trial_id, row_of(trials[0], {"status": "finished", "mine": 1}))
        mine.add_row(trials[1].trial_id, row_of(trials[1], {"status": "failed"}))
        assert reuse(tmp_path / "mine", trials, [tmp_path / "theirs"]) == 1
        kept = mine.read_row(trials[0].trial_id)
        assert kept is not None
        assert kept["mine"] == 1
        taken = mine.read_row(trials[1].trial_id)
        assert taken is not None
        assert taken["status"] == "finished"

    def test_only_what_is_asked_for(self, tmp_path: Path) -> None:
        trials = self.folder_of(tmp_path / "theirs", a="finished", b="finished")
        assert reuse(tmp_path / "mine", trials[1:], [tmp_path / "theirs"]) == 1

    def test_a_folder_without_results_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds no results"):
            reuse(tmp_path / "mine", [TrialConfig()], [tmp_path])
