"""Reports, which W&B calls views, and what is asked of a project as a whole."""

import json
from collections.abc import Mapping
from typing import Any

from .artifact_operations import ArtifactOperations
from .errors import RefusedError
from .run_operations import NO_PAGES, USER, RunOperations, project_node, run_node, user
from .state import Report, State, now


class ReportOperations:
    """The fields at a document's root that are about reports and projects."""

    def __init__(self, state: State, runs: RunOperations, artifacts: ArtifactOperations) -> None:
        self._state = state
        self._runs = runs
        self._artifacts = artifacts

    def fields(self) -> dict[str, Any]:
        return {
            "view": self.view,
            "upsertView": self.upsert,
            "deleteView": self.delete,
            "project": self.project,
            "model": self.project,
        }

    def project(self, name: str, entityName: str | None = None) -> dict[str, Any] | None:  # noqa: N803
        entity = entityName or USER
        if (entity, name) in self._state.denied:
            self._runs.allowed(entity, name, "project")
        if (entity, name) not in self._state.projects:
            return None

        def run(name: str, missingOk: bool = False) -> dict[str, Any] | None:  # noqa: N803
            found = self._state.runs.get((entity, project_name, name))
            if found is None and not missingOk:
                return None
            return run_node(self._state, found) if found else None

        def views(**arguments: Any) -> dict[str, Any]:
            return self._views(entity, project_name, arguments)

        def artifact(name: str) -> dict[str, Any] | None:
            return self._artifacts.named(entity, project_name, name)

        def runs(filters: str | None = None, **_page: Any) -> dict[str, Any]:
            asked = json.loads(filters or "{}")
            ids = asked.pop("name", {}).pop("$in", None)
            if asked:
                raise RefusedError(400, "the stand-in filters runs by their ids only")
            kept = [r for r in self._state.runs.values() if r.project_key == (entity, project_name)]
            kept = [r for r in kept if ids is None or r.id in ids]
            edges = [{"node": run_node(self._state, r), "cursor": ""} for r in kept]
            return {"pageInfo": NO_PAGES, "edges": edges}

        def artifact_type(name: str) -> dict[str, Any]:
            return {"name": name, "artifactCollection": lambda **_: None}

        project_name = name
        return {
            **project_node(self._state, entity, name),
            "run": run,
            "bucket": run,
            "runs": runs,
            "runCount": lambda **asked: len(runs(**asked)["edges"]),
            "artifact": lambda name: (artifact(name) or {}).get("artifact"),
            "artifactCollectionMembership": artifact,
            "allViews": views,
            "artifactType": artifact_type,
        }

    def _views(self, entity: str, project: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        name = asked.get("viewName")
        nodes = [
            self._node(report)
            for report in self._state.reports
            if (report.entity, report.project) == (entity, project)
            and report.type == (asked.get("viewType") or "runs")
            and (not name or name in (report.name, report.display_name))
        ]
        return {"pageInfo": NO_PAGES, "edges": [{"node": node, "cursor": ""} for node in nodes]}

    def view(self, id: str) -> dict[str, Any] | None:
        report = self._find(id)
        return self._node(report) if report else None

    def upsert(self, input: Mapping[str, Any]) -> dict[str, Any]:
        report = self._find(input["id"]) if input.get("id") else None
        if input.get("id") and report is None:
            raise RefusedError(404, f"view {input['id']} not found during upsertView")
        inserted = report is None
        if report is None:
            entity, project = input.get("entityName") or USER, input.get("projectName") or ""
            self._runs.allowed(entity, project, "upsertView")
            if (entity, project) not in self._state.projects:
                raise RefusedError(404, f"project {entity}/{project} not found during upsertView")
            number = max((kept.number for kept in self._state.reports), default=0) + 1
            report = Report(number, entity, project, input.get("type") or "runs", created=now())
            self._state.reports.append(report)
        self._runs.allowed(report.entity, report.project, "upsertView")
        json.loads(input["spec"])
        for attribute, name in (
            ("name", "name"),
            ("display_name", "displayName"),
            ("description", "description"),
            ("type", "type"),
            ("spec", "spec"),
        ):
            if input.get(name) is not None:
                setattr(report, attribute, input[name])
        report.saves += 1
        report.updated = now()
        return {"view": self._node(report), "inserted": inserted}

    def delete(self, input: Mapping[str, Any]) -> dict[str, Any]:
        report = self._find(input["id"])
        if report is not None:
            self._state.reports.remove(report)
        return {"success": report is not None, "pendingDrafts": []}

    def _find(self, id: str) -> Report | None:
        for report in self._state.reports:
            if report.id == id.rstrip("="):
                return report
        return None

    def _node(self, report: Report) -> dict[str, Any]:
        return {
            "__typename": "View",
            "id": report.id,
            "type": report.type,
            "name": report.name,
            "displayName": report.display_name,
            "description": report.description,
            "user": user([]),
            "project": project_node(self._state, report.entity, report.project),
            "spec": report.spec,
            "createdAt": report.created,
            "updatedAt": report.updated,
        }
