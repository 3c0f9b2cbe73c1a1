"""What W&B is asked and told at the end of a launch: which runs it has, and which have failed."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.results.tables import ResultTables
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, run_script
from tests.support.wandb_server.state import HISTORY, Run

KEY = ("tester", "gisgd-ray")
END = """
import sys
from pathlib import Path
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.tracking.launch import end
from gisgd_ray.tracking.run import WandbSettings
settings = WandbSettings("online", sys.argv[1], "f", "g", "gisgd-ray", "tester")
for sentence in end(settings, ResultTables(Path(sys.argv[1])), "abcd"):
    print(sentence)
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.unknown == []


def put(server: Server, name: str, points: int = 0, **more: Any) -> Run:
    run = Run(len(server.runs), *KEY, f"f-{name}", raw_config={"seed": {"value": 1}}, **more)
    run.receive(HISTORY, 0, [json.dumps({"step": step}) for step in range(points)])
    server.state.runs[*KEY, run.id] = run
    server.state.project_number(*KEY)
    return run


def tables(folder: Path, **status: str) -> ResultTables:
    """Of trials with two points each."""
    rows = [
        {"trial_id": name, "status": how, "error": "Traceback: boom" if how == "failed" else None,
         "seed": 1, "x": math.nan, "wandb/status": None if how == "failed" else "online"}
        for name, how in status.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_parquet(folder / "trials.parquet")
    points = [{"trial_id": name, "step": step} for name in status for step in (0, 1)]
    pd.DataFrame(points).to_parquet(folder / "history.parquet")
    return ResultTables(folder)


def told(server: Server, folder: Path) -> list[str]:
    return run_script(server, folder, ["-c", END, str(folder)], PYTHONPATH=str(ROOT)).splitlines()


def test_failed_trials_are_marked_whether_their_process_ended_or_was_lost(
    server: Server, tmp_path: Path
) -> None:
    tables(tmp_path, a="failed", b="failed", c="failed")
    lost = put(server, "a", tags=["sgd"])
    ended = put(server, "b", tags=["sgd"], exit_code=1)
    assert lost.state == "running"
    for _ in range(2):
        assert told(server, tmp_path) == []
    for run in (lost, ended):
        assert (run.state, run.tags) == ("failed", ["sgd", "failed"])
        kept = {k: v for k, v in run.summary.items() if not k.startswith("_")}
        row = {"status": "failed", "error": "Traceback: boom", "seed": 1}
        assert kept == {"trial_id": run.id.removeprefix("f-"), **row}
        assert run.config == {"seed": 1}


def test_runs_of_which_points_are_missing_are_told(server: Server, tmp_path: Path) -> None:
    tables(tmp_path, a="finished", b="finished", c="diverged", d="failed")
    put(server, "a", points=2)
    put(server, "b", points=1)
    (said,) = told(server, tmp_path)
    assert said == (
        "W&B does not show all points of 2 runs (f-b, ...); what is missing is uploaded by: "
        f"make sync ARGS={tmp_path}"
    )


def test_a_project_that_is_gone_has_no_runs(server: Server, tmp_path: Path) -> None:
    tables(tmp_path, a="finished")
    assert told(server, tmp_path)[0].startswith("W&B does not show all points of 1 run (f-a)")


def test_what_keeps_w_and_b_from_telling_is_told(server: Server, tmp_path: Path) -> None:
    tables(tmp_path, a="failed")
    put(server, "a")
    server.wrong_key()
    (said,) = told(server, tmp_path)
    assert said.startswith("W&B did not say whether it has all points, and failed trials may not ")
    assert f"{server.url} does not take the API key" in said
