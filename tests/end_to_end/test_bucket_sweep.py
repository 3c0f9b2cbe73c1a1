"""A whole sweep into a bucket: its driver is lost with its disk, and another goes on elsewhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.results.launch_record import folder_id
from gisgd_ray.runner.location import Location
from tests.support.bucket_server import BucketServer
from tests.support.launches import Launch, assert_undisturbed, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the environment")
    with BucketServer() as server:
        yield server


def test_a_driver_lost_with_its_disk_is_continued_from_the_bucket(
    bucket: BucketServer, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = bucket.uri(keys="")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    first = Launch(uri)
    wait_until(lambda: sum(name.endswith(".ckpt") for name in bucket.names()) >= 3)
    first.lose()

    monkeypatch.chdir(tmp_path / "there")  # nothing of the first one's disk is here
    with (
        pytest.raises(UserError, match="is writing to s3://bucket/prefix/lr_batch") as refused,
        Location.of(uri, "lr_batch").owned(take_over=False),
    ):
        pass
    assert "add --take-over if it is gone" in str(refused.value)
    status, out, err = Launch(uri, "--resume", "--take-over").end()
    assert status == 0, err
    assert "4 finished" in out

    folder = next((tmp_path / "there").rglob("lr_batch"))
    assert_undisturbed(folder, undisturbed)
    assert folder_id(folder) == folder_id(next((tmp_path / "here").rglob("lr_batch")))
    there = bucket.objects()
    names = {name.removeprefix("prefix/lr_batch/") for name in there}
    assert {"trials.parquet", "report.html", "figures/figure6.pdf"} <= names
    assert not any(name.startswith("checkpoints") or name == ".driver" for name in names)
    for path in (*folder.glob("*.parquet"), *folder.glob("journal/*")):
        name = path.relative_to(folder).as_posix()
        assert there[f"prefix/lr_batch/{name}"] == path.read_bytes(), name
    assert "endpoint_override" not in there["prefix/lr_batch/report.html"].decode()
