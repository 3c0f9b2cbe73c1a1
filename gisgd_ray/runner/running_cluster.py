"""What a Ray cluster that somebody has started demands of those who join it.

Asked in a process of its own: Ray answers a wrong token with twenty lines, a socket of somebody
else's by ending the process.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ASK_TIMEOUT_S = 20.0
_REFUSED = 3
_ASK = f"""
import json, sys
from ray._raylet import GcsClient
try:
    client = GcsClient(address=sys.argv[1])
    metadata = client.internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster", timeout=10)
    session = client.internal_kv_get(b"session_dir", namespace=b"session", timeout=10)
except Exception as fault:  # an older Ray has no AuthenticationError
    sys.exit({_REFUSED} if type(fault).__name__ == "AuthenticationError" else 1)
print(json.dumps([json.loads(metadata or b"null"), (session or b"").decode()]))
"""


@dataclass(frozen=True)
class RunningCluster:
    """A cluster that this process can join."""

    address: str
    token: bool
    """Whether it wants the token."""


class CannotJoinError(Exception):
    """Why this process cannot join a cluster; ``remedy``: what would do."""

    def __init__(self, why: str, remedy: str):
        super().__init__(why)
        self.remedy = remedy


def ask(address: str) -> RunningCluster:
    """What joining the cluster at ``host:port`` takes.

    Raises:
        CannotJoinError: this process cannot.
    """
    for mode in ("disabled", "token"):
        status, said = _asked(address, mode)
        if status == 0:
            metadata, session = json.loads(said)
            _require_same_versions(address, metadata)
            _require_ours(address, session)
            return RunningCluster(address, token=mode == "token")
        if mode == "disabled" and status != _REFUSED:
            raise no_answer(address)
    raise CannotJoinError(
        f"the Ray cluster at {address} does not take this user's token",
        "set RAY_AUTH_TOKEN_PATH to a file that holds the cluster's",
    )


def no_answer(address: str) -> CannotJoinError:
    """Of a cluster that is not there."""
    return CannotJoinError(f"no Ray cluster answers at {address}", "start it")


def _asked(address: str, mode: str) -> tuple[int, str]:
    """Exit status and output of the question."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _ASK, address],
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            env={**os.environ, "RAY_AUTH_MODE": mode},
        )
    except subprocess.TimeoutExpired:
        return 1, ""
    return done.returncode, done.stdout


def _require_same_versions(address: str, metadata: dict[str, str] | None) -> None:
    """Raises CannotJoinError where Ray would refuse this process for its versions."""
    from ray._private.utils import check_version_info, compute_version_info

    if metadata is None:
        return
    try:
        check_version_info(metadata, "this process")
    except RuntimeError:
        ray, python = compute_version_info()
        raise CannotJoinError(
            f"the Ray cluster at {address} runs Ray {metadata['ray_version']} on Python "
            f"{metadata['python_version']}, and this is Ray {ray} on Python {python}",
            "use the same versions",
        ) from None


def _require_ours(address: str, session: str) -> None:
    """Raises CannotJoinError where the cluster's sockets on this machine are another user's."""
    try:
        owner = Path(session).stat().st_uid
    except PermissionError:
        owner = -1
    except OSError:
        return  # of other machines alone: Ray says so
    if os.geteuid() not in (owner, 0):
        raise CannotJoinError(
            f"the Ray cluster at {address} belongs to another user of this machine",
            "start your own",
        )
