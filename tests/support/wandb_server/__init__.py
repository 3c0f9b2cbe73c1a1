"""A stand-in for a W&B server, for clients in other processes on this machine."""

from .client import environment, run_script
from .server import Server
from .state import Artifact, Run

__all__ = ["Artifact", "Run", "Server", "environment", "run_script"]
