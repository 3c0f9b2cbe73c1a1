"""Uploading runs that were kept offline: what ``make sync`` does."""

import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables, row_of, write_tables
from gisgd_ray.tracking.existing import note_sent
from gisgd_ray.tracking.sync import main
from tests.support.journals import series
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, environment, run_script

ALL = [1.0, 1 / 2, 1 / 3, 1 / 4]

TRIALS = """
import os, sys, time
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.tracking.run import WandbRun, WandbSettings
folder, mode, *trials = sys.argv[1:]
settings = WandbSettings(mode, folder, group="g", project="p", every_s=5)
for trial in trials:
    name, end = trial.split("=")
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
    print(run.status)
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.unknown == []


def trials(server: Server, folder: Path, *ends: str, killed: bool = False) -> None:
    """Runs that are kept offline in a folder, ``name=end`` each, the last of them killed."""
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, str(folder), "offline", *ends],
        env={**environment(server, folder.parent), "PYTHONPATH": str(ROOT)},
        timeout=60,
        stdout=subprocess.DEVNULL,
    )
    assert done.returncode == (-9 if killed else 0)


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


def results(folder: Path, status: str = "finished", *, points: int = 4, seed: int = 0) -> str:
    """A results folder with one trial of two steps; its id."""
    config = TrialConfig(seed=seed)
    told = [{"step": step, "train/loss": 1.0 / (step + 1)} for step in range(points)]
    journal = Journal(folder)
    journal.add_report(config.trial_id, first_step=0, steps=series(2), points=told)
    more = {"error": "Traceback: boom"} if status == "failed" else {"train/loss": ALL[-1]}
    journal.add_row(config.trial_id, row_of(config, {"status": status, **more}))
    write_tables(folder, [config])
    return config.trial_id


def test_all_that_was_kept_below_a_folder_is_uploaded(server: Server, tmp_path: Path) -> None:
    """Of a killed run its points; of a failed trial that it failed; tables of steps of a folder
    that was moved. A run that cannot be read stops no other."""
    root = tmp_path / "results"
    one, failed = root / "lr batch", root / "failed"
    before, after = root / "before", root / "after it was moved"
    moved, boom = results(before, seed=1), results(failed, "failed", seed=2)
    trials(server, one, "f=finished", "d=diverged", "k=killed", killed=True)
    trials(server, before, f"{moved}=finished", "stranger=finished")
    trials(server, failed, f"{boom}=raised")
    os.rename(before, after)
    empty = one / "wandb" / "offline-run-20260101_000000-e" / "run-e.wandb"
    empty.parent.mkdir()
    empty.write_bytes(next(one.glob("wandb/*/run-f.wandb")).read_bytes()[:7])

    done = sync(server, root, WANDB_MODE="offline")
    assert done.returncode == 1
    assert f"left out: {empty} holds nothing that could be read" in done.stderr
    assert f"left out: the table of steps of stranger: it was at {before}/" in done.stderr
    assert f"6 runs uploaded to {server.url}." in done.stdout
    assert losses(server) == dict.fromkeys(["k", "f", "d", moved, "stranger", boom], ALL)
    runs = {run.id: run for run in server.runs}
    assert {name for name, run in runs.items() if run.state == "failed"} == {"k", "d", boom}
    assert {run.state for run in runs.values()} == {"failed", "finished"}
    assert runs[boom].tags == ["sgd", "mlp", "mnist5k", "failed"]
    assert runs[boom].summary["status"] == "failed"
    assert runs[boom].summary["error"] == "Traceback: boom"
    tables = {a.name: a for a in server.artifacts if a.committed}
    assert sorted(tables) == sorted(["steps-d", "steps-f", f"steps-{moved}"])
    kept = BytesIO(tables[f"steps-{moved}"].files["steps.parquet"])
    assert_frame_equal(pd.read_parquet(kept), ResultTables(after).steps(moved))

    empty.unlink()
    again = sync(server, root)
    assert (again.returncode, again.stdout) == (
        0,
        f"Nothing to upload: {server.url} has all runs of {root}.\n",
    )


def test_a_run_that_went_on_after_its_upload_has_every_point_once(
    server: Server, tmp_path: Path
) -> None:
    """And one that other results were told to is left as it is."""
    first, second = tmp_path / "first", tmp_path / "second"
    name = results(first, points=6)
    trials(server, first, f"{name}=raised", "a=finished")  # four of the six points
    trials(server, second, "a=diverged")
    assert sync(server, first).returncode == 0
    assert losses(server) == {name: ALL, "a": ALL}
    trials(server, first, f"{name}=finished")  # it goes on, and its record is written anew
    done = sync(server, tmp_path)
    assert done.returncode == 1
    (left,) = [line for line in done.stderr.splitlines() if line.startswith("left out")]
    assert left.startswith("left out: the run tester/p/a is there already, sent from another")
    assert losses(server) == {name: [*ALL, 1 / 5, 1 / 6], "a": ALL}
    for run in server.runs:
        assert (run.state, run.summary["status"]) == ("finished", "finished")
    run = server.run("tester", "p", name)
    assert run.summary["min/train/loss"] == 1 / 6
    before = len(run.received_lines)
    assert "Nothing to upload" in sync(server, first).stdout
    assert len(run.received_lines) == before


def test_what_was_begun_online_and_goes_on_offline_is_a_run_beside_it(
    server: Server, tmp_path: Path
) -> None:
    online = ["-c", TRIALS, str(tmp_path), "online", "abc=finished"]
    assert run_script(server, tmp_path, online, PYTHONPATH=str(ROOT)) == "online\n"
    trials(server, tmp_path, "abc=finished")
    assert sync(server, tmp_path).returncode == 0
    assert losses(server) == {"abc": ALL, "abc-offline": ALL}


IMPATIENT = f"import gisgd_ray.tracking.run as w\nw.FINISH_TIMEOUT_S = 4\n{TRIALS}"
FAULTS = {"refused": (403, "online"), "away": (500, "off: TimeoutError")}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_online_run_that_did_not_come_through_is_completed(
    server: Server, tmp_path: Path, fault: str
) -> None:
    status, told = FAULTS[fault]
    folder = tmp_path / "lr_batch"
    name = results(folder)
    server.fail(status, count=1000, match="file_stream")
    online = ["-c", IMPATIENT, str(folder), "online", f"{name}=finished"]
    said = run_script(server, tmp_path, online, PYTHONPATH=str(ROOT))
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


def test_what_keeps_all_from_being_uploaded_is_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"error: there is no folder {tmp_path / 'none'}; name one that holds a sweep's results\n"
    )
    record = tmp_path / "x" / "wandb" / "offline-run-20260101_000000-a" / "run-a.wandb"
    record.parent.mkdir(parents=True)
    record.touch()
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
    results(tmp_path / "x")
    note_sent(tmp_path / "x", "tester/p", ["a"])
    server.wrong_key()
    done = sync(server, tmp_path / "x")
    assert done.returncode == 2
    assert "error: W&B does not know this key; wandb login" in done.stderr
    assert server.runs == []
