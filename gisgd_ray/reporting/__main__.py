"""Make figures and pages of finished or running sweeps again, join them, or put them on W&B.

    python -m gisgd_ray.reporting results/lr_batch
    python -m gisgd_ray.reporting results                     # all in it, and the scoreboard
    python -m gisgd_ray.reporting results/lr_batch --wandb ENTITY/PROJECT

Runs nothing: everything is made from the tables and from ``launches.json`` beside them.
"""

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from gisgd_ray.errors import UserError
from gisgd_ray.launch_record import LaunchRecord, last_record
from gisgd_ray.reporting.scoreboard import Entry, write_scoreboard
from gisgd_ray.reporting.sweep_report import write_report
from gisgd_ray.results import ResultTables

if TYPE_CHECKING:
    from gisgd_ray.sweep import Sweep

TABLE = "trials.parquet"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m gisgd_ray.reporting",
        description="Make figures, tables.md and report.html of sweeps' folders again; of several, "
        "also scoreboard.html, which says what of the paper they reproduce. Runs nothing.",
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="DIR", help="a sweep's folder, or one of several")
    add("--wandb", metavar="ENTITY/PROJECT", help="also build or update each sweep's W&B report")
    add(
        "--script",
        type=Path,
        help="the script that declares the sweep, where the launch's own is not here any more",
    )
    add(
        "--price-per-hour",
        type=float,
        metavar="X",
        help="what an hour of one trial costs, in whatever money; the page then tells the sum",
    )
    options = parser.parse_args(argv)
    try:
        return _report(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _report(options: argparse.Namespace) -> int:
    price = options.price_per_hour
    if price is not None and not 0 < price < math.inf:
        raise UserError(f"--price-per-hour = {price:g} must be a positive number")
    if options.wandb is not None:
        from gisgd_ray.reporting.wandb_report import entity_and_project

        entity_and_project(options.wandb)
    folders = [folder for given in options.folders for folder in sweeps_in(given.expanduser())]
    entries = []
    for folder in dict.fromkeys(folders):
        record = last_record(folder)
        sweep = sweep_of(folder, record, options.script)
        tables = ResultTables(folder)
        report = write_report(sweep, tables, record, price_per_hour=price)
        print(f"{sweep.item}: {report.page}")
        entries.append(Entry(sweep.name, sweep.item, folder, report, tables.trials))
        if options.wandb is not None:
            from gisgd_ray.reporting.wandb_report import report_online

            print(f"{sweep.item}: {report_online(sweep, tables, report, options.wandb)}")
    if len(entries) > 1 or options.folders[0] not in folders:
        above = Path(os.path.commonpath([entry.folder.parent.resolve() for entry in entries]))
        print(f"Scoreboard: {write_scoreboard(entries, above)}")
    return 0


def sweeps_in(folder: Path) -> list[Path]:
    """The folder itself if it is a sweep's, else those directly in it that are.

    Raises:
        UserError: there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name a sweep's, as in results/lr_batch")
    if (folder / TABLE).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{TABLE}"))
    if not found:
        raise UserError(
            f"{folder} holds no sweep (there is no {TABLE} in it or in a folder of it); name a "
            "sweep's folder, as in results/lr_batch"
        )
    return found


def sweep_of(folder: Path, record: LaunchRecord | None, script: Path | None) -> "Sweep":
    """The sweep whose results a folder holds: as declared by a script, looked for where it was.

    Raises:
        UserError: no script is found, or it declares no sweep.
    """
    name = record.sweep if record is not None else folder.resolve().name
    if script is not None:
        places = [script]
    else:
        here = Path(__file__).parents[2] / "sweeps" / f"{name}.py"
        # The launch's own comes first: it may be one that is not part of this package.
        places = [Path(record.script)] if record is not None else []
        places += [Path("sweeps") / f"{name}.py", here]
    for place in places:
        if place.is_file() and place.suffix == ".py":
            found = getattr(_loaded(place), "SWEEP", None)
            if found is None:
                raise UserError(f"{place} declares no SWEEP; name a sweep's script with --script")
            return found  # type: ignore[no-any-return]
    raise UserError(
        f"the script of the sweep {name} in {folder} is not at {' or '.join(map(str, places))}; "
        "name it with --script sweeps/NAME.py"
    )


def _loaded(script: Path) -> ModuleType:
    """A script as a module; scripts may import each other as ``sweeps.NAME``."""
    root = str(script.resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"sweep_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
