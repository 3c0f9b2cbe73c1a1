"""Uploads what W&B has not got: ``python -m gisgd_ray.tracking.sync DIR``.

A run that was kept offline is uploaded by ``wandb sync``. One that the server has in part already
(its upload was cut off, or it went on since) is completed from the journal instead, since another
upload would put all its points behind those that are there.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from gisgd_ray import terminal
from gisgd_ray.config.space import field_paths
from gisgd_ray.errors import UserError
from gisgd_ray.numbers import counted
from gisgd_ray.results.journal import COMPLETE, Journal, Status, TrialRecord
from gisgd_ray.results.launch_record import FILE, folder_id, last_record
from gisgd_ray.results.whole_files import replace_file, require_no_links
from gisgd_ray.tracking.access import FAULTS, client, explained, logged_in
from gisgd_ray.tracking.environment import account, project, put_on
from gisgd_ray.tracking.launch import existing_runs, mark_failed
from gisgd_ray.tracking.run import WandbRun, WandbSettings, run_id
from gisgd_ray.tracking.status import WandbStatus, Where

AT_A_TIME = 100
"""Runs uploaded by one call of ``wandb sync``."""


def sync(root: Path) -> int:
    """Upload what is missing of all results below ``root``; how many runs were left out.

    Raises:
        UserError: there is no such folder, no server that answers, or no login.
    """
    if not os.path.isdir(root):  # pathlib's raises where a name is too long
        raise UserError(f"there is no folder {root}; name one that holds a sweep's results")
    kept = {path.parents[2] for path in root.rglob("wandb/offline-run-*/run-*.wandb")}
    folders = sorted(kept | {path.parent for path in root.rglob(FILE)})
    if not folders:
        print(f"Nothing to upload: {root} has no W&B runs.")
        return 0
    os.environ.pop("WANDB_MODE", None)
    put_on(account())
    done, left, entity = 0, list[str](), os.environ.get("WANDB_ENTITY", "")
    try:
        if not logged_in():
            raise UserError("nobody has logged in: wandb login, or set WANDB_API_KEY")
        entity = entity or client().default_entity or ""
        for folder in folders:
            more, without = _sync_folder(folder, entity)
            done, left = done + more, left + without
    except FAULTS as fault:
        why = explained(fault, f"{entity}/{project()}")
        raise UserError(f"{why}; what is not uploaded is kept") from fault
    if done or left:
        print(f"{counted(done, 'run')} uploaded.")
    else:
        print(f"Nothing to upload: W&B has all of {root}.")
    for why in left:
        print(f"left out: {why}", file=sys.stderr)
    return len(left)


@dataclass
class _Run:
    """One that this folder has, or may have, on a server."""

    folder: Path
    id: str
    where: str
    """ENTITY/PROJECT."""
    trial: TrialRecord | None
    """What the journal holds, without the steps."""
    kept: Path | None
    """The record of it that was kept offline, and not uploaded yet."""

    @property
    def row(self) -> Mapping[str, Any]:
        return (self.trial and self.trial.row) or {}

    def lacks(self, online: Any | None) -> bool:
        """Whether the server has less of it than the journal; of a trial that may be running still,
        and of one that it was never told of, nothing is missed."""
        if self.trial is None or not self.trial.points or not (self.row or self.kept):
            return False
        if online is None:
            return self.kept is not None
        if (online.historyLineCount or 0) < len(self.trial.points):
            return True
        return self.row.get("status") in COMPLETE and "status" not in online.summary

    def lacks_steps(self, asking: wandb.Api) -> bool:
        """Whether the steps are not there: their file was not where it was, or came not through."""
        name = f"{self.where}/steps-{self.id}:latest"
        return self.row.get("status") in COMPLETE and not asking.artifact_exists(name)

    def complete(self) -> str:
        """Send what the server lacks, from the journal; what prevented it."""
        assert self.trial is not None
        entity, _, name = self.where.partition("/")
        launch, folder = last_record(self.folder), str(self.folder)
        group = launch.sweep if launch is not None else None
        run = WandbRun(
            WandbSettings("online", folder, "", group=group, project=name, entity=entity),
            trial_id=self.id,
            name=None,
            config={name: value for name, value in self.row.items() if name in field_paths()},
            earlier=self.trial.points,
        )
        ended = self.row.get("status") in COMPLETE
        steps = Journal(self.folder).read(self.trial.trial_id).steps.table() if ended else None
        failed = self.row.get("status") != Status.FINISHED
        run.finish(self.row or None, failed=failed, steps=steps)
        return "" if run.status.where is Where.ONLINE else str(run.status)


def _runs_of(folder: Path, entity: str) -> list[_Run]:
    """Those that were kept offline, and those of the journal's trials."""
    journal, own = Journal(folder), folder_id(folder)
    trials = {name: journal.read(name, with_steps=False) for name in journal.trial_ids()}
    records = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    kept = {path.stem.removeprefix("run-"): path for path in records if not _marker(path).exists()}
    # Earlier versions called a trial's run by its id alone, or ID-offline.
    ids = {id: id.removesuffix("-offline").rpartition("-")[2] for id in kept}
    ids |= {run_id(own, name): name for name in trials} if own else {}
    places = {}
    for id, name in ids.items():
        path = str(((name in trials and trials[name].row) or {}).get("wandb/run") or "")
        if path.endswith(f"/{id}"):
            place = path.rpartition("/")[0]
            places[id] = place if "/" in place else f"{entity}/{place}"
    # A trial that was killed, or failed, went where the others of its launch did.
    others = next(iter(places.values()), f"{entity}/{project()}")
    return [
        _Run(folder, id, places.get(id, others), trials.get(name), kept.get(id))
        for id, name in ids.items()
    ]


def _sync_folder(folder: Path, entity: str) -> tuple[int, list[str]]:
    """Upload one folder's runs; how many, and what was left out and why."""
    require_no_links(folder)
    runs, done, left, asking = _runs_of(folder, entity), 0, list[str](), client()
    for where in sorted({run.where for run in runs}):
        here = [run for run in runs if run.where == where]
        there = existing_runs(where, [run.id for run in here])
        begun = {id for id, online in there.items() if online.historyLineCount}
        new = {run.id: run.kept for run in here if run.kept and run.id not in begun}
        _upload(where, list(new.values()))
        there |= existing_runs(where, list(new))
        for run in here:
            fault, online = "", there.get(run.id)
            off = WandbStatus.of(run.row.get("wandb/status"))
            doubtful = run.id in new or (off is not None and off.where is Where.OFF)
            if run.lacks(online) or (online and doubtful and run.lacks_steps(asking)):
                fault = run.complete()
                done += not fault
            elif run.kept and online is None:
                fault = f"{run.kept} was not taken, as is said above; its sweep runs the trial "
                fault += "again with --resume, or remove that folder"
            elif run.id in new:
                done += 1
            if fault:
                left.append(f"the run {where}/{run.id}: {fault}")
                continue
            if run.row.get("status") == Status.FAILED and online and "failed" not in online.tags:
                mark_failed(online, run.row)
            if run.kept:
                replace_file(_marker(run.kept), b"")
    return done, left


def _marker(record: Path) -> Path:
    """Where ``wandb sync`` notes that it has uploaded a record."""
    return record.with_name(record.name + ".synced")


def _upload(where: str, paths: Sequence[Path]) -> None:
    """``wandb sync``, some at a time; where it stops at what it cannot read, one by one."""
    entity, _, name = where.partition("/")
    command = [sys.executable, "-m", "wandb", "sync", "--entity", entity, "--project", name]
    for first in range(0, len(paths), AT_A_TIME):
        part = paths[first : first + AT_A_TIME]
        subprocess.run([*command, *map(str, part)])
        for path in part if len(part) > 1 else ():
            if not _marker(path).exists():
                subprocess.run([*command, str(path)])


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
