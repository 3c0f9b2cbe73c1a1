"""Which run a trial's is: never one that the environment names, and of a name that W&B takes."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.tracking.access import IDENTITY
from tests.runner.test_launch import ROOT
from tests.support.wandb_server import Server, environment, run_script
from tests.tracking.test_sync import ALL, losses, results, sync

INHERITED = {
    "WANDB_SWEEP_ID": "y",
    "WANDB_RUN_ID": "abc",
    "WANDB_RUN_GROUP": "another",
    "WANDB_NAME": "another",
    "WANDB_NOTES": "another",
    "WANDB_TAGS": "one,two",
    "WANDB_JOB_TYPE": "another",
    "WANDB_RESUME": "must",
    "WANDB_SERVICE": "3-1-unix-/tmp/of-a-process-that-is-gone",
    "WANDB_RUN_NAME": "another",
}
"""As of a notebook's own run, or of W&B's agent."""

TRIALS = """
import sys
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.tracking.run import WandbRun, WandbSettings
folder, mode, name, *ids = sys.argv[1:]
settings = WandbSettings(mode, folder, group="g", project="p", every_s=5)
config = {**TrialConfig().flat(), **({"data.dataset": "d" * 90} if len(name) > 99 else {})}
for trial_id in ids:
    run = WandbRun(settings, trial_id=trial_id, name=name, config=config)
    for step in range(4):
        run.log({"step": step, "train/loss": 1.0 / (step + 1)})
    run.finish({"status": "finished"})
    print(run.status)
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made
        assert made.unknown == []


def trials(server: Server, folder: Path, *arguments: str, **inherited: str) -> list[str]:
    """What became of the runs, by the word of each."""
    done = run_script(
        server, folder.parent, ["-c", TRIALS, str(folder), *arguments],
        PYTHONPATH=str(ROOT), **inherited,
    )  # fmt: skip
    return done.split("\n")[:-1]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_nothing_of_another_run_is_inherited(server: Server, tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "lr_batch"
    assert trials(server, folder, mode, "lr=0.1", "a", "b", **INHERITED) == [mode, mode]
    if mode == "offline":
        assert sync(server, folder, **INHERITED).returncode == 0
    assert losses(server) == {"a": ALL, "b": ALL}
    for run in server.runs:
        assert (run.entity, run.project, run.group) == ("tester", "p", "g")
        assert (run.display_name, run.job_type, run.notes) == ("lr=0.1", "sgd", "")
        assert run.tags == ["sgd", "mlp", "mnist5k"]


def test_a_service_that_is_gone_keeps_no_sweep_offline(server: Server, tmp_path: Path) -> None:
    ask = "from gisgd_ray.tracking.access import access; print(access())"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env={**environment(server, tmp_path), "PYTHONPATH": str(ROOT), **INHERITED},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "W&B: online, in tester/gisgd-ray.\n", done.stderr


def test_account_and_settings_are_inherited() -> None:
    kept = ("API_KEY", "BASE_URL", "ENTITY", "PROJECT", "MODE", "DIR", "CACHE_DIR", "INIT_TIMEOUT")
    assert not [name for name in kept if IDENTITY.match(f"WANDB_{name}")]
    assert not [name for name in INHERITED if not IDENTITY.match(name)]


LONG = "learning_rate=0.1 " * 12


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_name_too_long_for_wandb_is_cut_and_its_own(
    server: Server, tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "lr_batch"
    assert trials(server, folder, mode, LONG, "a", "b") == [mode, mode]
    if mode == "offline":
        assert sync(server, folder).returncode == 0
    assert losses(server) == {"a": ALL, "b": ALL}
    for run in server.runs:
        assert len(run.display_name) == 128
        assert run.display_name == f"{LONG[:126]} {run.id}"
        assert "d" * 64 in run.tags


def test_a_run_that_was_kept_under_too_long_a_name_is_uploaded(
    server: Server, tmp_path: Path
) -> None:
    """By an earlier version: ``wandb sync`` can upload its record never."""
    folder = tmp_path / "lr_batch"
    name = results(folder)
    code = f"import gisgd_ray.tracking.run as w; w.LONGEST_NAME = 999\n{TRIALS}"
    for trial_id in (name, "stranger"):
        run_script(server, tmp_path, ["-c", code, str(folder), "offline", LONG[:200], trial_id],
                   PYTHONPATH=str(ROOT))  # fmt: skip
    done = sync(server, folder)
    assert done.returncode == 1
    assert "left out: the run tester/p/stranger: the journal in" in done.stderr
    (run,) = server.runs
    assert losses(server) == {name: ALL}
    assert run.display_name == f"{LONG[:115]} {name}"
    assert (run.group, run.state, run.summary["status"]) == ("g", "finished", "finished")
    assert "mnist5k" in run.tags
    assert "0 runs uploaded" in sync(server, folder).stdout
