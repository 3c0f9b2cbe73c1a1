"""Joining a Ray cluster, or starting Ray on this machine."""

import atexit
import contextlib
import logging
import os
import socket
import sys
import uuid
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gisgd_ray.errors import UserError
from gisgd_ray.runner.cluster_watch import is_gone
from gisgd_ray.runner.cpus import usable_cpus
from gisgd_ray.runner.private_folder import TOKEN, make_private_folder, remove_private_folder
from gisgd_ray.runner.running_cluster import CannotJoinError, ask, no_answer

# Read by Ray when it is imported or started.
_RAY_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Below `uv run` Ray would start its workers by uv too, from the working directory alone.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # The last lines of a log that a lost cluster leaves; that it is lost, the sweep says itself.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^Raylet is terminated",
    # Tune's own notes, which nobody reads: a sweep goes on from its journals and checkpoints.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",
    # Ray would end the driver a minute after its cluster, whatever is still to be written down.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
}


PROJECT = Path(__file__).parents[2]

_QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "configure_logging": True,
}

BOOTSTRAP = Path(os.path.expanduser("~/ray_bootstrap_config.yaml"))
"""Where the cluster launcher leaves a cluster's configuration on its head."""


class Connection(NamedTuple):
    """How this process came to a Ray cluster, or that it did not."""

    joined: bool
    description: str


def connect(*, address: str | None = None, start_local: bool = True) -> Connection:
    """Join the running Ray cluster, or start a local one.

    ``address`` as for ``ray.init``; None tries ``RAY_ADDRESS``, then the cluster of this host.
    Without a cluster that can be joined, and with ``start_local`` false, nothing is started.

    Raises:
        UserError: the cluster that was named cannot be joined, or none be started.
    """
    os.environ.update({k: os.environ.get(k, v) for k, v in _RAY_ENVIRONMENT.items()})
    named = address or os.environ.get("RAY_ADDRESS")
    why = "no running Ray cluster was found"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if named != "local":
            try:
                if running := named or started_cluster():
                    return _join(running)
            except CannotJoinError as fault:
                why = str(fault)
                if named:
                    raise UserError(
                        f"{why}; {fault.remedy}, or unset RAY_ADDRESS to run on this machine alone"
                    ) from None
        return _start(why) if start_local else Connection(False, why)


def _join(address: str) -> Connection:
    """Raises CannotJoinError."""
    if not _answers(address):
        raise no_answer(address)
    if _is_host_and_port(address):
        _use_token(ask(address).token)
    import ray

    try:
        with _from_the_project():
            ray.init(address=address, **_QUIET)
    except (OSError, RuntimeError, ray.exceptions.RayError) as fault:
        reason = str(fault).strip().partition("\n")[0]
        raise CannotJoinError(
            f"the Ray cluster at {address} cannot be joined ({reason[:200]})", "mend it"
        ) from None
    nodes = "1 node" if num_nodes() == 1 else f"{num_nodes()} nodes"
    return Connection(True, f"joined the running Ray cluster ({nodes}, {_totals()})")


def _start(why: str) -> Connection:
    """Ray on this machine, for this process alone."""
    folder = make_private_folder()
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / TOKEN)
    os.environ.pop("RAY_AUTH_TOKEN", None)
    try:
        Path.home()
    except RuntimeError:  # asked for when Tune is imported
        os.environ["HOME"] = str(folder)
    _use_token(True)
    import ray

    atexit.register(_end, folder)
    try:
        with _from_the_project():
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=usable_cpus(),
                _temp_dir=str(folder),
                **_QUIET,
            )
    except (OSError, RuntimeError, ray.exceptions.RayError) as fault:
        raise UserError(f"Ray cannot be started on this machine: {fault}") from fault
    return Connection(True, f"{why}: started Ray on this machine ({_totals()})")


def _from_the_project() -> AbstractContextManager[None]:
    """Ray puts the working directory on the path of every worker: a ``torch.py`` that lies in a
    folder of results would be the trials'."""
    return contextlib.chdir(PROJECT)


def _end(folder: Path) -> None:
    """Of the Ray of this process, all that is left."""
    import ray

    ray.shutdown()
    remove_private_folder(folder)


_abandoned = False


def abandon() -> None:
    """Leave a cluster that is gone: of an own one end what is left, and wait for no answer."""
    from ray._private import worker

    global _abandoned
    _abandoned = True
    node = worker._global_node
    if node.is_head():
        folder = Path(node.get_temp_dir_path())
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        _kill_orphans(folder)
        remove_private_folder(folder)


def _kill_orphans(folder: Path) -> None:
    """Ray's processes that have outlived their parents: those that write into its folder."""
    import psutil  # type: ignore[import-untyped]  # comes with Ray

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_rays = process.name().startswith("ray::")
            if is_rays and any(Path(f.path).is_relative_to(folder) for f in process.open_files()):
                process.kill()


def leave(status: int) -> None:
    """End the process, if it has abandoned a cluster, or its cluster is gone: Ray and Tune ask it
    once more when a process ends, and wait for an answer."""
    if not _abandoned and is_gone():
        abandon()
    if _abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _use_token(wanted: bool) -> None:
    """Whether Ray shows its token, and wants to see it; read by Ray when it is imported."""
    os.environ["RAY_AUTH_MODE"] = "token" if wanted else "disabled"
    if "ray" in sys.modules:
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def started_cluster() -> str | None:
    """Address of the cluster that ``ray start`` (or ``ray up``) runs on this host, or None.

    Raises CannotJoinError if it is another user's.

    Ray's own "auto" would also join the private Ray of another script on this host, and lose its
    trials when that script ends.
    """
    from ray._private.utils import read_ray_address

    try:
        address: str | None = read_ray_address()
    except PermissionError:
        raise CannotJoinError(
            "the Ray cluster of this machine belongs to another user", "start your own"
        ) from None
    # The note outlives its cluster.
    return address if address and ":" in address and _answers(address) else None


def _is_host_and_port(address: str) -> bool:
    """Other forms are Ray's to judge."""
    return address.rpartition(":")[2].isdigit() and "://" not in address


def _answers(address: str) -> bool:
    """Whether anybody listens at ``host:port``; Ray itself would try for ten minutes."""
    if not _is_host_and_port(address):
        return "://" in address or address == "auto"
    host, _, port = address.rpartition(":")
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
    return max(up, startable_gpus(BOOTSTRAP))


def _grows() -> bool:
    """Whether an autoscaler may start machines. (Path.exists raises in another user's home.)"""
    return os.path.exists(BOOTSTRAP)


def require_room(*, cpus: int, gpus: float, on: "Sequence[Machine] | None" = None) -> None:
    """See that some machine can take a trial at all: Ray would wait for one without a word.

    Args:
        on: the machines; without them the cluster's, which is trusted to start such a one if it
            grows.

    Raises:
        UserError: none can.
    """
    if on is None:
        if _grows():
            return
        on = machines()
    if not any(machine.cpus >= cpus and machine.gpus >= gpus for machine in on):
        largest = ", ".join(f"{each.cpus:g} CPUs and {each.gpus:g} GPUs" for each in on)
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

    if _grows():
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
