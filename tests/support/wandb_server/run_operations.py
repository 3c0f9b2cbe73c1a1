"""Users, projects and runs, as the GraphQL operations see them."""

import json
from collections.abc import Mapping
from typing import Any

from .errors import RefusedError, entity_not_found, permission_denied
from .state import EVENTS, HISTORY, OUTPUT, SUMMARY, Run, State, node_id

USER = "tester"

NO_PAGES = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}


class RunOperations:
    """The fields at a document's root that are about users, projects and runs."""

    def __init__(self, state: State, url: str) -> None:
        self._state = state
        self._url = url

    def fields(self) -> dict[str, Any]:
        return {
            "viewer": user(sorted(self._state.entities)),
            "serverInfo": {
                "features": [],
                "cliVersionInfo": {"max_cli_version": "999.0.0"},
                "latestLocalVersionInfo": None,
            },
            "entity": self.entity,
            "models": self.models,
            "upsertModel": self.upsert_model,
            "upsertBucket": self.upsert_bucket,
            "updateRunState": self.update_run_state,
            "createRunFiles": self.create_run_files,
            "notifyScriptableRunAlert": lambda **_: {"success": True},
        }

    def allowed(self, entity: str, project: str, operation: str) -> None:
        if entity not in self._state.entities:
            raise entity_not_found(entity, operation)
        if (entity, project) in self._state.denied:
            raise permission_denied()

    def entity(self, name: str) -> dict[str, Any] | None:
        if name not in self._state.entities:
            return None
        return {
            "__typename": "Entity",
            "id": node_id("Entity", 1),
            "name": name,
            "xxhashDigestsEnabled": False,
            "organization": None,
            "user": None,
            "isTeam": False,
        }

    def models(
        self,
        entityName: str | None = None,  # noqa: N803
        **_page: Any,
    ) -> dict[str, Any]:
        nodes = [
            project_node(self._state, entity, name)
            for entity, name in self._state.projects
            if entity == (entityName or USER)
        ]
        return {"pageInfo": NO_PAGES, "edges": [{"node": node, "cursor": ""} for node in nodes]}

    def upsert_model(self, input: Mapping[str, Any]) -> dict[str, Any]:
        entity = input.get("entityName") or USER
        name = input["name"]
        self.allowed(entity, name, "upsertModel")
        inserted = (entity, name) not in self._state.projects
        self._state.project_number(entity, name)
        node = project_node(self._state, entity, name)
        return {"project": node, "model": node, "inserted": inserted}

    def upsert_bucket(self, input: Mapping[str, Any]) -> dict[str, Any]:
        for name, longest in (("displayName", 128), ("groupName", 128), ("jobType", 64)):
            if len(input.get(name) or "") > longest:
                raise RefusedError(400, f"invalid {name}: exceeded {longest} characters")
        for tag in input.get("tags") or ():
            if not 1 <= len(tag) <= 64:
                raise RefusedError(400, f"invalid tag '{tag}'. must be between 1 and 64 characters")
        run, inserted = self._run_to_upsert(input)
        for attribute, name in (
            ("display_name", "displayName"),
            ("group", "groupName"),
            ("job_type", "jobType"),
            ("notes", "notes"),
            ("tags", "tags"),
        ):
            if input.get(name) is not None:
                setattr(run, attribute, input[name])
        run.display_name = run.display_name or run.id
        if input.get("config"):
            run.raw_config = json.loads(input["config"])
        if input.get("summaryMetrics"):
            run.receive(SUMMARY, 0, [input["summaryMetrics"]])
        if input.get("name"):  # by its storage id alone it is edited, not continued
            run.hear()
        return {"bucket": run_node(self._state, run), "inserted": inserted}

    def update_run_state(self, input: Mapping[str, Any]) -> dict[str, Any]:
        run = next(r for r in self._state.runs.values() if r.storage_id == input["id"])
        if (input["state"], run.state) != ("failed", "running"):
            raise RefusedError(400, f"no transition from {run.state} to {input['state']}")
        run.complete, run.exit_code = True, 1
        return {"success": True}

    def _run_to_upsert(self, input: Mapping[str, Any]) -> tuple[Run, bool]:
        if input.get("id"):
            for run in self._state.runs.values():
                if run.storage_id == input["id"]:
                    return run, False
        entity = input.get("entityName") or USER
        project = input.get("modelName") or "uncategorized"
        self.allowed(entity, project, "upsertBucket")
        self._state.project_number(entity, project)
        runs = self._state.runs
        name = input.get("name") or f"run{len(runs) + 1}"
        inserted = (entity, project, name) not in runs
        if inserted:
            runs[entity, project, name] = Run(
                len(runs) + 1, entity, project, name, crash_after=self._state.crash_after
            )
        return runs[entity, project, name], inserted

    def create_run_files(self, input: Mapping[str, Any]) -> dict[str, Any]:
        entity, project = input.get("entityName") or USER, input["projectName"]
        self.allowed(entity, project, "createRunFiles")
        run = self._state.runs.get((entity, project, input["runName"]))
        if run is None:
            raise RefusedError(404, f"run {input['runName']} not found during createRunFiles")
        files = [
            {"name": name, "uploadUrl": self._url + self._state.upload_path(run, name)}
            for name in input["files"]
        ]
        return {"runID": run.storage_id, "uploadHeaders": [], "files": files}


def user(teams: list[str]) -> dict[str, Any]:
    """Who every key belongs to."""
    return {
        "__typename": "User",
        "id": node_id("User", 1),
        "name": "Tester",
        "username": USER,
        "email": "tester@example.org",
        "admin": False,
        "flags": "{}",
        "entity": USER,
        "photoUrl": "",
        "deletedAt": None,
        "apiKeys": {"edges": []},
        "teams": {"edges": [{"node": {"name": name}} for name in teams if name != USER]},
    }


def project_node(state: State, entity: str, name: str) -> dict[str, Any]:
    """A project without what lies in it."""
    number = state.project_number(entity, name)
    return {
        "__typename": "Project",
        "id": node_id("Project", number),
        "internalId": node_id("ProjectInternalId", number),
        "name": name,
        "entityName": entity,
        "entity": {"id": node_id("Entity", 1), "name": entity},
        "createdAt": "2024-01-01T00:00:00Z",
        "isBenchmark": False,
        "readOnly": False,
        "description": "",
        "access": "USER_READ",
        "views": "{}",
        "user": user([]),
    }


def run_node(state: State, run: Run) -> dict[str, Any]:
    """A run, as a new one is answered and as one that continues is asked for."""
    wandb_entry = run.raw_config.get("_wandb", {}).get("value", {})

    def wandb_config(keys: list[str] | None = None) -> str:
        return json.dumps({k: v for k, v in wandb_entry.items() if keys is None or k in keys})

    return {
        "__typename": "Run",
        "id": run.storage_id,
        "name": run.id,
        "displayName": run.display_name,
        "description": "",
        "notes": run.notes,
        "state": run.state,
        "group": run.group,
        "jobType": run.job_type,
        "tags": list(run.tags),
        "config": json.dumps(run.raw_config),
        "wandbConfig": wandb_config,
        "summaryMetrics": json.dumps(run.summary),
        "systemMetrics": "{}",
        "historyKeys": None,
        "projectId": state.project_number(run.entity, run.project),
        "sweepName": None,
        "commit": None,
        "readOnly": False,
        "createdAt": "2024-01-01T00:00:00Z",
        "heartbeatAt": "2024-01-01T00:00:00Z",
        "user": user([]),
        "project": project_node(state, run.entity, run.project),
        "historyLineCount": run.line_count(HISTORY),
        "eventsLineCount": run.line_count(EVENTS),
        "logLineCount": run.line_count(OUTPUT),
        "historyTail": json.dumps(run.tail(HISTORY)),
        "eventsTail": json.dumps(run.tail(EVENTS)),
    }
