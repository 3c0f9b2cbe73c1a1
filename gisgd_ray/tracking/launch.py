"""W&B at the beginning and the end of a launch: how its runs are kept, and which have failed."""

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import one_line
from gisgd_ray.numbers import counted
from gisgd_ray.results.journal import Status
from gisgd_ray.results.tables import ResultTables, records
from gisgd_ray.tracking.access import Contained, WandbStatus, Where, access, project
from gisgd_ray.tracking.existing import foreign_runs, incomplete, mark_failed, note_sent
from gisgd_ray.tracking.run import WandbSettings, beyond_rate, seconds_between


def begin(
    folder: Path,
    name: str,
    trials: Sequence[TrialConfig],
    *,
    trials_at_once: int,
    requests_per_minute: float,
    note: Callable[[str], None],
) -> WandbSettings:
    """What the trials' runs share, once W&B has been asked; ``note`` shows the answers."""
    found = access()
    mode, foreign = found.mode, {}
    if not found.silent:
        note(str(found))
    if mode == "online":
        where = f"{found.entity}/{project()}"
        if sentence := beyond_rate(trials_at_once, requests_per_minute):
            note(sentence)
        with Contained() as caught:
            foreign = foreign_runs(where, folder, {t.trial_id: t.flat() for t in trials})
        if (fault := caught.fault) is not None:
            # Without that a run of other results could be mixed with this one's.
            note(
                f"W&B: offline after all, since it did not say which runs {where} has "
                f"({one_line(f'{type(fault).__name__}: {fault}', 120)}). Runs are kept, for "
                "`make sync`."
            )
            mode = "offline"
        else:
            note_sent(folder, where, [t.trial_id for t in trials if t.trial_id not in foreign])
        if foreign:
            others = counted(len(foreign) - 1, "more such run")
            note(f"W&B: {next(iter(foreign.values()))}{f' ({others})' * (len(foreign) > 1)}.")
    return WandbSettings(
        mode=mode,
        folder=str(folder),
        group=name,
        project=project(),
        entity=found.entity,
        every_s=seconds_between(trials_at_once, requests_per_minute),
        foreign=foreign,
    )


def end(settings: WandbSettings, tables: ResultTables, ids: Iterable[str]) -> list[str]:
    """Mark the runs of these trials that have failed; what W&B has not got, in sentences."""
    ours = set(ids) - set(settings.foreign)
    trials = tables.trials
    if settings.mode != "online" or trials.empty:
        return []
    where, faults = f"{settings.entity}/{settings.project}", []
    rows = {row["trial_id"]: row for row in records(trials) if row["trial_id"] in ours}
    failed = {name: row for name, row in rows.items() if row["status"] == Status.FAILED}
    if fault := mark_failed(where, failed):
        faults.append(f"W&B: the runs of failed trials are not marked as failed ({fault})")
    statuses = {name: WandbStatus.of(row.get("wandb/status")) for name, row in rows.items()}
    online = [name for name, status in statuses.items() if status and status.where is Where.ONLINE]
    points = tables.history.groupby("trial_id").size()
    short: list[str] = []
    with Contained() as caught:
        short = incomplete(where, {name: int(points.get(name, 0)) for name in online})
    if caught.fault is not None:
        faults.append(f"W&B did not say whether it has all points ({type(caught.fault).__name__})")
    if short:
        faults.append(
            f"W&B does not show all points of {counted(len(short), 'run')} ({short[0]}"
            f"{', ...' * (len(short) > 1)}); what is missing is uploaded by: "
            f"make sync ARGS={shlex.quote(settings.folder)}"
        )
    return faults
