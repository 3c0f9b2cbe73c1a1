"""What is asked of the server in GraphQL: users, projects, runs, artifacts and reports.

Functions have GraphQL's names for arguments; refusals are in the words of W&B's own server.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .state import HISTORY, MANIFEST, NOW, SUMMARY, Artifact, Report, Run, State, node_id

USER = "tester"
LIMITS = {"displayName": 128, "groupName": 128, "jobType": 64}


class RefusedError(Exception):
    """A request is refused with an HTTP status and a GraphQL error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Operations:
    """The fields at a document's root."""

    def __init__(self, state: State, url: str) -> None:
        self._state, self._url = state, url

    def root(self) -> dict[str, Any]:
        return {
            "viewer": user(),
            "serverInfo": {"features": []},
            "entity": lambda name: {"id": node_id("Entity", 1), "name": name},
            "models": self.projects,
            "project": self.project,
            "model": self.project,
            "upsertModel": self.upsert_project,
            "upsertBucket": self.upsert_run,
            "updateRunState": self.fail_run,
            "createRunFiles": self.create_run_files,
            "createArtifact": self.create_artifact,
            "createArtifactManifest": lambda input: self.manifest(input["artifactID"]),
            "createArtifactFiles": self.create_artifact_files,
            "commitArtifact": self.commit_artifact,
            "view": lambda id: next(
                (self.view(r) for r in self._state.reports if r.id == id), None
            ),
            "upsertView": self.upsert_view,
        }

    def allowed(self, entity: str, project: str, operation: str) -> None:
        if entity not in self._state.entities:
            raise RefusedError(404, f"entity {entity} not found during {operation}")
        if (entity, project) in self._state.denied:
            raise RefusedError(403, "permission denied")

    # Projects.

    def projects(self, entityName: str, **_page: Any) -> dict[str, Any]:  # noqa: N803
        self.allowed(entityName, "", "models")
        kept = [each for each in self._state.projects if each[0] == entityName]
        return connection(self.project_node(*each) for each in kept)

    def project_node(self, entity: str, name: str) -> dict[str, Any]:
        """A project without what lies in it."""
        return {
            "__typename": "Project",
            "id": node_id("Project", self._state.project_number(entity, name)),
            "internalId": node_id("ProjectInternalId", self._state.project_number(entity, name)),
            "name": name,
            "entityName": entity,
            "entity": {"id": node_id("Entity", 1), "name": entity},
            "createdAt": NOW,
            "isBenchmark": False,
            "readOnly": False,
            "description": "",
            "access": "USER_READ",
            "views": "{}",
            "user": user(),
        }

    def upsert_project(self, input: Mapping[str, Any]) -> dict[str, Any]:
        entity, name = input.get("entityName") or USER, input["name"]
        self.allowed(entity, name, "upsertModel")
        node = self.project_node(entity, name)
        return {"project": node, "model": node, "inserted": True}

    def project(
        self,
        name: str,
        entityName: str | None = None,  # noqa: N803
    ) -> dict[str, Any] | None:
        key = entityName or USER, name
        self.allowed(*key, "project")
        if key not in self._state.projects:
            return None

        def bucket(name: str, missingOk: bool = False) -> dict[str, Any] | None:  # noqa: N803
            del missingOk
            found = self._state.runs.get((*key, name))
            return self.run_node(found) if found else None

        def runs(filters: str = "{}", **_page: Any) -> dict[str, Any]:
            ids = json.loads(filters)["name"]["$in"]
            kept = [run for where, run in self._state.runs.items() if where[:2] == key]
            return connection(self.run_node(run) for run in kept if run.id in ids)

        def membership(name: str) -> dict[str, Any] | None:
            name, _, alias = name.partition(":")
            for each in reversed(self._state.artifacts):
                if (each.entity, each.project, each.name) == (*key, name) and each.committed:
                    assert alias == "latest"
                    return self.membership(each)
            return None

        def views(**_page: Any) -> dict[str, Any]:
            kept = [r for r in self._state.reports if (r.entity, r.project) == key]
            return connection(self.view(report) for report in kept)

        return {
            **self.project_node(*key),
            "bucket": bucket,
            "run": bucket,
            "runs": runs,
            "runCount": lambda **asked: len(runs(**asked)["edges"]),
            "artifact": lambda name: (membership(name) or {}).get("artifact"),
            "artifactCollectionMembership": membership,
            "allViews": views,
        }

    # Runs.

    def upsert_run(self, input: Mapping[str, Any]) -> dict[str, Any]:
        for name, longest in LIMITS.items():
            if len(input.get(name) or "") > longest:
                raise RefusedError(400, f"invalid {name}: exceeded {longest} characters")
        for tag in input.get("tags") or ():
            if not 1 <= len(tag) <= 64:
                raise RefusedError(400, f"invalid tag '{tag}'. must be between 1 and 64 characters")
        state, key = self._state, None
        if input.get("id"):
            key = next(k for k, run in state.runs.items() if run.storage_id == input["id"])
        entity, project = input.get("entityName") or USER, input.get("modelName") or "uncategorized"
        key = key or (entity, project, input["name"])
        self.allowed(*key[:2], "upsertBucket")
        state.project_number(*key[:2])
        inserted = key not in state.runs
        run = state.runs.setdefault(key, Run(len(state.runs) + 1, *key))
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
            run.exit_code = None
        return {"bucket": self.run_node(run), "inserted": inserted}

    def fail_run(self, input: Mapping[str, Any]) -> dict[str, Any]:
        run = next(r for r in self._state.runs.values() if r.storage_id == input["id"])
        if (input["state"], run.state) != ("failed", "running"):
            raise RefusedError(400, f"no transition from {run.state} to {input['state']}")
        run.exit_code = 1
        return {"success": True}

    def create_run_files(self, input: Mapping[str, Any]) -> dict[str, Any]:
        entity, project = input.get("entityName") or USER, input["projectName"]
        run = self._state.runs[entity, project, input["runName"]]
        files = [
            {"name": name, "uploadUrl": self._url + self._state.upload_path(run, name)}
            for name in input["files"]
        ]
        return {"runID": run.storage_id, "uploadHeaders": [], "files": files}

    def run_node(self, run: Run) -> dict[str, Any]:
        """A run, as a new one is answered and as one that continues is asked for."""
        entry = run.raw_config.get("_wandb", {}).get("value", {})

        def wandb_config(keys: list[str]) -> str:
            return json.dumps({name: value for name, value in entry.items() if name in keys})

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
            "projectId": self._state.project_number(run.entity, run.project),
            "sweepName": None,
            "commit": None,
            "readOnly": False,
            "createdAt": NOW,
            "heartbeatAt": NOW,
            "user": user(),
            "project": self.project_node(run.entity, run.project),
            "historyLineCount": max(run.lines.get(HISTORY, {}), default=-1) + 1,
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps(run.ordered(HISTORY)[-1:]),
            "eventsTail": "[]",
        }

    # Artifacts, from their creation to the commit.

    def create_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:
        entity, project = input.get("entityName") or USER, input["projectName"]
        name, kept = input["artifactCollectionName"], self._state.artifacts
        versions = [a for a in kept if (a.entity, a.project, a.name) == (entity, project, name)]
        for earlier in versions:
            if earlier.asked["digest"] == input["digest"]:
                return {"artifact": self.artifact_node(earlier)}
        made = Artifact(len(kept) + 1, dict(input), entity, project, name, len(versions))
        kept.append(made)
        return {"artifact": self.artifact_node(made)}

    def manifest(self, id: str) -> dict[str, Any]:
        url = self._url + self._state.upload_path(self.artifact(id), MANIFEST)
        file = {"id": f"{id}-file", "uploadUrl": url, "uploadHeaders": [], "directUrl": url}
        return {"artifactManifest": {"id": f"{id}-manifest", "file": file}}

    def create_artifact_files(self, input: Mapping[str, Any]) -> dict[str, Any]:
        nodes = []
        for number, file in enumerate(input["artifactFiles"]):
            path = self._state.upload_path(self.artifact(file["artifactID"]), file["name"])
            node = {"name": file["name"], "displayName": file["name"], "uploadHeaders": []}
            node |= {"id": f"{file['artifactID']}-{number}", "artifact": {"id": file["artifactID"]}}
            node |= {"uploadUrl": self._url + path, "uploadMultipartUrls": None}
            nodes.append(node | {"storagePath": path.removeprefix("/")})
        return {"files": connection(nodes)}

    def commit_artifact(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self.artifact(input["artifactID"])
        artifact.committed = True
        return {"artifact": self.artifact_node(artifact)}

    def artifact(self, id: str) -> Artifact:
        return next(each for each in self._state.artifacts if each.id == id)

    def artifact_node(self, artifact: Artifact) -> dict[str, Any]:
        committed = [a for a in self._state.artifacts if a.name == artifact.name and a.committed]
        sequence = {
            "__typename": "ArtifactSequence",
            "name": artifact.name,
            "project": self.project_node(artifact.entity, artifact.project),
            "id": f"{artifact.name}-sequence",
            "latestArtifact": {
                "id": committed[-1].id,
                "versionIndex": committed[-1].version,
            }
            if committed
            else None,
        }
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "digest": artifact.asked["digest"],
            "digestAlgorithm": "MANIFEST_MD5",
            "state": "COMMITTED" if artifact.committed else "PENDING",
            "versionIndex": artifact.version,
            "metadata": "{}",
            "artifactSequence": sequence,
            "artifactType": {"name": artifact.type},
            "tags": [],
            "description": None,
            "historyStep": None,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "size": sum(map(len, artifact.files.values())),
            "fileCount": len(artifact.files),
            "commitHash": None,
            "createdAt": NOW,
            "updatedAt": None,
        }

    def membership(self, artifact: Artifact) -> dict[str, Any]:
        """A version's place in its collection."""
        node = self.artifact_node(artifact)
        alias = {"__typename": "ArtifactAlias", "id": node_id("ArtifactAlias", 1)}
        return {
            "__typename": "ArtifactCollectionMembership",
            "id": f"{artifact.id}-membership",
            "versionIndex": artifact.version,
            "createdAt": NOW,
            "aliases": [{**alias, "alias": "latest"}],
            "artifactCollection": node["artifactSequence"],
            "artifact": node,
        }

    # Reports, which W&B calls views.

    def upsert_view(self, input: Mapping[str, Any]) -> dict[str, Any]:
        kept = self._state.reports
        if input.get("id"):
            report = next(each for each in kept if each.id == input["id"].rstrip("="))
        else:
            where = input["entityName"], input["projectName"]
            self.allowed(*where, "upsertView")
            report = Report(len(kept) + 1, *where)
            kept.append(report)
        json.loads(input["spec"])
        report.sent |= {name: value for name, value in input.items() if value is not None}
        report.saves += 1
        return {"view": self.view(report), "inserted": report.saves == 1}

    def view(self, report: Report) -> dict[str, Any]:
        return {
            "__typename": "View",
            "id": report.id,
            **{name: report.sent[name] for name in ("type", "name", "displayName", "spec")},
            "description": report.sent.get("description", ""),
            "user": user(),
            "project": self.project_node(report.entity, report.project),
            "createdAt": NOW,
            "updatedAt": NOW,
        }


def connection(nodes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Nodes as GraphQL's clients page through them; here all are on one page."""
    info = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"pageInfo": info, "edges": [{"node": node, "cursor": ""} for node in nodes]}


def user() -> dict[str, Any]:
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
        "teams": {"edges": []},
    }
