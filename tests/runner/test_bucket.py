"""The storage, its mirror and the checkpoints in a bucket of a server that speaks S3."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.storage import Storage, joined
from gisgd_ray.results.tables import ResultTables, row_of, write_tables
from gisgd_ray.runner.checkpoints import Checkpoints
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.mirror import OWNER, Mirror
from gisgd_ray.training import loop as training
from tests.support.bucket_server import KEY, SECRET, BucketServer
from tests.support.journals import add_point, add_steps, series
from tests.support.runs import config, finish, run, weight_bits

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

TRIALS = sorted((TrialConfig(seed=seed) for seed in range(2)), key=lambda t: t.trial_id)
A, B = (trial.trial_id for trial in TRIALS)


@pytest.fixture(scope="module")
def _server() -> Iterator[BucketServer]:
    with BucketServer() as server:
        yield server


@pytest.fixture
def server(
    _server: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[BucketServer]:
    """What this user has set up for AWS is not looked at."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.chdir(tmp_path)
    yield _server
    _server.empty()


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- the storage


@pytest.mark.parametrize("prefix", ["", "prefix", "deep/prefix/"])
def test_files_are_written_read_listed_and_deleted(server: BucketServer, prefix: str) -> None:
    storage = Storage(server.uri(prefix))
    for name in ("b/9", "b/10", "b/deep/3", "a"):
        storage.write(name, b"old")
    storage.write("a", b"")
    below = f"{prefix.rstrip('/')}/".lstrip("/")
    assert server.objects() == {
        f"{below}a": b"",
        f"{below}b/10": b"old",
        f"{below}b/9": b"old",
        f"{below}b/deep/3": b"old",
    }
    assert storage.read("b/10") == b"old"
    assert storage.read("a") == b""
    assert storage.names() == ["a"]
    assert storage.names("b") == ["b/10", "b/9"]
    everything = {"a": 0, "b/10": 3, "b/9": 3, "b/deep/3": 3}
    assert storage.sizes(recursive=True) == everything
    storage.delete("b/9")
    storage.delete("b/9")
    storage.delete("nowhere/a")
    assert storage.names(recursive=True) == ["a", "b/10", "b/deep/3"]
    storage.delete_folder("b")
    storage.delete_folder("b")
    assert list(server.objects()) == [f"{below}a"]


def test_a_file_of_several_parts_comes_back_whole(server: BucketServer) -> None:
    storage = Storage(server.uri())
    content = bytes(range(251)) * 100_000  # a part of an upload has ten million bytes
    storage.write("a", content)
    assert storage.sizes() == {"a": len(content)}
    assert storage.read("a") == content


def test_what_is_missing_is_empty_or_raises(server: BucketServer) -> None:
    storage = Storage(server.uri())
    for folder in ("", "nowhere", "nowhere/deep"):
        assert storage.names(folder, recursive=True) == []
        assert storage.sizes(folder) == {}
    with pytest.raises(FileNotFoundError):
        storage.read("a")


def test_neighbours_of_the_prefix_are_not_its_files(server: BucketServer) -> None:
    for name in ("prefix-2/a", "prefix.md", "other/prefix/a"):
        server.s3.put_object(Bucket="bucket", Key=name, Body=b"1")
    storage = Storage(server.uri("prefix"))
    assert storage.names(recursive=True) == []
    storage.write("folder/a", b"1")
    storage.delete_folder("folder")
    assert set(server.objects()) == {"prefix-2/a", "prefix.md", "other/prefix/a"}


def test_a_storage_below_another_is_on_the_same_server(server: BucketServer) -> None:
    Storage(joined(joined(server.uri(), "lr_batch"), "ray")).write("a", b"1")
    assert server.objects() == {"prefix/lr_batch/ray/a": b"1"}


# ---------------------------------------------------------------- the keys


def test_keys_of_the_uri_are_used_and_not_shown(server: BucketServer, tmp_path: Path) -> None:
    location = Location.of(server.uri(), "lr_batch")
    assert location.mirror is not None
    location.mirror.storage.write("a", b"1")
    Storage(location.storage).write("b", b"1")
    assert server.keys == {KEY}
    assert str(location) == f"s3://bucket/prefix/lr_batch (worked on in {location.folder})"
    assert location.folder == tmp_path / "results/s3/bucket/prefix/lr_batch"
    assert list(server.objects()) == ["prefix/lr_batch/a", "prefix/lr_batch/b"]


def test_keys_of_the_environment_are_used(
    server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHEENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    location = Location.of(server.uri(keys=""), "lr_batch")
    assert location.mirror is not None
    with location.mirror.owned(take_over=False):
        (location.folder / "a").write_bytes(b"1")
    assert Storage(location.storage).read("a") == b"1"
    assert server.keys == {"AKIAOFTHEENVIRONMENT"}
    shown = f"{location} {location.storage}"
    assert "AKIA" not in shown
    assert SECRET not in shown


def test_writing_to_a_missing_bucket_raises_with_its_name(server: BucketServer) -> None:
    storage = Storage(server.uri().replace("@bucket/", "@nowhere/"))
    with pytest.raises(OSError, match="nowhere"):
        storage.write("a", b"1")
    assert server.objects() == {}


# ---------------------------------------------------------------- the mirror


def test_a_driver_elsewhere_goes_on_from_the_bucket(server: BucketServer, tmp_path: Path) -> None:
    location = Location.of(server.uri(), "lr_batch")
    assert location.mirror is not None
    with location.mirror.owned(take_over=False):
        journal = Journal(location.folder)
        for trial_id in (A, B):
            add_steps(journal, trial_id, 0, series(50))
            add_point(journal, trial_id, {"step": 50, "loss": 1 / 3})
        journal.add_row(A, row_of(TRIALS[0], {"status": "finished"}))
        write_tables(location.folder, [])
        (location.folder / ".lock").touch()
        Storage(joined(location.storage, "ray")).write("attempt-1/a/result.json", b"1")
        Storage(location.storage).write("checkpoints/b/1.ckpt", b"1")
    (location.folder / ".lock").unlink()
    before = files(location.folder)
    assert {f"journal/{A}.jsonl", f"journal/{B}.jsonl", "trials.parquet"} < set(before)
    others = {"ray/attempt-1/a/result.json": b"1", "checkpoints/b/1.ckpt": b"1"}
    assert server.objects() == {
        f"prefix/lr_batch/{name}": content for name, content in (before | others).items()
    }
    shutil.rmtree(location.folder)

    ended = row_of(TRIALS[1], {"status": "finished"})
    elsewhere = Mirror(tmp_path / "elsewhere", Storage(location.storage))
    with elsewhere.owned(take_over=False):
        assert files(elsewhere.folder) == before
        assert list(ResultTables(elsewhere.folder).trials["trial_id"]) == [A]
        Journal(elsewhere.folder).add_row(B, ended)
    with location.mirror.owned(take_over=False):
        assert files(location.folder) == files(elsewhere.folder)
        assert Journal(location.folder).read_row(B) == ended


def test_only_what_has_changed_is_sent_again(server: BucketServer, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here", Storage(server.uri()))
    with mirror.owned(take_over=False):
        mirror.folder.mkdir()
        (mirror.folder / "a").write_bytes(b"1")
        (mirror.folder / "b").write_bytes(b"1")
        assert mirror.push() == 2
        server.s3.put_object(Bucket="bucket", Key="prefix/a", Body=b"untouched")
        (mirror.folder / "b").write_bytes(b"12")
        assert mirror.push() == 1
    assert server.objects() == {"prefix/a": b"untouched", "prefix/b": b"12"}


def test_one_driver_at_a_time_writes_to_the_bucket(server: BucketServer, tmp_path: Path) -> None:
    first = Mirror(tmp_path / "first", Storage(server.uri()))
    second = Mirror(tmp_path / "second", Storage(server.uri()))
    first_run = first.owned(take_over=False)
    first_run.__enter__()
    with pytest.raises(UserError, match="is writing to s3://bucket/prefix; wait for it") as caught:
        second.owned(take_over=False).__enter__()
    assert "--take-over" in str(caught.value)
    with second.owned(take_over=True):
        note = server.objects()
        assert list(note) == [f"prefix/{OWNER}"]
        with pytest.raises(UserError, match="another driver has begun to write"):
            first.push()
        first_run.__exit__(None, None, None)
        assert server.objects() == note
    assert server.objects() == {}


# ---------------------------------------------------------------- checkpoints


def saved(where: str, count: int) -> Checkpoints:
    kept, state = Checkpoints(Storage(where), config()), training.start(config())
    for _ in range(count):
        training.advance(state)
        kept.save(state)
    return kept


def test_another_machine_finds_the_checkpoints_of_a_trial(server: BucketServer) -> None:
    location = Location.of(server.uri(), "lr_batch")
    saved(location.storage, 3)
    below = f"prefix/lr_batch/checkpoints/{config().trial_id}"
    pieces = [f"{below}/measured/{points:012d}.pt" for points in (1, 2, 3)]
    checkpoints = [f"{below}/{step:012d}.ckpt" for step in (4, 8)]
    assert sorted(server.objects()) == sorted([*pieces, *checkpoints])
    state = Checkpoints(Storage(location.storage), config()).newest()
    assert state is not None
    assert state.step == 8
    assert weight_bits(finish(state).state) == weight_bits(run().state)


def test_a_damaged_newest_one_gives_way_to_the_one_before(server: BucketServer) -> None:
    kept = saved(server.uri(), 3)
    newest, before = (f"prefix/{name}" for name in kept.names())
    content = server.objects()
    server.s3.put_object(Bucket="bucket", Key=newest, Body=content[newest][:1000])
    state = kept.newest()
    assert state is not None
    assert state.step == 4
    assert weight_bits(finish(state).state) == weight_bits(run().state)
    server.s3.put_object(Bucket="bucket", Key=before, Body=b"")
    assert kept.newest() is None


def test_the_end_of_a_trial_clears_its_own(server: BucketServer) -> None:
    kept = saved(server.uri(), 2)
    other = f"prefix/checkpoints/{config({'seed': 2}).trial_id}/{4:012d}.ckpt"
    server.s3.put_object(Bucket="bucket", Key=other, Body=b"1")
    kept.clear()
    kept.clear()
    assert kept.names() == []
    assert kept.newest() is None
    assert list(server.objects()) == [other]
