"""The steps of a launch, a function each: cluster, resources, run, tables and report."""

import contextlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from gisgd_ray.errors import DataError, UserError
from gisgd_ray.figures.tables import for_terminal
from gisgd_ray.numbers import counted
from gisgd_ray.report.sweep_report import write_report
from gisgd_ray.results.journal import Status
from gisgd_ray.results.launch_record import (
    FILE,
    LaunchRecord,
    keep,
    keep_versions_of,
    last_record,
    versions,
)
from gisgd_ray.results.storage import without_keys
from gisgd_ray.runner import closing
from gisgd_ray.runner.cli import Options
from gisgd_ray.runner.cluster import (
    Connection,
    cluster_gpus,
    connect,
    largest_memory,
    require_room,
)
from gisgd_ray.runner.handover import hide_keys
from gisgd_ray.runner.launch import Job, Outcome, launch, require_startable, sole_driver
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.plan import Plan, plan_lines
from gisgd_ray.runner.resources import chosen_resources, machine_memory, require_memory, sweep_cost
from gisgd_ray.sweep import Sweep

NO_GPU_YET = (
    "No machine with a GPU is up yet: what a trial takes, and how long, is measured when the sweep "
    "has brought one up."
)


def run(sweep: Sweep, plans: Mapping[str, Plan | UserError], options: Options) -> int:
    """Run the plan of the scale that fits, or show it; the exit status.

    Args:
        plans: by scale; what is unsound at one alone is raised if that is the one.

    Raises:
        UserError: bad input that shows only now, or the results can no longer be written.
    """
    location = Location.of(options.out, sweep.name, make=not options.dry_run)
    hide_keys()
    connection = connect(start_local=not options.dry_run)
    scale = _choose_scale(list(plans), options.scale, connection)
    plan = plans[scale]
    if isinstance(plan, UserError):
        raise UserError(f"at scale {scale}: {plan}")
    if options.dry_run:
        location.pull()
        _show(sweep, plan, location, options, connected=connection.joined)
        return 0
    with location.owned(take_over=options.take_over):
        with sole_driver(location.folder):
            job = _job(sweep, plan, location, options)
            record = _record(job, scale=scale, ray=connection.description)
            begun = time.monotonic()
            require_startable(job)
            _keep_all(job, record)
            outcome = launch(job)
            seconds = time.monotonic() - begun
        return _report(sweep, job, outcome, replace(record, seconds=seconds))


def _show(
    sweep: Sweep, plan: Plan, location: Location, options: Options, *, connected: bool
) -> None:
    """What a launch would run, and what that would take."""
    require_memory(plan.trials, largest_memory() if connected else machine_memory())
    waiting = plan.left(location.folder, options.reuse).waiting
    print("\n".join(plan_lines(plan, waiting, str(location), sweep.item)), flush=True)
    if (location.folder / "journal").exists() and not options.resume:
        print(f"{location.folder} holds results already: a launch needs --resume.")
    try:
        cost = sweep_cost(waiting, options, connected=connected)
    except DataError as fault:
        print(f"Time: not known, since a trial cannot be tried out: {fault}")
        return
    print("\n".join(cost.lines()) if cost is not None else NO_GPU_YET)


def _job(sweep: Sweep, plan: Plan, location: Location, options: Options) -> Job:
    """What is left to run and what each trial takes, once a machine is known to have that."""
    left = plan.left(location.folder, options.reuse)
    chosen = chosen_resources(left.waiting, options)
    require_room(cpus=chosen.resources.cpus, gpus=chosen.resources.gpus)
    require_memory(plan.trials, largest_memory())
    print(f"{sweep.item}: {counted(len(plan.trials), 'trial')}, results in {location}")
    if chosen.why is not None:
        print(f"Each trial takes {chosen.resources}: {chosen.why}.")
    return Job(sweep.name, sweep.item, plan, left, location, options, chosen)


def _record(job: Job, *, scale: str, ray: str) -> LaunchRecord:
    """This launch as it begins."""
    command = shlex.join(["python", *map(without_keys, sys.argv)])
    return LaunchRecord(
        sweep=job.name,
        script=str(Path(sys.argv[0]).absolute()),
        begun=datetime.now(UTC).isoformat(timespec="milliseconds"),
        swept=list(job.plan.swept),
        planned=[trial.trial_id for trial in job.plan.trials],
        facts={"scale": scale, "command": command, "Ray": ray},
        versions=versions() if job.left.waiting else {},
    )


def _keep_all(job: Job, record: LaunchRecord) -> None:
    """Keep this launch's record, and what made the trials that are taken from elsewhere."""
    for other in job.left.taken_from:
        keep_versions_of(other, job.location.folder, sweep=record.sweep)
    keep(job.location.folder, record)
    if (mirror := job.location.mirror) is not None:
        with contextlib.suppress(OSError):  # away for a while: the next push makes up for it
            # At once: a driver elsewhere that goes on is to find the folder's id.
            mirror.push_file(job.location.folder / FILE)


def _report(sweep: Sweep, job: Job, outcome: Outcome, record: LaunchRecord) -> int:
    """Keep how the launch went, write the page and the closing words; the exit status."""
    ran, chosen = outcome.ran, job.chosen
    because = f": {chosen.why}" if chosen.why is not None else ""
    facts = {"resources": f"{ran.resources or chosen.resources} for each trial{because}"}
    if ran.lost:
        facts["trials lost and continued"] = str(ran.lost)
    if ran.tried_again:
        facts["failures tried again"] = str(ran.tried_again)
    record = replace(record, facts={**record.facts, **facts})
    keep(job.location.folder, record)
    report = write_report(sweep, outcome.tables, last_record(job.location.folder))
    for table in report.tables:
        Console().print(for_terminal(table))
    closing.show(outcome, report.page, record.seconds or 0.0)
    if outcome.interrupted:
        return 1 if ran.cluster_lost else 130
    return 1 if outcome.count(Status.FAILED) else 0


def _choose_scale(possible: Sequence[str], asked: str, connection: Connection) -> str:
    """The scale and why; printed first, since everything else depends on it."""
    if asked in possible:
        scale, reason = asked, "asked for with --scale"
    elif len(possible) == 1:
        scale, reason = possible[0], "the only one of this sweep"
    elif connection.joined and cluster_gpus() > 0:
        scale, reason = "paper", "the Ray cluster has a GPU"
    else:
        scale, reason = "laptop", "there is no GPU"
    print(f"Scale {scale}: {reason}; {connection.description}.")
    return scale
