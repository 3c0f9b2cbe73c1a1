"""Secrets that the driver hands to the trials' processes: keys of W&B and of a bucket.

Ray writes a runtime environment into its logs, and Tune a trial's parameters into its state. What
is put here stays in the memory of the cluster's head, until it is taken back.
"""

import contextlib
import json
import secrets
import shlex
import sys
from collections.abc import Iterator
from typing import NamedTuple

from gisgd_ray.results.storage import without_keys

_SPACE = b"gisgd_ray"
TAKE_BACK_TIMEOUT_S = 5


class Handover(NamedTuple):
    """What crosses to the trials."""

    storage: str
    """Where checkpoints are kept, with the keys of a bucket."""
    environment: dict[str, str]
    """W&B's variables."""


@contextlib.contextmanager
def handed_over(what: Handover) -> Iterator[str]:
    """Yields the name by which a trial takes it, for as long as the context lasts."""
    from ray.exceptions import RayError
    from ray.experimental.internal_kv import _internal_kv_put, internal_kv_get_gcs_client

    name = secrets.token_hex(16)
    _internal_kv_put(name, json.dumps(what).encode(), namespace=_SPACE)
    try:
        yield name
    finally:
        # A cluster that is lost, or ends with this sweep by the same signal, does not answer.
        with contextlib.suppress(RayError):
            internal_kv_get_gcs_client().internal_kv_del(
                name.encode(), False, _SPACE, timeout=TAKE_BACK_TIMEOUT_S
            )


def hide_keys() -> None:
    """Take the keys of a bucket out of this process's command line, which every user of the
    machine may list, and Ray keeps with the job."""
    shown = [without_keys(argument) for argument in sys.argv]
    if shown != sys.argv:
        import ray  # noqa: F401  # before its parts
        from ray._raylet import setproctitle

        setproctitle(shlex.join(["python", *shown]))


def take(name: str) -> Handover:
    """In a trial's process: what the driver handed over."""
    from ray.experimental.internal_kv import _internal_kv_get

    content = _internal_kv_get(name, namespace=_SPACE)
    if content is None:
        raise ConnectionError("the driver of this trial has ended")
    return Handover(*json.loads(content))
