"""The server itself: its connections, its state to look at, its faults to ask for."""

import base64
import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from graphql import GraphQLError

from .graphql import Document
from .operations import USER, Operations, RefusedError
from .state import Artifact, Request, Run, State

KEY_LENGTH = 40


@dataclass
class Fault:
    """One kind of trouble for the next ``count`` requests that match."""

    match: str
    """A kind of request (``graphql``, ``file_stream``, ``storage``), an operation's name, or "".

    Any request matches ""."""
    count: float
    status: int = 0
    retry_after: float | None = None
    seconds: float = 0.0
    cut: bool = False
    after: bool = False
    """The connection is cut only once the request has been carried out."""


class Handler(BaseHTTPRequestHandler):
    """One connection of a client's, open between requests, as the real server's are."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 120

    def do_POST(self) -> None:
        owner = cast("Listener", self.server).owner
        path, body = unquote(urlsplit(self.path).path), self._body()
        kind = next((k for k in ("graphql", "storage", "file_stream") if k in path), "other")
        document = None
        if kind == "graphql":
            asked = json.loads(body)
            document = Document(asked["query"], asked.get("variables") or {})
        operation = document.name if document else ""
        status, answer, headers = 0, dict[str, Any](), dict[str, str]()
        faults = owner.taken_faults(kind, operation)
        for fault in faults:
            owner.stopping.wait(fault.seconds)
        broken = next((fault for fault in faults if not fault.seconds), None)
        if broken is not None and broken.status:
            status, answer = broken.status, error_body(f"error {broken.status} by request")
            if broken.retry_after is not None:
                headers["Retry-After"] = f"{broken.retry_after:g}"
        elif broken is None or broken.after:
            status, answer = self._answer(owner, kind, path, body, document)
        cut = broken is not None and broken.cut
        owner.note(Request(path, kind, operation, 0 if cut else status, time.time()))
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = json.dumps(answer).encode()
        self.send_response(status)
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def do_PUT(self) -> None:
        self.do_POST()

    def do_GET(self) -> None:
        self.do_POST()

    def _answer(
        self, owner: "Server", kind: str, path: str, body: bytes, document: Document | None
    ) -> tuple[int, dict[str, Any]]:
        try:
            with owner.state.lock:
                if kind == "storage":
                    whose, name = owner.state.uploads[path]
                    whose.stored[name] = body
                    return 200, {}
                if not owner.key_is_good(self.headers.get("Authorization")):
                    raise RefusedError(401, "user is not logged in")
                if document is not None:
                    return 200, owner.graphql(document)
                if kind == "file_stream":
                    return 200, owner.file_stream(path, json.loads(body))
        except RefusedError as refused:
            return refused.status, error_body(str(refused))
        except (KeyError, TypeError, ValueError, StopIteration, GraphQLError) as fault:
            owner.unknown.append(f"{self.command} {path}: {type(fault).__name__}: {fault}")
            return 400, error_body(f"{type(fault).__name__}: {fault}")
        owner.unknown.append(f"{self.command} {path}")
        return 404, error_body("not found")

    def _body(self) -> bytes:
        body = b""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        encoding = self.headers.get("Content-Encoding", "")
        if encoding == "gzip":
            return gzip.decompress(body)
        return zlib.decompress(body) if encoding == "deflate" else body

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed; ``server.requests`` holds all of it."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True


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

    def __init__(self) -> None:
        self.state = State(entities={USER})
        self.stopping = threading.Event()
        self.unknown: list[str] = []
        """What was asked for that the server does not know."""
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
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
        """What was sent of each, its specification read, and how often."""
        with self.state.lock:
            return [
                {**report.sent, "spec": json.loads(report.sent["spec"]), "saves": report.saves}
                for report in self.state.reports
            ]

    def note(self, request: Request) -> None:
        with self.state.lock:
            self.requests.append(request)

    # What goes wrong.

    def fail(
        self, status: int, count: float = 1, match: str = "", retry_after: float | None = None
    ) -> None:
        """The next ``count`` requests of the kind or operation are answered by ``status``."""
        self._faults.append(Fault(match, count, status=status, retry_after=retry_after))

    def slow(self, seconds: float, count: float = float("inf"), match: str = "") -> None:
        """Requests wait so long before they are carried out."""
        self._faults.append(Fault(match, count, seconds=seconds))

    def cut(self, count: float = 1, match: str = "", after: bool = False) -> None:
        """No answer, the connection ends; with ``after`` the request has been carried out."""
        self._faults.append(Fault(match, count, cut=True, after=after))

    def heal(self) -> None:
        """No more faults, and every key is good again."""
        self._faults.clear()
        self._keys_are_good = True

    def faults_left(self) -> float:
        """How many requests still meet a fault."""
        with self.state.lock:
            return sum(fault.count for fault in self._faults)

    def wrong_key(self) -> None:
        """No key is good any more: 401."""
        self._keys_are_good = False

    def deny(self, entity: str, project: str) -> None:
        """The user may do nothing in this project: 403."""
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

    def taken_faults(self, kind: str, operation: str) -> list[Fault]:
        """The faults of one request: all the waits, and the first of the others."""
        taken: list[Fault] = []
        with self.state.lock:
            for fault in self._faults:
                if fault.match not in ("", kind, operation):
                    continue
                if fault.seconds or all(earlier.seconds for earlier in taken):
                    fault.count -= 1
                    taken.append(fault)
            self._faults = [fault for fault in self._faults if fault.count > 0]
        return taken

    def key_is_good(self, authorization: str | None) -> bool:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() == "basic":
            token = base64.b64decode(token).decode().partition(":")[2]
        return self._keys_are_good and len(token) >= KEY_LENGTH

    def graphql(self, document: Document) -> dict[str, Any]:
        """The answer to one GraphQL request."""
        missing: list[str] = []
        answer = document.answer(Operations(self.state, self.url).root(), missing.append)
        if missing:
            self.unknown.extend(f"{document.name}: {name}" for name in missing)
            return error_body(f"Cannot query field {missing[0]!r}")
        return {"data": answer}

    def file_stream(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take one post to ``/files/ENTITY/PROJECT/RUN/file_stream``."""
        entity, project, name = path.split("/")[2:5]
        run = self.state.runs[entity, project, name]
        for file, chunk in (body.get("files") or {}).items():
            run.receive(file, int(chunk.get("offset") or 0), list(chunk.get("content") or []))
        if body.get("complete"):
            run.exit_code = int(body.get("exitcode") or 0)
        return {"exitcode": run.exit_code, "limits": {}}


def error_body(message: str) -> dict[str, Any]:
    """The body of an answer that is one error."""
    return {"data": None, "errors": [{"message": message}]}
