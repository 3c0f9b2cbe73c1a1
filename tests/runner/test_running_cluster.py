"""A cluster that somebody has started: what joining it takes, and what stays secret there."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner import running_cluster
from gisgd_ray.runner.running_cluster import CannotJoinError, ask
from tests.runner.test_bucket import KEY, SECRET, Server, moto
from tests.runner.test_launch import sweep

WANDB_KEY = "0123456789abcdef" * 2 + "deadbeef"


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@dataclass
class Head:
    """A cluster of one machine, with a token."""

    address: str
    home: Path
    folder: Path

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "RAY_TMPDIR": str(self.folder)}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("abcd" * 16)
    port, client, dashboard, agent = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = Head(f"127.0.0.1:{port}", home, Path(folder))
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
                *(f"--port={port}", "--num-cpus=2", "--include-dashboard=false"),
                *(f"--ray-client-server-port={client}", f"--dashboard-port={dashboard}"),
                *(f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0"),
                "--max-worker-port=0",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **found.environment()},
        )
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if "--block" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield found
        process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def _as_its_user(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in head.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.ray
@pytest.mark.usefixtures("_as_its_user")
def test_a_cluster_with_a_token_is_joined_by_who_has_it(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(head.address).token
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" * 8)
    with pytest.raises(CannotJoinError, match="does not take this user's token") as caught:
        ask(head.address)
    assert "RAY_AUTH_TOKEN_PATH" in caught.value.remedy


@pytest.mark.ray
@pytest.mark.usefixtures("_as_its_user")
def test_a_cluster_of_another_version_is_told(head: Head) -> None:
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
            [sys.executable, "-c", put, head.address, json.dumps(what)],
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
            ask(head.address)
    finally:
        changed(before)
    ask(head.address)


@pytest.mark.ray
@pytest.mark.usefixtures("_as_its_user")
def test_a_sweep_joins_and_its_keys_stand_in_no_file(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert moto
    server = Server()
    server.s3.create_bucket(Bucket="bucket")
    monkeypatch.chdir(tmp_path)
    done = sweep(
        Path("unused"),
        f"--out={server.uri()}",
        WANDB_MODE="offline",
        WANDB_API_KEY=WANDB_KEY,
        WANDB_RUN_ID="another-process",
        **head.environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "; joined the running Ray cluster (1 node, 2 CPUs, 0 GPUs)." in done.stdout
    folder = next(tmp_path.rglob("lr_batch"))
    trials = ResultTables(folder).trials
    assert set(trials["status"]) == {"finished"}
    assert set(trials["wandb/status"]) == {"offline"}
    # The bucket was written to with the keys, by trials as well.
    assert KEY in server.keys
    kept = server.objects()
    for trial_id in trials["trial_id"]:
        assert any(f"-{trial_id}" in name and name.endswith(".wandb") for name in kept), trial_id
    places = [*head.folder.rglob("*"), *tmp_path.rglob("*")]
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
