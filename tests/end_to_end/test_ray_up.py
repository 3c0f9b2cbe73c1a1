"""``ray up cluster-local.yaml`` on hosts made of namespaces, a sweep through the head, a lost host.

Run by ``make test-cluster``: it takes minutes, needs root and some of Debian's packages, and is
skipped, with the reason, where they are missing.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gisgd_ray.results.tables import ResultTables
from tests.support.launches import SMALL, assert_undisturbed, wait_until
from tests.support.namespaces import NETWORK, Hosts, what_is_missing

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
ENVIRONMENT = Path(sys.prefix)
LONGER = [*SMALL, "--training.max_epochs=600", "--checkpoint-every=1"]
"""Four trials of some ten seconds each: time enough to lose a host."""


def written_for(hosts: Hosts, path: Path) -> dict[str, Any]:
    """``cluster-local.yaml`` with the hosts' addresses, and the environment that is here."""
    cluster: dict[str, Any] = yaml.safe_load((ROOT / "cluster-local.yaml").read_text())
    head, *workers = hosts.addresses
    cluster["provider"] |= {"head_ip": head, "worker_ips": workers}
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    cluster["file_mounts"] = {
        remote: str(ROOT / local) for remote, local in cluster["file_mounts"].items()
    }
    # No network to install from: the environment of these tests, which has the same versions. Its
    # editable install names this checkout; the code that was synced comes before it.
    first, *installs = cluster["setup_commands"]
    assert all("uv" in command for command in installs)
    linked = (
        f"ln -sfn {ENVIRONMENT} ~/gisgd-ray-venv && "
        "{ grep -q PYTHONPATH ~/.gisgd-ray-env || printf '%s\\n' "
        "'export PYTHONPATH=$HOME/gisgd-ray' 'export WANDB_MODE=disabled' "
        "'export RAY_USAGE_STATS_ENABLED=0' >> ~/.gisgd-ray-env; }"
    )
    cluster["setup_commands"] = [first, linked]
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        cluster[name] = [c.replace("ray start ", "ray start --num-cpus=1 ") for c in cluster[name]]
        # A node believes that all of this machine's memory is its own.
        cluster[name] = [
            c.replace("ray start ", "ray start --object-store-memory=100000000 ")
            for c in cluster[name]
        ]
    path.write_text(yaml.safe_dump(cluster))
    return cluster


class Cluster:
    """What a user does with the cluster file."""

    def __init__(self, hosts: Hosts, file: Path):
        self.hosts, self.file = hosts, file

    def ray(
        self, command: str, *arguments: str, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(ENVIRONMENT / "bin" / "ray"), command, str(self.file), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(self.file.parent)},
        )

    def on_head(self, command: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
        return self.ray("exec", command, timeout=timeout)

    def nodes(self) -> int:
        """How many are up."""
        done = self.hosts.ssh(
            self.hosts.addresses[0],
            '. ~/.gisgd-ray-env; python -c \'import ray; ray.init(address="auto", '
            "log_to_driver=False, logging_level=40); "
            'print(sum(n["Alive"] for n in ray.nodes()))\'',
        )
        return int(done.stdout.strip() or 0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    missing = what_is_missing()
    if missing:
        pytest.skip(f"hosts of namespaces: {missing}")
    folder = tmp_path_factory.mktemp("hosts")
    with Hosts(folder, 3) as hosts:
        made = Cluster(hosts, folder / "cluster.yaml")
        written_for(hosts, made.file)
        begun = time.monotonic()
        up = made.ray("up", "--yes", "--no-config-cache")
        assert up.returncode == 0, up.stdout + up.stderr
        wait_until(lambda: made.nodes() == 3, seconds=180)
        print(f"ray up: 3 nodes after {time.monotonic() - begun:.0f} s")
        yield made
        down = made.ray("down", "--yes")
        assert down.returncode == 0, down.stdout + down.stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep on this machine alone."""
    out = tmp_path_factory.mktemp("undisturbed")
    script = str(ROOT / "sweeps" / "lr_batch.py")
    done = subprocess.run(
        [sys.executable, script, *LONGER, f"--out={out}"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "WANDB_MODE": "disabled", "RAY_ADDRESS": "local"},
    )
    assert done.returncode == 0, done.stderr
    return out / "lr_batch"


SWEEP = "cd gisgd-ray && python sweeps/lr_batch.py " + " ".join(LONGER)


def test_the_hosts_are_where_they_should_be(cluster: Cluster) -> None:
    for index, address in enumerate(cluster.hosts.addresses[:2]):
        told = cluster.hosts.ssh(address, "hostname; echo $HOME; hostname -I")
        name, home, own = told.stdout.split()
        assert (name, home) == (cluster.hosts.names[index], str(cluster.hosts.home))
        assert own.startswith(NETWORK)


def test_code_and_token_reach_every_host(cluster: Cluster) -> None:
    tokens = set()
    for address in cluster.hosts.addresses:
        told = cluster.hosts.ssh(address, "cat ~/gisgd-ray/pyproject.toml; ls ~/gisgd-ray")
        assert (ROOT / "pyproject.toml").read_text() in told.stdout
        assert {"gisgd_ray", "sweeps"} <= set(told.stdout.split())
        token = cluster.hosts.ssh(
            address, "cat ~/.ray/auth_token; echo; stat -c %a ~/.ray/auth_token"
        )
        tokens.add(tuple(token.stdout.split()))
    ((token, mode),) = tokens
    assert len(token) >= 32
    assert mode == "600"


def test_who_has_no_token_or_is_elsewhere_gets_nothing(cluster: Cluster) -> None:
    head = cluster.hosts.addresses[0]
    # The dashboard, from another machine.
    asked = subprocess.run(
        ["curl", "-s", "-m", "3", f"http://{head}:8265/api/version"], capture_output=True
    )
    assert asked.returncode != 0
    # Ray itself, from a host of the cluster but without the token.
    asked = cluster.hosts.ssh(
        head,
        ". ~/.gisgd-ray-env; export HOME=/nowhere RAY_AUTH_TOKEN=wrong; timeout 60 python -c "
        f'\'import ray; ray.init(address="{head}:6379", log_to_driver=False); print("in")\'',
    )
    assert "in" not in asked.stdout.split()
    assert "token" in asked.stderr.lower() or "auth" in asked.stderr.lower()


def test_a_folder_of_the_head_alone_is_refused(cluster: Cluster) -> None:
    done = cluster.on_head(f"{SWEEP} --out=~/mine")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "is a folder of this machine alone: gisgd-host" in said
    assert "choose a folder that all machines share, or a bucket" in said


def test_a_sweep_over_all_hosts_loses_one_and_nothing_with_it(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "shared", tmp_path / "log"
    command = [str(ENVIRONMENT / "bin" / "ray"), "exec", str(cluster.file), f"{SWEEP} --out={out}"]
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(cluster.file.parent)},
        )
    folder = out / "lr_batch"
    wait_until(
        lambda: len(list(folder.glob("checkpoints/*/*.ckpt"))) >= 4 or process.poll() is not None,
        seconds=120,
    )
    assert process.poll() is None, log.read_text()
    cluster.hosts.kill(2)
    killed = time.monotonic()
    assert process.wait(timeout=300) == 0, log.read_text()
    print(f"the sweep ended {time.monotonic() - killed:.0f} s after a host was killed")
    print(log.read_text())
    trials = ResultTables(folder).trials
    assert set(trials["status"]) == {"finished"}
    # By name: gisgd-host1 has one CPU like the others.
    assert len(set(trials["hostname"])) >= 2
    assert all(name.startswith("gisgd-host") for name in trials["hostname"])
    assert_undisturbed(folder, undisturbed)
    assert re.search(r"a trial was lost, and taken up again", log.read_text())


def test_a_sweep_is_submitted_as_a_job(cluster: Cluster, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs ray[default], for its dashboard")
    inner = f"{SWEEP} --training.max_epochs=2 --out={tmp_path}"
    done = cluster.on_head(f"ray job submit -- bash -c 'cd ~ && {inner}'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 finished in" in done.stdout
    assert "succeeded" in done.stdout
    assert len(ResultTables(tmp_path / "lr_batch").trials) == 4
