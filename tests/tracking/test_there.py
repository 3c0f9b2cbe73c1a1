"""Whose the runs of a project are, and marking those of failed trials."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gisgd_ray.tracking.existing import note_sent, sent_ids
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, environment
from tests.support.wandb_server.state import Run

KEY = ("tester", "gisgd-ray")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.unknown == []


def asked(server: Server, folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**environment(server, folder), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def put(server: Server, runs: dict[str, dict[str, Any]]) -> None:
    for number, (name, config) in enumerate(runs.items()):
        kept = {field: {"value": value} for field, value in config.items()}
        server.state.runs[*KEY, name] = Run(number, *KEY, name, raw_config=kept, group="g")
    server.state.project_number(*KEY)


FOREIGN = """
import json, sys
from pathlib import Path
from gisgd_ray.tracking.existing import foreign_runs
ours = {"seed": 1, "model.widths": (30, 20)}
trials = {name: ours for name in ("theirs", "ours", "begun", "lost", "elsewhere", "new")}
print(json.dumps(foreign_runs("tester/gisgd-ray", Path(sys.argv[1]), trials)))
"""


def test_runs_of_other_settings_or_other_results_are_found_and_left_as_they_are(
    server: Server, tmp_path: Path
) -> None:
    same = {"seed": 1, "model.widths": [30, 20], "_wandb": {}}
    put(
        server,
        {
            "theirs": {"seed": 2, "model.widths": [30, 20]},
            "ours": same,
            "begun": same,
            "lost": {},
            "elsewhere": same,
            "beside": {"seed": 3},
        },
    )
    note_sent(tmp_path, "tester/gisgd-ray", ["ours", "theirs", "lost"])
    note_sent(tmp_path, "tester/other", ["elsewhere"])
    (tmp_path / "wandb" / "online-begun").touch()
    assert json.loads(asked(server, tmp_path, FOREIGN)) == {
        "theirs": "the run tester/gisgd-ray/theirs exists with other settings (seed is 2 there, "
        "and 1 here); none of this trial's points went to it: choose another WANDB_PROJECT",
        "elsewhere": "the run tester/gisgd-ray/elsewhere is there already, sent from another "
        "results folder; none of this trial's points went to it: choose another WANDB_PROJECT",
    }
    assert {run.group for run in server.runs} == {"g"}


def test_a_project_that_is_not_there_has_no_runs(server: Server, tmp_path: Path) -> None:
    assert json.loads(asked(server, tmp_path, FOREIGN)) == {}


def test_what_was_sent_is_kept_and_a_damaged_note_is_none(tmp_path: Path) -> None:
    note_sent(tmp_path, "a/p", ["x", "y"])
    note_sent(tmp_path, "a/p", ["z"])
    note_sent(tmp_path, "a/q", ["w"])
    assert sent_ids(tmp_path, "a/p") == {"x", "y", "z"}
    (tmp_path / "wandb" / "told.json").write_text("[1")
    assert sent_ids(tmp_path, "a/p") == set()


MARK = """
import math
from gisgd_ray.tracking.existing import mark_failed
row = {"trial_id": "a", "status": "failed", "error": "Traceback: boom", "seed": 1, "x": math.nan}
for _ in range(2):
    rows = {name: {**row, "trial_id": name} for name in "abc"}
    print(repr(mark_failed("tester/gisgd-ray", rows)))
"""


def test_failed_trials_are_marked_whether_their_process_ended_or_was_lost(
    server: Server, tmp_path: Path
) -> None:
    put(server, {"a": {"seed": 1}, "b": {"seed": 1}})
    lost, ended = (server.run(*KEY, name) for name in "ab")
    lost.tags, ended.tags = ["sgd"], ["sgd"]
    ended.complete, ended.exit_code = True, 1
    assert lost.state == "running"
    assert asked(server, tmp_path, MARK).splitlines() == ["''", "''"]
    for run in (lost, ended):
        assert (run.state, run.tags) == ("failed", ["sgd", "failed"])
        told = {k: v for k, v in run.summary.items() if not k.startswith("_")}
        assert told == {
            "trial_id": run.id,
            "status": "failed",
            "error": "Traceback: boom",
            "seed": 1,
        }
        assert run.config == {"seed": 1}


def test_what_keeps_them_from_being_marked_is_told(server: Server, tmp_path: Path) -> None:
    put(server, {"a": {"seed": 1}})
    server.wrong_key()
    assert "AuthenticationError" in asked(server, tmp_path, MARK)
