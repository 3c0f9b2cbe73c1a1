"""Hand-made result rows, the page made from them, and a reader of that page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

from gisgd_ray.figures.charts import Chart
from gisgd_ray.report import page
from gisgd_ray.report.contents import Report
from gisgd_ray.results import launch_record
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.sweep import Sweep

NAN = math.nan
RATE, BATCH = "training.learning_rate", "training.batch_size"
EQ3 = "bound/theorem2_closed_form"
VOID = {"meta", "img", "br", "link", "input"}


def finished(trial_id: str, **changes: Any) -> dict[str, Any]:
    """A finished trial's row with few columns; `__` in a keyword stands for a dot."""
    row: dict[str, Any] = {
        "trial_id": trial_id,
        "status": "finished",
        "data.dataset": "mnist5k",
        "model.name": "mlp",
        "model.width": 512,
        RATE: 0.05,
        BATCH: 20,
        "measurement.noise_stds": [1e-2, 1e-6],
        "seed": 0,
        "stop_reason": "stop_loss",
        "outside_theorem": None,
        "steps": 1200,
        "num_samples": 4000,
        "num_parameters": 407_050,
        "data/normalization_mean": [0.131567],
        "train/loss": 0.0461884,
        "test/loss": 0.228563,
        "test/accuracy": 0.936,
        "gap/loss": 0.182375,
        "measure/subgaussian_constant": 5.416209,
        "measure/hessian_trace_stderr": 0.0,
        "measure/hessian_trace_estimator": "exact",
        "measure/ill_conditioned_steps": 0,
        "term/trajectory_factor": 90.974755,
        "term/flatness_factor": 64.948849,
        "term/theorem2_trajectory@0.01": 27.531422,
        "term/theorem2_trajectory@1e-06": 5799.550411,
        EQ3: 27.117858,
        "bound/undefined_reason": None,
        "bound/remark": None,
        "hostname": "secret-host",
    }
    return row | {key.replace("__", "."): value for key, value in changes.items()}


def with_bounds(
    row: dict[str, Any], *, sensitivity: bool = False, scale: float = 1.0
) -> dict[str, Any]:
    """The row with all that a run measures at its two noise stds, times ``scale``."""
    for at, size in (("@0.01", scale), ("@1e-06", 1e6 * scale)):
        gap = 0.5 * scale if at == "@0.01" else 5e-13 * scale
        flatness = 1.23e10 * scale if at == "@0.01" else 123.0 * scale
        terms = {"theorem2": 2.0 * size}
        if sensitivity:
            terms |= {"lemma2": 30 * size, "corollary1": 20 * size}
            row[f"measure/local_gradient_sensitivity{at}"] = 0.7 * scale
        if row.get("replicas"):
            terms["theorem1"] = 1.5 * size
        for name, term in terms.items():
            row[f"term/{name}_trajectory{at}"] = term
            row[f"bound/{name}{'_neu' if name == 'lemma2' else ''}{at}"] = term + gap
        row[f"term/lemma2_without_sensitivity{at}"] = 24 * size
        row[f"measure/flatness_gap{at}"] = gap
        row[f"measure/flatness_gap_signed{at}"] = -gap
        row[f"measure/flatness_gap_stderr{at}"] = gap / 10
        row[f"measure/flatness_gap_sampling_stderr{at}"] = gap / 20
        row[f"measure/flatness_draws{at}"] = 32
        times = 94.0 if at == "@0.01" else 0.5
        row[f"measure/subgaussian_constant_perturbed{at}"] = times * 5.416209
        row[f"measure/test_loss_increase{at}"] = 0.3 * scale
        row[f"measure/test_loss_increase_stderr{at}"] = 0.1 * scale
        row[f"bound/theorem2_perturbed_r{at}"] = times * terms["theorem2"] + gap
        if sensitivity:
            row[f"bound/lemma2_neu_perturbed_r{at}"] = times * terms["lemma2"] + gap
        row[f"term/corollary2_flatness{at}"] = flatness
        row[f"bound/corollary2{at}"] = 2 * size + flatness
    return row | {"measure/smoothness": 83.21, "measure/smoothness_residual": 1e-3}


def failed(trial_id: str, error: str, **changes: Any) -> dict[str, Any]:
    """A failed trial's row: its configuration and the error, no measurement."""
    row = finished(trial_id, **changes)
    config = {key: value for key, value in row.items() if "." in key or key == "seed"}
    config = {key: value for key, value in config.items() if "/" not in key}
    return {"trial_id": trial_id, "status": "failed", **config, "error": error}


SWEEP = Sweep(
    name="lr_batch",
    item="Figure 6",
    description="How two things move the bound.",
    panels={},
    plot=lambda _: {},
    claims=lambda _: [],
)


def report_of(results: ResultTables, sweep: Sweep = SWEEP, **changes: Any) -> Report:
    """What is shown of these results; the changes are the report's, or its sweep's."""
    names = ("name", "item", "description", "captions", "run_panels", "own")
    sweep = replace(sweep, **{name: changes.pop(name) for name in names if name in changes})
    trials = results.trials
    given = {"swept": [], "planned": len(trials), "facts": {}, "versions": {}}
    return Report(sweep, results, trials, **(given | changes))


def write(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    charts: Mapping[str, Chart] | None = None,
    price_per_hour: float | None = None,
    **changes: Any,
) -> str:
    """The text of the page made from these rows."""
    frame = pd.DataFrame(rows, columns=None if rows else ["trial_id", "status"])
    frame.to_parquet(folder / "trials.parquet")
    given = {
        "swept": [RATE, BATCH],
        "facts": {"scale": "laptop", "command": "python sweeps/lr_batch.py"},
        "versions": launch_record.versions(),
    }
    report = report_of(ResultTables(folder), **(given | changes))
    page.write_page(report, charts or {}, price_per_hour=price_per_hour)
    return (folder / "report.html").read_text(encoding="utf-8")


class Document(HTMLParser):
    """Tags with their attributes, text, and tables as rows of cell texts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.titles: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\N{NO-BREAK SPACE}", " ").split())


def bounds_table_of(text: str, which: int = -1) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table of bounds, texts with single spaces."""
    table = [[" ".join(cell.split()) for cell in row] for row in Document(text).tables[which]]
    return table[1], table[2:]


def compared(text: str) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of ours against Neu et al.; a block begins with a row of one cell."""
    headings, rows = bounds_table_of(
        text, which=[t[1][0] for t in Document(text).tables].index("σ")
    )
    return headings, rows


def cell(text: str, trial: int, heading: str) -> str:
    headings, rows = bounds_table_of(text)
    return rows[trial][headings.index(heading)]
