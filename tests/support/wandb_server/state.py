"""What the server holds: projects, runs, artifacts and reports."""

import base64
import json
import threading
from dataclasses import dataclass, field
from typing import Any

HISTORY = "wandb-history.jsonl"
SUMMARY = "wandb-summary.json"
MANIFEST = "wandb_manifest.json"
NOW = "2024-01-01T00:00:00Z"


@dataclass(frozen=True)
class Request:
    """One request, in the order of the answers; ``status`` 0 is a connection cut."""

    path: str
    kind: str
    """``graphql``, ``file_stream``, ``storage`` or ``other``."""
    operation: str
    """The GraphQL operation's name."""
    status: int
    time: float


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
    stored: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    """None while it runs."""

    @property
    def storage_id(self) -> str:
        return node_id("Run", self.number)

    @property
    def config(self) -> dict[str, Any]:
        """The plain configuration, without the client's own entry."""
        return {k: entry["value"] for k, entry in self.raw_config.items() if k != "_wandb"}

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.ordered(SUMMARY)
        return dict(json.loads(lines[-1])) if lines else {}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ordered(HISTORY)]

    @property
    def state(self) -> str:
        return {None: "running", 0: "finished"}.get(self.exit_code, "failed")

    def ordered(self, file: str) -> list[str]:
        """A file's lines by offset."""
        return [line for _, line in sorted(self.lines.get(file, {}).items())]

    def receive(self, file: str, offset: int, content: list[str]) -> None:
        """Lines at their offsets; what lay there is replaced."""
        held = self.lines.setdefault(file, {})
        if file == SUMMARY:
            held.clear()
        held |= dict(enumerate(content, start=offset))


@dataclass
class Artifact:
    """A version of an artifact, as its creation was asked for, and what was stored of it."""

    number: int
    asked: dict[str, Any]
    entity: str
    project: str
    name: str
    version: int
    stored: dict[str, bytes] = field(default_factory=dict)
    """The files by their path in it, and the manifest."""
    committed: bool = False

    @property
    def id(self) -> str:
        return node_id("Artifact", self.number)

    @property
    def type(self) -> str:
        return str(self.asked["artifactTypeName"])

    @property
    def files(self) -> dict[str, bytes]:
        return {name: content for name, content in self.stored.items() if name != MANIFEST}


@dataclass
class Report:
    """A saved view of a project, as it was sent last."""

    number: int
    entity: str
    project: str
    sent: dict[str, Any] = field(default_factory=dict)
    saves: int = 0

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
