"""The reproduction scoreboard: every figure and table of the paper, and what has become of it."""

import base64
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from os.path import relpath
from pathlib import Path
from urllib.parse import quote

import jinja2
import pandas as pd

from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.paper_tables import DATASETS
from gisgd_ray.claims.statistics import Verdict
from gisgd_ray.figures.tables import Table
from gisgd_ray.numbers import counted
from gisgd_ray.report.contents import Report
from gisgd_ray.report.page import VERDICTS, status_line, tight
from gisgd_ray.report.page_cautions import without_machine
from gisgd_ray.results.whole_files import replace_file


@dataclass(frozen=True)
class Item:
    """A figure or table of Wang & Mao (ICLR 2022)."""

    name: str
    sweep: str
    """Which reproduces it."""
    title: str
    """What it shows."""
    models: Sequence[str] = ()
    """Where a sweep reproduces several: the networks of the trials that are this one's."""
    absolute: bool = False
    """Of the trials with GMP's absolute variant alone."""
    is_table: bool = False
    """Of accuracies, which are of the paper's networks and data or are none of it."""

    def trials(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Those of its sweep's trials that are of this figure or table."""
        only: dict[str, Sequence[str]] = {"model.name": self.models} if self.models else {}
        if self.absolute:
            only["scheme.variant"] = ("absolute",)
        if self.is_table:
            only["data.dataset"] = DATASETS
        for column, values in only.items():
            if column not in trials.columns:
                return trials.head(0)
            trials = trials[trials[column].isin(values)]
        return trials


ITEMS = (
    Item("Figure 1", "trajectory", "Trajectory terms of ours and Neu et al.’s, epoch by epoch"),
    Item("Figure 2", "bound_verification", "The bound and the gap against width and label noise"),
    Item("Figure 3", "double_descent", "Gradient dispersion along training under label noise"),
    Item(
        "Figure 4",
        "clipping",
        "Dynamic gradient clipping of an MLP under label noise",
        models=["mlp"],
    ),
    Item("Figure 5", "stochastic", "The trajectory terms and the two dispersions over replicas"),
    Item("Figure 6", "lr_batch", "Trajectory and flatness factor: learning rate and batch size"),
    Item(
        "Figure 7",
        "linear_relu",
        "Theorem 3 and the gap of a linear network",
        models=["linear"],
    ),
    Item(
        "Figure 8",
        "linear_relu",
        "Theorem 4 and the gap of a two-layer ReLU network",
        models=["two_layer_relu"],
    ),
    Item(
        "Figure 9",
        "clipping",
        "Dynamic gradient clipping of AlexNet under label noise",
        models=["alexnet"],
    ),
    Item(
        "Table 1",
        "regularizers",
        "Test accuracy of VGG16 under nine training schemes",
        models=["vgg16"],
        is_table=True,
    ),
    Item(
        "Table 2",
        "regularizers",
        "The same of PreActResNet18",
        models=["preactresnet18"],
        is_table=True,
    ),
    Item(
        "Table 3",
        "regularizers",
        "GMP with the absolute difference",
        models=["vgg16"],
        absolute=True,
        is_table=True,
    ),
)


@dataclass(frozen=True)
class PaperItem:
    """One figure or table of the paper on the scoreboard."""

    item: str
    title: str
    sweep: str
    done: Sequence["SweepFolder"]
    """The folders that reproduce it; none where it was not run."""
    others: Sequence["SweepFolder"]
    """Of a table: the folders that have it of other networks or data."""
    has_results: bool
    """Whether a trial of it has finished."""


@dataclass(frozen=True)
class SweepFolder:
    """One folder's results, as text."""

    name: str
    item: str
    folder: str
    page: str
    """Address of its page, relative to the scoreboard."""
    tried: int
    """Trials that have ended."""
    status: str
    scale: str
    ran: str
    """Networks and data, which at laptop scale are not the paper's: "mlp on mnist5k"."""
    counts: Sequence[tuple[str, str]]
    """Verdicts that there are, and how many claims have it: ("holds", "2 hold")."""
    verdicts: dict[Verdict, int]
    claims: Sequence[Claim]
    figures: Sequence[tuple[str, str]]
    """Name and data URI of the SVG."""
    tables: Sequence[Table]


def write_scoreboard(
    reports: Sequence[Report], folder: Path, faults: Mapping[Path, str] | None = None
) -> Path:
    """Write ``scoreboard.html`` into the folder, replacing it as a whole; returns its path.

    Args:
        faults: sweeps' folders that could not be reported, and why.
    """
    faults = faults or {}
    order = [item.sweep for item in ITEMS]

    def place(report: Report) -> tuple[int, str]:
        name = report.sweep.name
        return order.index(name) if name in order else len(order), str(report.results.folder)

    reports = sorted(reports, key=place)
    sweeps = {id(report): _sweep(report, folder) for report in reports}
    items = Counter(report.sweep.item for report in reports)
    lines = []
    for item in ITEMS:
        its = {id(r): item.trials(r.trials) for r in reports if r.sweep.name == item.sweep}
        run = [sweeps[key] for key, trials in its.items() if len(trials) or not sweeps[key].tried]
        done = any((trials["status"] == "finished").any() for trials in its.values())
        others = [sweeps[key] for key in its if item.is_table and sweeps[key] not in run]
        lines.append(PaperItem(item.name, item.title, item.sweep, run, others, has_results=done))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["tight"] = tight
    text = environment.get_template("scoreboard.html").render(
        lines=lines,
        others=[sweep for sweep in sweeps.values() if sweep.name not in order],
        sweeps=list(sweeps.values()),
        repeated={item for item, number in items.items() if number > 1},
        faults={_below(place, folder): without_machine(why) for place, why in faults.items()},
        summary=_summary(lines, sweeps.values()),
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    path = folder / "scoreboard.html"
    replace_file(path, text.encode(errors="backslashreplace"))
    return path


def _ran(trials: pd.DataFrame) -> str:
    columns = ["model.name", "data.dataset"]
    if not set(columns) <= set(trials.columns):
        return ""
    pairs = trials[columns].drop_duplicates().astype(str).itertuples(index=False)
    return ", ".join(f"{model} on {data}" for model, data in pairs)


def _sweep(report: Report, above: Path) -> SweepFolder:
    verdicts = {v: sum(c.verdict == v for c in report.claims) for v in VERDICTS}
    return SweepFolder(
        name=report.sweep.name,
        item=report.sweep.item,
        folder=_below(report.results.folder, above),
        page=quote(os.fsencode(_below(report.page, above))),
        tried=len(report.trials),
        status=status_line(report.trials, report.planned),
        scale=report.facts.get("scale", "not recorded"),
        ran=_ran(report.trials),
        counts=[(v, _counted(verdicts, v)) for v in VERDICTS if verdicts[v]],
        verdicts=verdicts,
        claims=report.claims,
        figures=[
            (name, "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode())
            for name, path in report.figures.items()
        ],
        tables=report.tables,
    )


def _below(path: Path, above: Path) -> str:
    """The path as it is written from the scoreboard's folder."""
    return relpath(path.resolve(), above.resolve())


def _counted(verdicts: Mapping[Verdict, int], verdict: Verdict) -> str:
    count = verdicts[verdict]
    return f"{count:,} {verdict if count == 1 else VERDICTS[verdict][0]}"


def _summary(lines: Iterable[PaperItem], sweeps: Iterable[SweepFolder]) -> str:
    """As in "9 of 12 figures and tables have results; of 3 claims tested: 1 holds, 2 undecided".

    A claim that several folders have tested counts once, and apart where they do not agree.
    """
    lines = list(lines)
    done = sum(line.has_results for line in lines)
    found: dict[tuple[str, str], set[Verdict]] = {}
    for sweep in sweeps:
        for claim in sweep.claims:
            found.setdefault((sweep.name, claim.text), set()).add(claim.verdict)
    counts = {v: sum(verdicts == {v} for verdicts in found.values()) for v in VERDICTS}
    tested = ", ".join(_counted(counts, v) for v in VERDICTS)
    if apart := len(found) - sum(counts.values()):
        tested += f", {apart} not the same in every folder"
    return (
        f"{done} of {len(lines)} figures and tables have results; of "
        f"{counted(len(found), 'claim')} tested: {tested}"
    )
