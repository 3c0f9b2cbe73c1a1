"""The one ``main`` that all scripts in ``sweeps/`` share: the command line, and what it plans.

Light to load, so that --help and bad input are answered at once: PyTorch, Ray and W&B come with
:mod:`gisgd_ray.runner.steps`, which runs the plan.
"""

import errno
import sys
from collections.abc import Sequence
from typing import Any

from gisgd_ray import terminal
from gisgd_ray.errors import UserError
from gisgd_ray.results.storage import is_uri, require_address
from gisgd_ray.results.tables import require_results
from gisgd_ray.runner import cli
from gisgd_ray.runner.cluster import leave
from gisgd_ray.runner.location import Location
from gisgd_ray.runner.plan import Plan, make_plan
from gisgd_ray.sweep import Sweep


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
    """From options to plans, and what :mod:`gisgd_ray.runner.steps` makes of them."""
    options = cli.parse(
        argv,
        prog=f"python sweeps/{sweep.name}.py",
        description=f"{sweep.item}: {sweep.description}",
        varied=_varied(sweep),
    )
    # Bad input fails here, before anything that takes seconds is loaded or started: a plan asks
    # for what builds its networks, and PyTorch with it.
    _require_sound(sweep, options)
    plans = _plans(sweep, options)
    from gisgd_ray.runner.steps import run

    return run(sweep, plans, options)


def _varied(sweep: Sweep) -> dict[str, Any]:
    """The fields that the sweep varies at its smallest scale, with their values."""
    spaces = sweep.spaces("laptop").values()
    return {path: space.fields[path] for space in spaces for path in space.swept_fields()}


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


def _require_sound(sweep: Sweep, options: cli.Options) -> None:
    """Raises UserError on what can be seen to be wrong before anything starts."""
    if is_uri(options.out):
        require_address(options.out)
    else:
        Location.of(options.out, sweep.name, make=False)
        if options.take_over:
            raise UserError(
                f"--take-over is for a bucket, and --out {options.out} is a folder: of a driver "
                "that is gone a folder knows by itself"
            )
    require_results(options.reuse)
