"""What the server refuses, in the words of W&B's own."""

from typing import Any


class RefusedError(Exception):
    """A request is refused with an HTTP status and a GraphQL error."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_body(message: str, code: str = "", path: str = "") -> dict[str, Any]:
    """The body of an answer that is one error."""
    error: dict[str, Any] = {"message": message}
    if path:
        error["path"] = [path]
    if code:
        error["extensions"] = {"code": code}
    return {"data": {path: None} if path else None, "errors": [error]}


def not_logged_in() -> RefusedError:
    return RefusedError(401, "user is not logged in", "AUTHENTICATION_ERROR")


def permission_denied() -> RefusedError:
    return RefusedError(403, "permission denied", "PERMISSION_ERROR")


def entity_not_found(entity: str, operation: str) -> RefusedError:
    return RefusedError(404, f"entity {entity} not found during {operation}")
