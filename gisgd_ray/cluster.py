"""Joining a Ray cluster, or starting Ray on this machine."""

import contextlib
import logging
import os
import socket
import uuid
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gisgd_ray.errors import UserError

# Read by Ray when it is imported or started.
_RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Below `uv run` Ray would start its workers by uv too, from the working directory alone.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Tune's own notes, which nobody reads: a sweep goes on from its journals and checkpoints.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
}


BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where the cluster launcher leaves a cluster's configuration on its head."""


def connect(*, address: str | None = None, start_local: bool = True) -> str:
    """Join the running Ray cluster, or start a local one; returns a sentence that says which.

    ``address`` as for ``ray.init``; None tries ``RAY_ADDRESS``, then the cluster of this host.
    Without a cluster and with ``start_local`` false, nothing is started and the result is "".
    """
    os.environ.update({k: os.environ.get(k, v) for k, v in _RAY_ENVIRONMENT.items()})
    import ray

    quiet: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    # A trial on another node needs the same W&B account and settings as the driver. A submitted
    # job's trials have the job's own, and Ray refuses to be told a variable twice.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    wandb = {k: v for k, v in os.environ.items() if k.startswith("WANDB_") and not submitted}
    named = address or os.environ.get("RAY_ADDRESS")
    running = None if named == "local" else named or started_cluster()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if running is not None:
            try:
                if not _answers(running):
                    raise ConnectionError
                ray.init(address=running, runtime_env={"env_vars": wandb}, **quiet)
                nodes = "1 node" if num_nodes() == 1 else f"{num_nodes()} nodes"
                return f"joined the running Ray cluster ({nodes}, {_totals()})"
            except ConnectionError:
                if named is not None:
                    raise UserError(
                        f"no Ray cluster answers at {named}; start it, or unset RAY_ADDRESS to "
                        "run on this machine alone"
                    ) from None
        if not start_local:
            return ""
        ray.init(address="local", include_dashboard=False, **quiet)
        return f"no Ray cluster is running: started Ray on this machine ({_totals()})"


def started_cluster() -> str | None:
    """Address of the cluster that ``ray start`` (or ``ray up``) runs on this host, or None.

    Ray's own "auto" would also join the private Ray of another script on this host, and lose its
    trials when that script ends.
    """
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address()
    # The note outlives its cluster.
    return address if address and ":" in address and _answers(address) else None


def _answers(address: str) -> bool:
    """Whether anybody listens at ``host:port``; Ray itself would try for ten minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "://" in address:
        return "://" in address or address == "auto"  # other forms are Ray's to judge
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def num_nodes() -> int:
    """Nodes of the connected cluster that are up."""
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def cluster_gpus() -> float:
    """GPUs of the connected cluster: those that are up, or those its autoscaler may start.

    A cluster made by ``ray up`` has no worker until one is asked for; what it may start stands in
    the configuration that the launcher leaves on the head.
    """
    import ray

    up = float(ray.cluster_resources().get("GPU", 0))
    return max(up, startable_gpus(BOOTSTRAP.expanduser()))


def require_room(*, cpus: int, gpus: float) -> None:
    """See that some machine can take a trial at all: Ray would wait for one without a word.

    An autoscaling cluster is trusted to start such a machine.

    Raises:
        UserError: none can.
    """
    import ray

    if BOOTSTRAP.expanduser().exists():
        return
    sizes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(s.get("CPU", 0) >= cpus and s.get("GPU", 0) >= gpus for s in sizes):
        largest = ", ".join(f"{s.get('CPU', 0):g} CPUs and {s.get('GPU', 0):g} GPUs" for s in sizes)
        raise UserError(
            f"a trial asks for {cpus} CPUs and {gpus:g} GPUs, but no machine has them ({largest}); "
            "lower --cpus-per-trial or --gpus-per-trial"
        )


def most_cpus() -> int:
    """CPUs of the largest machine of the cluster."""
    return int(max(machine.cpus for machine in machines()))


class Machine(NamedTuple):
    """What Ray counts on one machine."""

    cpus: float
    gpus: float


def machines() -> list[Machine]:
    """Those of the connected cluster that are up."""
    import ray

    sizes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Machine(size.get("CPU", 0), size.get("GPU", 0)) for size in sizes]


def gpu_machines() -> list[Machine]:
    """Those that are up and have a GPU."""
    return [machine for machine in machines() if machine.gpus > 0]


def run_on_a_gpu(function: Any, *arguments: Any) -> Any:
    """The function's result from a fresh process that has a whole GPU to itself.

    Raises:
        UserError: the function did, or its process was lost.
    """
    import ray

    task = ray.remote(num_gpus=1, num_cpus=1, max_calls=1)(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            raise cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(
            "the process that was to try a trial out on a GPU was lost each time "
            f"({str(error).splitlines()[0].rstrip('.')}); try again, or decide by --gpus-per-trial"
        ) from None


def require_shared(folder: Path) -> None:
    """See that every machine that is up finds the driver's folder where the driver does.

    Raises:
        UserError: one does not.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    probe = folder / f".seen-{uuid.uuid4().hex}"
    probe.write_text("")
    seen = ray.remote(num_cpus=0)(os.path.exists)
    try:
        asked = {
            node["NodeManagerHostname"]: seen.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(str(probe))
            for node in others
        }
        for host, answer in asked.items():
            with contextlib.suppress(ray.exceptions.RayError):  # gone since: nothing runs there
                if not ray.get(answer, timeout=60):
                    raise UserError(
                        f"{folder} is a folder of this machine alone: {host} does not see it, and "
                        "a trial there could neither keep nor find its checkpoints; choose a "
                        "folder that all machines share, or a bucket, as in --out s3://BUCKET/DIR"
                    )
    finally:
        probe.unlink()


def largest_memory() -> int:
    """Bytes that the largest machine of the cluster lends to trials; 2**63 where it may grow."""
    import ray

    if BOOTSTRAP.expanduser().exists():
        return 2**63
    sizes = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    return int(max(sizes))


def startable_gpus(bootstrap: Path) -> float:
    """GPUs of all the workers that a cluster's configuration allows; 0 without one."""
    try:
        config = yaml.safe_load(bootstrap.read_text())
        types = config["available_node_types"].values()
        return float(
            sum(t.get("resources", {}).get("GPU", 0) * t.get("max_workers", 0) for t in types)
        )
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        return 0.0


def _totals() -> str:
    import ray

    total = ray.cluster_resources()
    return f"{total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
