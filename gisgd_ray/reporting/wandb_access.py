"""Whether W&B can be had: asked once, by the driver, before the first trial opens a run."""

import os
import threading
from dataclasses import dataclass
from typing import Literal

import wandb

Mode = Literal["online", "offline", "disabled"]

ASK_TIMEOUT_S = 10


@dataclass(frozen=True)
class Access:
    """How runs are kept, and why."""

    mode: Mode
    reason: str
    entity: str | None = None
    """Whose project it is; None leaves it to W&B's settings."""

    def __str__(self) -> str:
        if self.mode == "online":
            return f"W&B: online, in {self.entity or 'your default entity'}/{project()}."
        kept = " Runs are kept, for `make sync`." if self.mode == "offline" else ""
        return f"W&B: {self.mode}, since {self.reason}.{kept}"


def project() -> str:
    """The W&B project of all sweeps: ``WANDB_PROJECT`` or gisgd-ray."""
    return os.environ.get("WANDB_PROJECT") or "gisgd-ray"


def chosen_mode() -> tuple[Mode, str]:
    """``WANDB_MODE`` if set, else online when this user has logged in, else offline; and why."""
    chosen = os.environ.get("WANDB_MODE", "").lower()
    modes: dict[str, Mode] = {
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
        "online": "online",
        "run": "online",
    }
    if chosen in modes:
        return modes[chosen], f"WANDB_MODE is {chosen}"
    try:
        if wandb.login(prompt=False, verify=False):
            return "online", "this user has logged in"
    except Exception as fault:
        return "offline", f"the login does not work: {str(fault).strip()[:200]}"
    return "offline", "nobody has logged in with wandb login"


def access() -> Access:
    """The chosen mode; offline where the server, the key or the project does not let it be online.

    Otherwise every trial would find that out by itself, after :data:`ASK_TIMEOUT_S` or more.
    """
    mode, reason = chosen_mode()
    if mode != "online":
        return Access(mode, reason)
    entity = os.environ.get("WANDB_ENTITY") or None
    server = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    found: list[str | None] = []
    faults: list[BaseException] = []

    def ask() -> None:
        try:
            client = wandb.Api(timeout=ASK_TIMEOUT_S)
            mine = entity or client.viewer.entity
            # W&B would create it with the first run; here before, to see whether it may.
            client.create_project(project(), mine)
            found.append(mine)
        except Exception as fault:
            faults.append(fault)

    # The client tries again for a minute and more, whatever its timeout: a sweep does not wait.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(2 * ASK_TIMEOUT_S)
    if found:
        return Access("online", reason, found[0])
    fault = faults[0] if faults else TimeoutError(f"nothing within {2 * ASK_TIMEOUT_S} s")
    return Access("offline", _told(fault, server), entity)


def _told(fault: BaseException, server: str) -> str:
    """A client's fault as a sentence that says what would do."""
    text = " ".join(str(fault).split())[:200]
    low = text.lower()
    if "401" in low or "api key" in low or "api_key" in low or "not logged in" in low:
        return f"{server} does not take the API key; `wandb login --relogin` or set WANDB_API_KEY"
    if "403" in low or "permission" in low or "denied" in low:
        return (
            f"this key may not write to the project {project()}; choose another with "
            "WANDB_PROJECT or WANDB_ENTITY"
        )
    if ("entity" in low and "not found" in low) or "404" in low:
        return (
            f"there is no entity {os.environ.get('WANDB_ENTITY', '')} at {server}; set "
            "WANDB_ENTITY to your user or team"
        )
    return f"{server} does not answer ({type(fault).__name__}: {text[:120]})"
