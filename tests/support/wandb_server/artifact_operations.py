"""Artifacts, from their creation to the commit."""

import json
from collections.abc import Mapping
from typing import Any

from .errors import RefusedError
from .run_operations import USER, project_node
from .state import MANIFEST, Artifact, State, node_id, now


class ArtifactOperations:
    """The fields at a document's root that are about artifacts."""

    def __init__(self, state: State, url: str) -> None:
        self._state = state
        self._url = url

    def fields(self) -> dict[str, Any]:
        return {
            "artifact": lambda id: self._node(self._find(id)),
            "clientIDMapping": self.client_id,
            "createArtifactType": self.create_type,
            "createArtifact": self.create,
            "createArtifactManifest": self.create_manifest,
            "updateArtifactManifest": self.update_manifest,
            "createArtifactFiles": self.create_files,
            "commitArtifact": self.commit,
            "useArtifact": self.use,
            "updateArtifact": self.update,
        }

    def client_id(self, clientID: str) -> dict[str, Any] | None:  # noqa: N803
        for artifact in self._state.artifacts:
            if artifact.client_id == clientID:
                return {"serverID": artifact.id}
        return None

    def create_type(self, input: Mapping[str, Any]) -> dict[str, Any]:
        return {"artifactType": {"id": "QXJ0aWZhY3RUeXBlOjE", "name": input["name"]}}

    def create(self, input: Mapping[str, Any]) -> dict[str, Any]:
        entity, project = input.get("entityName") or USER, input["projectName"]
        name = (input.get("artifactCollectionNames") or [input.get("artifactCollectionName")])[0]
        kept = self._state.artifacts
        versions = [a for a in kept if (a.entity, a.project, a.name) == (entity, project, name)]
        for earlier in versions:
            if earlier.digest == input["digest"]:
                return {"artifact": self._node(earlier)}
        artifact = Artifact(
            number=len(kept) + 1,
            entity=entity,
            project=project,
            name=name,
            type=input["artifactTypeName"],
            run=input.get("runName") or "",
            version=len(versions),
            digest=input["digest"],
            metadata=json.loads(input.get("metadata") or "{}"),
            aliases=[alias["alias"] for alias in input.get("aliases") or []],
            client_id=input.get("clientID") or "",
            description=input.get("description"),
            history_step=input.get("historyStep"),
            created=now(),
        )
        kept.append(artifact)
        return {"artifact": self._node(artifact)}

    def create_manifest(self, input: Mapping[str, Any]) -> dict[str, Any]:
        return self._manifest(self._find(input["artifactID"]))

    def update_manifest(self, input: Mapping[str, Any]) -> dict[str, Any]:
        return self._manifest(self._find(input["artifactManifestID"].removesuffix("-manifest")))

    def _manifest(self, artifact: Artifact) -> dict[str, Any]:
        url = self._url + self._state.upload_path(artifact, MANIFEST)
        file = {
            "id": f"{artifact.id}-file",
            "uploadUrl": url,
            "uploadHeaders": [],
            "directUrl": url,
        }
        return {"artifactManifest": {"id": f"{artifact.id}-manifest", "file": file}}

    def create_files(self, input: Mapping[str, Any]) -> dict[str, Any]:
        edges: list[dict[str, Any]] = []
        for file in input["artifactFiles"]:
            artifact = self._find(file["artifactID"])
            path = self._state.upload_path(artifact, file["name"])
            node = {
                "id": f"{artifact.id}-{len(edges)}",
                "name": file["name"],
                "displayName": file["name"],
                "uploadUrl": self._url + path,
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "storagePath": path.removeprefix("/"),
                "artifact": {"id": artifact.id},
            }
            edges.append({"node": node})
        return {"files": {"edges": edges}}

    def commit(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self._find(input["artifactID"])
        artifact.committed = True
        return {"artifact": self._node(artifact)}

    def use(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self._find(input["artifactID"])
        artifact.used_by.append(input.get("runName") or "")
        return {"artifact": self._node(artifact)}

    def update(self, input: Mapping[str, Any]) -> dict[str, Any]:
        artifact = self._find(input["artifactID"])
        if input.get("metadata") is not None:
            artifact.metadata = json.loads(input["metadata"])
        return {"artifact": self._node(artifact)}

    def _find(self, id: str) -> Artifact:
        for artifact in self._state.artifacts:
            if artifact.id == id:
                return artifact
        raise RefusedError(404, f"artifact {id} not found")

    def named(self, entity: str, project: str, name: str) -> dict[str, Any] | None:
        """A committed artifact by ``NAME:ALIAS``."""
        name, _, alias = name.partition(":")
        for artifact in reversed(self._state.artifacts):
            if (artifact.entity, artifact.project, artifact.name) != (entity, project, name):
                continue
            if artifact.committed and alias in ("latest", f"v{artifact.version}"):
                node = self._node(artifact)
                return {
                    "__typename": "ArtifactCollectionMembership",
                    "id": f"{artifact.id}-membership",
                    "versionIndex": artifact.version,
                    "createdAt": artifact.created,
                    "aliases": node["aliases"],
                    "artifactCollection": node["artifactSequence"],
                    "artifact": node,
                }
        return None

    def _node(self, artifact: Artifact) -> dict[str, Any]:
        committed = [a for a in self._state.artifacts if a.name == artifact.name and a.committed]
        collection = {
            "__typename": "ArtifactSequence",
            "name": artifact.name,
            "project": project_node(self._state, artifact.entity, artifact.project),
        }
        sequence = {
            **collection,
            "id": f"{artifact.name}-sequence",
            "latestArtifact": self._short(committed[-1]) if committed else None,
        }
        aliases = [
            {
                "__typename": "ArtifactAlias",
                "id": node_id("ArtifactAlias", number),
                "alias": alias,
                "artifactCollection": collection,
            }
            for number, alias in enumerate(artifact.aliases)
        ]
        return {
            **self._short(artifact),
            "artifactSequence": sequence,
            "artifactType": {"name": artifact.type},
            "currentManifest": self._manifest(artifact)["artifactManifest"],
            "aliases": aliases,
            "tags": [],
            "description": artifact.description,
            "historyStep": artifact.history_step,
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "size": sum(map(len, artifact.files.values())),
            "fileCount": len(artifact.files),
            "commitHash": None,
            "createdAt": artifact.created,
            "updatedAt": None,
        }

    def _short(self, artifact: Artifact) -> dict[str, Any]:
        return {
            "__typename": "Artifact",
            "id": artifact.id,
            "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "state": "COMMITTED" if artifact.committed else "PENDING",
            "versionIndex": artifact.version,
            "metadata": json.dumps(artifact.metadata),
        }
