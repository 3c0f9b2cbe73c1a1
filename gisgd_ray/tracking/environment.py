"""W&B's variables: which of a process's environment a run of ours is told. No W&B here."""

import os
from collections.abc import Mapping

ACCOUNT = frozenset(
    f"WANDB_{name}"
    for name in (
        "API_KEY",
        "APP_URL",
        "BASE_URL",
        "CACHE_DIR",
        "CONFIG_DIR",
        "CREDENTIALS_FILE",
        "DEBUG",
        "ENTITY",
        "ERROR_REPORTING",
        "HTTP_TIMEOUT",
        "IDENTITY_TOKEN_FILE",
        "INIT_TIMEOUT",
        "INSECURE_DISABLE_SSL",
        "MODE",
        "PROJECT",
        "SILENT",
    )
)
"""Whose account it is and how it is reached, and none that says which run (``WANDB_RUN_ID``,
``WANDB_SWEEP_ID``, ``WANDB_SERVICE``): those are another process's."""
TRANSPORT = "WANDB__"
"""Begins what W&B has no official name for: waits, retries, proxies, headers."""


def account() -> dict[str, str]:
    """The variables of this process's environment that a trial needs; the mode as W&B writes it."""
    found = {k: v for k, v in os.environ.items() if k in ACCOUNT or k.startswith(TRANSPORT)}
    if mode := found.get("WANDB_MODE"):
        found["WANDB_MODE"] = mode.strip().lower()
    return found


def put_on(variables: Mapping[str, str]) -> None:
    """Make W&B's variables of this process those, and no others that it was started with."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(variables)


def project() -> str:
    """The W&B project of all sweeps: ``WANDB_PROJECT`` or gisgd-ray."""
    return os.environ.get("WANDB_PROJECT") or "gisgd-ray"
