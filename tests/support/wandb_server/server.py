"""The server itself: its thread, its state to look at, its faults to ask for."""

import base64
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

from . import graphql_text
from .artifact_operations import ArtifactOperations
from .errors import error_body
from .faults import Fault, Faults
from .handler import Handler
from .report_operations import ReportOperations
from .run_operations import USER, RunOperations
from .state import Artifact, Request, Run, State

KEY_LENGTH = 40


class Listener(ThreadingHTTPServer):
    """Listens on loopback, a thread per connection; ``close`` ends all of them."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: "Server", port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.owner = owner
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no matter."""

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class Server:
    """A stand-in for a W&B server, on an ephemeral port of the loopback interface.

    Any key of 40 characters is good. The user is ``tester``, who is an entity too.
    """

    def __init__(self, entities: tuple[str, ...] = (USER,), crash_after: float = 300.0) -> None:
        self.state = State(entities=set(entities), crash_after=crash_after)
        self.faults = Faults()
        self.stopping = threading.Event()
        self.unknown: list[str] = []
        """What was asked for that the server does not know."""
        self.requests: list[Request] = []
        self._keys_are_good = True
        self._listener: Listener | None = None
        self._port = 0

    def __enter__(self) -> "Server":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._stop()

    def _start(self) -> None:
        self._listener = Listener(self, self._port)
        self._port = self._listener.server_address[1]

    def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment to log here."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "k" * KEY_LENGTH,
            "WANDB_MODE": "online",
            "WANDB_ERROR_REPORTING": "false",
            "NO_PROXY": "127.0.0.1",
        }

    # What has arrived.

    def run(self, entity: str, project: str, run_id: str) -> Run:
        with self.state.lock:
            return self.state.runs[entity, project, run_id]

    @property
    def runs(self) -> list[Run]:
        with self.state.lock:
            return list(self.state.runs.values())

    @property
    def artifacts(self) -> list[Artifact]:
        with self.state.lock:
            return list(self.state.artifacts)

    @property
    def reports(self) -> list[dict[str, Any]]:
        with self.state.lock:
            return [
                {
                    "id": report.id,
                    "entity": report.entity,
                    "project": report.project,
                    "display_name": report.display_name,
                    "description": report.description,
                    "spec": json.loads(report.spec),
                    "saves": report.saves,
                }
                for report in self.state.reports
            ]

    def note(self, request: Request) -> None:
        with self.state.lock:
            self.requests.append(request)

    # What goes wrong.

    def fail(
        self, status: int, count: float = 1, match: str = "", retry_after: float | None = None
    ) -> Fault:
        """The next ``count`` requests of the kind or operation are answered by ``status``."""
        return self.faults.add(Fault(match, count, status=status, retry_after=retry_after))

    def slow(self, seconds: float, count: float = float("inf"), match: str = "") -> Fault:
        """Requests wait so long before they are carried out."""
        return self.faults.add(Fault(match, count, seconds=seconds))

    def cut(self, count: float = 1, match: str = "", after: bool = False) -> Fault:
        """No answer, the connection ends; with ``after`` the request has been carried out."""
        return self.faults.add(Fault(match, count, cut=True, after=after))

    def heal(self) -> None:
        """No more faults, and every key is good again."""
        self.faults.clear()
        self._keys_are_good = True

    def wrong_key(self) -> None:
        """No key is good any more: 401."""
        self._keys_are_good = False

    def deny(self, entity: str, project: str) -> None:
        """The user may do nothing in this project: 403."""
        with self.state.lock:
            self.state.denied.add((entity, project))

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Connections are refused, and those that were open end."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    # What a request needs.

    def key_is_good(self, authorization: str | None) -> bool:
        if not self._keys_are_good or not authorization:
            return False
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "basic":
            token = base64.b64decode(token).decode().partition(":")[2]
        return len(token) >= KEY_LENGTH

    def graphql(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one GraphQL request."""
        operation = graphql_text.parse(asked["query"])
        runs = RunOperations(self.state, self.url)
        artifacts = ArtifactOperations(self.state, self.url)
        root: dict[str, Any] = {
            **runs.fields(),
            **artifacts.fields(),
            **ReportOperations(self.state, runs, artifacts).fields(),
        }
        missing: list[str] = []
        answer = graphql_text.execute(operation, asked.get("variables") or {}, root, missing.append)
        if missing:
            self.unknown.extend(f"{operation.name}: {name}" for name in missing)
            return error_body(f"Cannot query field {missing[0]!r}")
        return {"data": answer}
