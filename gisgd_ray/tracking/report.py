"""A W&B report of a sweep: formulas, ours against Neu et al., the figure's panels, claims.

Panels are drawn by W&B from the runs, so that they also show what runs log later. The results in a
folder have one report a project; saving it again replaces what it says, at the same address.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import wandb

from gisgd_ray.errors import UserError
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.numbers import counted
from gisgd_ray.report.comparison import compare
from gisgd_ray.report.contents import Report
from gisgd_ray.results.whole_files import replace_file
from gisgd_ray.theory.quantities import NOTATION, quantity
from gisgd_ray.tracking.access import AWAY, Contained, no_answer, sentence, server
from gisgd_ray.tracking.existing import existing_runs
from gisgd_ray.tracking.panels import comparison_grid, figure_grids, reports
from gisgd_ray.tracking.report_text import (
    ALWAYS,
    claims_markdown,
    comparison_markdown,
    facts_markdown,
    paper_table_markdown,
)

FILE = "wandb_report.json"
"""In the results' folder: id and url of the report by ENTITY/PROJECT."""
TIMEOUT_S = 20
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
    trials, points, history = report.trials, report.points, report.results.history
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
        description=f"{report.sweep.description} {marker(name, trials['trial_id'])}",
        blocks=blocks,
        width="fluid",
    )


def report_title(name: str, item: str) -> str:
    """The title of a new report; the marker still finds one that was renamed."""
    # Without brackets: the title is part of the address, which is pasted into a shell.
    return f"{item}: {name.replace('_', ' ')}, gisgd-ray"[:LONGEST_TITLE]


def marker(name: str, trial_ids: Iterable[str]) -> str:
    """Ends the description of the report of a sweep with these trials, and of no other's."""
    digest = hashlib.sha256(" ".join(sorted(trial_ids)).encode()).hexdigest()
    return f"[gisgd-ray sweep {name} {digest[:8]}]"


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


def save_report(report: Any, folder: Path) -> str:
    """Save the report, in place of the one that an earlier call has saved; its address.

    That one is known from :data:`FILE` in ``folder``; without the file, it is the report of the
    project whose description has the marker of a sweep with the same trials.

    Raises:
        UserError: W&B cannot be reached or does not take it; the report was deleted there.
    """
    entity, project = report.entity, report.project
    where = f"{entity}/{project}"
    known = _known(folder)
    with _faults_explained(where):
        api = _api(where)
        if project not in {each.name for each in api.projects(entity)}:
            api.create_project(project, entity)
        there = {str(each.id).rstrip("="): each for each in api.reports(where)}
    if where in known:
        report.id = known[where]["id"]
        if report.id.rstrip("=") not in there:
            raise UserError(
                f"--wandb {where}: the report that {folder / FILE} names, {known[where]['url']}, "
                "was deleted on W&B; remove that file, and a new one is made"
            )
    else:
        report.id = _found(report, list(there.values()))
    for block in report.blocks:
        for runs in getattr(block, "runsets", []):
            # Said only now: with both, a report asks the server when it is put into words.
            runs.entity, runs.project = entity, project
    # The library says the address as well, in other words.
    with _faults_explained(where), redirect_stderr(io.StringIO()):
        report.save()
        url = str(report.url)
    known[where] = {"id": str(report.id), "url": url}
    replace_file(folder / FILE, json.dumps(known, indent=2).encode())
    return url


def _api(where: str) -> wandb.Api:
    """W&B's client, once the server has shown that it answers.

    Raises:
        UserError: it does not.
    """
    address = server()
    if why := no_answer(address):
        raise UserError(f"--wandb {where}: {AWAY} ({address}: {why})")
    return wandb.Api(timeout=TIMEOUT_S)


def _known(folder: Path) -> dict[str, dict[str, str]]:
    """Ids and urls by ENTITY/PROJECT; none where the file is gone or damaged."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return {str(k): {"id": str(v["id"]), "url": str(v["url"])} for k, v in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _found(report: Any, there: Sequence[Any]) -> str:
    """The id of the report of these trials among the project's, the latest of several; or empty."""
    mark = report.description.rpartition(" [")[2]
    marked = [each for each in there if str(each.description or "").endswith(f"[{mark}")]
    latest = sorted(marked, key=lambda each: str(each.updated_at or ""))
    return str(latest[-1].id) if latest else ""


@contextmanager
def _faults_explained(where: str) -> Iterator[None]:
    """W&B's faults as sentences for the user."""
    with Contained() as caught:
        yield
    if (fault := caught.fault) is not None:
        raise UserError(f"--wandb {where}: {sentence(fault, where)}") from fault


def report_online(report: Report, where: str) -> str:
    """Build and save the report of a sweep whose page was written; its address, and what it lacks.

    Args:
        where: ENTITY/PROJECT.

    Raises:
        UserError: as :func:`save_report`; none of the trials' runs is there.
    """
    folder, ids = report.results.folder, [str(each) for each in report.trials["trial_id"]]
    with _faults_explained(where):
        there = len(list(existing_runs(_api(where), where, ids)))
    if not there:
        raise UserError(
            f"--wandb {where}: none of the {len(ids)} runs of {folder} is there, and the report "
            f"would show none; `make sync ARGS={folder}` uploads what was kept offline, to the "
            "project that WANDB_PROJECT named when they ran"
        )
    url = save_report(build_report(report, where), folder)
    if there == len(ids):
        return url
    return f"{url} (with {there} of {counted(len(ids), 'run')}: the others are not in {where})"
