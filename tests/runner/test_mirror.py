"""A sweep's folder and its copy elsewhere, one driver at a time; a local folder is the bucket."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.storage import Storage
from gisgd_ray.results.tables import ResultTables, row_of, write_tables
from gisgd_ray.runner.mirror import OWNER, Mirror
from tests.support.journals import add_point, add_steps, series

TRIALS = sorted((TrialConfig(seed=seed) for seed in range(2)), key=lambda t: t.trial_id)
A, B = (trial.trial_id for trial in TRIALS)
S3 = "s3://KEY:SECRET@bucket/prefix"
OPTIONS = "?endpoint_override=127.0.0.1:9&scheme=http"
"""With an endpoint of its own nothing is asked of the network before the first file."""


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    return tmp_path / "bucket"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def mirror(folder: Path, bucket: Path) -> Mirror:
    return Mirror(folder, Storage(str(bucket)))


@contextmanager
def machine(name: str, process: int) -> Iterator[None]:
    """As if this process were another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.uname", lambda: SimpleNamespace(nodename=name))
        patch.setattr("os.getpid", lambda: process)
        yield


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- pull


def lines(step: int, *, status: str = "", wordy: int = 0) -> bytes:
    """A journal that tells up to a step, and the end if there is a status."""
    told = [{"kind": "point", "step": i} for i in range(step + 1)] * (1 + wordy)
    told += [{"kind": "row", "status": status}] if status else []
    return b"".join(json.dumps(line).encode() + b"\n" for line in told)


def test_pull_fetches_what_is_missing(mirror: Mirror, folder: Path, bucket: Path) -> None:
    there = {"journal/new.jsonl": lines(1), "steps/a.parquet": b"x", "wandb/run/b": b"longer"}
    put(bucket, {**there, "trials.parquet": b"a longer table"})
    put(folder, {"wandb/run/b": b"half"})
    here = {"trials.parquet": b"table", "mine": b"only"}  # made from the journals
    put(folder, here)
    assert mirror.pull() == 3
    assert files(folder) == {**there, **here}
    assert mirror.pull() == 0


@pytest.mark.parametrize(
    ("there", "here", "taken"),
    [
        (lines(2), lines(1), True),
        (lines(1), lines(2), False),
        (lines(1, status="finished"), lines(9, wordy=5), True),
        (lines(9, wordy=5), lines(1, status="finished"), False),  # long, for it was told twice
        (lines(3, status="diverged"), lines(9), True),
        (lines(2, status="failed"), lines(3), False),  # goes on, and has got further
        (lines(2), lines(2), False),
        (lines(2) + b"torn", lines(2), False),
        (lines(2), b"", True),
    ],
)
def test_of_two_journals_the_one_that_tells_more_is_kept(
    mirror: Mirror, folder: Path, bucket: Path, there: bytes, here: bytes, taken: bool
) -> None:
    put(bucket, {"journal/a.jsonl": there})
    put(folder, {"journal/a.jsonl": here})
    assert mirror.pull() == taken
    assert files(folder) == {"journal/a.jsonl": there if taken else here}


def test_a_trial_that_ends_with_a_shorter_journal_stays_ended(
    mirror: Mirror, folder: Path, bucket: Path
) -> None:
    with mirror.owned(take_over=False):
        put(folder, {"journal/a.jsonl": lines(5, wordy=3)})
        mirror.push()
        put(folder, {"journal/a.jsonl": lines(9, status="finished")})
    assert files(folder)["journal/a.jsonl"] == lines(9, status="finished")
    assert files(bucket)["journal/a.jsonl"] == lines(9, status="finished")


def test_pull_leaves_checkpoints_notes_of_rays_and_the_owner(
    mirror: Mirror, folder: Path, bucket: Path
) -> None:
    put(bucket, {"checkpoints/a/1.ckpt": b"1", "ray/attempt-1/a/x.json": b"1", OWNER: b"a 1 b"})
    put(bucket, {"rays": b"1", "steps/ray/a": b"1", "checkpoints.md": b"1"})
    assert mirror.pull() == 3
    assert files(folder) == {"rays": b"1", "steps/ray/a": b"1", "checkpoints.md": b"1"}


def test_a_pull_that_breaks_off_leaves_whole_files_only(
    mirror: Mirror, folder: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, {"journal/a": lines(2)})
    put(folder, {"journal/a": lines(1)})

    def lost(*_: Path) -> None:
        raise OSError("the machine is lost")

    monkeypatch.setattr(Path, "replace", lost)
    with pytest.raises(OSError, match="machine is lost"):
        mirror.pull()
    monkeypatch.undo()
    assert (folder / "journal" / "a").read_bytes() == lines(1)
    assert mirror.pull() == 1
    assert files(folder) == files(bucket)


# ---------------------------------------------------------------- push


def test_push_copies_what_has_changed_and_nothing_twice(
    mirror: Mirror, folder: Path, bucket: Path
) -> None:
    put(folder, {"a": b"1", "steps/b": b"22", "steps/c": b"333"})
    with mirror.owned(take_over=False):
        assert mirror.push() == 3
        assert mirror.push() == 0
        put(bucket, {"a": b"untouched"})
        put(folder, {"steps/b": b"22 and more"})
        assert mirror.push() == 1
        assert files(bucket)["a"] == b"untouched"
        same_size = {"steps/c": b"444"}
        put(folder, same_size)
        os.utime(folder / "steps/c", (1, 1))
        assert mirror.push() == 1
        put(folder, {"new": b""})
    assert files(bucket) == {"a": b"untouched", "steps/b": b"22 and more", **same_size, "new": b""}


def test_push_leaves_hidden_and_partial_files_and_what_is_not_the_drivers(
    mirror: Mirror, folder: Path, bucket: Path
) -> None:
    put(folder, {".lock": b"1", "steps/.hidden": b"1", ".cache/a": b"1", "a.jsonl.partial": b"1"})
    put(folder, {"checkpoints/a/1.ckpt": b"1", "ray/attempt-1/x.json": b"1", "steps/a": b"1"})
    with mirror.owned(take_over=False):
        assert mirror.push() == 1
    assert files(bucket) == {"steps/a": b"1"}


def test_the_next_push_makes_up_for_one_that_failed(
    mirror: Mirror, folder: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, {"a": b"1", "b": b"2", "c": b"3"})
    write = Storage.write

    def away(self: Storage, name: str, content: bytes) -> None:
        if name == "b":
            raise OSError("no way to the bucket")
        write(self, name, content)

    with mirror.owned(take_over=False):
        monkeypatch.setattr(Storage, "write", away)
        with pytest.raises(OSError, match="no way"):
            mirror.push()
        monkeypatch.undo()
        assert mirror.push() == 2
        assert mirror.push() == 0
    assert files(bucket) == files(folder)


# ---------------------------------------------------------------- one driver at a time


def test_nobody_pushes_without_having_claimed_the_place(mirror: Mirror, folder: Path) -> None:
    put(folder, {"a": b"1"})
    with pytest.raises(UserError, match="another driver has begun"):
        mirror.push()
    assert mirror.storage.names() == []


def test_a_second_driver_is_refused(mirror: Mirror, bucket: Path, tmp_path: Path) -> None:
    with machine("host-1", 4711):
        first = Mirror(tmp_path / "there", Storage(str(bucket)))
    put(tmp_path / "there", {"journal/a.jsonl": b"1\n"})
    with first.owned(take_over=False):
        first.push()
        before = files(bucket)
        with pytest.raises(UserError) as caught, mirror.owned(take_over=False):
            pytest.fail("two drivers write to one place")
        assert str(caught.value) == (
            f"a driver on host-1 (process 4711) is writing to {bucket}; wait for it, choose "
            "another --out, or add --take-over if it is gone"
        )
        assert files(bucket) == before
        assert not mirror.folder.exists()
        first.push()


def test_a_driver_that_is_taken_over_stops_and_leaves_the_second_its_place(
    mirror: Mirror, folder: Path, bucket: Path, tmp_path: Path
) -> None:
    second = Mirror(tmp_path / "second", Storage(str(bucket)))
    put(folder, {"journal/a.jsonl": b"1\n"})
    first_run, second_run = mirror.owned(take_over=False), second.owned(take_over=True)
    first_run.__enter__()
    mirror.push()
    second_run.__enter__()
    assert files(second.folder) == {"journal/a.jsonl": b"1\n"}
    before = files(bucket)
    put(folder, {"journal/a.jsonl": b"1\n2\n"})
    with pytest.raises(UserError) as caught:
        mirror.push()
    assert str(caught.value) == (
        f"another driver has begun to write to {bucket}; this one stops, and what it has measured "
        f"is in {folder}"
    )
    first_run.__exit__(None, None, None)
    assert files(bucket) == before
    put(second.folder, {"journal/b.jsonl": b"1\n"})
    assert second.push() > 0
    second_run.__exit__(None, None, None)
    assert files(bucket) == {"journal/a.jsonl": b"1\n", "journal/b.jsonl": b"1\n"}
    with pytest.raises(UserError, match="another driver has begun"):
        mirror.push()


def test_a_place_may_be_taken_over_from_nobody(mirror: Mirror, folder: Path, bucket: Path) -> None:
    with mirror.owned(take_over=True):
        put(folder, {"a": b"1"})
    assert files(bucket) == {"a": b"1"}


def test_a_clean_end_pushes_and_removes_the_note(
    mirror: Mirror, folder: Path, bucket: Path
) -> None:
    with mirror.owned(take_over=False):
        assert list(files(bucket)) == [OWNER]
        put(folder, {"a": b"1"})
    assert files(bucket) == {"a": b"1"}
    with Mirror(folder, Storage(str(bucket))).owned(take_over=False):
        pass


def test_so_does_an_end_by_an_error(mirror: Mirror, folder: Path, bucket: Path) -> None:
    def broken_off() -> None:
        with mirror.owned(take_over=False):
            put(folder, {"a": b"1"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert files(bucket) == {"a": b"1"}


def test_what_could_not_be_pulled_is_not_written_over(
    mirror: Mirror, folder: Path, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, {"journal/a.jsonl": b"1\n2\n3\n"})
    put(folder, {"journal/a.jsonl": b"1\n"})
    read = Storage.read

    def away(self: Storage, name: str) -> bytes:
        if name != OWNER:
            raise OSError("no way to the bucket")
        return read(self, name)

    monkeypatch.setattr(Storage, "read", away)
    with pytest.raises(OSError, match="no way"), mirror.owned(take_over=False):
        pytest.fail("goes on without what was measured before")
    monkeypatch.undo()
    assert files(bucket) == {"journal/a.jsonl": b"1\n2\n3\n"}


# ---------------------------------------------------------------- going on elsewhere


def shown(frame: pd.DataFrame) -> str:
    return repr(frame.to_dict("records"))


def test_a_driver_elsewhere_goes_on_from_all_that_was_measured(
    mirror: Mirror, folder: Path, bucket: Path, tmp_path: Path
) -> None:
    elsewhere = Mirror(tmp_path / "elsewhere", Storage(str(bucket)))
    with mirror.owned(take_over=False):
        journal = Journal(folder)
        for trial_id in (A, B):
            add_steps(journal, trial_id, 0, series(7))
            add_point(journal, trial_id, {"step": 7, "loss": 1 / 3})
        journal.add_row(A, row_of(TRIALS[0], {"status": "finished", "train/loss": 0.1}))
        write_tables(folder, [])
    before = files(folder)
    assert set(before) == {
        "history.parquet",
        f"journal/{A}.jsonl",
        f"journal/{B}.jsonl",
        f"steps/{A}.parquet",
        "trials.parquet",
    }
    tables = ResultTables(folder)
    told = [shown(frame) for frame in (tables.trials, tables.history, tables.steps(A))]
    record = journal.read(B)
    shutil.rmtree(folder)

    with elsewhere.owned(take_over=False):
        assert files(elsewhere.folder) == before
        tables = ResultTables(elsewhere.folder)
        assert [shown(f) for f in (tables.trials, tables.history, tables.steps(A))] == told
        journal = Journal(elsewhere.folder)
        assert journal.read(B).points == record.points
        assert repr(journal.read(B).steps.columns()) == repr(record.steps.columns())
        journal.add_row(B, row_of(TRIALS[1], {"status": "diverged"}))
        write_tables(elsewhere.folder, [])

    put(folder, {f"journal/{B}.jsonl": before[f"journal/{B}.jsonl"]})
    with Mirror(folder, Storage(str(bucket))).owned(take_over=False):
        assert files(folder) == files(elsewhere.folder)
        assert list(ResultTables(folder).trials["trial_id"]) == [A, B]
