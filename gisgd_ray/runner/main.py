"""The one ``main`` that all scripts in ``sweeps/`` share: from the command line to the page."""

import errno
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from gisgd_ray import terminal
from gisgd_ray.errors import DataError, UserError
from gisgd_ray.figures.tables import for_terminal
from gisgd_ray.numbers import counted
from gisgd_ray.report.sweep_report import write_report
from gisgd_ray.results.journal import Status
from gisgd_ray.results.launch_record import (
    LaunchRecord,
    keep,
    keep_versions_of,
    last_record,
    versions,
)
from gisgd_ray.results.storage import is_uri, without_keys
from gisgd_ray.results.tables import require_results
from gisgd_ray.runner import cli, closing
from gisgd_ray.runner.cluster import (
    Connection,
    cluster_gpus,
    connect,
    largest_memory,
    leave,
    require_room,
)
from gisgd_ray.runner.handover import hide_keys
from gisgd_ray.runner.launch import Job, Outcome, launch, require_startable, sole_driver
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.memory import machine_memory, require_memory
from gisgd_ray.runner.plan import Plan, make_plan, plan_lines
from gisgd_ray.runner.resources import Resources, chosen_resources, sweep_cost
from gisgd_ray.sweep import Sweep

SHORTEST_S = 0.1
"""Between two checkpoints of a trial."""
NO_GPU_YET = (
    "No machine with a GPU is up yet: what a trial takes, and how long, is measured when the sweep "
    "has brought one up."
)


def main(sweep: Sweep, argv: Sequence[str] | None = None) -> int:
    """Run a sweep from its command line; the exit status.

    0: every trial finished (or diverged, which is a result); 1: some failed, or the cluster was
    lost; 2: bad input; 130: stopped by the user, or by a scheduler.
    """
    terminal.forgive()
    status = _status(sweep, argv)
    leave(status)
    return status


def _status(sweep: Sweep, argv: Sequence[str] | None) -> int:
    """The exit status; a fault that is the user's to mend is one sentence on stderr."""
    try:
        return _main(sweep, argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume runs what is missing", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        print(
            f"error: {error.strerror}: {error.filename or 'the output folder'}; nothing measured "
            "is lost: make room, then run the same command with --resume",
            file=sys.stderr,
        )
        return 2


def _main(sweep: Sweep, argv: Sequence[str] | None) -> int:
    """From options to plan, cluster, resources, run, tables and report; the exit status."""
    options = cli.parse(
        argv, prog=f"sweeps/{sweep.name}.py", description=f"{sweep.item}: {sweep.description}"
    )
    # Bad input fails here, before Ray takes its seconds to start.
    plans = _plans(sweep, options)
    _require_sound(options)
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


def _plans(sweep: Sweep, options: cli.Options) -> dict[str, Plan | UserError]:
    """The plan at each scale that it may be, or what is unsound at that scale alone.

    With --scale auto the scale is not known yet: such a fault waits until it is. A sweep that has
    one scale alone runs at that one.
    """
    found: dict[str, Plan | UserError] = {}
    for scale in [options.scale] if options.scale in sweep.panels else list(sweep.panels):
        try:
            found[scale] = make_plan(sweep.spaces(scale), options, scale, check=sweep.check)
        except UserError as fault:
            found[scale] = fault
    faults = [each for each in found.values() if isinstance(each, UserError)]
    if len(faults) == len(found):
        raise faults[0]
    return found


def _require_sound(options: cli.Options) -> None:
    """Raises UserError on what can be seen to be wrong before anything starts."""
    Resources(cpus=options.cpus_per_trial, gpus=options.gpus_per_trial or 0.0)
    if options.retries < 0:
        raise UserError(f"--retries = {options.retries} must be at least 0")
    if options.checkpoint_every < SHORTEST_S:
        raise UserError(
            f"--checkpoint-every = {options.checkpoint_every:g} must be at least {SHORTEST_S:g} "
            "seconds; a trial does little else when it saves itself at every step"
        )
    if options.wandb_requests <= 0:
        raise UserError(f"--wandb-requests = {options.wandb_requests:g} must be above 0")
    if options.take_over and not is_uri(options.out):
        raise UserError(
            f"--take-over is for a bucket, and --out {options.out} is a folder: of a driver that "
            "is gone a folder knows by itself"
        )
    require_results(options.reuse)


def _show(
    sweep: Sweep, plan: Plan, location: Location, options: cli.Options, *, connected: bool
) -> None:
    """What a launch would run, and what that would take."""
    require_memory(plan.trials, largest_memory() if connected else machine_memory())
    waiting = plan.left(location.folder, options.reuse).waiting
    print("\n".join(plan_lines(plan, waiting, location, sweep.item)), flush=True)
    if (location.folder / "journal").exists() and not options.resume:
        print(f"{location.folder} holds results already: a launch needs --resume.")
    try:
        cost = sweep_cost(waiting, options, connected=connected)
    except DataError as fault:
        print(f"Time: not known, since a trial cannot be tried out: {fault}")
        return
    print("\n".join(cost.lines()) if cost is not None else NO_GPU_YET)


def _job(sweep: Sweep, plan: Plan, location: Location, options: cli.Options) -> Job:
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
