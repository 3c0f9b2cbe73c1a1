"""W&B at the beginning and the end of a launch: how its runs are kept, and what it has of them."""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gisgd_ray.numbers import counted
from gisgd_ray.results.journal import Status
from gisgd_ray.results.launch_record import folder_id
from gisgd_ray.results.tables import ResultTables, records
from gisgd_ray.tracking.access import FAULTS, access, client, explained
from gisgd_ray.tracking.environment import project
from gisgd_ray.tracking.run import WandbSettings, beyond_rate, run_id, seconds_between
from gisgd_ray.tracking.status import WandbStatus, Where

AT_A_TIME = 200
"""Runs asked for in one request."""


def begin(
    folder: Path,
    name: str,
    *,
    trials_at_once: int,
    requests_per_minute: float,
    note: Callable[[str], None],
) -> WandbSettings:
    """What the trials' runs share, once W&B has been asked; ``note`` shows the answers."""
    found = access()
    if not found.silent:
        note(str(found))
    if found.mode == "online" and (said := beyond_rate(trials_at_once, requests_per_minute)):
        note(said)
    return WandbSettings(
        mode=found.mode,
        folder=str(folder),
        folder_id=folder_id(folder) or "",
        group=name,
        project=project(),
        entity=found.entity,
        every_s=seconds_between(trials_at_once, requests_per_minute),
    )


def end(settings: WandbSettings, tables: ResultTables, ids: Iterable[str]) -> list[str]:
    """Mark the runs of these trials that have failed; what W&B has not got, in sentences."""
    asked, trials = set(ids), tables.trials
    if settings.mode != "online" or trials.empty:
        return []
    where = f"{settings.entity}/{settings.project}"
    rows = {row["trial_id"]: row for row in records(trials) if row["trial_id"] in asked}
    points = tables.history.groupby("trial_id").size()
    short = []
    try:
        runs = {run_id(settings.folder_id, name): row for name, row in rows.items()}
        there = existing_runs(where, list(runs))
        for name, row in runs.items():
            if row["status"] == Status.FAILED and name in there:
                mark_failed(there[name], row)
            status = WandbStatus.of(row.get("wandb/status"))
            if status is not None and status.where is Where.ONLINE:
                lines = there[name].historyLineCount or 0 if name in there else -1
                if lines < points.get(row["trial_id"], 0):
                    short.append(name)
    except FAULTS as fault:
        return [
            "W&B did not say whether it has all points, and failed trials may not be marked there "
            f"({explained(fault, where)})"
        ]
    if not short:
        return []
    return [
        f"W&B does not show all points of {counted(len(short), 'run')} ({short[0]}"
        f"{', ...' * (len(short) > 1)}); what is missing is uploaded by: "
        f"make sync ARGS={shlex.quote(settings.folder)}"
    ]


def existing_runs(where: str, ids: Sequence[str]) -> dict[str, Any]:
    """Those of the runs that ENTITY/PROJECT has now, by id; none if it is not there.

    Raises:
        Exception: one of :data:`gisgd_ray.tracking.access.FAULTS`.
    """
    if not ids:
        return {}
    asking = client()  # one that has asked before tells that again
    entity, _, name = where.partition("/")
    if name not in {each.name for each in asking.projects(entity)}:
        return {}
    found = {}
    for first in range(0, len(ids), AT_A_TIME):
        some = {"name": {"$in": list(ids[first : first + AT_A_TIME])}}
        for run in asking.runs(where, filters=some, per_page=AT_A_TIME, lazy=False):
            found[run.id] = run
    return found


def mark_failed(run: Any, row: Mapping[str, Any]) -> None:
    """Mark a failed trial's run so: state, tag, and the row as the summary.

    The trial itself cannot: it may be tried again, or its process may be gone.

    Raises:
        Exception: one of :data:`gisgd_ray.tracking.access.FAULTS`.
    """
    if "failed" not in run.tags:
        run.tags = [*run.tags, "failed"]
    run.summary.update({name: value for name, value in row.items() if _known(value)})
    run.update()
    if run.state == "running":
        run.update_state("failed")


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
