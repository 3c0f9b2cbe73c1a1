"""W&B runs: what is written offline, and that no fault of W&B's reaches the trial."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.errors import CommError

from gisgd_ray.tracking.run import WandbRun, WandbSettings
from gisgd_ray.tracking.status import WandbStatus, Where

FOLDER = "0123456789ab"
CONFIG = {"training.learning_rate": 0.1, "scheme.name": "sgd"}


def settings(folder: Path, mode: Any = "offline") -> WandbSettings:
    return WandbSettings(mode, str(folder), FOLDER, group="lr_batch", project="p")


def wait_for(record: Path, content: bytes) -> None:
    for _ in range(100):
        if content in record.read_bytes():
            return
        time.sleep(0.1)
    raise AssertionError(f"{content!r} is not in {record.name} after 10 s")


@pytest.fixture(autouse=True)
def _no_wandb_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(WandbRun, "_unreachable_until", 0.0)


def test_offline_run_holds_config_points_and_summary(tmp_path: Path) -> None:
    run = WandbRun(settings(tmp_path), trial_id="abc123", name="lr=0.1", config=CONFIG)
    for step in (0, 10):
        run.log({"step": step, "train/loss": 1.0 / (step + 1)})
    run.finish({"status": "finished", "bound/theorem2_closed_form": 12.5})
    assert (str(run.status), run.path) == ("offline", f"p/{FOLDER}-abc123")
    (record,) = tmp_path.glob(f"wandb/offline-run-*-{FOLDER}-abc123/*.wandb")
    wait_for(record, b"12.5")  # finish() returns shortly before its service has written all
    text = record.read_bytes()
    for expected in (b"abc123", b"lr_batch", b"training.learning_rate", b"train/loss"):
        assert expected in text
    leet = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert leet.returncode == 0, leet.stderr
    types = [json.loads(line)["type"] for line in leet.stdout.splitlines()]
    assert types.count("history") == 2
    assert json.dumps(12.5) in leet.stdout


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    run = WandbRun(settings(tmp_path, "disabled"), trial_id="a", name="a", config=CONFIG)
    run.log({"step": 0})
    run.finish({"status": "finished"})
    assert (str(run.status), run.path) == ("disabled", None)
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_cannot_start_is_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: Any) -> Any:
        raise OSError("the service process died")

    monkeypatch.setattr(wandb, "init", broken)
    run = WandbRun(settings(tmp_path), trial_id="a", name="a", config=CONFIG)
    run.log({"step": 0})
    run.finish({"status": "finished"})
    assert (str(run.status), run.path) == ("off: OSError: the service process died", None)


def test_a_folder_that_cannot_be_made_is_survived(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    run = WandbRun(settings(blocked / "below"), trial_id="a", name="a", config=CONFIG)
    run.finish({"status": "finished"})
    assert run.status.where is Where.OFF
    assert run.status.fault.startswith("NotADirectoryError")


UNREACHABLE = """
import sys
import wandb
from gisgd_ray.tracking import run as wandb_runs
wandb_runs.INIT_TIMEOUT_S = 2.0
modes, real = [], wandb.init
def spied(**arguments):
    modes.append(arguments["mode"])
    return real(**arguments)
wandb.init = spied
settings = wandb_runs.WandbSettings("online", sys.argv[1], "f", group="g", project="p")
for name in ("first", "second"):
    run = wandb_runs.WandbRun(settings, trial_id=name, name=name, config={})
    run.log({"step": 0, "train/loss": 1.0})
    run.finish({"status": "finished"})
    print(run.status)
print(modes)
"""


def in_fresh_process(code: str, *arguments: str, **environment: str) -> list[str]:
    """The lines a snippet prints; W&B reads keys and addresses once per process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean | environment,
        check=True,
    )
    return done.stdout.splitlines()


def test_an_unreachable_server_means_offline_and_is_asked_once(tmp_path: Path) -> None:
    first, second, modes = in_fresh_process(
        UNREACHABLE,
        str(tmp_path),
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="a" * 40,
    )
    assert first.startswith("offline: CommError: ")
    assert second == "offline: the server did not answer an earlier trial"
    assert modes.count("online") == 1
    for name in ("first", "second"):
        (record,) = tmp_path.glob(f"wandb/offline-run-*-{name}*/*.wandb")
        wait_for(record, b"train/loss")


def test_a_fault_while_logging_ends_logging_only(tmp_path: Path) -> None:
    class Faulty:
        def log(self, _: Any) -> None:
            raise CommError("connection reset")

    run = WandbRun(settings(tmp_path, "disabled"), trial_id="a", name="a", config=CONFIG)
    run._run = Faulty()
    run.log({"step": 0})
    run.log({"step": 1})
    assert str(run.status) == "off: CommError: connection reset"


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("fault", ["", "OSError: no", "offline: online: "])
def test_a_status_comes_back_from_its_cell(where: Where, fault: str) -> None:
    assert WandbStatus.of(str(WandbStatus(where, fault))) == WandbStatus(where, fault)


@pytest.mark.parametrize("cell", [None, float("nan"), "", "of another version"])
def test_a_cell_without_a_status_is_none(cell: object) -> None:
    assert WandbStatus.of(cell) is None
