"""The journal survives crashes, retries and full disks; what is damaged is told."""

import base64
import binascii
import dataclasses
import errno
import json
import math
import os
import random
import shutil
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results.journal import MOST_STEPS, Journal, extent
from gisgd_ray.results.tables import ResultTables, reuse, row_of, write_steps, write_tables
from tests.support.journals import add_point, add_steps, series

METRICS = {"status": "finished", "steps": 4}
OLD = Path(__file__).parents[1] / "support" / "journal" / "84637dcd552e.jsonl"
"""A trial's journal as it was before lines had checksums, to its end."""


def points_of(journal: Journal, trial_id: str = "a") -> list[tuple[int, Any]]:
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
    add_steps(journal, "a", 3, StepSeries(**{k: v[3:] for k, v in whole.columns().items()}))
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
        assert points_of(journal) == [(1, 1.0)]
        assert journal.read_row("a") is None
        add_point(journal, "a", {"step": 3, "loss": 3.0})
        assert points_of(journal) == [(1, 1.0), (3, 3.0)]
        assert path_of(journal).read_bytes().startswith(intact + b'{"crc32"')
    path_of(journal).write_bytes(intact[:5])  # the very first line
    assert points_of(journal) == []
    add_point(journal, "a", {"step": 3, "loss": 3.0})
    assert points_of(journal) == [(3, 3.0)]


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
    assert points_of(journal) == [(3, 0.3), (6, 66.0)]


def test_a_trial_begun_anew_forgets_the_first_attempt(journal: Journal) -> None:
    add_steps(journal, "a", 0, series(9))
    add_point(journal, "a", {"step": 9, "loss": 0.9})
    journal.add_row("a", {"status": "failed", "error": "lost"})
    add_steps(journal, "a", 0, series(4, start=100))
    add_point(journal, "a", {"step": 4, "loss": 44.0})
    record = journal.read("a")
    assert points_of(journal) == [(4, 44.0)]
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
    assert points_of(journal)[0] == (3, 0.3)
    assert len(journal.read("a").steps) == 3
    add_point(journal, "a", {"step": 9, "loss": 0.9})
    assert points_of(journal) == [(3, 0.3), *([(6, 0.6)] if where == "fsync" else []), (9, 0.9)]


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


# ---------------------------------------------------------------- reports that replace, damage


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
        whole, trials = path.read_bytes(), tables.trials
        changed = [
            whole.replace(b"trial_id", b"trial_ie"),
            whole.replace(b"learning_", b"learning-"),
        ]
        changed += [whole[:20] + bytes([whole[20] ^ 64]) + whole[21:]]
        for damaged in (whole[:-20], b"", *changed):
            path.write_bytes(damaged)
            before = [(p, p.read_bytes()) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
            pd.testing.assert_frame_equal(tables.trials, trials)
            assert len(tables.history) == 1
            assert list(tables.history)[:2] == ["trial_id", "step"]
            assert len(tables.steps(trial.trial_id)) == 4
            assert "learning_rate" in tables.steps(trial.trial_id)
            # Whoever reads a folder need not be allowed to write into it.
            now = [(p, p.read_bytes()) for p in sorted(tmp_path.rglob("*")) if p.is_file()]
            assert now == before
        for left in journal.folder.iterdir():
            left.unlink()
        path.write_bytes(whole)
        pd.testing.assert_frame_equal(tables.trials, trials)  # needs no journal
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
        for folder in (tmp_path, tmp_path / ("x" * 300)):
            with pytest.raises(UserError, match="holds no results"):
                reuse(tmp_path / "mine", [TrialConfig()], [folder])


def filled(folder: Path) -> Journal:
    """Two reports and the row of a trial ``a``."""
    journal = Journal(folder)
    for after in (0, 3):
        points = [{"step": after + 3, "train/loss": 1 / 3, "note": "none"}]
        journal.add_report("a", first_step=after, steps=series(3), points=points)
    journal.add_row("a", {"trial_id": "a", "status": "finished", "train/loss": 0.123456789})
    return journal


def all_of(journal: Journal) -> str:
    record = journal.read("a")
    steps = {name: column.tolist() for name, column in record.steps.columns().items()}
    return repr((record.points, record.row, steps, journal.read_row("a"), journal.trial_ids()))


def put(folder: Path, *lines: dict[str, Any], checked: bool = True) -> Journal:
    """A journal of lines that nobody has written so."""
    journal, content = Journal(folder), b""
    for line in lines:
        text = json.dumps(line).encode()
        head = b'{"crc32": "%08x", ' % binascii.crc32(text[1:])
        content += (head + text[1:] if checked else text) + b"\n"
    journal.folder.mkdir(parents=True)
    journal.path("a").write_bytes(content)
    return journal


class TestDamage:
    """Every line carries a checksum."""

    def test_any_bit_that_turns_is_told(self, tmp_path: Path) -> None:
        journal = filled(tmp_path)
        path, whole, expected = journal.path("a"), journal.path("a").read_bytes(), all_of(journal)
        newlines = [i for i, byte in enumerate(whole) if byte == ord("\n")]
        heads = [i + k for i in (-1, newlines[-2]) for k in range(1, 32)]
        draws = random.Random(0).sample(range(len(whole)), 60)
        for place in [*newlines, *heads, *draws]:
            for bit in range(8):
                turned = bytearray(whole)
                turned[place] ^= 1 << bit
                path.write_bytes(turned)
                for read in (all_of, lambda j: j.read_row("a")):
                    with pytest.raises(UserError) as caught:
                        read(journal)
                number = 1 + sum(newline < place for newline in newlines)
                assert f"line {number} of {path} is damaged; delete that file" in str(caught.value)
                ended, step = extent(bytes(turned))
                assert (ended, step) <= (True, 6)
                assert not ended  # the row is the last line
        path.write_bytes(whole)
        assert all_of(journal) == expected
        assert extent(whole) == (True, 6)

    def test_a_row_whose_newline_has_turned_is_not_taken_for_a_torn_one(
        self, tmp_path: Path
    ) -> None:
        journal = filled(tmp_path)
        path = journal.path("a")
        turned = path.read_bytes()[:-1] + b"\x0b"
        path.write_bytes(turned)
        with pytest.raises(UserError, match=r"line 5 of .* is damaged"):
            add_point(journal, "a", {"step": 9})
        assert path.read_bytes() == turned

    def test_lines_stay_json_that_can_be_searched(self, tmp_path: Path) -> None:
        lines = filled(tmp_path).path("a").read_text().splitlines()
        kinds = [json.loads(line)["kind"] for line in lines]
        assert kinds == ["steps", "point", "steps", "point", "row"]
        assert '"kind": "row", "trial_id": "a", "status": "finished"' in lines[-1]

    @pytest.mark.parametrize(
        "line",
        [
            {"kind": "point", "step": "4"},
            {"kind": "point", "step": -1},
            {"kind": "point"},
            {"kind": "row"},
            {"kind": "row", "status": None},
            {"kind": "steps", "after": "0", "columns": {}},
            {"kind": "steps", "after": 0, "columns": {}},
            {"kind": "steps", "after": 0, "columns": {"learning_rate": 5}},
            {"kind": "steps", "after": 0, "steps": 10**12, "columns": {"learning_rate": ""}},
            {"kind": "steps", "after": 10**12, "steps": 1, "columns": {"learning_rate": ""}},
            {"kind": "news"},
            {},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("checked", [True, False])
    def test_a_line_that_is_none_is_told(
        self, tmp_path: Path, line: dict[str, Any], checked: bool
    ) -> None:
        journal = put(tmp_path, {"kind": "point", "step": 0}, line, checked=checked)
        with pytest.raises(UserError, match=r"line 2 of .*a\.jsonl is damaged; delete that file"):
            journal.read("a")

    @pytest.mark.parametrize("text", [b"[]", b"5", b'"row"', b"null", b"[" * 100_000])
    def test_a_line_that_is_no_object_is_told(self, tmp_path: Path, text: bytes) -> None:
        journal = put(tmp_path)
        journal.path("a").write_bytes(text + b"\n")
        with pytest.raises(UserError, match="line 1 of"):
            journal.read("a")


class TestOlderJournals:
    """Those of earlier versions have no checksums."""

    @pytest.fixture
    def journal(self, tmp_path: Path) -> Journal:
        journal = put(tmp_path)
        shutil.copy(OLD, journal.path("a"))
        return journal

    def test_they_are_read(self, journal: Journal) -> None:
        record = journal.read("a")
        assert [point["step"] for point in record.points] == [0, 4, 8]
        assert len(record.steps) == 8
        assert record.steps.loss[0] == pytest.approx(2.2754, abs=0.1)
        assert record.row == journal.read_row("a")
        assert record.row is not None
        assert record.row["test/accuracy"] == 0.454
        assert extent(OLD.read_bytes()) == (True, 8)

    def test_they_are_gone_on_with_and_what_is_added_is_checked(self, journal: Journal) -> None:
        add_steps(journal, "a", 8, series(2))
        journal.add_row("a", {"status": "failed"})
        assert len(journal.read("a").steps) == 10
        assert journal.read_row("a") == {"status": "failed"}
        content = journal.path("a").read_bytes()
        journal.path("a").write_bytes(content.replace(b'"failed"', b'"gailed"'))
        with pytest.raises(UserError, match=f"line {content.count(10)} of"):
            journal.read_row("a")

    def test_behind_a_line_with_a_checksum_none_is_without(self, journal: Journal) -> None:
        add_point(journal, "a", {"step": 12})
        with open(journal.path("a"), "ab") as file:
            file.write(b'{"kind": "row", "status": "finished"}\n')
        with pytest.raises(UserError, match="is damaged"):
            journal.read_row("a")

    def test_an_id_does_not_lead_out_of_the_folder(self, journal: Journal) -> None:
        with pytest.raises(UserError, match=r"'\.\./a', told of in .*, is no trial's id"):
            journal.read("../a")

    def test_reading_makes_nothing(self, tmp_path: Path) -> None:
        assert Journal(tmp_path / "none").read_row("a") is None
        assert Journal(tmp_path / "none").trial_ids() == []
        assert list(tmp_path.iterdir()) == []


class TestUnpacking:
    """Steps are compressed, and zeros by a factor of a thousand."""

    @pytest.mark.parametrize("announced", [{}, {"steps": 4}, {"steps": 2**19}])
    def test_no_more_is_unpacked_than_is_announced(
        self, tmp_path: Path, announced: dict[str, int]
    ) -> None:
        zeros = base64.b64encode(zlib.compress(bytes(64_000_000))).decode()
        columns = dict.fromkeys(series(1).columns(), zeros)
        journal = put(tmp_path, {"kind": "steps", "after": 0, **announced, "columns": columns})
        tracemalloc.start()
        with pytest.raises(UserError, match="line 1 of"):
            journal.read("a")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 30_000_000 + 8 * announced.get("steps", MOST_STEPS)

    @pytest.mark.parametrize(("announced", "there"), [(4, 3), (3, 4), (0, 0), (True, 1)])
    def test_they_are_as_many_as_announced(
        self, tmp_path: Path, announced: int, there: int
    ) -> None:
        packed = base64.b64encode(zlib.compress(np.ones(there).tobytes())).decode()
        columns = {"learning_rate": packed}
        line = {"kind": "steps", "after": 0, "steps": announced, "columns": columns}
        with pytest.raises(UserError, match="line 1 of"):
            put(tmp_path, line).read("a")

    def test_a_long_stretch_is_told_in_several_lines(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gisgd_ray.results.journal.MOST_STEPS", 3)
        journal = Journal(tmp_path)
        for whole in (False, True):
            journal.add_report("a", first_step=0, steps=series(8), points=[], whole=whole)
            np.testing.assert_array_equal(journal.read("a").steps.loss, series(8).loss)
        lines = [json.loads(line) for line in journal.path("a").read_text().splitlines()]
        assert [(line["after"], line["steps"]) for line in lines] == [(0, 3), (3, 3), (6, 2)]
