"""Uploading what W&B has not got: what ``make sync`` does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.launch_record import LaunchRecord, folder_id, keep
from gisgd_ray.results.tables import ResultTables, row_of, write_tables
from gisgd_ray.tracking.sync import main
from tests.support.journals import series
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, environment, run_script

ALL = [1.0, 1 / 2, 1 / 3, 1 / 4]

TRIALS = """
import os, sys, time
import gisgd_ray.tracking.run as wandb_runs
from gisgd_ray.config.trial import TrialConfig
from pathlib import Path
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.launch_record import folder_id
wandb_runs.FINISH_TIMEOUT_S = 4
folder, mode, *trials = sys.argv[1:]
own = folder_id(Path(folder)) or ""
settings = wandb_runs.WandbSettings(mode, folder, own, "g", "gisgd-ray", every_s=5)
for trial in trials:
    name, end = trial.split("=")
    config = TrialConfig().flat()
    run = wandb_runs.WandbRun(settings, trial_id=name, name=name, config=config)
    for step in range(4):
        run.log({"step": step, "train/loss": 1.0 / (step + 1)})
    if end == "killed":
        time.sleep(3)
        os.kill(os.getpid(), 9)
    if end == "raised":
        run.finish(None, failed=True)
    else:
        steps = Journal(Path(folder)).read(name)
        steps = steps.steps.table() if steps.points else None
        run.finish({"status": end}, failed=end != "finished", steps=steps)
    print(run.status)
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.unknown == []


def trials(server: Server, folder: Path, mode: str, *ends: str) -> list[str]:
    """Runs in a folder, ``name=end`` each, the last of them killed maybe; what became of them."""
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, str(folder), mode, *ends],
        env={**environment(server, folder.parent), "PYTHONPATH": str(ROOT)},
        timeout=60,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == (-9 if ends[-1].endswith("killed") else 0)
    return done.stdout.splitlines()


def sync(server: Server, folder: Path, **changed: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gisgd_ray.tracking.sync", str(folder)],
        env={**environment(server, folder.parent), "PYTHONPATH": str(ROOT), **changed},
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def losses(server: Server) -> dict[str, list[float]]:
    return {run.id: [point["train/loss"] for point in run.history] for run in server.runs}


def results(folder: Path, status: str = "finished", *, points: int = 4, **more: Any) -> str:
    """A results folder with one more trial, of two steps; its id. ``more``: of its row."""
    config = TrialConfig(seed=more.pop("seed", 0))
    folder.mkdir(parents=True, exist_ok=True)
    keep(folder, LaunchRecord("lr_batch", "", "1", [], [], {}, {"gisgd-ray": "1"}))
    told = [{"step": step, "train/loss": 1.0 / (step + 1)} for step in range(points)]
    journal = Journal(folder)
    journal.add_report(config.trial_id, first_step=0, steps=series(2), points=told)
    row = {"error": "Traceback: boom"} if status == "failed" else {"train/loss": ALL[-1]}
    journal.add_row(config.trial_id, row_of(config, {"status": status, **row, **more}))
    write_tables(folder, [config])
    return config.trial_id


def run_of(folder: Path, trial_id: str) -> str:
    return f"{folder_id(folder)}-{trial_id}"


def assert_steps_are_there(server: Server, folder: Path, trial_id: str) -> None:
    (steps,) = [
        each.files["steps.parquet"]
        for each in server.artifacts
        if each.committed and each.name == f"steps-{run_of(folder, trial_id)}"
    ]
    assert_frame_equal(pd.read_parquet(BytesIO(steps)), ResultTables(folder).steps(trial_id))


def test_all_that_was_kept_below_a_folder_is_uploaded(server: Server, tmp_path: Path) -> None:
    """Of a killed run its points; of a failed trial that it failed; the steps of a folder that was
    moved. What cannot be read stops no other, and comes from the journal if that has it."""
    root = tmp_path / "results"
    one, before, after = root / "lr batch", root / "before", root / "after it was moved"
    boom, torn = results(one, "failed", seed=2), results(one, "diverged", seed=3)
    assert trials(server, one, "offline", "f=finished", f"{boom}=raised", "k=killed") == [
        "offline",
        "offline",
    ]
    moved = results(before, seed=1)
    trials(server, before, "offline", f"{moved}=finished")
    os.rename(before, after)
    for name in (run_of(one, torn), "empty"):
        empty = one / "wandb" / f"offline-run-20260101_000000-{name}" / f"run-{name}.wandb"
        empty.parent.mkdir()
        empty.write_bytes(next(one.glob("wandb/*/run-*-f.wandb")).read_bytes()[:7])

    done = sync(server, root, WANDB_MODE="offline")
    assert done.returncode == 1
    (left,) = [line for line in done.stderr.splitlines() if line.startswith("left out")]
    assert left.startswith(f"left out: the run tester/gisgd-ray/empty: {empty} was not taken")
    assert "5 runs uploaded." in done.stdout
    runs = {run.id.rpartition("-")[2]: run for run in server.runs}
    assert losses(server) == {runs[name].id: ALL for name in ("f", "k", boom, torn, moved)}
    assert {name for name, run in runs.items() if run.state == "failed"} == {"k", boom, torn}
    assert runs[boom].tags == ["sgd", "mlp", "mnist5k", "failed"]
    assert runs[torn].tags == ["sgd", "mlp", "mnist5k", "diverged"]
    assert {run.group for run in runs.values()} == {"g", "lr_batch"}
    assert runs[boom].summary["error"] == "Traceback: boom"
    assert_steps_are_there(server, after, moved)
    assert_steps_are_there(server, one, torn)

    empty.unlink()
    again = sync(server, root)
    assert (again.returncode, again.stdout) == (0, f"Nothing to upload: W&B has all of {root}.\n")


def test_a_run_that_went_on_after_its_upload_has_every_point_once(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "lr_batch"
    name = results(folder, points=6)
    trials(server, folder, "offline", f"{name}=killed")  # four of the six points
    run_script(server, tmp_path, ["-m", "wandb", "sync", *glob(f"{folder}/wandb/offline-*")])
    assert losses(server) == {run_of(folder, name): ALL}
    trials(server, folder, "offline", f"{name}=finished")  # it goes on: its record is a new one
    assert sync(server, folder).returncode == 0
    assert losses(server) == {run_of(folder, name): [*ALL, 1 / 5, 1 / 6]}
    (run,) = server.runs
    assert (run.state, run.summary["status"]) == ("finished", "finished")
    assert run.summary["min/train/loss"] == 1 / 6
    assert_steps_are_there(server, folder, name)
    before = [request.kind for request in server.requests].count("file_stream")
    assert "Nothing to upload" in sync(server, folder).stdout
    assert [request.kind for request in server.requests].count("file_stream") == before


FAULTS = {
    "refused": (403, "online", "online"),
    "away": (500, "online", "off: TimeoutError"),
    "and went on offline": (403, "offline", "offline"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_was_begun_online_is_completed(
    server: Server, tmp_path: Path, fault: str
) -> None:
    status, mode, told = FAULTS[fault]
    folder = tmp_path / "lr_batch"
    name = results(folder)
    server.fail(status, count=1000, match="file_stream")
    begun = "killed" if mode == "offline" else "finished"
    said = trials(server, folder, "online", f"{name}={begun}")
    server.heal()
    said += trials(server, folder, mode, f"{name}=finished") if mode == "offline" else []
    assert said[-1].startswith(told)
    assert losses(server) == {run_of(folder, name): []}
    done = sync(server, folder)
    assert done.returncode == 0, done.stderr
    assert losses(server) == {run_of(folder, name): ALL}
    (run,) = server.runs
    assert (run.state, run.tags) == ("finished", ["sgd", "mlp", "mnist5k"])
    assert run.config["training.learning_rate"] == TrialConfig().training.learning_rate
    assert_steps_are_there(server, folder, name)
    assert "Nothing to upload" in sync(server, folder).stdout


def test_runs_go_to_the_project_that_their_rows_name_and_others_runs_are_left(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "lr_batch"
    name = results(folder)
    taken = results(folder, seed=1, **{"wandb/run": "tester/other/0123456789ab-taken"})
    mine = {"wandb/run": f"tester/other/{run_of(folder, name)}"}
    Journal(folder).add_row(name, row_of(TrialConfig(), {"status": "finished", **mine}))
    trials(server, folder, "offline", f"{name}=finished", "killed=finished")
    assert sync(server, folder).returncode == 0
    assert {(run.project, run.id) for run in server.runs} == {
        ("other", run_of(folder, name)),
        ("other", run_of(folder, "killed")),
    }
    assert run_of(folder, taken) not in losses(server)


def test_what_an_earlier_version_kept_is_uploaded_under_its_own_ids(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "lr_batch"
    name = results(folder)
    (folder / "launches.json").unlink()
    trials(server, folder, "offline", f"{name}=finished", f"{name}-offline=finished")
    for _ in range(2):
        assert sync(server, folder).returncode == 0
    assert losses(server) == {name: ALL, f"{name}-offline": ALL}


def test_what_keeps_all_from_being_uploaded_is_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"error: there is no folder {tmp_path / 'none'}; name one that holds a sweep's results\n"
    )
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"Nothing to upload: {tmp_path} has no W&B runs.\n"
    results(tmp_path / "x")
    with server.away():
        done = sync(server, tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {server.url} does not answer (")
    done = sync(server, tmp_path / "x", WANDB_API_KEY="", HOME=str(tmp_path), NETRC="/dev/null")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nobody has logged in: wandb login, or set WANDB_API_KEY")
    server.wrong_key()
    done = sync(server, tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {server.url} does not take the API key; `wandb login")
    assert server.runs == []
