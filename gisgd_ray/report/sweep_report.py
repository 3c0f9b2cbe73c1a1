"""Figures, tables and page of a sweep, from what its folder holds."""

from dataclasses import replace

import pandas as pd

from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import Chart, save_charts
from gisgd_ray.figures.tables import save_tables
from gisgd_ray.report.contents import Report
from gisgd_ray.report.page import write_page
from gisgd_ray.results.launch_record import LaunchRecord, versions
from gisgd_ray.results.tables import ResultTables, varying_fields
from gisgd_ray.results.whole_files import require_no_links
from gisgd_ray.sweep import Sweep


def write_report(
    sweep: Sweep,
    tables: ResultTables,
    record: LaunchRecord | None,
    *,
    price_per_hour: float | None = None,
) -> Report:
    """Draw the figures and write ``tables.md`` and ``report.html`` anew.

    Args:
        record: of the last launch; None for results that have none: then what the launch was is
            left out, and what the trials differ in is what was swept.
        price_per_hour: what an hour of one trial costs, for the page.

    Raises:
        UserError: the tables lack what the figure shows: they are of another version. Or the folder
            has a link in it.
    """
    require_no_links(tables.folder)
    trials = tables.trials
    for column in ("trial_id", "status"):
        if column not in trials.columns:
            raise _lacking(sweep, tables, column)
    ended = set(trials["trial_id"])
    planned = set(record.planned) if record is not None else ended
    swept = list(record.swept) if record is not None else []
    if ended - planned or record is None:
        # Earlier launches asked for other trials: what tells those apart is swept as well.
        swept += varying_fields(trials, besides=[*swept, "seed"])
    report = Report(
        sweep,
        tables,
        trials,
        swept,
        len(planned | ended),
        facts=_facts(record) | _time_facts(trials),
        versions=versions_shown(record),
    )
    report, drawn = _drawn(report)
    save_tables(report.tables, tables.folder / "tables.md")
    write_page(report, drawn, price_per_hour=price_per_hour)
    return report


def _drawn(report: Report) -> tuple[Report, dict[str, Chart]]:
    """The report with what the finished trials show, and its figures."""
    sweep, tables = report.sweep, report.results
    done = (report.trials["status"] == "finished").any()
    try:
        drawn = sweep.plot(tables) if done else {}
        claims = sweep.claims(tables) if done else []
        shown = sweep.tables(tables) if done and sweep.tables is not None else []
        figures = save_charts(drawn, tables.folder / "figures")
    except KeyError as missing:
        raise _lacking(sweep, tables, missing.args[0]) from None
    except (TypeError, ValueError) as fault:  # a word among the settings, say
        why = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
        raise UserError(
            f"the tables in {tables.folder} hold what {sweep.item} cannot show ({why}); are they "
            "damaged, or another sweep's?"
        ) from fault
    return replace(report, claims=claims, tables=shown, figures=figures), drawn


def _facts(record: LaunchRecord | None) -> dict[str, str]:
    if record is None:
        return {"scale": "not recorded, since no launch has left its launches.json here"}
    if record.seconds is None:
        return record.facts
    return {**record.facts, "wall time of this launch": f"{record.seconds:.0f} s"}


def _lacking(sweep: Sweep, tables: ResultTables, column: object) -> UserError:
    """``column``: its name, or what pandas says of it."""
    return UserError(
        f"the tables in {tables.folder} lack a column that {sweep.item} needs ({column}): they are "
        "of another version of gisgd-ray or of another sweep; report with the version that ran it, "
        "or run it again with another --out"
    )


def versions_shown(record: LaunchRecord | None) -> dict[str, str]:
    """Those that made the numbers, where that is known."""
    if record is None or not record.versions:
        why = "no launch left a record" if record is None else "no launch here ran a trial"
        return {**versions(), "these": f"the versions that wrote the page; {why}"}
    told = dict(record.versions)
    for name, others in record.earlier.items():
        told[name] = f"{told.get(name, 'none')} (earlier launches: {', '.join(others)})"
    return told


def _time_facts(trials: pd.DataFrame) -> dict[str, str]:
    columns = ["time/training_s", "time/measuring_s"]
    if not set(columns) <= set(trials.columns):
        return {}
    training, measuring = (float(trials[c].sum()) for c in columns)
    return {
        "time in all trials": f"{training:.0f} s training with on-line measuring, "
        f"{measuring:.0f} s evaluation and all other measuring"
    }
