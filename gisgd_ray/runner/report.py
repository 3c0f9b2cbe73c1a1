"""Make figures and pages of finished or running sweeps again, join them, or put them on W&B.

    python -m gisgd_ray.runner.report results/lr_batch
    python -m gisgd_ray.runner.report results                     # all in it, and the scoreboard
    python -m gisgd_ray.runner.report results/lr_batch --wandb ENTITY/PROJECT

Runs no trial: everything is made from the tables and from ``launches.json`` beside them. Those are
data, whoever they come from: of code this loads the package's own sweeps, by their names, and the
script that is named with ``--script``.
"""

import argparse
import importlib.util
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from gisgd_ray import terminal
from gisgd_ray.errors import UserError
from gisgd_ray.report.contents import Report
from gisgd_ray.report.scoreboard import write_scoreboard
from gisgd_ray.report.sweep_report import write_report
from gisgd_ray.results.launch_record import LaunchRecord, last_record
from gisgd_ray.results.storage import without_keys
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.results.whole_files import require_no_links
from gisgd_ray.sweep import Sweep

TABLE = "trials.parquet"
SWEEPS = Path(__file__).parents[2] / "sweeps"
"""The package's own, beside it."""


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for bad input."""
    terminal.forgive()
    parser = argparse.ArgumentParser(
        prog="python -m gisgd_ray.runner.report",
        description="Make figures, tables.md and report.html of sweeps' folders again; of several, "
        "also scoreboard.html, which says what of the paper they reproduce. Runs nothing.",
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="a sweep's folder, or one of several")
    add("--wandb", metavar="ENTITY/PROJECT", help="also build or update each sweep's W&B report")
    add(
        "--script",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the script that declares the sweep, where it is none of this package's (again for "
        "further ones): it is run, so name one that you trust",
    )
    add(
        "--price-per-hour",
        type=float,
        metavar="X",
        help="what an hour of one trial costs, in whatever money; the page then gives the sum",
    )
    options = parser.parse_args(argv)
    try:
        return _report(options)
    except UserError as error:
        return _refused(str(error))
    except OSError as error:
        return _refused(f"{error.strerror or error}: {error.filename or 'a sweep’s folder'}")


def _refused(why: str) -> int:
    print(f"error: {why}", file=sys.stderr)
    return 2


def _report(options: argparse.Namespace) -> int:
    price = options.price_per_hour
    if price is not None and not 0 < price < math.inf:
        raise UserError(f"--price-per-hour = {price:g} must be a positive number")
    if options.wandb is not None:
        from gisgd_ray.tracking.report import entity_and_project

        entity_and_project(options.wandb)
    given = [Path(os.path.expanduser(folder)) for folder in options.folders]
    # One folder may be named twice, in two ways.
    found: dict[Path, Path] = {}
    for folder in [folder for top in given for folder in sweeps_in(top)]:
        found.setdefault(folder.resolve(), folder)
    folders = list(found.values())
    several = len(folders) > 1 or not (given[0] / TABLE).exists()
    if options.script and not several:
        require_same_sweep(given[0], options.script[-1])
    reports, faults = [], {}
    for folder in folders:
        try:
            reports.append(_reported(folder, options))
        except UserError as error:
            # The others are reported all the same.
            faults[folder] = str(error)
            _refused(str(error))
    if several and reports:
        parents = [report.results.folder.parent.resolve() for report in reports]
        above = Path(os.path.commonpath(parents))
        if above == above.parent:  # nothing in common but the disk
            above = Path.cwd()
        print(f"Scoreboard: {write_scoreboard(reports, above, faults)}")
    return 2 if faults else 0


def _reported(folder: Path, options: argparse.Namespace) -> Report:
    """One sweep's figures and page, and its report on W&B if it is to have one."""
    require_no_links(folder)
    record = last_record(folder)
    sweep = sweep_of(folder, record, options.script)
    report = write_report(
        sweep, ResultTables(folder), record, price_per_hour=options.price_per_hour
    )
    print(f"{sweep.item}: {report.page}")
    if options.wandb is not None:
        from gisgd_ray.tracking.report import report_online

        print(f"{sweep.item}: {report_online(report, options.wandb)}")
    return report


def sweeps_in(folder: Path) -> list[Path]:
    """The folder itself if it is a sweep's, else those below it that are.

    Raises:
        UserError: there are none.
    """
    if not os.path.isdir(folder):  # pathlib's raises where a name is too long
        # A path has made one slash of two in what may be a bucket, with its keys.
        shown = without_keys(str(folder).replace(":/", "://", 1))
        raise UserError(f"{shown} is not a folder; name a sweep's, as in results/lr_batch")
    if (folder / TABLE).exists():
        return [folder]
    found = sorted(path.parent for path in folder.rglob(TABLE))
    if not found:
        raise UserError(
            f"{folder} holds no sweep (there is no {TABLE} in it or below it); name a "
            "sweep's folder, as in results/lr_batch"
        )
    return found


def sweep_of(folder: Path, record: LaunchRecord | None, scripts: Sequence[Path]) -> Sweep:
    """The sweep whose results a folder holds: the package's own of that name, or a given script's.

    A script that the folder names is never run: a folder may be anybody's.

    Args:
        scripts: looked into first; those of other sweeps than the folder's are passed over.

    Raises:
        UserError: it is none of the package's sweeps, or the script given declares no sweep.
    """
    name = record.sweep if record is not None else folder.resolve().name
    given = [_declared(script) for script in scripts]
    for sweep in given:
        if sweep.name == name:
            return sweep
    own = SWEEPS / f"{name}.py"
    if re.fullmatch("[a-z0-9_]+", name) and own.is_file():
        found = _declared(own)
        if found.name == name:
            return found
    if given and record is None:
        return given[-1]  # a folder under another name than its sweep's
    named = record is not None and record.script
    raise UserError(
        f"{folder} holds the sweep {name!r}, which is none of this package's"
        + (f"; the script that it names, {named!r}, is not run by itself" if named else "")
        + ": name the script that declares it with --script FILE, if you trust it"
    )


def require_same_sweep(folder: Path, script: Path) -> None:
    """See that a script that was named for a folder declares the sweep in it.

    Raises:
        UserError: it declares another, or none.
    """
    record, declared = last_record(folder), _declared(script)
    if record is not None and declared.name != record.sweep:
        raise UserError(
            f"--script {script} declares the sweep {declared.name}, and {folder} holds "
            f"{record.sweep}; name the script of that one"
        )


def _declared(script: Path) -> Sweep:
    """The ``SWEEP`` of a script.

    Raises:
        UserError: there is none, or the script cannot be loaded.
    """
    found = getattr(_loaded(script), "SWEEP", None)
    if not isinstance(found, Sweep):
        raise UserError(f"{script} declares no SWEEP; name a sweep's script with --script")
    return found


def _loaded(script: Path) -> ModuleType:
    """A script as a module; scripts may import each other as ``sweeps.NAME``."""
    if not script.is_file() or script.suffix != ".py":
        raise UserError(f"--script {script} is not a Python script; name a sweep's")
    root = str(script.resolve().parent.parent)
    # First: what lies in the folder that this is called from must not come before it.
    sys.path[:] = [root, *(path for path in sys.path if path != root)]
    spec = importlib.util.spec_from_file_location(f"sweep_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in a module
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError) as fault:  # others are the script's own, and shown
        why = f"{type(fault).__name__}: {fault}"
        raise UserError(f"{script} cannot be loaded ({why}); name another with --script") from fault
    return module


if __name__ == "__main__":
    sys.exit(main())
