"""The closing words of a sweep: how it ended, what went wrong, and where the results are."""

import shlex
import sys
from pathlib import Path

from gisgd_ray.errors import error_line
from gisgd_ray.results.journal import Status
from gisgd_ray.runner.estimate import duration
from gisgd_ray.runner.launch import Outcome
from gisgd_ray.tracking.status import Where

FAILURES_SHOWN = 10
"""The page has all of them."""


def show(outcome: Outcome, page: Path, seconds: float) -> None:
    """Print them, faults to stderr; the page comes last."""
    counts = [f"{outcome.count(status)} {status}" for status in Status if outcome.count(status)]
    reused = f" ({outcome.reused} from an earlier launch)" if outcome.reused else ""
    print(f"{', '.join(counts) or 'no trial ended'}{reused} in {duration(seconds)}.")
    for count, what in (
        (outcome.ran.lost, "was lost, and taken up again"),
        (outcome.ran.tried_again, "failed, and was tried again"),
    ):
        if count:
            times = "Once" if count == 1 else f"{count} times"
            print(f"{times} a trial {what}.")
    if outcome.ran.cluster_lost:
        print(
            f"The Ray cluster was lost ({outcome.ran.cluster_lost}); what was measured is kept: "
            "the same command with --resume runs what is missing."
        )
    elif outcome.interrupted:
        print("Stopped before the end: the same command with --resume runs what is missing.")
    sys.stdout.flush()  # in a log of both, stderr would come before it
    failed = [each for each in outcome.ended if each.status is Status.FAILED]
    for each in failed[:FAILURES_SHOWN]:
        print(f"failed: trial {each.trial_id}: {error_line(each.error)}", file=sys.stderr)
    if (rest := len(failed) - FAILURES_SHOWN) > 0:
        print(f"and {rest} more failed; all of them are on the page", file=sys.stderr)
    _show_wandb(outcome)
    print(f"Tables, figures and page: {page}", flush=True)


def _show_wandb(outcome: Outcome) -> None:
    statuses = {each.wandb for each in outcome.ended if each.wandb is not None}
    for where, what in ((Where.OFF, "was switched off"), (Where.OFFLINE, "was kept offline")):
        if faults := sorted(s.fault for s in statuses if s.where is where and s.fault):
            more = f" (and {len(faults) - 1} like it)" if len(faults) > 1 else ""
            print(f"W&B {what} for some trials: {faults[0]}{more}", file=sys.stderr)
    for fault in outcome.wandb_faults:
        print(fault, file=sys.stderr)
    if any(status.where is Where.OFFLINE for status in statuses):
        folder = shlex.quote(str(outcome.tables.folder))
        print(f"W&B runs are offline; upload with: make sync ARGS={folder}")
