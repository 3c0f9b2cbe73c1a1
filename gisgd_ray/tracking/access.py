"""Whether W&B can be reached, asked by the driver alone, and what its client raises if not."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import wandb
from pydantic import ValidationError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from gisgd_ray.errors import one_line
from gisgd_ray.tracking.environment import account, project, put_on

Mode = Literal["online", "offline", "disabled"]
MODES: dict[str, Mode] = {
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
    "online": "online",
    "run": "online",
}
"""What ``WANDB_MODE`` may be."""
ANSWER_TIMEOUT_S = 4
"""How long one try for an answer of W&B may take."""
ASK_TIMEOUT_S = 15
"""How long a question is waited for: longer than its two tries. A question that is given up is
still asked by W&B's own process, for the end of which this one would then wait at its own end."""
FAULTS = (wandb.Error, WandbApiFailedError, ValidationError, OSError)
"""What W&B's client raises where W&B does not answer, or does not take what it is told."""


@dataclass(frozen=True)
class Access:
    """How runs are kept, and why."""

    mode: Mode
    reason: str
    entity: str | None = None
    """Whose project it is; None leaves it to W&B's settings."""
    as_asked: bool = False
    """Whether the user has said so, by WANDB_MODE."""

    @property
    def silent(self) -> bool:
        """Whether there is nothing to be said."""
        return self.mode == "disabled" and self.as_asked

    def __str__(self) -> str:
        if self.mode == "online":
            return f"W&B: online, in {self.entity or 'your default entity'}/{project()}."
        kept = " Runs are kept, for `make sync`." if self.mode == "offline" else ""
        return f"W&B: {self.mode}, since {self.reason}.{kept}"


def client() -> wandb.Api:
    """W&B's client for questions, which tries twice, and not for minutes.

    Raises:
        Exception: one of :data:`FAULTS`.
    """
    _set_up(
        x_graphql_retry_max=1,
        x_graphql_timeout_seconds=ANSWER_TIMEOUT_S,
        x_graphql_retry_wait_max_seconds=1,
    )
    return wandb.Api(timeout=ASK_TIMEOUT_S)


def logged_in() -> bool:
    """Whether there is a key. Without one the client would ask for it, where there is a terminal.

    Raises:
        Exception: one of :data:`FAULTS`.
    """
    _set_up()
    return bool(wandb.login(prompt=False, verify=False))


def _set_up(**settings: Any) -> None:
    os.environ.pop("WANDB_SERVICE", None)  # of a process that may be gone
    # Silent, since what it says of keys and logins is said in one sentence.
    wandb.setup(settings=wandb.Settings(silent=True, **settings))


def access() -> Access:
    """As ``WANDB_MODE`` says; offline where the server, the key or the project does not let it be
    online, or where it says nothing and nobody has logged in.

    Otherwise every trial would find that out by itself, each after its own wait. What says which
    run it is, of another process, is taken out of this one's environment as out of the trials'.
    """
    put_on(account())
    chosen = os.environ.get("WANDB_MODE", "")
    asked, entity = MODES.get(chosen), os.environ.get("WANDB_ENTITY") or None
    if asked == "disabled":
        return Access("disabled", f"WANDB_MODE is {chosen}", as_asked=True)
    try:
        _set_up(project=project())
    except (ValidationError, wandb.Error) as fault:  # no run could be opened, not even offline
        text = one_line(str(fault).partition("[type=")[0], 200)
        return Access("disabled", f"W&B does not take its settings ({text})")
    if asked == "offline":
        return Access("offline", f"WANDB_MODE is {chosen}", as_asked=True)
    try:
        if not logged_in():
            return Access("offline", "nobody has logged in with wandb login", entity)
        asking = client()
        entity = entity or asking.default_entity
        # W&B would create it with the first run; here before, to see whether it may.
        asking.create_project(project(), entity or "")
    except FAULTS as fault:
        return Access("offline", explained(fault, f"{entity or ''}/{project()}"), entity)
    return Access("online", "it answers", entity)


def explained(fault: Exception, where: str) -> str:
    """One of :data:`FAULTS` as a sentence that says what would do.

    Args:
        where: ENTITY/PROJECT that was asked for.
    """
    cause: BaseException | None = fault
    while cause is not None:
        if isinstance(cause, WandbApiFailedError):
            status = cause.response.http_status if cause.response is not None else 0
            # It tells both of its tries, the last one on a line of its own.
            last = (str(cause).splitlines() or [""])[-1].removeprefix("while retrying: ")
            return _by_status(status, one_line(last, 200), where)
        cause = cause.__cause__ or cause.__context__
    return f"{type(fault).__name__}: {one_line(str(fault), 200)}"


def _by_status(status: int, text: str, where: str) -> str:
    server = str(wandb.setup().settings.base_url).rstrip("/")
    if status == 401:
        return f"{server} does not take the API key; `wandb login --relogin` or set WANDB_API_KEY"
    if status == 403:
        return f"this key may not write to {where}; name another project or entity"
    if status == 404:
        return f"{server} has no {where} for this key; check the entity for its spelling ({text})"
    return f"{server} does not answer ({text})"
