"""Small files below one place: whole or not there, and listed by their names."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.results.storage import Storage, is_uri, joined, require_address, without_keys


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "results"))


def during_a_write(monkeypatch: pytest.MonkeyPatch, do: Callable[[], None]) -> None:
    """Have something happen when the content is written and not yet in its place."""
    monkeypatch.setattr("gisgd_ray.results.whole_files.os.fsync", lambda _: do())


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("content", [b"", b"\x00\r\n\xff", bytes(range(256)) * 10_000])
def test_what_is_written_is_read(storage: Storage, content: bytes) -> None:
    storage.write("journal/deep/a.jsonl", b"another before, and longer" * 10)
    storage.write("journal/deep/a.jsonl", content)
    assert storage.read("journal/deep/a.jsonl") == content
    assert (Path(storage.where) / "journal/deep/a.jsonl").read_bytes() == content


def test_a_relative_folder_is_that_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = Storage("results")
    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.write("a", b"1")
    assert (tmp_path / "results/a").read_bytes() == b"1"


def test_reading_what_is_not_there_raises(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read("a")


def test_a_failed_write_leaves_the_old_content_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("folder/a", b"old")
    during_a_write(monkeypatch, full)
    for name in ("folder/a", "folder/b"):
        with pytest.raises(OSError, match="No space left") as caught:
            storage.write(name, b"new")
        assert caught.value.errno == errno.ENOSPC
    assert storage.read("folder/a") == b"old"
    assert os.listdir(Path(storage.where, "folder")) == ["a"]


def test_readers_see_the_old_content_until_the_new_is_whole(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write("a", b"old")
    seen = []
    during_a_write(monkeypatch, lambda: seen.append((storage.read("a"), storage.names())))
    storage.write("a", b"new")
    assert seen == [(b"old", ["a"])]
    assert storage.read("a") == b"new"


def test_two_processes_may_write_the_same_file_at_once(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_writes() -> None:
        monkeypatch.undo()
        monkeypatch.setattr("gisgd_ray.results.whole_files.os.getpid", lambda: 4_999_999)
        storage.write("a", b"theirs")

    during_a_write(monkeypatch, another_writes)
    storage.write("a", b"mine")
    assert storage.read("a") == b"mine"
    assert os.listdir(storage.where) == ["a"]


def test_deleting_takes_one_file_and_may_be_done_twice(storage: Storage) -> None:
    storage.write("folder/a", b"1")
    storage.write("folder/ab", b"2")
    storage.delete("folder/a")
    storage.delete("folder/a")
    storage.delete("nowhere/a")
    assert storage.names(recursive=True) == ["folder/ab"]


def test_deleting_a_folder_takes_all_in_it_and_no_other(storage: Storage) -> None:
    for name in ("one/a", "one/deep/b", "one_more/a", "a"):
        storage.write(name, b"1")
    storage.delete_folder("one")
    storage.delete_folder("one")
    assert storage.names(recursive=True) == ["a", "one_more/a"]
    assert not Path(storage.where, "one").exists()


# ---------------------------------------------------------------- lists of them


def test_names_are_sorted_and_below_the_root(storage: Storage) -> None:
    for name in ("b/10", "a", "b/9", "b/deep/3", ".driver", "B"):
        storage.write(name, b"1")
    assert storage.names() == [".driver", "B", "a"]
    assert storage.names("b") == ["b/10", "b/9"]
    assert storage.names("b", recursive=True) == ["b/10", "b/9", "b/deep/3"]
    everything = [".driver", "B", "a", "b/10", "b/9", "b/deep/3"]
    assert storage.names(recursive=True) == everything


def test_sizes_are_in_bytes(storage: Storage) -> None:
    storage.write("a", b"")
    storage.write("folder/b", "ρ".encode())
    assert storage.sizes() == {"a": 0}
    assert storage.sizes("folder") == {"folder/b": 2}
    assert storage.sizes(recursive=True) == {"a": 0, "folder/b": 2}


def test_a_missing_folder_has_no_files(storage: Storage) -> None:
    for folder in ("", "nowhere", "nowhere/deep"):
        assert storage.names(folder, recursive=True) == []
        assert storage.sizes(folder) == {}
    assert not Path(storage.where).exists()


def test_what_others_are_writing_is_not_listed(storage: Storage) -> None:
    storage.write("a.jsonl", b"1")
    Path(storage.where, "a.jsonl.another-77.partial").write_bytes(b"12")
    Path(storage.where, "deep").mkdir()
    Path(storage.where, "deep", "b.another-77.partial").write_bytes(b"12")
    assert storage.names(recursive=True) == ["a.jsonl"]
    assert storage.sizes(recursive=True) == {"a.jsonl": 1}


# ---------------------------------------------------------------- names of places


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("s3://bucket/prefix", True),
        ("gs://bucket", True),
        ("file:///home/me", True),
        ("/home/me/results", False),
        ("results", False),
        ("s3:/bucket", False),
        ("C:results", False),
        ("", False),
    ],
)
def test_a_place_with_a_scheme_is_a_uri(where: str, expected: bool) -> None:
    assert is_uri(where) is expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("/home/me", "/home/me/a"),
        ("/home/me/", "/home/me/a"),
        ("/home/what?", "/home/what?/a"),
        ("/", "/a"),
        ("s3://bucket", "s3://bucket/a"),
        ("s3://", "s3:///a"),
        ("file:///", "file:///a"),
        ("s3://bucket/prefix/", "s3://bucket/prefix/a"),
        ("s3://bucket/prefix/?x=1&y=a/b", "s3://bucket/prefix/a?x=1&y=a/b"),
        ("s3://K:S@bucket?x=1", "s3://K:S@bucket/a?x=1"),
    ],
)
def test_a_place_below_another_keeps_the_options_of_its_uri(where: str, expected: str) -> None:
    assert joined(where, "a") == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("s3://KEY:SECRET@bucket/prefix?region=x", "s3://bucket/prefix"),
        ("s3://KEY:SEC%2FRET@bucket", "s3://bucket"),
        ("s3://KEY:SEC/RET@bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("/home/K:S@me?", "/home/K:S@me?"),
    ],
)
def test_a_place_is_shown_without_its_keys(where: str, expected: str) -> None:
    assert without_keys(where) == expected


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("ftp://x/y", "it begins with ftp://"),
        ("S3://bucket", "it begins with S3://"),
        ("://x", "it begins with ://"),
        ("s3://", "it names no bucket"),
        ("s3:///a", "it names no bucket"),
        ("s3://KEY:SECRET@/a", "it names no bucket"),
        ("s3://?region=us-east-1", "it names no bucket"),
        ("gs://", "it names no bucket"),
    ],
)
def test_an_address_that_is_no_place_shows_without_asking(where: str, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        require_address(where)
    assert str(caught.value) == (
        f"{without_keys(where)} cannot be used for results ({reason}); give a folder, or a bucket "
        "as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    )


@pytest.mark.parametrize(
    "where",
    ["s3://bucket", "s3://KEY:SEC/RET@bucket/a?region=x", "gs://bucket/a", "file:///home/me"],
)
def test_an_address_that_may_be_a_place(where: str) -> None:
    require_address(where)


@pytest.mark.parametrize("where", ["nowhere://bucket/a", "s3:///a", "s3://bucket?colour=red"])
def test_a_uri_that_cannot_be_used_is_told_in_a_sentence(where: str) -> None:
    with pytest.raises(UserError) as caught:
        Storage(where)
    told = str(caught.value)
    assert told.startswith(f"{without_keys(where)} cannot be used for results (")
    assert told.endswith(
        "); give a folder, or a bucket as s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
    )
    assert "\n" not in told
    assert "()" not in told


@pytest.mark.parametrize(
    "where",
    [
        "nowhere://KEY:SECRET@bucket/prefix",
        "s3://KEY:SECRET@bucket/prefix?colour=red",
        "s3://KEY:SEC/RET@bucket/prefix",
    ],
)
def test_keys_are_not_told_with_the_fault(where: str) -> None:
    with pytest.raises(UserError, match=r"bucket/prefix cannot be used") as caught:
        Storage(where)
    assert not any(part in str(caught.value) for part in ("KEY", "SEC", "RET@"))


@pytest.mark.parametrize("secret", ["SEC?RET", "SEC/RET+=", "SEC:RET"])
def test_of_a_place_no_part_of_a_key_is_shown(secret: str) -> None:
    assert without_keys(f"s3://KEY:{secret}@bucket/dir?region=x") == "s3://bucket/dir"
