"""``cluster.yaml``, as far as it can be checked without AWS (no network, no credentials).

The checker finds nothing in it, and each kind of slip is caught. The rest runs parts of the file:
its shell commands, and Ray's scheduler on its node types.
"""

import copy
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler._private.util import hash_runtime_conf, prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import NodeState, NodeStatus
from ray.core.generated.instance_manager_pb2 import Instance, NodeKind

from tests.support.cluster_checker import (
    CLUSTER,
    ROOT,
    TEXT,
    Config,
    head_of,
    is_spot,
    problems,
    workers_of,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the commands are for Ubuntu")


# ------------------------------------------------------------------------------------ the file


def test_the_cluster_file_has_no_problems() -> None:
    assert problems(CLUSTER) == []


def test_the_cluster_file_holds_no_secret() -> None:
    secret = (
        r"(AKIA|ASIA)[0-9A-Z]{12}"  # AWS key ids
        r"|\b[0-9a-fA-F]{32,}\b|wandb_v\d_"  # W&B keys, Ray tokens
        r"|-----BEGIN|aws_secret|hf_\w{20}"
    )
    assert not re.search(secret, TEXT)


def test_what_the_install_needs_is_on_the_nodes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"pyproject.toml", "constraints.txt", "gisgd_ray", "sweeps", project["readme"]}
    mounts: dict[str, str] = CLUSTER["file_mounts"]
    assert needed <= set(mounts.values())
    assert mounts == {f"~/gisgd-ray/{local}": local for local in mounts.values()}
    missing = [local for local in mounts.values() if not (ROOT / local).exists()]
    assert not missing, "`ray up` would launch the head, then fail for want of these"


def test_ray_is_the_version_of_the_constraints() -> None:
    installed = re.search(r"ray\[default\]==([\d.]+)", "\n".join(CLUSTER["setup_commands"]))
    assert installed
    assert f"ray=={installed[1]}" in (ROOT / "constraints.txt").read_text().split()
    assert f'pip install "ray[default]=={installed[1]}"' in TEXT  # the laptop's half


def test_ray_reads_what_rsync_would_exclude(tmp_path: Path) -> None:
    """Why file_mounts names the parts: one dangling link anywhere below fails `ray up`."""
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        hash_runtime_conf({"~/gisgd-ray": str(tmp_path)}, None, {"rsync_exclude": [".venv"]})


# ----------------------------------------------------------------------------- slips are caught


def _set(path: str, value: object) -> Callable[[Config], None]:
    """A change of the value at a dotted path (a number indexes a list)."""

    def change(config: Config) -> None:
        *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
        target: Any = config
        for key in parents:
            target = target[key]
        target[last] = value

    return change


def _drop(path: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        *parents, last = path.split(".")
        target: Any = config
        for key in parents:
            target = target[key]
        del target[last]

    return change


def _replace(commands: str, old: str, new: str) -> Callable[[Config], None]:
    """The same change in every command of a list; it must change something."""

    def change(config: Config) -> None:
        changed = [command.replace(old, new) for command in config[commands]]
        assert changed != config[commands]
        config[commands] = changed

    return change


SPOT, ON_DEMAND = (
    next(name for name, node_type in workers_of(CLUSTER).items() if is_spot(node_type) is spot)
    for spot in (True, False)
)
TYPES = "available_node_types"
OPEN = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp"}


@pytest.mark.parametrize(
    ("slip", "complaint"),
    [
        (_set("max_worker", 3), "Ray: .*max_worker"),
        (_set(f"{TYPES}.{SPOT}.prioritty", 3), "Ray: .*prioritty"),
        (_set("head_node_type", "haed"), "Ray: .*head_node_type"),
        (_set("provider.cache_stoped_nodes", False), "provider.cache_stoped_nodes"),
        (_set("provider.cache_stopped_nodes", True), "billed"),
        (_set("provider.aws_credentials", {"aws_access_key_id": "x"}), "credentials"),
        (_set(f"{TYPES}.head.node_config.InstanceTyp", "g5.xlarge"), 'head: .*"InstanceTyp"'),
        (_set(f"{TYPES}.{SPOT}.node_config.InstanceType", "g5.xlrage"), "no 'g5.xlrage'"),
        (_set(f"{TYPES}.{SPOT}.node_config.InstanceMarketOptions.MarketType", "sopt"), "'sopt'"),
        (
            _set(f"{TYPES}.head.node_config.BlockDeviceMappings.0.Ebs.VolumeSze", 100),
            '"VolumeSze"',
        ),
        (
            _set(f"{TYPES}.head.node_config.BlockDeviceMappings.0.Ebs.VolumeSize", "100"),
            "VolumeSize",
        ),
        (_drop(f"{TYPES}.{SPOT}.node_config.ImageId"), f"{SPOT}: ImageId None"),
        (_set(f"{TYPES}.{SPOT}.node_config.ImageId", "ami-0123456789abcdef0"), "all must be"),
        (_set("max_workers", 7), "add up to more"),
        (_set(f"{TYPES}.{SPOT}.max_workers", 9), f"{SPOT}: max_workers"),
        (_drop(f"{TYPES}.{SPOT}.max_workers"), "add up to more"),
        (_drop(f"{TYPES}.{SPOT}.resources"), "Ray: .*resources"),
        (_drop(f"{TYPES}.{SPOT}.resources.GPU"), f"{SPOT}: a worker without a GPU"),
        (_set(f"{TYPES}.head.resources.CPU", 4), "head: runs no trials"),
        (
            _set(f"{TYPES}.head.node_config.InstanceMarketOptions", {"MarketType": "spot"}),
            "head: must be on-demand",
        ),
        (_drop(f"{TYPES}.{SPOT}.node_config.InstanceMarketOptions"), "not preferred less"),
        (_set(f"{TYPES}.{ON_DEMAND}.priority", 99), "not preferred less"),
        (_drop(f"{TYPES}.{ON_DEMAND}"), "fall back"),
        (
            _set(
                "provider.security_group.IpPermissions",
                [{**OPEN, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
            ),
            "8265 is open",
        ),
        (
            _set(
                "provider.security_group.IpPermissions",
                [{"IpProtocol": "-1", "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}],
            ),
            "port any is open",
        ),
        (_set("rsync_exclude", ["/results"]), "would not fetch"),
        (_set("file_mounts", {"~/gisgd-ray": "."}), "not a part"),
        (_drop("cluster_synced_files"), "do not get ~/.ray/auth_token"),
        (_replace("head_setup_commands", "get-auth-token --generate", "status"), "a token"),
        (_replace("setup_commands", "RAY_AUTH_MODE", "RAY_AUTHMODE"), "RAY_AUTH_MODE=token"),
        (_replace("setup_commands", " -c constraints.txt", ""), "no '-c constraints.txt'"),
        (_drop("setup_commands"), "no '-e .'"),  # what Ray fills in is a nightly Ray
        (_replace("setup_commands", " && ", " && ("), "setup_commands: bash: "),
        (_replace("head_start_ray_commands", "--autoscaling-config", "-v"), "autoscaling-config"),
        (_replace("head_start_ray_commands", "127.0.0.1", "0.0.0.0"), "dashboard-host"),
        (_drop("head_start_ray_commands"), "dashboard-host"),
        (_replace("worker_start_ray_commands", "ray start", "ray strat"), "one `ray start`"),
    ],
)
def test_a_slip_is_caught(slip: Callable[[Config], None], complaint: str) -> None:
    config = json.loads(json.dumps(CLUSTER))  # a copy in which YAML's anchors share nothing
    slip(config)
    found = problems(config)
    assert any(re.search(complaint, problem, re.DOTALL) for problem in found), found


# ---------------------------------------------------------------------- what Ray makes of the file


def _launches(trials: int, **waiting: int) -> Counter[str]:
    """What Ray's autoscaler launches for so many trials (1 CPU, 1 GPU) beside a running head.

    Args:
        trials: Trials waiting for a machine.
        waiting: Machines already asked for and not there yet, by node type.
    """
    config = AutoscalingConfig(copy.deepcopy(CLUSTER), skip_content_hash=True)
    head = NodeState(
        node_id=b"head",
        ray_node_type_name=head_of(CLUSTER),
        status=NodeStatus.RUNNING,
        total_resources={"node:__internal_head__": 1.0},
        available_resources={"node:__internal_head__": 1.0},
    )
    instances = [
        AutoscalerInstance(
            cloud_instance_id="head",
            ray_node=head,
            im_instance=Instance(
                instance_id="head",
                instance_type=head_of(CLUSTER),
                status=Instance.RAY_RUNNING,
                node_kind=NodeKind.HEAD,
            ),
        ),
        *(
            AutoscalerInstance(
                im_instance=Instance(
                    instance_id=f"{name}{i}",
                    instance_type=name,
                    status=Instance.REQUESTED,
                    node_kind=NodeKind.WORKER,
                )
            )
            for name, count in waiting.items()
            for i in range(count)
        ),
    ]
    request = ResourceRequestUtil.make({"CPU": 1, "GPU": 1})
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([request] * trials),
            current_instances=instances,
        )
    )
    return Counter({launch.instance_type: launch.count for launch in reply.to_launch})


def test_spot_machines_come_first() -> None:
    assert _launches(trials=2) == {SPOT: 2}


def test_a_large_sweep_gets_every_machine() -> None:
    maxima = {name: node_type["max_workers"] for name, node_type in workers_of(CLUSTER).items()}
    assert _launches(trials=100) == maxima
    assert sum(maxima.values()) == CLUSTER["max_workers"]


def test_spot_machines_that_never_come_do_not_hold_up_a_large_sweep() -> None:
    dry = {n: t["max_workers"] for n, t in workers_of(CLUSTER).items() if is_spot(t)}
    assert _launches(trials=100, **dry) == {ON_DEMAND: 1}


def test_a_worker_gets_its_setup_twice() -> None:
    """Ray 2.60 merges setup_commands on your machine and on the head; so they must bear it."""
    on_your_machine = prepare_config(copy.deepcopy(CLUSTER))
    on_the_head = AutoscalingConfig(json.loads(json.dumps(on_your_machine)), skip_content_hash=True)
    everywhere, workers = CLUSTER["setup_commands"], CLUSTER["worker_setup_commands"]
    assert on_the_head.get_worker_setup_commands(SPOT) == [*everywhere, *everywhere, *workers]


# ----------------------------------------------------------------------------- commands, for real


def _run(command: str, home: Path, path: str = "") -> str:
    """Runs one command of the file in an empty home; ``path`` holds stand-ins for programs."""
    environment = {"HOME": str(home), "PATH": f"{path}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=True
    ).stdout


@linux_only
def test_the_environment_reaches_every_shell_once(tmp_path: Path) -> None:
    command = next(c for c in CLUSTER["setup_commands"] if "RAY_AUTH_MODE" in c)
    for _ in range(2):
        _run(command, tmp_path)
    assert (tmp_path / ".bashrc").read_text().count("gisgd-ray-env") == 1
    shown = _run('. ~/.bashrc && echo "$RAY_AUTH_MODE $GISGD_DATA $PATH"', tmp_path)
    assert shown.startswith(f"token {tmp_path}/gisgd-ray/data {tmp_path}/venv/bin:")


@linux_only
def test_workers_get_the_image_of_the_head(tmp_path: Path) -> None:
    """The head's role may not resolve `resolve:ssm:`, so no worker may be left with it."""
    command = next(c for c in CLUSTER["head_setup_commands"] if "ami-id" in c)
    start = CLUSTER["head_start_ray_commands"]
    assert start.index(command) < len(start) - 1  # `ray up --restart-only` runs only these
    curl = tmp_path / "bin" / "curl"
    curl.parent.mkdir()
    curl.write_text('#!/bin/sh\ncase "$*" in *ami-id*) echo ami-0abc ;; *) echo t0ken ;; esac\n')
    curl.chmod(0o755)
    autoscalers_copy = tmp_path / "ray_bootstrap_config.yaml"
    autoscalers_copy.write_text(json.dumps(CLUSTER))
    for _ in range(2):
        _run(command, tmp_path, path=str(curl.parent))
    expected = json.loads(json.dumps(CLUSTER))
    for node_type in expected[TYPES].values():
        node_type["node_config"]["ImageId"] = "ami-0abc"
    assert json.loads(autoscalers_copy.read_text()) == expected  # and nothing else has changed
