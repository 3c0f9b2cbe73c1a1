"""The W&B report of every sweep as it is serialised, and its saving to a stand-in server."""

import importlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.claims.claim import Claim
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.run_panels import RunPanel, expanded, shown_trials
from gisgd_ray.figures.tables import Row, Table
from gisgd_ray.results.launch_record import LaunchRecord, folder_id, keep
from gisgd_ray.sweep import Sweep
from gisgd_ray.theory.quantities import QUANTITIES, quantity
from gisgd_ray.tracking.report import build_report, entity_and_project, marker, run_ids
from gisgd_ray.tracking.report_text import ALWAYS, MOST_ROWS, escaped, markdown_table
from tests.support import sweep_runs
from tests.support.launches import ROOT
from tests.support.pages import report_of
from tests.support.tables import NO_TRIALS, Tables, history, trial
from tests.support.wandb_server import Server, run_script

SWEEPS = "lr_batch trajectory bound_verification stochastic double_descent clipping regularizers "
SWEEPS += "linear_relu"
HOSTILE = Claim("a | b", "c\nd", "<script> *e* `f`", "holds")


def sweep_named(name: str) -> Sweep:
    return importlib.import_module(f"sweeps.{name}").SWEEP  # type: ignore[no-any-return]


def spec_of(report: Any) -> dict[str, Any]:
    """What would be sent."""
    text = report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    return dict(json.loads(text))


def built(sweep: Sweep, results: Tables, swept: list[str], **more: Any) -> dict[str, Any]:
    facts = {"command": "python sweeps/x.py", "scale": "laptop"}
    given = {"facts": facts, "versions": {"torch": "2.0"}, "claims": [HOSTILE], "swept": swept}
    return spec_of(build_report(report_of(results, sweep, **(given | more)), "team/bounds"))


def of_type(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [block for block in spec["blocks"] if block["type"] == kind]


def panels_of(block: dict[str, Any]) -> list[dict[str, Any]]:
    return list(block["metadata"]["panelBankSectionConfig"]["panels"])


def filters_of(block: dict[str, Any]) -> dict[str, Any]:
    (runs,) = block["metadata"]["runSets"]
    return {f["key"]["name"]: f["value"] for f in runs["filters"]["filters"]}


def names_in(panel: dict[str, Any]) -> list[str]:
    config = panel["config"]
    return list(config.get("metrics") or [config["yAxis"].removeprefix("summary:")])


@pytest.mark.parametrize("name", SWEEPS.split())
def test_the_report_of_every_sweep(name: str) -> None:
    sweep = sweep_named(name)
    tables, swept = sweep_runs.tables(sweep)
    spec = built(sweep, tables, swept)
    formulas = {block["content"] for block in of_type(spec, "latex")}
    assert formulas >= {QUANTITIES[name].latex for name in ALWAYS}
    assert all(quantity(name) for panel in sweep.run_panels for name in panel.y)
    grids = of_type(spec, "panel-grid")
    assert grids
    rows, points = set(tables.trials.columns), set(tables.history.columns)
    for grid in grids:
        (runs,) = grid["metadata"]["runSets"]
        assert "project" not in runs  # nothing was asked of a server
        filters = filters_of(grid)
        assert set(filters) == {"name"}
        assert set(filters["name"]) <= set(tables.trials["trial_id"])
        for key in runs["grouping"]:
            if key["section"] == "config":
                assert key["name"].removesuffix(".value") in swept
        for panel in panels_of(grid):
            config = panel["config"]
            scatter = panel["viewType"] == "Scatter Plot"
            if scatter:
                assert runs["grouping"] == []
                assert config["xAxis"].startswith("config:")
                field = config["xAxis"].removeprefix("config:").removesuffix(".value")
                assert field in rows
            elif len(filters["name"]) > 1:
                assert runs["grouping"]
            lines = panel["viewType"] == "Run History Line Plot"
            assert set(names_in(panel)) <= (points if lines else rows)
            if lines:
                assert config["xAxis"] in points


@pytest.mark.parametrize("name", SWEEPS.split())
def test_every_declared_panel_is_there(name: str) -> None:
    """Each has data at the laptop's scale, with all its metrics, and its trials in the figure."""
    sweep = sweep_named(name)
    tables, swept = sweep_runs.tables(sweep)
    shown = [panel for grid in of_type(built(sweep, tables, swept), "panel-grid")
             for panel in panels_of(grid)]  # fmt: skip
    by_title = {panel["config"]["chartTitle"]: names_in(panel) for panel in shown}
    assert sweep.run_panels
    for panel in sweep.run_panels:
        assert not shown_trials(panel, tables.trials).empty, panel.title
        titles = [title for title in by_title if title.startswith(panel.title)]
        assert titles, panel.title
        for title in titles:
            stems = [metric.partition("@")[0] for metric in by_title[title]]
            assert stems == [metric.partition("@")[0] for metric in panel.y]


@pytest.mark.parametrize("name", SWEEPS.split())
def test_the_panels_suit_the_papers_scale(name: str) -> None:
    sweep = sweep_named(name)
    trials = [t for space in sweep.spaces("paper").values() for t in space.trials()]
    frame = pd.DataFrame([{"trial_id": t.trial_id, **t.flat()} for t in trials])
    for panel in sweep.run_panels:
        assert not shown_trials(panel, frame).empty, panel.title
        assert expanded(panel, frame, {"@0.01": "0.01"}), panel.title


def test_fields_of_the_panels_are_settings() -> None:
    known = set(importlib.import_module("gisgd_ray.config.space").field_paths())
    for name in SWEEPS.split():
        for panel in sweep_named(name).run_panels:
            fields = {*panel.only, *panel.without, *(panel.grouped_by or [])}
            fields |= {panel.colour, panel.each} - {""}
            fields |= {panel.x} if panel.kind == "scatter" else set()
            assert fields <= known


def test_figure_2_keeps_its_two_sweeps_apart() -> None:
    sweep = sweep_named("bound_verification")
    tables, _ = sweep_runs.tables(sweep)
    size, noise = sweep.run_panels[0], sweep.run_panels[4]
    assert set(shown_trials(size, tables.trials)["model.width"]) == {100, 200, 300, 400, 500}
    levels = shown_trials(noise, tables.trials)["data.label_noise"]
    assert sorted(levels) == [0.0, 0.15, 0.3, 0.45, 0.6]


def test_ours_stands_beside_lemma_2_or_what_that_is_at_least() -> None:
    for name, neu in (("trajectory", "lemma2_trajectory"), ("lr_batch", "without_sensitivity")):
        sweep = sweep_named(name)
        first = of_type(built(sweep, *sweep_runs.tables(sweep)), "panel-grid")[0]
        for panel in panels_of(first):
            ours, theirs = names_in(panel)
            assert ours.startswith("term/theorem2_trajectory@")
            assert neu in theirs
            assert theirs.partition("@")[2] == ours.partition("@")[2]
            assert panel["config"]["yLogScale"] is True


def test_claims_tables_and_facts_are_escaped_markdown() -> None:
    sweep = sweep_named("lr_batch")
    table = Table("T | 1", ["a|b"], [Row("x\ny", ["1|2", "3"], frozenset({1}))], "cap*tion")
    spec = built(sweep, *sweep_runs.tables(sweep), tables=[table], facts={"k|": "v\nw"})
    text = "\n".join(block["content"] for block in of_type(spec, "markdown-block"))
    assert r"| a \| b | **holds** | \<script\> \*e\* \`f\` | c d |" in text
    assert "corrected together (Holm)" in text
    assert r"| x y | 1\|2 | **3** |" in text
    assert r"cap\*tion" in text
    assert r"| k\| | v w |" in text


def test_long_tables_are_cut_and_say_so() -> None:
    text = markdown_table(["a"], [[str(i)] for i in range(MOST_ROWS + 7)])
    assert text.count("\n|") == MOST_ROWS + 1
    assert text.endswith("… and 7 more rows, in report.html and trials.parquet.")
    assert escaped("a\r\nb\t|") == r"a b \|"


def test_the_command_and_the_sweep_are_named() -> None:
    sweep = sweep_named("lr_batch")
    tables, swept = sweep_runs.tables(sweep)
    spec = built(sweep, tables, swept)
    (code,) = of_type(spec, "code-block")
    assert code["children"][0]["children"][0]["text"] == "python sweeps/x.py"
    made = report_of(tables, description="How.", swept=swept)
    report = build_report(made, "e/p")
    assert report.title == "Figure 6: lr batch, gisgd-ray"
    assert report.description == f"How. {marker(made)}"


def test_what_was_planned_and_has_not_run_is_told() -> None:
    spec = built(sweep_named("lr_batch"), *sweep_runs.tables(sweep_named("lr_batch")), planned=99)
    assert "of 99 trials finished. " in json.dumps(spec)
    assert " trials not run to the end. Made by gisgd-ray. The paper: " in json.dumps(spec)


def test_a_sweep_in_which_nothing_ended_has_a_report() -> None:
    spec = built(sweep_named("lr_batch"), NO_TRIALS, [], claims=[])
    assert of_type(spec, "panel-grid") == []


def test_thousands_of_trials_are_filtered_by_their_group() -> None:
    rows = [trial(f"t{i}", gap__loss=1.0) for i in range(1001)]
    for row in rows:
        row["gap/loss"] = row.pop("gap.loss")
    tables = Tables(pd.DataFrame(rows))
    panel = RunPanel("gap", "bars", ["gap/loss"])
    spec = built(sweep_named("lr_batch"), tables, [], run_panels=[panel])
    (grid,) = of_type(spec, "panel-grid")
    assert filters_of(grid) == {"group": "lr_batch", "state": "finished"}


def test_metrics_measured_nowhere_are_left_out() -> None:
    points = history("a", train__loss=[1.0, 0.5], test__loss=[float("nan")] * 2)
    tables = Tables(pd.DataFrame([trial("a")]), points)
    panels = [
        RunPanel("both", "lines", ["train/loss", "test/loss"], x="step"),
        RunPanel("none", "lines", ["test/loss"], x="step"),
        RunPanel("unknown", "scatter", ["gap/loss"], x="model.width"),
    ]
    spec = built(sweep_named("lr_batch"), tables, [], run_panels=panels)
    (grid,) = of_type(spec, "panel-grid")
    assert [names_in(panel) for panel in panels_of(grid)] == [["train/loss"]]


@pytest.mark.parametrize(
    "arguments",
    [("t", "scatter", ["a", "b"], "x"), ("t", "scatter", ["a"]), ("t", "lines", ["a"])],
)
def test_a_panel_that_cannot_be_is_refused(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"^t: "):
        RunPanel(*arguments)


@pytest.mark.parametrize("text", ["", "team", "/p", "team/", "a/b/c", "te am/p", "a/b?c"])
def test_bad_entity_and_project(text: str) -> None:
    with pytest.raises(UserError, match="ENTITY/PROJECT") as raised:
        entity_and_project(text)
    assert repr(text) in str(raised.value)


def test_flat_settings_are_what_runs_log() -> None:
    """The addresses end in .value because the configuration's keys have the dots in them."""
    assert "training.learning_rate" in TrialConfig().flat()


def test_the_runs_are_those_that_the_trials_name(tmp_path: Path) -> None:
    """A trial taken from another folder has that one's; an earlier version's was called like it."""
    keep(tmp_path, LaunchRecord("lr_batch", "", "1", [], [], {}, {}))
    own = folder_id(tmp_path)
    rows = [
        trial("mine") | {"wandb/status": "online", "wandb/run": f"e/p/{own}-mine"},
        trial("taken") | {"wandb/status": "offline", "wandb/run": "p/0123456789ab-taken"},
        trial("old") | {"wandb/status": "online"},
        trial("boom", status="failed") | {"wandb/status": None},
    ]
    for row in rows:
        row["gap/loss"] = 1.0
    tables = Tables(pd.DataFrame(rows))
    tables.folder = tmp_path
    panel = RunPanel("gap", "bars", ["gap/loss"])
    report = report_of(tables, sweep_named("lr_batch"), run_panels=[panel])
    shown = [f"{own}-mine", "0123456789ab-taken", "old"]
    assert list(run_ids(report).values()) == [*shown, f"{own}-boom"]
    (grid,) = of_type(spec_of(build_report(report, "team/bounds")), "panel-grid")
    assert filters_of(grid) == {"name": shown}
    assert marker(report) == f"[gisgd-ray sweep lr_batch {own}]"


SAVE = """
import sys
import pandas as pd
from gisgd_ray.errors import UserError
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.tracking.report import build_report, save_report
from tests.support.pages import report_of
from tests.support.tables import Tables, history, trial
where, *saved = sys.argv[1:]
for each in saved:
    name, _, item = each.partition("=")
    tables = Tables(pd.DataFrame([trial(name)]), history(name, train__loss=[1.0, 0.5]))
    panels = [RunPanel("loss", "lines", ["train/loss"], x="step")]
    report = report_of(tables, item=item, description=item, run_panels=panels)
    try:
        print(save_report(build_report(report, where)))
    except UserError as error:
        print(f"error: {error}")
"""


def save(server: Server, folder: Path, *saved: str, where: str = "tester/bounds") -> list[str]:
    arguments = ["-c", SAVE, where, *saved]
    return run_script(server, folder, arguments, PYTHONPATH=str(ROOT)).splitlines()


def test_saving_again_updates_the_same_report(tmp_path: Path) -> None:
    with Server() as server:
        # Results of other trials have a report of their own.
        first, found, other = save(server, tmp_path, "a=Figure 6", "a=Figure 6b", "b=Figure 7")
        assert first.startswith(f"{server.url}/tester/bounds/reports/")
        assert first.rpartition("--")[2] == found.rpartition("--")[2]
        assert other.rpartition("--")[2] != first.rpartition("--")[2]
        report, second = server.reports
        assert (report["saves"], second["saves"]) == (2, 1)
        assert report["displayName"] == "Figure 6b: lr batch, gisgd-ray"
        (grid,) = of_type(report["spec"], "panel-grid")
        (runs,) = grid["metadata"]["runSets"]
        assert (runs["project"]["entityName"], runs["project"]["name"]) == ("tester", "bounds")
        server.state.reports.clear()  # deleted there: a new one is made
        save(server, tmp_path, "b=Figure 7")
        assert [report["saves"] for report in server.reports] == [1]
        assert server.unknown == []


def test_faults_of_the_server_are_told(tmp_path: Path) -> None:
    with Server() as server:
        server.deny("tester", "closed")
        (told,) = save(server, tmp_path, "a=F", where="nobody/bounds")
        assert told.startswith(f"error: --wandb nobody/bounds: {server.url} has no nobody/bounds")
        (told,) = save(server, tmp_path, "a=F", where="tester/closed")
        assert told.startswith("error: --wandb tester/closed: this key may not write to tester/clo")
        server.wrong_key()
        (told,) = save(server, tmp_path, "a=F")
        assert told.startswith(f"error: --wandb tester/bounds: {server.url} does not take the API")
        with server.away():
            (told,) = save(server, tmp_path, "a=F")
        assert told.startswith(f"error: --wandb tester/bounds: {server.url} does not answer (")
