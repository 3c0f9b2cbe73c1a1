"""A whole sweep into a bucket: its driver is lost with its disk, and another goes on elsewhere."""

from pathlib import Path

import pandas as pd
import pytest

from gisgd_ray.results.tables import ResultTables
from tests.end_to_end.test_faults import Running
from tests.runner.test_bucket import Server, moto
from tests.runner.test_launch import assert_same_tables, wait_until

pytestmark = pytest.mark.ray


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    server.s3.create_bucket(Bucket="bucket")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the environment")
    return server


def test_a_driver_lost_with_its_disk_is_continued_from_the_bucket(
    bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moto
    uri = bucket.uri(keys="")
    for name in ("here", "there", "undisturbed"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "undisturbed")
    alone = Running(tmp_path / "undisturbed")
    status, _, err = alone.end()
    assert status == 0, err

    monkeypatch.chdir(tmp_path / "here")
    first = Running(uri)
    wait_until(lambda: sum(name.endswith(".ckpt") for name in bucket.names()) >= 3)
    workers = first.workers()
    first.process.kill()
    first.process.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=60)

    monkeypatch.chdir(tmp_path / "there")  # nothing of the first one's disk is here
    refused = Running(uri, "--resume").end()
    assert refused[0] == 2
    assert "is writing to s3://bucket/prefix/lr_batch; wait for it" in refused[2]
    assert "add --take-over if it is gone" in refused[2]
    status, out, err = Running(uri, "--resume", "--take-over").end()
    assert status == 0, err
    assert "4 finished" in out

    folder = next((tmp_path / "there").rglob("lr_batch"))
    assert_same_tables(folder, alone.folder)
    there = bucket.objects()
    names = {name.removeprefix("prefix/lr_batch/") for name in there}
    assert {"trials.parquet", "report.html", "figures/figure6.pdf"} <= names
    assert not any(name.startswith("checkpoints") or name == ".driver" for name in names)
    for path in (*folder.glob("*.parquet"), *folder.glob("journal/*")):
        name = path.relative_to(folder).as_posix()
        assert there[f"prefix/lr_batch/{name}"] == path.read_bytes(), name
    for trial_id in ResultTables(folder).trials["trial_id"]:
        found, true = (ResultTables(f).steps(trial_id) for f in (folder, alone.folder))
        pd.testing.assert_frame_equal(found, true, check_exact=True)
    assert "endpoint_override" not in there["prefix/lr_batch/report.html"].decode()
