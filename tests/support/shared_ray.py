"""The one Ray cluster of all tests that need no fault of it: of this machine, with a token."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.launches import ROOT


@dataclass(frozen=True)
class Head:
    """A cluster of one machine that counts two CPUs."""

    address: str
    home: Path
    folder: Path
    """Where Ray keeps what it writes while it runs."""

    @property
    def environment(self) -> dict[str, str]:
        """Of a user who has started it: the token is in the home, Ray's note in the folder."""
        return {"HOME": str(self.home), "RAY_TMPDIR": str(self.folder)}


@contextmanager
def started(home: Path) -> Iterator[Head]:
    """``ray start``, as a user types it, with ``home`` for the home."""
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("abcd" * 16)
    port, client, dashboard, agent = free_ports(4)
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = Head(f"127.0.0.1:{port}", home, Path(folder))
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
            env={**os.environ, **head.environment, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if "--block" in line:
                break
        else:
            raise AssertionError("".join(said))
        yield head
        process.terminate()
        process.communicate(timeout=60)


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
