"""One connection of a client's: requests in, answers out, faults between."""

import gzip
import json
import socket
import time
import zlib
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

from . import file_stream, graphql_text
from .errors import RefusedError, error_body, not_logged_in
from .state import Request

if TYPE_CHECKING:
    from .server import Listener


class Handler(BaseHTTPRequestHandler):
    """Keeps the connection open between requests, as the real server does."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = 120

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed; ``server.requests`` holds all of it."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def _serve(self) -> None:
        server = cast("Listener", self.server).owner
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        kind = kind_of(path)
        asked: dict[str, Any] = {}
        operation = ""
        if kind == "graphql":
            asked = json.loads(body or b"{}")
            operation = asked.get("operationName") or operation_name(asked.get("query", ""))
        status = 0
        answer: dict[str, Any] | bytes = {}
        headers: dict[str, str] = {}
        faults = server.faults.take(kind, operation)
        for fault in faults:
            if fault.seconds:
                server.stopping.wait(fault.seconds)
        broken = next((fault for fault in faults if not fault.seconds), None)
        if broken is not None and broken.status:
            status, answer = broken.status, error_body(f"error {broken.status} by request")
            if broken.retry_after is not None:
                headers["Retry-After"] = f"{broken.retry_after:g}"
        elif broken is None or broken.after:
            status, answer = self._answer(kind, path, body, asked)
        cut = broken is not None and broken.cut
        server.note(
            Request(
                method=self.command,
                path=path,
                kind=kind,
                operation=operation,
                status=0 if cut else status,
                time=time.time(),
                variables=asked.get("variables") or {},
            )
        )
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._send(status, answer, headers)

    def _answer(
        self, kind: str, path: str, body: bytes, asked: dict[str, Any]
    ) -> tuple[int, dict[str, Any] | bytes]:
        server = cast("Listener", self.server).owner
        try:
            with server.state.lock:
                if kind != "storage" and not server.key_is_good(self.headers.get("Authorization")):
                    raise not_logged_in()
                if kind == "graphql":
                    return 200, server.graphql(asked)
                if kind == "file_stream" and self.command == "POST":
                    return 200, file_stream.receive(server.state, path, json.loads(body))
                if kind == "storage" and self.command == "PUT":
                    owner, name = server.state.uploads[path]
                    owner.stored[name] = body
                    return 200, {}
                if kind == "storage" and self.command == "GET":
                    owner, name = server.state.uploads[path]
                    return 200, owner.stored[name]
        except RefusedError as refused:
            return refused.status, error_body(str(refused), refused.code)
        except (graphql_text.GraphQLTextError, KeyError, TypeError, ValueError) as fault:
            server.unknown.append(f"{self.command} {path}: {type(fault).__name__}: {fault}")
            return 400, error_body(f"{type(fault).__name__}: {fault}")
        server.unknown.append(f"{self.command} {path}")
        return 404, error_body("not found")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self._chunks()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        encoding = self.headers.get("Content-Encoding", "")
        if kind_of(self.path) == "storage":
            return body
        if encoding == "gzip":
            return gzip.decompress(body)
        return zlib.decompress(body) if encoding == "deflate" else body

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _send(self, status: int, answer: dict[str, Any] | bytes, headers: dict[str, str]) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()


def kind_of(path: str) -> str:
    """What sort of request a path is for."""
    if path.startswith("/graphql"):
        return "graphql"
    if path.startswith("/storage/"):
        return "storage"
    return "file_stream" if path.endswith("/file_stream") else "other"


def operation_name(query: str) -> str:
    try:
        return graphql_text.parse(query).name
    except graphql_text.GraphQLTextError:
        return ""
