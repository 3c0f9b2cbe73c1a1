"""Where results go, by the one option that says so."""

from pathlib import Path

import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.results.storage import Storage
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.mirror import Mirror

S3 = "s3://KEY:SECRET@bucket/prefix"
OPTIONS = "?endpoint_override=127.0.0.1:9&scheme=http"
"""With an endpoint of its own nothing is asked of the network before the first file."""


def test_the_place_of_a_path_is_its_folder(tmp_path: Path) -> None:
    location = Location.of(f"{tmp_path}/out/", "lr_batch")
    assert location == Location(tmp_path / "out/lr_batch", str(tmp_path / "out/lr_batch"), None)
    assert str(location) == str(tmp_path / "out/lr_batch")
    assert location.folder.is_dir()


def test_a_place_may_be_relative_or_below_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    places = [Location.of(out, "lr_batch", make=False) for out in ("results", "~/results")]
    assert [p.folder for p in places] == [
        tmp_path / "results/lr_batch",
        tmp_path / "me/results/lr_batch",
    ]
    assert [p.storage for p in places] == [str(p.folder) for p in places]
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_not_known_is_told_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"^~nosuchuser/x: there is no such home folder; set HOME"):
        Location.of("~nosuchuser/x", "lr_batch", make=False)


@pytest.mark.parametrize("out", [S3, S3 + "/"])
@pytest.mark.parametrize("make", [True, False])
def test_the_place_of_a_bucket_is_worked_on_below_results(
    out: str, make: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = Location.of(out + OPTIONS, "lr_batch", make=make)
    assert location.folder == tmp_path / "results/s3/bucket/prefix/lr_batch"
    assert location.folder.exists() == make
    assert location.storage == f"{S3}/lr_batch{OPTIONS}"
    assert location.mirror is not None
    assert location.mirror.folder == location.folder
    assert location.mirror.storage.where == location.storage
    assert str(location) == f"s3://bucket/prefix/lr_batch (worked on in {location.folder})"


def test_a_uri_without_a_bucket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"give a folder, or a bucket as s3://BUCKET/PREFIX"):
        Location.of("s3://", "lr_batch", make=False)


def test_a_uri_of_a_folder_is_worked_on_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    location = Location.of(f"file://{tmp_path}/bucket", "lr_batch")
    assert location.folder == Path(f"{tmp_path}/results/file{tmp_path}/bucket/lr_batch")
    assert location.mirror is not None
    with location.mirror.owned(take_over=False):
        (location.folder / "a").write_bytes(b"1")
    assert (tmp_path / "bucket/lr_batch/a").read_bytes() == b"1"


def test_no_message_of_a_mirror_tells_the_keys(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/bucket")
    storage.where = S3 + OPTIONS
    first, second = Mirror(tmp_path / "a", storage), Mirror(tmp_path / "b", storage)
    with first.owned(take_over=False):
        with pytest.raises(UserError, match="is writing to s3://bucket/prefix;"):
            second.owned(take_over=False).__enter__()
        with pytest.raises(UserError, match="to write to s3://bucket/prefix;"):
            second.push()
