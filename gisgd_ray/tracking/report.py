"""A W&B report of a sweep: formulas, ours against Neu et al., the figure's panels, claims.

Panels are drawn by W&B from the runs, so that they also show what runs log later. The results in a
folder have one report a project, which the folder's id ends the description of; saving it again
replaces what it says, at the same address.
"""

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

from gisgd_ray.errors import UserError
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.numbers import counted
from gisgd_ray.report.comparison import compare
from gisgd_ray.report.contents import Report
from gisgd_ray.results.launch_record import folder_id
from gisgd_ray.results.tables import records
from gisgd_ray.theory.quantities import NOTATION, quantity
from gisgd_ray.tracking.access import FAULTS, client, explained
from gisgd_ray.tracking.launch import existing_runs
from gisgd_ray.tracking.panels import comparison_grid, figure_grids, reports
from gisgd_ray.tracking.report_text import (
    ALWAYS,
    claims_markdown,
    comparison_markdown,
    facts_markdown,
    paper_table_markdown,
)
from gisgd_ray.tracking.run import run_id

LONGEST_TITLE = 128
NAME = re.compile(r"[\w.-]+")


def entity_and_project(text: str) -> tuple[str, str]:
    """Both parts of ``ENTITY/PROJECT``.

    Raises:
        UserError: it is none.

    >>> entity_and_project("my-team/gisgd-ray")
    ('my-team', 'gisgd-ray')
    """
    entity, slash, project = text.strip().partition("/")
    if not slash or not NAME.fullmatch(entity) or not NAME.fullmatch(project):
        raise UserError(
            f"--wandb {text!r} is not ENTITY/PROJECT: a W&B user or team, a slash and a project, "
            "each of letters, digits, '-', '_' and '.', as in my-team/gisgd-ray"
        )
    return entity, project


def build_report(report: Report, where: str) -> Any:
    """A ``wandb_workspaces.reports.v2.Report``, made without asking any server.

    Args:
        where: ENTITY/PROJECT: where the runs are, and the report will be.

    Raises:
        UserError: wandb-workspaces is not installed, or ``where`` is none.
    """
    entity, project = entity_and_project(where)
    wr = reports()
    item, name, panels = report.sweep.item, report.sweep.name, report.sweep.run_panels
    # To W&B the runs' ids are what the trials' are to the tables.
    ids = run_ids(report)
    trials, history = (
        table.assign(trial_id=table["trial_id"].map(ids))
        for table in (report.trials, report.results.history)
    )
    points = report.points
    done = trials[trials["status"] == "finished"]
    compared = comparison_grid(done, history, name=name, swept=points)
    drawn = figure_grids(done, history, panels, name=name, swept=points)
    blocks = [
        wr.MarkdownBlock(text=f"{_counted(trials, report.planned)} Made by gisgd-ray. The "
                         "paper: Wang & Mao, *On the Generalization of Models Trained with SGD: "
                         "Information-Theoretic Bounds and Implications* (ICLR 2022)."),
        wr.TableOfContents(),
        wr.H1(text="Formulas"),
        wr.P(text=NOTATION),
        *_formulas(panels),
        wr.H1(text="Ours against Neu et al."),
        *_comparison(report, compared),
        wr.H1(text=f"{item}, from the runs"),
        *(drawn or [wr.P(text="No finished trial has measured what the figure shows.")]),
        wr.H1(text="Claims" if report.sweep.own else "The paper's claims"),
        wr.MarkdownBlock(text=claims_markdown(report.claims))
        if report.claims
        else wr.P(text="No trial has finished that a claim could be tested on."),
    ]  # fmt: skip
    if report.tables:
        blocks.append(wr.H1(text="As the paper prints it"))
        blocks += [wr.MarkdownBlock(text=paper_table_markdown(table)) for table in report.tables]
    blocks.append(wr.H1(text="What was run"))
    if command := report.facts.get("command"):
        # W&B knows no shell; without a language it takes Python.
        blocks.append(wr.CodeBlock(code=command, language="markdown"))
    blocks.append(wr.MarkdownBlock(text=facts_markdown({**report.facts, **report.versions})))
    return wr.Report(
        entity=entity,
        project=project,
        title=report_title(name, item),
        description=f"{report.sweep.description} {marker(report)}",
        blocks=blocks,
        width="fluid",
    )


def report_title(name: str, item: str) -> str:
    """The title of a new report; the marker still finds one that was renamed."""
    # Without brackets: the title is part of the address, which is pasted into a shell.
    return f"{item}: {name.replace('_', ' ')}, gisgd-ray"[:LONGEST_TITLE]


def marker(report: Report) -> str:
    """Ends the description of the report of these results, and of no others'.

    A folder that no launch of this version has seen is known by its sweep's trials.
    """
    name, ids = report.sweep.name, sorted(map(str, report.trials["trial_id"]))
    digest = hashlib.sha256(" ".join(ids).encode()).hexdigest()[:8]
    return f"[gisgd-ray sweep {name} {folder_id(report.results.folder) or digest}]"


def run_ids(report: Report) -> dict[str, str]:
    """The W&B run of every trial, by the trial's id.

    A trial says itself which one it has, so that those taken from another folder are shown as well.
    """
    own, ids = folder_id(report.results.folder) or "", {}
    for row in records(report.trials):
        name, path = str(row["trial_id"]), row.get("wandb/run")
        if isinstance(path, str):
            ids[name] = path.rpartition("/")[2]
        else:  # it failed; or an earlier version ran it, and called its run by its id
            earlier = isinstance(row.get("wandb/status"), str)
            ids[name] = run_id("" if earlier else own, name)
    return ids


def _counted(trials: Any, planned: int) -> str:
    finished = int((trials["status"] == "finished").sum())
    early = planned - len(trials)
    stopped = f" {counted(early, 'trial')} not run to the end." if early > 0 else ""
    return f"{finished} of {counted(planned, 'trial')} finished.{stopped}"


def _formulas(run_panels: Sequence[RunPanel]) -> list[Any]:
    """What every report explains, then this figure's metrics."""
    wr = reports()
    blocks: list[Any] = []
    shown = (name for panel in run_panels for name in panel.y)
    for known in filter(None, map(quantity, dict.fromkeys([*ALWAYS, *shown]))):
        name = known.name + "σ" * known.at_noise_std
        words = f" ({known.symbol}): {known.meaning}."
        blocks.append(wr.P(text=[wr.InlineCode(text=name), words]))
        if known.latex:
            blocks.append(wr.LatexBlock(text=known.latex))
    return blocks


def _comparison(report: Report, compared: list[Any]) -> list[Any]:
    wr = reports()
    found = compare(report.trials, report.points, over_seeds=report.over_seeds)
    if found is None:
        return [wr.P(text="Nothing of either bound was measured in these trials.")]
    means = " Means over seeds." if report.over_seeds else ""
    said = " ".join(filter(None, (found.summary, found.premises))) + means
    above = [wr.P(text=said.strip())] if said else []
    below = [wr.P(text=" ".join(found.notes))] if found.notes else []
    return [*above, *compared, wr.MarkdownBlock(text=comparison_markdown(found)), *below]


def save_report(report: Any) -> str:
    """Save the report, in place of the one that an earlier call has saved; its address.

    That one is the latest of the project whose description ends in the same :func:`marker`.

    Raises:
        UserError: W&B cannot be reached or does not take it.
    """
    entity, project = report.entity, report.project
    where, mark = f"{entity}/{project}", report.description.rpartition(" [")[2]
    with _faults_explained(where):
        asking = client()
        asking.create_project(project, entity)  # or nothing, where it is there
        there = [
            each
            for each in asking.reports(where)
            if str(each.description or "").endswith(f"[{mark}")
        ]
    report.id = str(max(there, key=lambda each: str(each.updated_at or "")).id) if there else ""
    for block in report.blocks:
        for runs in getattr(block, "runsets", []):
            # Said only now: with both, a report asks the server when it is put into words.
            runs.entity, runs.project = entity, project
    # The library says the address as well, in other words.
    with _faults_explained(where), redirect_stderr(io.StringIO()):
        report.save()
        return str(report.url)


@contextmanager
def _faults_explained(where: str) -> Iterator[None]:
    """W&B's faults as sentences for the user."""
    try:
        yield
    except FAULTS as fault:
        raise UserError(f"--wandb {where}: {explained(fault, where)}") from fault


def report_online(report: Report, where: str) -> str:
    """Build and save the report of a sweep whose page was written; its address, and what it lacks.

    Args:
        where: ENTITY/PROJECT.

    Raises:
        UserError: as :func:`save_report`; none of the trials' runs is there.
    """
    folder, ids = report.results.folder, list(run_ids(report).values())
    with _faults_explained(where):
        there = len(existing_runs(where, ids))
    if not there:
        raise UserError(
            f"--wandb {where}: none of the {len(ids)} runs of {folder} is there, and the report "
            f"would show none; `make sync ARGS={folder}` uploads what was kept offline, to the "
            "project that WANDB_PROJECT named when they ran"
        )
    url = save_report(build_report(report, where))
    if there == len(ids):
        return url
    return f"{url} (with {there} of {counted(len(ids), 'run')}: the others are not in {where})"
