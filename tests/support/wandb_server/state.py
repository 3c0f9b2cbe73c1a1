"""What the server holds: projects, runs, artifacts and reports."""

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HISTORY = "wandb-history.jsonl"
EVENTS = "wandb-events.jsonl"
SUMMARY = "wandb-summary.json"
OUTPUT = "output.log"
MANIFEST = "wandb_manifest.json"


@dataclass(frozen=True)
class Line:
    """One line as a client sent it; the same offset may come more than once."""

    file: str
    offset: int
    content: str
    time: float


@dataclass(frozen=True)
class Request:
    """One request, in the order of the answers; ``status`` 0 is a connection cut."""

    method: str
    path: str
    kind: str
    """``graphql``, ``file_stream``, ``storage`` or ``other``."""
    operation: str
    """The GraphQL operation's name."""
    status: int
    time: float
    variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """A run; ``lines`` by file name and offset."""

    number: int
    entity: str
    project: str
    id: str
    display_name: str = ""
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    """As the client sends it: ``{name: {"value": value}}``."""
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    received_lines: list[Line] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    complete: bool = False
    preempting: bool = False
    heard: float = field(default_factory=time.monotonic)
    crash_after: float = 300.0
    """Seconds without a word after which a run that is not complete counts as crashed."""

    @property
    def storage_id(self) -> str:
        return node_id("Run", self.number)

    @property
    def files(self) -> dict[str, bytes]:
        return dict(self.stored)

    @property
    def project_key(self) -> tuple[str, str]:
        return self.entity, self.project

    @property
    def config(self) -> dict[str, Any]:
        """The plain configuration, without the client's own entry."""
        return {
            name: entry["value"] if isinstance(entry, dict) and "value" in entry else entry
            for name, entry in self.raw_config.items()
            if name != "_wandb"
        }

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.ordered(SUMMARY)
        return dict(json.loads(lines[-1])) if lines else {}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ordered(HISTORY)]

    @property
    def output(self) -> list[str]:
        return self.ordered(OUTPUT)

    @property
    def state(self) -> str:
        if self.complete:
            return "finished" if self.exit_code == 0 else "failed"
        return "crashed" if time.monotonic() - self.heard > self.crash_after else "running"

    def hear(self) -> None:
        """A client has spoken of this run: it is running."""
        self.heard = time.monotonic()
        self.complete = False
        self.exit_code = None

    def ordered(self, file: str) -> list[str]:
        """A file's lines by offset."""
        return [line for _, line in sorted(dict(self.lines.get(file, {})).items())]

    def line_count(self, file: str) -> int:
        return max(self.lines.get(file, {}), default=-1) + 1

    def tail(self, file: str) -> list[str]:
        return self.ordered(file)[-1:]

    def receive(self, file: str, offset: int, content: list[str]) -> None:
        """Lines at their offsets; what lay there is replaced."""
        held = self.lines.setdefault(file, {})
        if file == SUMMARY:
            held.clear()
        for number, line in enumerate(content, start=offset):
            held[number] = line
            self.received_lines.append(Line(file, number, line, time.time()))


@dataclass
class Artifact:
    """A version of an artifact; ``files`` by their path in it, ``manifest`` as it was sent."""

    number: int
    entity: str
    project: str
    name: str
    type: str
    run: str
    version: int
    digest: str
    metadata: dict[str, Any] = field(default_factory=dict)
    aliases: list[str] = field(default_factory=list)
    client_id: str = ""
    description: str | None = None
    history_step: int | None = None
    created: str = ""
    stored: dict[str, bytes] = field(default_factory=dict)
    """The files and the manifest."""
    committed: bool = False
    used_by: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        return node_id("Artifact", self.number)

    @property
    def files(self) -> dict[str, bytes]:
        return {name: content for name, content in self.stored.items() if name != MANIFEST}

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(self.stored.get(MANIFEST, b"{}")))


@dataclass
class Report:
    """A saved view of a project."""

    number: int
    entity: str
    project: str
    type: str
    name: str = ""
    display_name: str = ""
    description: str = ""
    spec: str = "{}"
    saves: int = 0
    created: str = ""
    updated: str = ""

    @property
    def id(self) -> str:
        """Without padding, as it stands in the report's address."""
        return node_id("View", self.number).rstrip("=")


@dataclass
class State:
    """All of it; ``lock`` guards every reading and writing."""

    entities: set[str]
    denied: set[tuple[str, str]] = field(default_factory=set)
    """Projects in which this user may do nothing."""
    projects: dict[tuple[str, str], int] = field(default_factory=dict)
    runs: dict[tuple[str, str, str], Run] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    uploads: dict[str, tuple[Run | Artifact, str]] = field(default_factory=dict)
    """What lies behind an upload's address: whose file, and its name."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    crash_after: float = 300.0

    def project_number(self, entity: str, project: str) -> int:
        """The project's number; it is made where it does not exist."""
        return self.projects.setdefault((entity, project), len(self.projects) + 1)

    def upload_path(self, owner: Run | Artifact, name: str) -> str:
        """A path to PUT a file to."""
        path = f"/storage/{len(self.uploads) + 1}/{name}"
        self.uploads[path] = (owner, name)
        return path


def node_id(kind: str, number: int) -> str:
    """An id as W&B makes them; clients decode an artifact's, so the padding stays."""
    return base64.b64encode(f"{kind}:{number}".encode()).decode()


def now() -> str:
    """This second as W&B writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
