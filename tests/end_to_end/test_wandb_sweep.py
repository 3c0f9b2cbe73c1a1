"""A sweep with W&B online: what the server has in the end is what the tables have."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.launch_record import folder_id
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.tracking.run import BEST
from tests.support.launches import ROOT, SCRIPT, SMALL, wait_until
from tests.support.processes import training_below
from tests.support.wandb_server import Run, Server, environment

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def online(server: Server, folder: Path) -> dict[str, str]:
    left = ("RAY_ADDRESS", "GISGD_DATA")
    told = {k: v for k, v in environment(server, folder).items() if k not in left}
    return {**told, "PYTHONPATH": str(ROOT)}


def equal(found: Any, true: Any) -> bool:
    """As JSON numbers: 1.0 is 1, NaN is itself."""
    if isinstance(true, list | tuple | np.ndarray | pd.Series):
        return np.array_equal(np.asarray(found, float), np.asarray(true, float), equal_nan=True)
    if isinstance(true, float) and math.isnan(true):
        return found is None or (isinstance(found, float) and math.isnan(found))
    return bool(found == true)


def assert_told_as_in(tables: ResultTables, runs: list[Run]) -> None:
    trials, history = tables.trials, tables.history
    own = folder_id(tables.folder)
    assert {run.id for run in runs} == {f"{own}-{name}" for name in trials["trial_id"]}
    assert set(trials["wandb/run"].str.rpartition("/")[2]) == {run.id for run in runs}
    for run in runs:
        name = run.id.rpartition("-")[2]
        points = history[history["trial_id"] == name].drop(columns="trial_id")
        assert [point["step"] for point in run.history] == points["step"].tolist()
        for told, (_, point) in zip(run.history, points.iterrows(), strict=True):
            for column, value in point.items():
                if column in told or not pd.isna(value):
                    assert equal(told[column], value), (run.id, point["step"], column)
        row = trials[trials["trial_id"] == name].iloc[0]
        for column, value in row.drop(["wandb/status", "wandb/run"]).items():
            if column in run.summary or not pd.isna(value):
                assert equal(run.summary[column], value), (run.id, column)
        measured = {name for name in BEST if name in points and points[name].notna().any()}
        assert {"train/loss", "gap/loss", "bound/lemma7"} <= measured
        for metric in BEST:
            told = f"{BEST[metric]}/{metric}"
            assert (told in run.summary) == (metric in measured), metric
            if metric in measured:
                assert run.summary[told] == getattr(points[metric], BEST[metric])(), metric
        # The id is a hash of all settings.
        config = TrialConfig.model_validate(unflatten(dict(run.config)))
        assert config.trial_id == name
        assert run.config == json.loads(json.dumps(config.flat()))
        assert (run.group, run.job_type) == ("lr_batch", "sgd")
        assert run.state == "finished"
        assert set(run.tags) == {"sgd", "mlp", "mnist5k"}


def test_cuts_and_lost_trials_leave_every_point_once(tmp_path: Path) -> None:
    with Server() as server:
        more = ["--training.max_epochs=400", "--wandb-requests=600"]
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), f"--out={tmp_path}", *SMALL, *more],
            env=online(server, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def posts() -> int:
            return sum("file_stream" in request.path for request in server.requests)

        def wait_for(condition: Any) -> None:
            wait_until(lambda: condition() or process.poll() is not None, seconds=90)

        wait_for(lambda: posts() >= 2)
        assert process.poll() is None, process.communicate()
        server.fail(500, count=2, match="file_stream")
        server.fail(429, count=2, match="file_stream", retry_after=1)
        server.cut(1, match="file_stream", after=True)
        server.slow(1.0, count=3)
        folder = tmp_path / "lr_batch"
        wait_for(lambda: list(folder.glob("checkpoints/*/*.ckpt")))
        for pid in training_below(process.pid):
            os.kill(pid, signal.SIGKILL)
        before = posts()
        wait_for(lambda: posts() >= before + 2)
        with server.away():
            time.sleep(5)
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        assert "W&B: online, in tester/gisgd-ray." in err
        assert server.unknown == []
        tables = ResultTables(folder)
        statuses = set(tables.trials["wandb/status"])
        # An end that the server does not take within a minute, as a busy machine has shown once,
        # is told, with the command that completes it.
        assert all(s == "online" or s.endswith("; make sync uploads the rest") for s in statuses)
        if statuses != {"online"}:
            sync(tmp_path, environment=online(server, tmp_path))
        assert "a trial was lost" in out
        assert_told_as_in(tables, server.runs)
        steps = {a.name: a for a in server.artifacts if a.type == "steps"}
        assert set(steps) == {f"steps-{run.id}" for run in server.runs}
        assert all(artifact.committed for artifact in steps.values())
        for name in tables.trials["trial_id"]:
            sent = BytesIO(steps[f"steps-{folder_id(folder)}-{name}"].files["steps.parquet"])
            assert_frame_equal(pd.read_parquet(sent), tables.steps(name))


def test_runs_kept_offline_are_uploaded_later_under_the_same_ids(
    undisturbed: Path, tmp_path: Path
) -> None:
    with Server() as server:
        told = online(server, tmp_path)
        folder = shutil.copytree(undisturbed, tmp_path / "lr_batch")
        refused = report_of(folder, told)
        assert refused.returncode == 2
        assert refused.stderr.startswith(
            "error: --wandb tester/gisgd-ray: none of the 4 runs of "
        ), refused.stderr
        assert f"`make sync ARGS={folder}`" in refused.stderr
        assert server.reports == []
        for _ in range(2):  # the second time nothing is new
            sync(tmp_path, environment=told)
            assert_told_as_in(ResultTables(tmp_path / "lr_batch"), server.runs)
        assert len([a for a in server.artifacts if a.type == "steps"]) == 4
        made = report_of(folder, told)
        assert made.returncode == 0, made.stderr
        assert re.search(rf"{server.url}/tester/gisgd-ray/reports/[^ ]+$", made.stdout.strip())
        (report,) = server.reports
        text = json.dumps(report["spec"])
        assert all(run.id in text for run in server.runs)
        del server.state.runs[next(iter(server.state.runs))]
        assert "(with 3 of 4 runs: the others are not in tester/" in report_of(folder, told).stdout
        assert server.unknown == []


def sync(folder: Path, environment: dict[str, str]) -> None:
    make = ["make", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "sync"]
    subprocess.run(
        [*make, f"ARGS={folder}"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )


def report_of(folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gisgd_ray.runner.report", str(folder), "--wandb"]
    return subprocess.run(
        [*command, "tester/gisgd-ray"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
