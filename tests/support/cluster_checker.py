"""What can be wrong with a Ray cluster file for AWS, found without AWS.

``problems`` joins Ray's own check with what that check lets pass.
"""

import copy
import re
import shlex
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import botocore.session  # type: ignore[import-untyped]
import jsonschema  # type: ignore[import-untyped]
import ray
import yaml
from botocore.validate import ParamValidator  # type: ignore[import-untyped]
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

Config = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
CLUSTER: Config = yaml.safe_load(TEXT)
COMMAND_LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
TOKEN_FILE = "~/.ray/auth_token"
ANYWHERE = ("0.0.0.0/0", "::/0")


def problems(config: Config) -> list[str]:
    """What is wrong with a cluster file, one sentence each; none if all is well."""
    try:
        prepared = prepare_config(copy.deepcopy(config))  # Ray's AWS defaults filled in
        validate_config(prepared)
    except (jsonschema.ValidationError, ValueError, AssertionError) as fault:
        return [f"Ray: {fault}"]
    checks = (_provider, _node_configs, _worker_types, _sync, _setup, _start)
    return [problem for check in checks for problem in check(prepared)]


@cache
def _provider_keys() -> frozenset[str]:
    """The keys below ``provider`` that Ray's AWS code reads; its schema allows any."""
    folder = Path(ray.__file__).parent / "autoscaler" / "_private"
    source = "".join(
        path.read_text() for path in (*(folder / "aws").glob("*.py"), folder / "updater.py")
    )
    reads = r"""(?:provider_config|config\["provider"\])(?:\.get\(\s*|\[)"(\w+)\""""
    return frozenset(re.findall(reads, source))


def _provider(config: Config) -> Iterator[str]:
    provider = config["provider"]
    for key in provider.keys() - _provider_keys():
        yield f"provider.{key}: Ray does not know it"
    if "aws_credentials" in provider:
        yield "provider.aws_credentials: credentials do not belong into this file"
    if provider.get("cache_stopped_nodes", True):
        yield "provider.cache_stopped_nodes: `ray down` would leave disks that are billed"
    for rule in provider.get("security_group", {}).get("IpPermissions", []):
        ranges = [*rule.get("IpRanges", []), *rule.get("Ipv6Ranges", [])]
        open_to = {address for entry in ranges for address in entry.values()}
        ports = rule.get("FromPort", "any"), rule.get("ToPort", "any")
        if open_to.intersection(ANYWHERE) and ports != (22, 22):
            yield f"provider.security_group: port {ports[0]} is open to the world"


@cache
def _run_instances() -> Any:
    """The parameters of the EC2 call that Ray passes a ``node_config`` to."""
    return botocore.session.Session().get_service_model("ec2").operation_model("RunInstances")


def _not_in_enum(shape: Any, value: Any, where: str) -> Iterator[str]:
    """Values that AWS does not list; botocore's own validation looks at names and types only."""
    if isinstance(value, dict):
        for key in value.keys() & getattr(shape, "members", {}).keys():
            yield from _not_in_enum(shape.members[key], value[key], f"{where}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _not_in_enum(shape.member, item, where)
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where}: AWS has no {value!r}"


def _node_configs(config: Config) -> Iterator[str]:
    shape = _run_instances().input_shape
    for name, node_type in config["available_node_types"].items():
        given = {k: v for k, v in node_type["node_config"].items() if k != "SubnetIds"}  # Ray's own
        report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **given}, shape)
        if report.has_errors():
            yield f"{name}: {report.generate_report()}"
        yield from _not_in_enum(shape, given, name)
        if not re.match(r"ami-[0-9a-f]+$|resolve:ssm:/aws/service/", given.get("ImageId", "")):
            yield f"{name}: ImageId {given.get('ImageId')!r} (Ray's own default is too old)"
    images = {t["node_config"].get("ImageId") for t in config["available_node_types"].values()}
    if len(images) > 1:
        yield "ImageId: workers run the image of the head, so all must be the same"


def is_spot(node_type: Config) -> bool:
    options = node_type["node_config"].get("InstanceMarketOptions", {})
    return bool(options.get("MarketType") == "spot")


def workers_of(config: Config) -> dict[str, Config]:
    """The worker types, the most preferred first."""
    types = {k: v for k, v in config["available_node_types"].items() if k != head_of(config)}
    return dict(sorted(types.items(), key=lambda item: -item[1].get("priority", 0)))


def head_of(config: Config) -> str:
    return str(config["head_node_type"])


def _worker_types(config: Config) -> Iterator[str]:
    head = config["available_node_types"][head_of(config)]
    if is_spot(head):
        yield "head: must be on-demand, the sweep is lost with it"
    if head.get("max_workers") or head.get("resources", {}).get("CPU") != 0:
        yield "head: runs no trials and launches no copies of itself"
    workers = workers_of(config)
    for name, node_type in workers.items():
        if node_type.get("resources", {}).get("GPU", 0) < 1:
            yield f"{name}: a worker without a GPU"
        if not 0 < node_type["max_workers"] <= config["max_workers"]:
            yield f"{name}: max_workers is not within the global max_workers"
    if sum(t["max_workers"] for t in workers.values()) > config["max_workers"]:
        yield "max_workers: the types' maxima add up to more than the global one"
    spot = [t.get("priority", 0) for t in workers.values() if is_spot(t)]
    on_demand = [t.get("priority", 0) for t in workers.values() if not is_spot(t)]
    if not spot or not on_demand:
        yield "workers: need spot types and an on-demand type to fall back to"
    elif max(on_demand) >= min(spot):
        yield "workers: an on-demand type is not preferred less than every spot type"


def _sync(config: Config) -> Iterator[str]:
    for pattern in config["rsync_exclude"]:
        if fnmatch("results", pattern.strip("/")):
            yield f"rsync_exclude: with {pattern!r} `ray rsync-down` would not fetch the results"
    if TOKEN_FILE not in config["cluster_synced_files"]:
        yield f"cluster_synced_files: the workers do not get {TOKEN_FILE}"
    for local in config["file_mounts"].values():
        if Path(local).is_absolute() or local.strip("/") in (".", "~"):
            yield f"file_mounts: {local!r} is not a part of this project"


def _setup(config: Config) -> Iterator[str]:
    everywhere = "\n".join(config["setup_commands"])
    for wanted in (" -c constraints.txt", " -e .", '"ray[default]==', "--python 3.11."):
        if wanted not in everywhere:
            yield f"setup_commands: no {wanted.strip()!r}"
    for wanted in ("RAY_AUTH_MODE=token", "GISGD_DATA="):
        if f"export {wanted}" not in everywhere:
            yield f"setup_commands: {wanted} is not set"
    if "get-auth-token --generate" not in "\n".join(config["head_setup_commands"]):
        yield "head_setup_commands: nothing makes a token"
    for commands in COMMAND_LISTS:
        for command in config[commands]:
            as_ray_runs_it = shlex.split(_with_interactive(command)[-1])[0]
            checked = subprocess.run(
                ["bash", "-n", "-c", as_ray_runs_it], capture_output=True, text=True, check=False
            )
            if checked.returncode:
                yield f"{commands}: bash: {checked.stderr.strip()}"


def _start(config: Config) -> Iterator[str]:
    for commands, options in {
        "head_start_ray_commands": (
            "--head",
            "--port=6379",
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
            "--dashboard-host=127.0.0.1",
        ),
        "worker_start_ray_commands": ("--address=$RAY_HEAD_IP:6379",),
    }.items():
        starts = [command for command in config[commands] if "ray start " in command]
        if len(starts) != 1 or starts[0] != config[commands][-1]:
            yield f"{commands}: must end with the one `ray start`"
        else:
            for missing in set(options) - set(starts[0].split()):
                yield f"{commands}: no {missing}"
