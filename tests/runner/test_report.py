"""``python -m gisgd_ray.runner.report``: pages made again, of one folder or several; bad input."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.report import sweep_report
from gisgd_ray.results.launch_record import FILE, keep, last_record
from gisgd_ray.results.tables import ResultTables, row_of
from gisgd_ray.runner import main as sweeps
from gisgd_ray.runner import steps
from gisgd_ray.runner.cluster import Connection
from gisgd_ray.runner.launch import Job, Outcome
from gisgd_ray.runner.report import _declared, main
from gisgd_ray.runner.resources import Chosen, Resources
from sweeps.lr_batch import SWEEP
from tests.support.pages import RATE, Document
from tests.support.sweep_runs import measured

SCRIPT = Path(__file__).parents[2] / "sweeps" / "lr_batch.py"
MINE = """import dataclasses
from gisgd_ray.figures.tables import Row, Table
from sweeps.lr_batch import SWEEP

@dataclasses.dataclass
class Cell:
    text: "str"

TABLES = [Table("Means", ["accuracy"], [Row("SGD", [Cell("90.1").text])])]
SWEEP = dataclasses.replace(SWEEP, name="mine", item="Table 9", tables=lambda _: TABLES)
"""


@pytest.fixture(autouse=True, scope="module")
def _no_ray() -> Iterator[None]:
    """A sweep's launch writes the same measurements for every trial, and Ray is not asked."""

    def launch(job: Job) -> Outcome:
        trials, location = job.plan.trials, job.location
        summary, points = measured(trials[0])
        rows = [row_of(trial, summary) for trial in trials]
        pd.DataFrame(rows).to_parquet(location.folder / "trials.parquet")
        history = [{"trial_id": t.trial_id, **point} for t in trials for point in points]
        pd.DataFrame(history).to_parquet(location.folder / "history.parquet")
        return Outcome(ResultTables(location.folder), reused=0, interrupted=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "connect", lambda **_: Connection(True, "a Ray of none"))
        patch.setattr(steps, "largest_memory", lambda: 2**40)
        patch.setattr(steps, "require_room", lambda **_: None)
        patch.setattr(steps, "chosen_resources", lambda *_: Chosen(Resources()))
        patch.setattr(steps, "require_startable", lambda _: None)
        patch.setattr(steps, "launch", launch)
        # The megabyte that draws the charts is of no interest here.
        patch.setattr("gisgd_ray.report.page.library", lambda: "")
        yield


def swept(out: Path, script: Path = SCRIPT, sweep: sweeps.Sweep = SWEEP) -> Path:
    """The folder that a sweep of two trials leaves below ``out``."""
    argv = ["--scale", "laptop", f"--{RATE}", "0.05,0.1", "--training.batch_size", "20"]
    argv += ["--seeds", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *argv])
        assert sweeps.main(sweep, [*argv, "--out", str(out)]) == 0
    return out / sweep.name


def undated(page: Path) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "DATE", page.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return swept(tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """What Figure 6's sweep left, with two trials."""
    return shutil.copytree(original, tmp_path / "results" / "lr_batch")


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Path, Path]:
    """A sweep that is not part of the package: its script and its folder."""
    script = tmp_path / "own" / "sweeps" / "mine.py"
    script.parent.mkdir(parents=True)
    script.write_text(MINE)
    return script, swept(tmp_path / "results", script, _declared(script))


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """What the command says when it does not take its arguments."""
    capsys.readouterr()
    assert main([str(argument) for argument in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


def test_all_is_made_again_as_the_sweep_wrote_it(mine: tuple[Path, Path]) -> None:
    script, folder = mine
    page, before = undated(folder / "report.html"), contents(folder)
    assert {"report.html", "tables.md", "figures/figure6.svg", "figures/figure6.pdf"} <= set(before)
    for path in (folder / "report.html", folder / "tables.md", *(folder / "figures").iterdir()):
        path.unlink()
    assert main([str(folder), "--script", str(script)]) == 0
    after = contents(folder)
    assert undated(folder / "report.html") == page
    assert {**after, "report.html": b""} == {**before, "report.html": b""}
    assert not (folder.parent / "scoreboard.html").exists()


def test_a_folder_of_several_gets_a_scoreboard(
    folder: Path, mine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([str(folder.parent), "--script", str(SCRIPT), "--script", str(mine[0])]) == 0
    board = folder.parent / "scoreboard.html"
    pages = [f"Figure 6: {folder / 'report.html'}", f"Table 9: {mine[1] / 'report.html'}"]
    assert capsys.readouterr().out.splitlines() == [*pages, f"Scoreboard: {board}"]
    links = [a["href"] for tag, a in Document(board.read_text()).tags if tag == "a"]
    assert set(links) == {"lr_batch/report.html", "mine/report.html"}


def test_several_folders_get_a_scoreboard_above_them(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "deep" / "lr_batch"
    other.parent.mkdir(parents=True)
    shutil.copytree(folder, other)
    assert main([str(other), str(folder)]) == 0
    assert (tmp_path / "scoreboard.html").exists()


def test_a_folder_named_twice_is_reported_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    capsys.readouterr()
    assert main(["lr_batch", str(folder), "~/lr_batch"]) == 0
    assert capsys.readouterr().out.splitlines() == ["Figure 6: lr_batch/report.html"]
    assert main(["~/lr_batch"]) == 0
    assert not (folder.parent / "scoreboard.html").exists()


def test_results_without_a_record_are_reported_with_a_word_on_versions(folder: Path) -> None:
    (folder / FILE).unlink()
    assert main([str(folder)]) == 0
    text = Document((folder / "report.html").read_text()).text
    assert "2 of 2 trials finished" in text
    assert "these the versions that wrote the page; no launch left a record" in text
    assert "Scale: not recorded, since no launch has left its launches.json here." in text


def test_results_without_a_history_are_reported_without_curves(folder: Path) -> None:
    (folder / "history.parquet").unlink()
    assert main([str(folder)]) == 0
    assert (
        "None: there are no measuring points beside the trials"
        in Document((folder / "report.html").read_text()).text
    )


def test_the_page_tells_versions_of_all_launches(folder: Path) -> None:
    record = last_record(folder)
    assert record is not None
    keep(folder, replace(record, begun="later", versions={**record.versions, "torch": "9.9"}))
    assert main([str(folder)]) == 0
    text = Document((folder / "report.html").read_text()).text
    assert f"torch 9.9 (earlier launches: {record.versions['torch']});" in text


def test_where_every_trial_was_reused_no_versions_are_claimed(folder: Path) -> None:
    record = last_record(folder)
    assert record is not None
    keep(folder, replace(record, versions={}))
    assert main([str(folder)]) == 0
    assert "page; no launch here ran a trial" in Document((folder / "report.html").read_text()).text


@pytest.mark.parametrize("column", ["status", "trial_id", "model.name", "term/flatness_factor"])
def test_tables_that_lack_a_column_are_left_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    path = folder / "trials.parquet"
    pd.read_parquet(path).drop(columns=column).to_parquet(path)
    before = contents(folder)
    said = refused(capsys, folder)
    told = re.search(rf"the tables in {folder} lack a column that Figure 6 needs \((.*?)\):", said)
    assert told is not None
    assert column in told[1]
    assert contents(folder) == before


def test_one_folder_at_fault_does_not_keep_the_others_from_their_pages(
    folder: Path, mine: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / FILE).write_text("{")
    (mine[1] / "report.html").unlink()
    said = refused(capsys, folder.parent, "--script", mine[0])
    assert f"{folder / FILE} is damaged" in said
    assert (mine[1] / "report.html").exists()
    text = Document((folder.parent / "scoreboard.html").read_text()).text
    assert "Left out, since no page could be made of them: lr_batch :" in text


def test_no_such_folder_and_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("none", "x" * 300):
        assert f"{name} is not a folder; name a sweep's" in refused(capsys, tmp_path / name)
    assert "~nobody-here/x is not a folder" in refused(capsys, "~nobody-here/x")
    assert f"{tmp_path} holds no sweep (there is no trials.parquet" in refused(capsys, tmp_path)


def test_a_folder_that_cannot_be_written_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "figures")

    monkeypatch.setattr(sweep_report, "save_charts", fail)
    assert refused(capsys, folder) == "error: Permission denied: figures\n"


@pytest.mark.parametrize("name", ["mine", "../../evil/notes", "/tmp/evil", "lr_batch.py", "_x", ""])
def test_no_script_is_run_that_was_not_named(
    mine: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """What a folder says of scripts is data; what lies beside it, or where one stands, as well."""
    script, folder = mine
    for path in (script, tmp_path / "evil" / "notes.py", tmp_path / "sweeps" / "mine.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n{MINE}")
    (folder / "mine.py").write_text(script.read_text())
    launches = json.loads((folder / FILE).read_text())
    for launch in launches["launches"]:
        launch["sweep"] = name
    (folder / FILE).write_text(json.dumps(launches))
    (folder / "report.html").unlink()
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, folder) == (
        f"error: {folder} holds the sweep {name!r}, which is none of this package's; the script "
        f"that it names, {str(script)!r}, is not run by itself: name the script that declares it "
        "with --script FILE, if you trust it\n"
    )
    assert not (tmp_path / "was run").exists()
    assert not (folder / "report.html").exists()
    if name == "mine":
        assert main([str(folder), "--script", str(script)]) == 0
        assert (tmp_path / "was run").exists()


def test_a_sweep_of_the_packages_name_is_the_packages(folder: Path, tmp_path: Path) -> None:
    evil = tmp_path / "sweeps" / "lr_batch.py"
    evil.parent.mkdir()
    evil.write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\nfrom sweeps.lr_batch import SWEEP")
    record = last_record(folder)
    assert record is not None
    keep(folder, replace(record, script=str(evil)))
    done = subprocess.run(  # from a folder with a package of the same name
        [sys.executable, "-m", "gisgd_ray.runner.report", str(folder)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "was run").exists()


def test_of_several_folders_a_script_is_for_its_own(
    folder: Path, mine: tuple[Path, Path], tmp_path: Path
) -> None:
    moved = mine[0].rename(tmp_path / "elsewhere.py")
    assert main([str(folder.parent), "--script", str(moved)]) == 0
    assert "<h1>Figure 6</h1>" in (folder / "report.html").read_text()
    assert "<h1>Table 9</h1>" in (mine[1] / "report.html").read_text()


def test_a_renamed_folder_without_a_record_takes_the_script(folder: Path) -> None:
    renamed = folder.rename(folder.with_name("first try"))
    (renamed / FILE).unlink()
    assert main([str(renamed), "--script", str(SCRIPT)]) == 0


def test_scripts_that_do_not_declare_the_sweep_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = contents(folder)
    script = tmp_path / "odd.py"
    for text, why in (
        ("x = 1", "declares no SWEEP; name a sweep's script with --script"),
        ("SWEEP = 1", "declares no SWEEP; name a sweep's script with --script"),
        ("import none_such", "cannot be loaded (ModuleNotFoundError: No module named 'none_such')"),
        (MINE, f"declares the sweep mine, and {folder} holds lr_batch"),
    ):
        script.write_text(text)
        assert f"{script} {why}" in refused(capsys, folder, "--script", script)
    assert "is not a Python script" in refused(capsys, folder, "--script", tmp_path / "none.py")
    assert contents(folder) == before


def test_a_launch_from_elsewhere_does_not_hide_the_packages_script(folder: Path) -> None:
    record = last_record(folder)
    assert record is not None
    other = folder / "not_a_sweep.py"
    other.write_text("x = 1")
    keep(folder, replace(record, script=str(other)))
    assert main([str(folder)]) == 0


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf"])
def test_a_price_is_a_positive_number(
    folder: Path, capsys: pytest.CaptureFixture[str], price: str
) -> None:
    said = refused(capsys, folder, f"--price-per-hour={price}")
    assert said == f"error: --price-per-hour = {price} must be a positive number\n"


def test_a_price_makes_a_cost(folder: Path) -> None:
    assert main([str(folder), "--price-per-hour", "2.5"]) == 0
    assert "2.5" in Document((folder / "report.html").read_text()).text.partition("What was run")[2]


def test_wandb_wants_entity_and_project(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "report.html").unlink()
    said = refused(capsys, folder, "--wandb", "my team")
    assert "--wandb 'my team' is not ENTITY/PROJECT" in said
    assert not (folder / "report.html").exists()
