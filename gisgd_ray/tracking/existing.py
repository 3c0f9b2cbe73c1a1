"""What runs a W&B project has: whose they are, and which of them are marked as failed."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from gisgd_ray.errors import one_line
from gisgd_ray.results.whole_files import replace_file
from gisgd_ray.tracking.access import ASK_TIMEOUT_S, Contained, other_settings, within

AT_A_TIME = 200
"""Runs asked for in one request, with their settings."""
SENT = Path("wandb", "told.json")
"""In a results folder: ids of the runs that it has sent to a server, by ENTITY/PROJECT."""


def existing_runs(client: wandb.Api, where: str, ids: Sequence[str]) -> Iterator[Any]:
    """Those of the runs that ENTITY/PROJECT has; none if it is not there.

    Raises:
        Exception: whatever W&B's client raises.
    """
    entity, _, project = where.partition("/")
    if project not in {each.name for each in client.projects(entity)}:
        return
    for first in range(0, len(ids), AT_A_TIME):
        some = {"name": {"$in": list(ids[first : first + AT_A_TIME])}}
        yield from client.runs(where, filters=some, per_page=AT_A_TIME, lazy=False)


def sent_ids(folder: Path, where: str) -> set[str]:
    """Ids of the runs that the results in this folder were sent to."""
    begun = {path.name.removeprefix("online-") for path in folder.glob("wandb/online-*")}
    return begun | set(sent_runs(folder).get(where, []))


def sent_runs(folder: Path) -> dict[str, list[str]]:
    """Every ENTITY/PROJECT that the results in this folder were sent to, and the runs' ids."""
    try:
        found = json.loads((folder / SENT).read_text(encoding="utf-8"))
        return {str(where): [str(each) for each in ids] for where, ids in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def note_sent(folder: Path, where: str, ids: Sequence[str]) -> None:
    """Remember, before it is done, that the results in this folder are sent to these runs."""
    sent = sent_runs(folder)
    sent[where] = sorted({*sent.get(where, []), *ids})
    (folder / SENT).parent.mkdir(parents=True, exist_ok=True)
    replace_file(folder / SENT, json.dumps(sent).encode())


def foreign_runs(
    where: str, folder: Path, trials: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Runs of ENTITY/PROJECT that have a trial's id and are not of these results: id -> why.

    Opening such a run would put this sweep's points behind, and its row over, what is there.

    Args:
        folder: of the results.
        trials: settings by trial id, flat.

    Raises:
        Exception: whatever W&B's client raises; TimeoutError if it does not answer in time.
    """
    ours = sent_ids(folder, where)

    def ask() -> dict[str, str]:
        faults = {}
        for run in existing_runs(wandb.Api(timeout=ASK_TIMEOUT_S), where, list(trials)):
            fault = other_settings(dict(run.config), trials[run.id], where=where, id=run.id)
            if not fault and run.id not in ours:
                fault = elsewhere(where, run.id)
            if fault:
                faults[run.id] = fault
        return faults

    return within(2 * ASK_TIMEOUT_S, ask) if trials else {}


def elsewhere(where: str, run_id: str) -> str:
    """What is said of a run with this trial's settings that other results were sent to."""
    return (
        f"the run {where}/{run_id} is there already, sent from another results folder; none of "
        "this trial's points went to it: choose another WANDB_PROJECT"
    )


def incomplete(where: str, points: Mapping[str, int]) -> list[str]:
    """Runs that have fewer points than these, by id; or are not there.

    W&B's client says nothing where the server has refused what it sent.

    Raises:
        Exception: whatever W&B's client raises; TimeoutError if it does not answer in time.
    """

    def ask() -> dict[str, int]:
        found = existing_runs(wandb.Api(timeout=ASK_TIMEOUT_S), where, list(points))
        return {run.id: int(run.historyLineCount or 0) for run in found}

    counts = within(2 * ASK_TIMEOUT_S, ask) if points else {}
    return [name for name, number in points.items() if counts.get(name, -1) < number]


def mark_failed(where: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Mark the runs of failed trials so: state, tag, and the row as the summary.

    A trial that fails cannot: it may be tried again, or its process may be gone.

    Args:
        rows: of the trials that have failed, by id.

    Returns:
        what kept W&B from being asked; empty if nothing did.
    """

    def mark() -> None:
        for run in existing_runs(wandb.Api(timeout=ASK_TIMEOUT_S), where, list(rows)):
            if "failed" not in run.tags:
                run.tags = [*run.tags, "failed"]
            run.summary.update({k: v for k, v in rows[run.id].items() if _known(v)})
            run.update()
            if run.state == "running":
                run.update_state("failed")

    if not rows:
        return ""
    with Contained() as caught:
        within(2 * ASK_TIMEOUT_S + len(rows), mark)
    fault = caught.fault
    return one_line(f"{type(fault).__name__}: {fault}", 200) if fault is not None else ""


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))
