"""Uploading runs that were kept offline: what ``make sync`` does."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables, row_of, write_tables
from gisgd_ray.tracking.existing import note_sent
from tests.runner.test_launch import ROOT
from tests.support.journals import series
from tests.support.wandb_server import Server, environment, run_script

ALL = [1.0, 1 / 2, 1 / 3, 1 / 4]

TRIAL = """
import os, sys, time
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.tracking.run import WandbRun, WandbSettings
folder, name, end = sys.argv[1:]
settings = WandbSettings("offline", folder, group="g", project="p", every_s=5)
run = WandbRun(settings, trial_id=name, name=name, config=TrialConfig().flat())
for step in range(4):
    run.log({"step": step, "train/loss": 1.0 / (step + 1)})
if end == "killed":
    time.sleep(3)
    os.kill(os.getpid(), 9)
if end == "raised":
    run.finish(None, failed=True)
else:
    steps = {"step": [1, 2], "loss": [1.0, 0.5]}
    run.finish({"status": end}, failed=end != "finished", steps=steps)
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.unknown == []


def trial(server: Server, folder: Path, name: str, end: str = "finished") -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIAL, str(folder), name, end],
        env={**environment(server, folder.parent), "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert done.returncode == (-9 if end == "killed" else 0)


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


def test_a_killed_run_keeps_its_points_and_an_empty_one_stops_no_other(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "lr batch"
    trial(server, folder, "k", "killed")
    trial(server, folder, "f")
    trial(server, folder, "d", "diverged")
    empty = folder / "wandb" / "offline-run-20260101_000000-e" / "run-e.wandb"
    empty.parent.mkdir()
    empty.write_bytes(next(folder.glob("wandb/*/run-f.wandb")).read_bytes()[:7])
    done = sync(server, tmp_path, WANDB_MODE="offline")
    assert losses(server) == dict.fromkeys("kfd", ALL)
    assert {run.id: run.state for run in server.runs} == {
        "k": "failed",
        "f": "finished",
        "d": "failed",
    }
    assert sorted(a.name for a in server.artifacts if a.committed) == ["steps-d", "steps-f"]
    assert done.returncode == 1
    assert f"left out: {empty} holds nothing that could be read" in done.stderr
    assert f"3 runs uploaded to {server.url}." in done.stdout
    again = sync(server, tmp_path)
    assert again.returncode == 1
    assert "0 runs uploaded" in again.stdout
    empty.unlink()
    again = sync(server, tmp_path)
    assert (again.returncode, again.stdout) == (
        0,
        f"Nothing to upload: {server.url} has all runs of {tmp_path}.\n",
    )


def results(folder: Path, status: str = "finished", *, points: int = 4) -> str:
    """A results folder with one trial of two steps; its id."""
    config = TrialConfig()
    told = [{"step": step, "train/loss": 1.0 / (step + 1)} for step in range(points)]
    journal = Journal(folder)
    journal.add_report(config.trial_id, first_step=0, steps=series(2), points=told)
    more = {"error": "Traceback: boom"} if status == "failed" else {"train/loss": ALL[-1]}
    journal.add_row(config.trial_id, row_of(config, {"status": status, **more}))
    write_tables(folder, [config])
    return config.trial_id


def test_a_folder_that_was_moved_has_its_tables_of_steps_all_the_same(
    server: Server, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after it was moved"
    name = results(before, "finished")
    trial(server, before, name)
    trial(server, before, "stranger")
    os.rename(before, after)
    done = sync(server, after)
    assert done.returncode == 1
    assert f"left out: the table of steps of stranger: it was at {before}/" in done.stderr
    (table,) = (a for a in server.artifacts if a.committed)
    assert table.name == f"steps-{name}"
    (content,) = table.files.values()
    told = json.loads(content)
    steps = ResultTables(after).steps(name)
    assert told["columns"] == list(steps)
    assert told["data"] == [
        [None if math.isnan(v) else v for v in values] for values in steps.to_numpy().tolist()
    ]
    assert losses(server) == {name: ALL, "stranger": ALL}
    assert {run.state for run in server.runs} == {"finished"}


def test_failed_trials_are_marked(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "lr_batch"
    name = results(folder, "failed")
    trial(server, folder, name, "raised")
    assert sync(server, folder).returncode == 0
    (run,) = server.runs
    assert (run.state, run.tags) == ("failed", ["sgd", "mlp", "mnist5k", "failed"])
    assert (run.summary["status"], run.summary["error"]) == ("failed", "Traceback: boom")


def test_a_run_that_other_results_were_told_to_is_left_as_it_is(
    server: Server, tmp_path: Path
) -> None:
    for folder, end in (("first", "finished"), ("second", "diverged")):
        trial(server, tmp_path / folder, "a", end)
    assert sync(server, tmp_path / "first").returncode == 0
    done = sync(server, tmp_path / "second")
    assert done.returncode == 1
    told = "left out: the run tester/p/a is there already, sent from another results folder"
    assert told in done.stderr
    (run,) = server.runs
    assert (run.state, run.summary["status"]) == ("finished", "finished")


def test_a_run_that_went_on_after_its_upload_has_every_point_once(
    server: Server, tmp_path: Path
) -> None:
    folder = tmp_path / "lr_batch"
    name = results(folder, points=6)
    trial(server, folder, name, "raised")  # which has told four of the six points
    assert sync(server, folder).returncode == 0
    assert losses(server) == {name: ALL}
    trial(server, folder, name)  # it goes on, and its record is written anew
    done = sync(server, folder)
    assert done.returncode == 0, done.stderr
    assert losses(server) == {name: [*ALL, 1 / 5, 1 / 6]}
    (run,) = server.runs
    assert (run.state, run.summary["status"]) == ("finished", "finished")
    assert run.summary["min/train/loss"] == 1 / 6
    before = len(run.received_lines)
    assert "Nothing to upload" in sync(server, folder).stdout
    assert len(run.received_lines) == before


ONLINE = TRIAL.replace('"offline"', '"online"').replace(
    "import os", "import gisgd_ray.tracking.run as w\nw.FINISH_TIMEOUT_S = 4\nimport os"
)
FAULTS = {"refused": (403, "online"), "away": (500, "off: TimeoutError")}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_online_run_that_did_not_come_through_is_completed(
    server: Server, tmp_path: Path, fault: str
) -> None:
    status, told = FAULTS[fault]
    folder = tmp_path / "lr_batch"
    name = results(folder)
    server.fail(status, count=1000, match="file_stream")
    code = ONLINE + "print(run.status)"
    said = run_script(server, tmp_path, ["-c", code, str(folder), name, "finished"],
                      PYTHONPATH=str(ROOT))  # fmt: skip
    assert said.strip().startswith(told)
    note_sent(folder, "tester/p", [name])
    assert losses(server) == {name: []}
    server.heal()
    ask = "from gisgd_ray.tracking.existing import incomplete as i; print(i('tester/p', "
    ask += f"{{'{name}': 4, 'none': 0}}))"
    assert run_script(server, tmp_path, ["-c", ask], PYTHONPATH=str(ROOT)).strip() == (
        f"['{name}', 'none']"
    )
    done = sync(server, folder)
    assert done.returncode == 0, done.stderr
    assert losses(server) == {name: ALL}
    (run,) = server.runs
    assert (run.state, run.tags) == ("finished", ["sgd", "mlp", "mnist5k"])
    assert run.config["training.learning_rate"] == TrialConfig().training.learning_rate


def test_what_keeps_all_from_being_uploaded_is_told(server: Server, tmp_path: Path) -> None:
    trial(server, tmp_path / "x", "a")
    done = sync(server, tmp_path / "none")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: there is no folder {tmp_path / 'none'}; name one that holds a sweep's results\n",
    )
    with server.away():
        done = sync(server, tmp_path / "x")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {server.url} does not answer (")
    done = sync(server, tmp_path / "x", WANDB_API_KEY="", HOME=str(tmp_path), NETRC="/dev/null")
    assert (done.returncode, done.stderr) == (
        2,
        "error: nobody has logged in with wandb login; log in with wandb login, or set "
        "WANDB_API_KEY\n",
    )
    server.wrong_key()
    done = sync(server, tmp_path / "x")
    assert done.returncode == 2
    assert "error: W&B does not know this key; wandb login" in done.stderr
    assert server.runs == []
