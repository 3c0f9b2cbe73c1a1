"""W&B runs: what is written offline, and that no fault of W&B's reaches the trial."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from wandb.errors import CommError

from gisgd_ray.tracking import run as wandb_runs
from gisgd_ray.tracking.access import Access, WandbStatus, Where, chosen_mode
from gisgd_ray.tracking.run import WandbRun, WandbSettings

CONFIG = {"training.learning_rate": 0.1, "scheme.name": "sgd"}


def settings(folder: Path, mode: Any = "offline") -> WandbSettings:
    return WandbSettings(mode=mode, folder=str(folder), group="lr_batch", project="p")


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
    assert str(run.status) == "offline"
    (record,) = tmp_path.glob("wandb/offline-run-*-abc123/*.wandb")
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
    assert str(run.status) == "disabled"
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
    assert str(run.status) == "off: OSError: the service process died"


def test_a_run_of_somebody_else_is_not_opened(tmp_path: Path) -> None:
    foreign = replace(settings(tmp_path, "online"), foreign={"abc": "the run p/abc exists"})
    run = WandbRun(foreign, trial_id="abc", name="a", config={})
    run.log({"step": 0})
    run.finish({"status": "finished"})
    assert str(run.status) == "off: the run p/abc exists"
    assert not list(tmp_path.iterdir())


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
from gisgd_ray.tracking import access as wandb_access
from gisgd_ray.tracking import run as wandb_runs
wandb_runs.INIT_TIMEOUT_S = 2.0
modes, real = [], wandb.init
def spied(**arguments):
    modes.append(arguments["mode"])
    return real(**arguments)
wandb.init = spied
found = wandb_access.chosen_mode()
print(found.mode, found.reason, sep="|")
settings = wandb_runs.WandbSettings(mode="online", folder=sys.argv[1], group="g", project="p")
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
    login, first, second, modes = in_fresh_process(
        UNREACHABLE,
        str(tmp_path),
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="a" * 40,
    )
    assert login == "online|this user has logged in"
    assert first.startswith("offline: CommError: ")
    assert second == "offline: the server did not answer an earlier trial"
    assert modes.count("online") == 1
    for name in ("first", "second"):
        (record,) = tmp_path.glob(f"wandb/offline-run-*-{name}*/*.wandb")
        wait_for(record, b"train/loss")


def test_a_malformed_key_is_told() -> None:
    code = "from gisgd_ray.tracking.access import chosen_mode as asked; "
    code += "print(asked().mode, asked().reason, sep='|')"
    (line,) = in_fresh_process(code, WANDB_API_KEY="short")
    assert line.startswith("offline|the login does not work: WANDB_API_KEY invalid")


def test_a_fault_while_logging_ends_logging_only(tmp_path: Path) -> None:
    class Faulty:
        def log(self, _: Any) -> None:
            raise CommError("connection reset")

    run = WandbRun(settings(tmp_path, "disabled"), trial_id="a", name="a", config=CONFIG)
    run._run = Faulty()
    run.log({"step": 0})
    run.log({"step": 1})
    assert str(run.status) == "off: CommError: connection reset"


def test_a_finish_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    release = threading.Event()

    class Hanging:
        resumed = False
        summary: ClassVar[dict[str, Any]] = {}

        def finish(self, **_: int) -> None:
            release.wait(30)

    monkeypatch.setattr(wandb_runs, "FINISH_TIMEOUT_S", 0.1)
    run = WandbRun(settings(tmp_path, "disabled"), trial_id="a", name="a", config=CONFIG)
    run._run = Hanging()
    run.finish({"status": "finished"})
    release.set()
    assert str(run.status) == (
        "off: TimeoutError: W&B did not take the run within 0.1 s; make sync uploads the rest"
    )


@pytest.mark.parametrize("where", Where)
@pytest.mark.parametrize("fault", ["", "OSError: no", "offline: online: "])
def test_a_status_comes_back_from_its_cell(where: Where, fault: str) -> None:
    assert WandbStatus.of(str(WandbStatus(where, fault))) == WandbStatus(where, fault)


@pytest.mark.parametrize("cell", [None, float("nan"), "", "of another version"])
def test_a_cell_without_a_status_is_none(cell: object) -> None:
    assert WandbStatus.of(cell) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("online", "online")],
)
def test_wandb_mode_decides(value: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", value)
    assert chosen_mode() == Access(expected, f"WANDB_MODE is {value}", as_asked=True)


def test_without_login_it_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda **_: False)
    assert chosen_mode().mode == "offline"


def test_with_login_it_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "login", lambda **_: True)
    assert chosen_mode().mode == "online"
