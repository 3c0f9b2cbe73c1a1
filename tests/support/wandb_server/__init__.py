"""A stand-in for a W&B server, for clients in other processes on this machine."""

from .client import Client, ClientError, environment, run_script
from .server import Server
from .state import Artifact, Request, Run

__all__ = [
    "Artifact",
    "Client",
    "ClientError",
    "Request",
    "Run",
    "Server",
    "environment",
    "run_script",
]
