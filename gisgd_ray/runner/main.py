"""The one ``main`` that all scripts in ``sweeps/`` share: from the command line to the page."""

import errno
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from gisgd_ray import terminal
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError, error_line
from gisgd_ray.figures.tables import for_terminal
from gisgd_ray.numbers import counted
from gisgd_ray.report.sweep_report import write_report
from gisgd_ray.results.launch_record import (
    LaunchRecord,
    keep,
    keep_versions_of,
    last_record,
    versions,
)
from gisgd_ray.results.storage import is_uri, without_keys
from gisgd_ray.results.tables import finished_ids, require_results
from gisgd_ray.runner import cli
from gisgd_ray.runner.capacity import chosen_resources, told_cost
from gisgd_ray.runner.cluster import (
    Connection,
    cluster_gpus,
    connect,
    largest_memory,
    leave,
    require_room,
)
from gisgd_ray.runner.estimate import duration
from gisgd_ray.runner.handover import hide_keys
from gisgd_ray.runner.launch import Outcome, launch
from gisgd_ray.runner.memory import machine_memory, require_memory
from gisgd_ray.runner.packing import Resources
from gisgd_ray.runner.place import Place
from gisgd_ray.runner.plan import Plan, make_plan, plan_lines
from gisgd_ray.sweep import Sweep

SHORTEST_S = 0.1
"""Between two checkpoints of a trial."""
FAILURES_TOLD = 10
"""In the closing words; the page has all of them."""


def main(sweep: Sweep, argv: Sequence[str] | None = None) -> int:
    """Run a sweep from its command line; the exit status.

    0: every trial finished (or diverged, which is a result); 1: some failed, or the cluster was
    lost; 2: bad input; 130: stopped by the user, or by a scheduler.
    """
    terminal.forgive()
    status = _told(sweep, argv)
    leave(status)
    return status


def _told(sweep: Sweep, argv: Sequence[str] | None) -> int:
    """The exit status, with a fault told in a sentence."""
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
    options = cli.parse(argv, prog=f"sweeps/{sweep.name}.py", description=sweep.description)
    # Bad input fails here, before Ray takes its seconds to start. With --scale auto the scale is
    # not known yet: then what is unsound at either scale alone waits until it is.
    scales = ("laptop", "paper") if options.scale == "auto" else (options.scale,)
    plans, faults = {}, {}
    for scale in scales:
        try:
            plans[scale] = make_plan(sweep.panels[scale], options, scale, check=sweep.check)
        except UserError as fault:
            faults[scale] = fault
    if not plans:
        raise faults[scales[0]]
    _require_sound(options)
    place = Place.of(options.out, sweep.name, make=not options.dry_run)
    hide_keys()
    connection = connect(start_local=not options.dry_run)
    scale = _choose_scale(options.scale, connection)
    if scale in faults:
        raise UserError(f"at scale {scale}: {faults[scale]}")
    if options.dry_run:
        place.pull()
        _tell(sweep, plans[scale], place, options, connected=connection.joined)
        return 0
    with place.owned(take_over=options.take_over):
        # A sweep that needs no smaller scale has one: the paper's.
        same = sweep.panels["laptop"] is sweep.panels["paper"]
        facts = {
            "scale": "the paper’s" if same else scale,
            "command": shlex.join(["python", *map(without_keys, sys.argv)]),
            "Ray": connection.told,
        }
        return _run(sweep, plans[scale], place, options, facts)


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


def _tell(sweep: Sweep, plan: Plan, place: Place, options: cli.Options, *, connected: bool) -> None:
    """What a launch would run, and what that would take."""
    require_memory(plan.trials, largest_memory() if connected else machine_memory())
    waiting = plan.waiting([place.folder, *options.reuse])
    print("\n".join(plan_lines(plan, waiting, place, sweep.item)), flush=True)
    if (place.folder / "journal").exists() and not options.resume:
        print(f"{place.folder} holds results already: a launch needs --resume.")
    print("\n".join(told_cost(waiting, options, connected=connected)))


def _run(
    sweep: Sweep, plan: Plan, place: Place, options: cli.Options, facts: Mapping[str, str]
) -> int:
    """Run the trials and write the page; the exit status."""
    waiting = plan.waiting([place.folder, *options.reuse])
    resources, reason = chosen_resources(waiting, options)
    require_room(cpus=resources.cpus, gpus=resources.gpus)
    require_memory(plan.trials, largest_memory())
    print(f"{sweep.item}: {counted(len(plan.trials), 'trial')}, results in {place}")
    if reason:
        print(f"Each trial takes {resources}: {reason}.")
    record = LaunchRecord(
        sweep=sweep.name,
        script=str(Path(sys.argv[0]).absolute()),
        begun=datetime.now(UTC).isoformat(timespec="milliseconds"),
        swept=list(plan.swept),
        planned=[trial.trial_id for trial in plan.trials],
        facts=dict(facts),
        versions=versions() if waiting else {},
    )
    begun = time.monotonic()
    outcome = launch(
        plan.trials,
        name=sweep.name,
        place=place,
        resources=resources,
        resume=options.resume,
        reused_folders=options.reuse,
        labels=plan.labels,
        checkpoint_every_s=options.checkpoint_every,
        retries=options.retries,
        title=sweep.item,
        on_start=lambda: _keep_all(place.folder, record, plan.trials, options.reuse),
        wandb_requests_per_minute=options.wandb_requests,
    )
    seconds = time.monotonic() - begun
    taken = f"{outcome.resources or resources} for each trial" + (f": {reason}" if reason else "")
    facts = {**facts, "resources": taken}
    if outcome.lost:
        facts["trials lost and continued"] = str(outcome.lost)
    if outcome.tried_again:
        facts["failures tried again"] = str(outcome.tried_again)
    keep(place.folder, replace(record, facts=facts, seconds=seconds))
    report = write_report(sweep, outcome.tables, last_record(place.folder))
    for table in report.tables:
        Console().print(for_terminal(table))
    _print_closing(outcome, report.page, seconds)
    if outcome.interrupted:
        return 1 if outcome.cluster_lost else 130
    return 1 if outcome.count("failed") else 0


def _keep_all(
    folder: Path, record: LaunchRecord, trials: Sequence[TrialConfig], others: Sequence[Path]
) -> None:
    """Keep this launch's record, and what made the trials that are taken from elsewhere."""
    for other in others:
        if finished_ids(other, trials) - finished_ids(folder, trials):
            keep_versions_of(other, folder, sweep=record.sweep)
    keep(folder, record)


def _choose_scale(asked: str, connection: Connection) -> str:
    """The scale and why; printed first, since everything else depends on it."""
    if asked != "auto":
        scale, reason = asked, "asked for with --scale"
    elif connection.joined and cluster_gpus() > 0:
        scale, reason = "paper", "the Ray cluster has a GPU"
    else:
        scale, reason = "laptop", "there is no GPU"
    print(f"Scale {scale}: {reason}; {connection.told}.")
    return scale


def _print_closing(outcome: Outcome, page: Path, seconds: float) -> None:
    """How the sweep ended, what went wrong, and last where the results are."""
    counts = [
        f"{outcome.count(status)} {status}"
        for status in ("finished", "diverged", "failed")
        if outcome.count(status)
    ]
    reused = f" ({outcome.reused} from an earlier launch)" if outcome.reused else ""
    print(f"{', '.join(counts) or 'no trial ended'}{reused} in {duration(seconds)}.")
    for count, what in (
        (outcome.lost, "was lost, and taken up again"),
        (outcome.tried_again, "failed, and was tried again"),
    ):
        if count:
            times = "Once" if count == 1 else f"{count} times"
            print(f"{times} a trial {what}.")
    if outcome.cluster_lost:
        print(
            f"The Ray cluster was lost ({outcome.cluster_lost}); what was measured is kept: the "
            "same command with --resume runs what is missing."
        )
    elif outcome.interrupted:
        print("Stopped before the end: the same command with --resume runs what is missing.")
    sys.stdout.flush()  # in a log of both, stderr would come before it
    failed = [row for row in outcome.rows if row["status"] == "failed"]
    for row in failed[:FAILURES_TOLD]:
        print(f"failed: trial {row['trial_id']}: {error_line(row['error'])}", file=sys.stderr)
    if (rest := len(failed) - FAILURES_TOLD) > 0:
        print(f"and {rest} more failed; all of them are on the page", file=sys.stderr)
    statuses = sorted({row["wandb/status"] for row in outcome.rows if "wandb/status" in row})
    for kind, what in (("off: ", "was switched off"), ("offline: ", "was kept offline")):
        faults = [s.removeprefix(kind) for s in statuses if s.startswith(kind)]
        if faults:
            more = f" (and {len(faults) - 1} like it)" if len(faults) > 1 else ""
            print(f"W&B {what} for some trials: {faults[0]}{more}", file=sys.stderr)
    for fault in outcome.wandb_faults:
        print(fault, file=sys.stderr)
    if any(status.startswith("offline") for status in statuses):
        folder = shlex.quote(str(outcome.tables.folder))
        print(f"W&B runs are offline; upload with: make sync ARGS={folder}")
    print(f"Tables, figures and page: {page}", flush=True)
