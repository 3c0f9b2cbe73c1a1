"""A cluster that somebody has started: what joining it takes, and what stays secret there."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner import running_cluster
from gisgd_ray.runner.running_cluster import CannotJoinError, ask
from tests.support.bucket_server import KEY, SECRET, BucketServer
from tests.support.launches import here
from tests.support.shared_ray import Head

WANDB_KEY = "0123456789abcdef" * 2 + "deadbeef"


@pytest.fixture
def _as_its_user(shared_ray: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in shared_ray.environment.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.ray
@pytest.mark.usefixtures("_as_its_user")
def test_a_cluster_with_a_token_is_joined_by_who_has_it(
    shared_ray: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(shared_ray.address).token
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" * 8)
    with pytest.raises(CannotJoinError, match="does not take this user's token") as caught:
        ask(shared_ray.address)
    assert "RAY_AUTH_TOKEN_PATH" in caught.value.remedy


@pytest.mark.ray
@pytest.mark.usefixtures("_as_its_user")
def test_a_cluster_of_another_version_is_told(shared_ray: Head) -> None:
    put = (
        "import json, sys\nfrom ray._raylet import GcsClient\n"
        "client, name = GcsClient(address=sys.argv[1]), b'CLUSTER_METADATA'\n"
        "old = json.loads(client.internal_kv_get(name, namespace=b'cluster'))\n"
        "new = json.dumps({**old, **json.loads(sys.argv[2])}).encode()\n"
        "client.internal_kv_put(name, new, True, namespace=b'cluster')\n"
        "print(json.dumps(old))"
    )

    def changed(what: dict[str, str]) -> dict[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", put, shared_ray.address, json.dumps(what)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "RAY_AUTH_MODE": "token"},
        )
        before: dict[str, str] = json.loads(done.stdout)
        return before

    before = changed({"ray_version": "2.50.0", "python_version": "3.12.1"})
    try:
        said = r"runs Ray 2\.50\.0 on Python 3\.12\.1, and this is Ray .* on Python "
        with pytest.raises(CannotJoinError, match=said):
            ask(shared_ray.address)
    finally:
        changed(before)
    ask(shared_ray.address)


@pytest.mark.ray
def test_a_sweep_joins_and_its_keys_stand_in_no_file(
    shared_ray: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with BucketServer() as server:
        said = here(
            server.uri(),
            "--training.max_epochs=2",
            WANDB_MODE="offline",
            WANDB_API_KEY=WANDB_KEY,
            WANDB_RUN_ID="another-process",
            **shared_ray.environment,
        )
        assert said.status == 0, said.err
        assert "; joined the running Ray cluster (1 node, 2 CPUs, 0 GPUs)." in said.out
        kept = server.objects()
    folder = next(tmp_path.rglob("lr_batch"))
    trials = ResultTables(folder).trials
    assert set(trials["status"]) == {"finished"}
    assert set(trials["wandb/status"]) == {"offline"}
    # The bucket was written to with the keys, by trials as well.
    assert KEY in server.keys
    for trial_id in trials["trial_id"]:
        assert any(f"-{trial_id}" in name and name.endswith(".wandb") for name in kept), trial_id
    places = [*shared_ray.folder.rglob("*"), *tmp_path.rglob("*")]
    kept |= {str(path): path.read_bytes() for path in places if path.is_file()}
    assert any("gcs_server" in name for name in kept)
    for secret in (SECRET, WANDB_KEY):
        assert not [name for name, content in kept.items() if secret.encode() in content]


def test_what_is_no_ray_does_not_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_cluster, "ASK_TIMEOUT_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(CannotJoinError, match=f"no Ray cluster answers at {address}"):
            ask(address)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_another_users_cluster_is_not_joined(mode: int) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        session = Path(folder, "session")
        session.mkdir()
        os.chown(session, 12345, 12345)
        os.chown(folder, 12345, 12345)
        os.chmod(folder, mode)
        running_cluster._require_ours("host:1", str(session))  # root may
        os.seteuid(12346)
        try:
            with pytest.raises(CannotJoinError, match="belongs to another user"):
                running_cluster._require_ours("host:1", str(session))
        finally:
            os.seteuid(0)
