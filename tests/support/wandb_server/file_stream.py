"""The stream of a run's lines."""

from collections.abc import Mapping
from typing import Any

from .errors import RefusedError, permission_denied
from .state import State


def receive(state: State, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Take one post to ``/files/ENTITY/PROJECT/RUN/file_stream``."""
    entity, project, name = path.split("/")[2:5]
    if (entity, project) in state.denied:
        raise permission_denied()
    run = state.runs.get((entity, project, name))
    if run is None:
        raise RefusedError(404, f"run {entity}/{project}/{name} not found")
    if not run.complete:
        run.hear()
    for file, chunk in (body.get("files") or {}).items():
        run.receive(file, int(chunk.get("offset") or 0), list(chunk.get("content") or []))
    run.preempting = bool(body.get("preempting", run.preempting))
    if body.get("complete"):
        run.complete = True
        run.exit_code = int(body.get("exitcode") or 0)
    return {"exitcode": run.exit_code, "limits": {}}
