"""What a sweep takes the cluster to be."""

import os
import socket
import tempfile
from pathlib import Path

import pytest
import ray
import yaml

from gisgd_ray.errors import UserError
from gisgd_ray.runner import cluster
from gisgd_ray.runner.cluster import startable_gpus
from gisgd_ray.runner.running_cluster import CannotJoinError

ROOT = Path(__file__).parents[2]


def test_the_gpus_a_cluster_may_start_count(tmp_path: Path) -> None:
    # `ray up` leaves the cluster's configuration on the head under this form.
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert startable_gpus(path) == 8


@pytest.mark.parametrize("text", ["", "cluster_name: x", "available_node_types: 3", "a: [", "- 1"])
def test_no_or_another_configuration_counts_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    assert startable_gpus(path) == 0
    path.write_text(text)
    assert startable_gpus(path) == 0


@pytest.mark.parametrize(
    ("cpus", "gpus", "fits"),
    [(4, 0, True), (2, 1, True), (5, 0, False), (4, 1, False), (1, 2, False)],
)
def test_a_trial_that_fits_no_machine_is_refused(
    cpus: int, gpus: float, fits: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "BOOTSTRAP", tmp_path / "none")
    if fits:
        cluster.require_room(cpus=cpus, gpus=gpus)
        return
    said = f"a trial asks for {cpus} CPUs and {gpus} GPUs, but no machine has them"
    with pytest.raises(UserError, match=said):
        cluster.require_room(cpus=cpus, gpus=gpus)
    # An autoscaler may start a machine that has them.
    (tmp_path / "none").write_text("")
    cluster.require_room(cpus=cpus, gpus=gpus)


def test_only_a_cluster_that_answers_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    for noted, expected in ((None, None), ("", None), ("nonsense", None), (address, address)):
        monkeypatch.setattr("ray._private.utils.read_ray_address", lambda noted=noted: noted)
        assert cluster.started_cluster() == expected
    listener.close()
    # The note that `ray start` leaves outlives its cluster.
    assert cluster.started_cluster() is None


def test_the_cluster_that_is_named_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.os, "environ", {**os.environ})
    with pytest.raises(UserError) as caught:
        cluster.connect(address="127.0.0.1:9")
    assert str(caught.value) == (
        "no Ray cluster answers at 127.0.0.1:9; start it, or unset RAY_ADDRESS to run on this "
        "machine alone"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
def test_another_users_note_of_a_cluster_and_home_are_none_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray._private.utils  # before this is another user, who may not read it

    assert ray._private.utils
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        note = Path(folder, "ray", "ray_current_cluster")
        note.parent.mkdir()
        note.write_text("127.0.0.1:1")
        note.chmod(0o600)
        home = Path(folder, "home")
        home.mkdir(mode=0o700)
        Path(folder).chmod(0o755)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.setattr(cluster, "BOOTSTRAP", home / "ray_bootstrap_config.yaml")
        os.seteuid(12346)
        try:
            with pytest.raises(CannotJoinError, match="belongs to another user"):
                cluster.started_cluster()
            assert not cluster._grows()
        finally:
            os.seteuid(0)
