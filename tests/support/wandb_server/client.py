"""The real client in a process of its own, step by step or as a script."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .server import Server

DRIVER = Path(__file__).with_name("driver.py")
FASTER = {
    f"WANDB__{service}_{setting}": "1"
    for service in ("FILE_STREAM", "GRAPHQL", "FILE_TRANSFER")
    for setting in ("RETRY_WAIT_MIN_SECONDS", "RETRY_WAIT_MAX_SECONDS")
} | {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}
"""Otherwise lines are posted every 15 s, and what failed is tried again after 2 s, 4 s and so on.

The client cuts these to whole seconds, and takes 0 for its default.
"""


def environment(server: Server, folder: Path, *, faster: bool = True) -> dict[str, str]:
    """This process's environment, for a client that logs to ``server`` and writes to ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")
    return {
        **kept,
        **server.environment,
        **dict.fromkeys(folders, str(folder)),
        **(FASTER if faster else {}),
    }


def run_script(server: Server, folder: Path, arguments: Sequence[str], **changed: str) -> str:
    """``python ARGUMENTS`` as a client, in ``folder``; what it printed to its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment(server, folder), **changed},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{done.stdout}\n{done.stderr}")
    return done.stdout


class ClientError(Exception):
    """The client raised an error, in its own words."""


class Client:
    """A process that logs one run after another, each as a trial would."""

    def __init__(
        self, server: Server, folder: Path, *, faster: bool = True, **changed: str
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(DRIVER)],
            env={**environment(server, folder, faster=faster), **changed},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate(timeout=30)

    def init(self, **arguments: Any) -> dict[str, Any]:
        """``wandb.init``; whether the run was resumed, its next step, and its folder."""
        return self._do("init", arguments=arguments)

    def log(self, *points: dict[str, Any]) -> None:
        self._do("log", points=points)

    def summary(self, **values: Any) -> None:
        self._do("summary", values=values)

    def finish(self, exit_code: int = 0) -> None:
        self._do("finish", exit_code=exit_code)

    def kill(self) -> None:
        """The process is gone at once, as on a lost machine; its service process follows."""
        self._process.kill()
        self._process.wait()

    def _do(self, what: str, **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": what, **more}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith('{"fault"'):
                told: dict[str, Any] = json.loads(line)
                if told["fault"]:
                    raise ClientError(told["fault"])
                return told
        raise ClientError("the client's process has ended")
