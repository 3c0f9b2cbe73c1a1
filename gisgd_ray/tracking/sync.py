"""Uploads what W&B has not got: ``python -m gisgd_ray.tracking.sync DIR``.

A run that was kept offline is uploaded by ``wandb sync``. One that the server has in part already
(its upload was cut off, or it went on since) is completed from the journal instead, since another
upload would put all its points behind those that are there.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import wandb

from gisgd_ray import terminal
from gisgd_ray.config.space import field_paths
from gisgd_ray.errors import UserError
from gisgd_ray.numbers import counted
from gisgd_ray.results.journal import Journal, Status
from gisgd_ray.results.whole_files import replace_file, require_no_links
from gisgd_ray.tracking.access import (
    Contained,
    Where,
    chosen_mode,
    forget_identity,
    no_answer,
    sentence,
    server,
)
from gisgd_ray.tracking.existing import (
    SENT,
    elsewhere,
    existing_runs,
    mark_failed,
    note_sent,
    sent_ids,
    sent_runs,
)
from gisgd_ray.tracking.run import LONGEST_NAME, WandbRun, WandbSettings, add_steps

AT_A_TIME = 100
"""Runs uploaded by one call of ``wandb sync``."""


@dataclass(frozen=True)
class Kept:
    """A run that was kept offline."""

    path: Path
    """Of its record, ``run-ID.wandb``."""
    id: str = ""
    project: str = ""
    entity: str = ""
    name: str = ""
    group: str | None = None
    staged: tuple[Path, ...] = ()
    """Where the files of its artifacts were when it ran."""

    @property
    def results(self) -> Path:
        """The sweep's folder: above ``wandb/offline-run-*/``."""
        return self.path.parents[2]

    @property
    def trial_id(self) -> str:
        return self.id.removesuffix("-offline")

    @property
    def marker(self) -> Path:
        """Where ``wandb sync`` notes that it has uploaded the record."""
        return self.path.with_name(self.path.name + ".synced")

    @property
    def uploaded(self) -> bool:
        return self.marker.exists()


def sync(root: Path) -> int:
    """Upload what is missing of all results below ``root``; how many runs were left out.

    Raises:
        UserError: there is no such folder, no server that answers, or no login.
    """
    if not os.path.isdir(root):  # pathlib's raises where a name is too long
        raise UserError(f"there is no folder {root}; name one that holds a sweep's results")
    offline = [Kept(path) for path in sorted(root.rglob("wandb/offline-run-*/run-*.wandb"))]
    sent = {path.parents[1] for path in root.rglob(str(SENT))}
    folders = sorted(sent | {kept.results for kept in offline})
    if not folders:
        print(f"Nothing to upload: {root} has no W&B runs.")
        return 0
    os.environ.pop("WANDB_MODE", None)
    forget_identity()
    if why := no_answer(server()):
        raise UserError(f"{server()} does not answer ({why}); the runs are kept, try again later")
    chosen = chosen_mode()
    if chosen.mode != "online":
        raise UserError(f"{chosen.reason}; log in with wandb login, or set WANDB_API_KEY")
    new = [kept for kept in offline if not kept.uploaded]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(read, [kept.path for kept in new]))
    done, left = 0, []
    for kept in found:
        if not kept.id:
            left.append(
                f"{kept.path} holds nothing that could be read, since its trial was killed; its "
                "sweep runs it again with --resume, or remove that folder"
            )
    with Contained() as caught:
        for folder in folders:
            runs_of = [kept for kept in found if kept.id and kept.results == folder]
            places = {_where(kept) for kept in runs_of} | set(sent_runs(folder))
            for where in sorted(places):
                runs = [kept for kept in runs_of if _where(kept) == where]
                more, without = _sync_folder(folder, where, runs)
                done, left = done + more, left + without
    if caught.fault is not None:
        raise UserError(sentence(caught.fault, f"{os.environ.get('WANDB_ENTITY', '')}/"))
    if done or left:
        print(f"{counted(done, 'run')} uploaded to {server()}.")
    else:
        print(f"Nothing to upload: {server()} has all runs of {root}.")
    for why in left:
        print(f"left out: {why}", file=sys.stderr)
    return len(left)


def _sync_folder(folder: Path, where: str, runs: Sequence[Kept]) -> tuple[int, list[str]]:
    """Upload one folder's runs to ENTITY/PROJECT; how many, and what was left out and why."""
    require_no_links(folder)
    journal = Journal(folder)
    ours = sent_ids(folder, where)
    ids = sorted(ours | {kept.trial_id for kept in runs})
    online = {
        run.id: int(run.historyLineCount or 0) for run in existing_runs(wandb.Api(), where, ids)
    }
    left: list[str] = []
    new: list[Kept] = []
    again: dict[str, Kept | None] = {}
    for kept in runs:
        beside = kept.id != kept.trial_id and not journal.path(kept.trial_id).exists()
        if len(kept.name) > LONGEST_NAME and kept.trial_id not in online:
            again[kept.trial_id] = kept  # W&B would refuse the record as it is
        elif beside or kept.trial_id not in online:
            new.append(kept)
        elif kept.trial_id in ours:
            again[kept.trial_id] = kept
        else:
            left.append(elsewhere(where, kept.trial_id))
    # One that was sent elsewhere is ours as well, and is not to come here.
    begun = set(sent_runs(folder).get(where, [])) | set(online)
    for name in (ours & begun) - {kept.trial_id for kept in runs}:
        measured = journal.read(name, with_steps=False)
        if measured.row is not None and online.get(name, -1) < len(measured.points):
            again[name] = None
    note_sent(folder, where, [*again, *(kept.trial_id for kept in new)])
    lost = [kept for kept in new if not all(path.exists() for path in kept.staged)]
    _upload([kept.path for kept in new])
    left += [f"{k.path} was not taken; why is said above" for k in new if not k.uploaded]
    left += _add_tables(where, [kept for kept in lost if kept.uploaded])
    done = sum(kept.uploaded for kept in new)
    for name, record in sorted(again.items()):
        if fault := _complete(folder, where, name, record):
            left.append(f"the run {where}/{name}: {fault}")
            continue
        done += 1
        if record is not None:
            replace_file(record.marker, b"")
    rows = {kept.trial_id: journal.read_row(kept.trial_id) for kept in new}
    failed = {name: row for name, row in rows.items() if row and row["status"] == Status.FAILED}
    if fault := mark_failed(where, failed):
        left.append(f"failed trials in {where} are not marked as failed ({fault})")
    return done, left


def _complete(folder: Path, where: str, trial_id: str, kept: Kept | None) -> str:
    """Send a run what it lacks, from the journal; what prevented it."""
    record = Journal(folder).read(trial_id)
    if not record.points:
        return f"the journal in {folder} has no points of it"
    entity, _, project = where.partition("/")
    row, fields = record.row, field_paths()
    run = WandbRun(
        WandbSettings(
            "online",
            str(folder),
            group=kept.group if kept else None,
            project=project,
            entity=entity,
        ),
        trial_id=trial_id,
        name=kept.name if kept else None,
        config={name: value for name, value in (row or {}).items() if name in fields},
        earlier=record.points,
    )
    if row is None or row["status"] == Status.FAILED:
        run.finish(row, failed=True)
    else:
        steps = record.steps.table()
        run.finish(row, failed=row["status"] != Status.FINISHED, steps=steps)
    return "" if run.status.where is Where.ONLINE else str(run.status)


def read(path: Path) -> Kept:
    """What a run's record says of it; without an id if it says nothing."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    shown = subprocess.run(command, capture_output=True, encoding="utf-8")
    kept, staged = Kept(path), []
    for line in shown.stdout.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if run := record.get("run"):
            kept = Kept(
                path,
                run["run_id"],
                run.get("project", ""),
                run.get("entity", ""),
                run.get("display_name", ""),
                run.get("run_group"),
            )
        if artifact := record.get("artifact"):
            contents = artifact.get("manifest", {}).get("contents", [])
            staged += [Path(each["local_path"]) for each in contents if each.get("local_path")]
    return replace(kept, staged=tuple(staged))


def _where(run: Kept) -> str:
    entity = run.entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity
    return f"{entity}/{run.project or 'uncategorized'}"


def _upload(paths: Sequence[Path]) -> None:
    """``wandb sync``; where it stops at a run it cannot read, the others one by one."""
    command = [sys.executable, "-m", "wandb", "sync"]
    for first in range(0, len(paths), AT_A_TIME):
        part = paths[first : first + AT_A_TIME]
        subprocess.run([*command, *map(str, part)])
        left = [path for path in part if not Kept(path).uploaded]
        if len(part) > 1:
            for path in left:
                subprocess.run([*command, str(path)])


def _add_tables(where: str, runs: Iterable[Kept]) -> list[str]:
    """Tables of steps whose files are not where they were, from the journal."""
    left = []
    entity, _, project = where.partition("/")
    for kept in runs:
        record = Journal(kept.results).read(kept.trial_id)
        if record.row is None:
            left.append(
                f"the table of steps of {kept.id}: it was at {kept.staged[0]}, and the journal in "
                f"{kept.results} has no such trial"
            )
            continue
        failed = record.row["status"] != Status.FINISHED
        with Contained() as caught:
            add_steps(entity, project, kept.id, record.steps.table(), failed=failed)
        if caught.fault is not None:
            left.append(f"the table of steps of {kept.id}: {sentence(caught.fault, where)}")
    return left


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 if all is uploaded, 1 if something was left out, 2 if nothing could be."""
    terminal.forgive()
    parser = argparse.ArgumentParser(
        prog="python -m gisgd_ray.tracking.sync",
        description="Upload the W&B runs that were kept offline below a folder.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="results/ or a sweep's folder")
    try:
        return int(sync(parser.parse_args(arguments).folder) > 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
