"""Whether W&B can be reached: asked once, by the driver, before the first trial opens a run."""

import json
import os
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from http.client import HTTPException
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import wandb

from gisgd_ray.errors import UserError, one_line

Answer = TypeVar("Answer")
Mode = Literal["online", "offline", "disabled"]

ASK_TIMEOUT_S = 10


IDENTITY = re.compile(
    r"WANDB_(RUN_|RESUME|FORK_|SWEEP_|LAUNCH|PROGRAM|SERVICE$|NAME$|NOTES$|DESCRIPTION$|TAGS$"
    r"|JOB_TYPE$|CONFIG_PATHS$|ARGS$)"
)
"""Variables that say which run is meant: of the notebook, job or W&B agent that started a sweep."""


class Contained:
    """The one edge at which W&B's faults end: none of them may stop a trial or a sweep.

    Its client raises what its libraries do, and other types with every version: any exception is
    meant but our own. ``fault`` is the one that was raised inside, if any.
    """

    fault: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(fault, Exception) or isinstance(fault, UserError):
            return False
        self.fault = fault
        return True


def forget_identity() -> None:
    """For a process that opens runs of its own: of its environment it takes account and settings.

    Called before W&B's client reads it. ``WANDB_SERVICE`` is a process of the client's, which may
    be gone.
    """
    for name in [name for name in os.environ if IDENTITY.match(name)]:
        del os.environ[name]


class Where(StrEnum):
    """Where the W&B run of a trial is; ``OFF``: not in full, since logging ended."""

    ONLINE = "online"
    OFFLINE = "offline"
    DISABLED = "disabled"
    OFF = "off"


@dataclass(frozen=True)
class WandbStatus:
    """Where a trial's run is, and what kept it from being where it was meant to be."""

    where: Where
    fault: str = ""

    def __str__(self) -> str:
        """As a table has it under ``wandb/status``."""
        return f"{self.where}: {self.fault}" if self.fault else str(self.where)

    @staticmethod
    def of(cell: object) -> "WandbStatus | None":
        """What :meth:`__str__` has written into a row; None where it wrote nothing.

        >>> WandbStatus.of("off: HTTP: 403"), WandbStatus.of(None)
        (WandbStatus(where=<Where.OFF: 'off'>, fault='HTTP: 403'), None)
        """
        where, _, fault = str(cell).partition(": ")
        return WandbStatus(Where(where), fault) if where in set(Where) else None


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


def project() -> str:
    """The W&B project of all sweeps: ``WANDB_PROJECT`` or gisgd-ray."""
    return os.environ.get("WANDB_PROJECT") or "gisgd-ray"


def chosen_mode() -> Access:
    """``WANDB_MODE`` if set, else online when this user has logged in, else offline."""
    chosen = os.environ.get("WANDB_MODE", "").lower()
    modes: dict[str, Mode] = {
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
        "online": "online",
        "run": "online",
    }
    if chosen in modes:
        return Access(modes[chosen], f"WANDB_MODE is {chosen}", as_asked=True)
    with Contained() as caught:
        if wandb.login(prompt=False, verify=False):
            return Access("online", "this user has logged in")
    if caught.fault is not None:
        why = one_line(str(caught.fault), 200)
        return Access("offline", f"the login does not work: {why}")
    return Access("offline", "nobody has logged in with wandb login")


def server() -> str:
    """The address of the W&B server: ``WANDB_BASE_URL``, or as logged in to."""
    return str(wandb.setup().settings.base_url).rstrip("/")


def no_answer(server: str) -> str:
    """Why the server at this address does not answer; empty if it says anything at all.

    W&B's client tries an absent server again for a minute and more, whatever its timeout. Where it
    goes by a proxy of its own settings this is left to it.
    """
    settings = wandb.setup().settings
    if settings.http_proxy or settings.https_proxy:
        return ""
    try:
        with urllib.request.urlopen(server, timeout=ASK_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, HTTPException) as fault:  # a URLError is an OSError
        reason = getattr(fault, "reason", fault)
        # There is a server. Which certificates it may have is known to W&B's client, not to Python.
        if isinstance(reason, ssl.SSLError):
            return ""
        return str(reason) or type(fault).__name__


def access() -> Access:
    """The chosen mode; offline where the server, the key or the project does not let it be online.

    Otherwise every trial would find that out by itself, after :data:`ASK_TIMEOUT_S` or more.
    """
    os.environ.pop("WANDB_SERVICE", None)  # of a process that may be gone
    chosen = chosen_mode()
    if chosen.mode == "disabled":
        return chosen
    with Contained() as caught:
        where = server()
        wandb.Settings(project=project())
    if caught.fault is not None:  # no run could be opened, not even offline
        text = one_line(str(caught.fault).partition("[type=")[0], 200)
        return Access("disabled", f"W&B does not take its settings ({text})")
    if chosen.mode == "offline":
        return chosen
    entity = os.environ.get("WANDB_ENTITY") or None
    if why := no_answer(where):
        return Access("offline", f"{where} does not answer ({why})", entity)

    def ask() -> str | None:
        client = wandb.Api(timeout=ASK_TIMEOUT_S)
        mine = entity or client.viewer.entity
        # W&B would create it with the first run; here before, to see whether it may.
        client.create_project(project(), mine)
        return mine

    with Contained() as caught:
        return replace(chosen, entity=within(2 * ASK_TIMEOUT_S, ask))
    assert caught.fault is not None
    return Access("offline", _explained(caught.fault, where), entity)


def other_settings(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], *, where: str, id: str
) -> str:
    """By what a run of W&B's is another trial's; empty if it is ours.

    A run that was lost before it sent anything has no settings, and is ours.
    """
    if not theirs:
        return ""
    for name, value in json.loads(json.dumps(dict(ours))).items():  # lists for tuples, as theirs
        if name not in theirs or not _same(theirs[name], value):
            found = f"is {theirs[name]}" if name in theirs else "is not set"
            return (
                f"the run {where}/{id} exists with other settings ({name} {found} there, and "
                f"{value} here); none of this trial's points went to it: choose another "
                "WANDB_PROJECT"
            )
    return ""


def _same(theirs: Any, ours: Any) -> bool:
    """W&B keeps numbers as floating-point ones: a seed beyond 2^53 comes back rounded.

    >>> _same(9007199254740992, 9007199254740993), _same(1, 2), _same([1], [1.0])
    (True, False, True)
    """
    try:
        return bool(theirs == ours or float(theirs) == float(ours))
    except (TypeError, ValueError):
        return False


def within(seconds: float, ask: "Callable[[], Answer]") -> "Answer":
    """The answer, or what was raised.

    Raises:
        TimeoutError: there was none in time. (The client goes on for as long as it likes.)
    """
    answers: list[Answer] = []
    asked = Contained()

    def asking() -> None:
        with asked:
            answers.append(ask())

    thread = threading.Thread(target=asking, daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    raise asked.fault or TimeoutError(f"nothing within {seconds:g} s")


def _code(status: int, text: str) -> bool:
    """Whether a status of HTTP is named: the number alone, and not a server's port.

    >>> _code(401, "HTTP 401"), _code(401, "http://127.0.0.1:40133 did"), _code(401, "x:401/")
    (True, False, False)
    """
    return re.search(rf"(?<![\w:]){status}(?!\w)", text) is not None


def _explained(fault: BaseException, server: str) -> str:
    """A client's fault as a sentence that says what would do."""
    text = " ".join(str(fault).split())[:200]
    low = text.lower()
    if _code(401, low) or "api key" in low or "api_key" in low or "not logged in" in low:
        return f"{server} does not take the API key; `wandb login --relogin` or set WANDB_API_KEY"
    if _code(403, low) or "permission" in low or "denied" in low:
        return (
            f"this key may not write to the project {project()}; choose another with "
            "WANDB_PROJECT or WANDB_ENTITY"
        )
    if ("entity" in low and "not found" in low) or _code(404, low):
        return (
            f"there is no entity {os.environ.get('WANDB_ENTITY', '')} at {server}; set "
            "WANDB_ENTITY to your user or team"
        )
    return f"{server} does not answer ({type(fault).__name__}: {text[:120]})"


AWAY = (
    "W&B does not answer; the runs and report.html are safe, so try again when there is a network "
    "(WANDB_BASE_URL says which server it is)"
)


def sentence(fault: BaseException, where: str) -> str:
    """What is wrong and what would do, as far as the fault tells."""
    texts: list[str] = []
    cause: BaseException | None = fault
    while cause is not None and len(texts) < 5:
        texts.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    text = " ".join(" ".join(texts).split())
    entity, _, project = where.partition("/")
    low = text.lower()
    for name in (entity, project):  # which may be called anything
        low = low.replace(name.lower(), "") if len(name) > 2 else low
    for words, told in (
        (
            (
                "not respond",
                "timed out",
                "timeout",
                "connection",
                "no such host",
                "unreachable",
                "name resolution",
                "http 5",
                "error 5",
            ),
            AWAY,
        ),
        (
            (r"\b429\b", "rate limit"),
            "W&B takes no more requests for now; try again in a minute",
        ),
        (
            (r"\b401\b", "not logged in", "api key", "api_key", "authenticat"),
            "W&B does not know this key; wandb login, or set WANDB_API_KEY to one from its "
            "settings page",
        ),
        (
            (r"\b403\b", "permission", "forbidden", "not authorized"),
            "this key's user may not write to that project; ask its owner, or name another "
            "ENTITY/PROJECT",
        ),
        (
            ("entity", "not found during upsertmodel", "does not exist"),
            f"W&B has no user or team {entity!r} for this key, or no such project; check "
            "ENTITY/PROJECT for its spelling",
        ),
    ):
        if any(re.search(word, low) for word in words):
            return f"{told} ({text[:200]})"
    return f"W&B did not take the report; {text[:300]}"
