"""The real client, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .server import Server

FASTER = {
    f"WANDB__{service}_{setting}": "1"
    for service in ("FILE_STREAM", "GRAPHQL", "FILE_TRANSFER")
    for setting in ("RETRY_WAIT_MIN_SECONDS", "RETRY_WAIT_MAX_SECONDS")
}
"""Otherwise what failed is tried again after 2 s, 4 s and so on.

The client cuts these to whole seconds, and takes 0 for its default.
"""


def environment(server: Server, folder: Path) -> dict[str, str]:
    """This process's environment, for a client that logs to ``server`` and writes to ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR")
    return {**kept, **server.environment, **dict.fromkeys(folders, str(folder)), **FASTER}


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
