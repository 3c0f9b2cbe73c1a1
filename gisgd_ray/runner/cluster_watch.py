"""Whether the cluster is still there: Ray itself waits for a lost one without end.

A slow machine is no lost cluster. Lost it is when a process of this driver's own Ray has ended or
been halted, when the cluster has given this machine up, or when nobody answers for
:data:`SILENT_S`. What counts is the time spent asking, not the clock's: a driver that was halted
itself, or slept with its machine, asks again.
"""

import sys
import threading
import time
from typing import Any

EVERY_S = 1.0
ASK_TIMEOUT_S = 5.0
SILENT_S = 20.0
HALTED_S = 15.0
"""A process may be halted for a moment, by a debugger or an administrator."""


class ClusterLostError(Exception):
    """The cluster is gone under a running sweep; ``stopped``: which was to stop anyway."""

    def __init__(self, why: str, *, stopped: bool):
        super().__init__(why)
        self.stopped = stopped


class ClusterWatch:
    """A context that looks after the connected cluster; :attr:`lost` says why it is gone."""

    def __init__(self) -> None:
        import ray
        from ray._private.worker import _global_node as node
        from ray._raylet import GcsClient, NodeID

        self.lost = ""
        self._own = _own_processes(node)
        self._client = GcsClient(address=node.gcs_address)
        self._here = NodeID.from_hex(ray.get_runtime_context().get_node_id())
        self._silent_s = self._halted_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ClusterWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def look(self) -> str:
        """Why the cluster is lost, by what can be seen at once; empty if it is not."""
        ended = [name for name, process in self._own.items() if process.poll() is not None]
        if ended and not self.lost:
            self.lost = f"its {ended[0]} has ended"
        return self.lost

    def _watch(self) -> None:
        while not self.lost and not self._over.wait(EVERY_S):
            self.look()
            halted = [name for name, process in self._own.items() if _is_halted(process.pid)]
            self._halted_s = self._halted_s + EVERY_S if halted else 0.0
            if self._halted_s >= HALTED_S:
                self.lost = f"its {halted[0]} has been halted for {HALTED_S:g} s"
            elif not halted:
                self._ask()

    def _ask(self) -> None:
        from ray.exceptions import RayError

        begun = time.monotonic()
        try:
            (alive,) = self._client.check_alive([self._here], timeout=ASK_TIMEOUT_S)
            self._silent_s = 0.0
            if not alive:
                self.lost = "it has given up the machine of this program"
        except (RayError, OSError):
            self._silent_s += EVERY_S + min(time.monotonic() - begun, ASK_TIMEOUT_S)
            if self._silent_s >= SILENT_S:
                self.lost = f"it has not answered for {SILENT_S:g} s"


def is_gone() -> bool:
    """Whether the connected cluster, if any, would not answer: a process of an own one has ended or
    is halted, or nobody answers."""
    if "ray" not in sys.modules:
        return False
    from ray._private import worker
    from ray.exceptions import RayError

    node, client = worker._global_node, getattr(worker.global_worker, "gcs_client", None)
    if node is None or client is None:
        return False
    own = _own_processes(node).values()
    if any(process.poll() is not None or _is_halted(process.pid) for process in own):
        return True
    try:
        client.check_alive([], timeout=ASK_TIMEOUT_S)
    except (RayError, OSError):
        return True
    return False


def _own_processes(node: Any) -> dict[str, Any]:
    """Those of a Ray that this process has started, by name; none of a cluster it has joined."""
    return {
        name: info.process
        for name in ("gcs_server", "raylet")
        for info in node.all_processes.get(name, [])
    }


def _is_halted(pid: int) -> bool:
    import psutil  # type: ignore[import-untyped]  # comes with Ray

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
