"""Which run a trial's is: never one that the environment names, and of a name that W&B takes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.launches import ROOT
from tests.support.wandb_server import Server, run_script
from tests.tracking.test_sync import ALL, losses, sync

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
    "WANDB_FORK_FROM": "x",
    "WANDB_RESUME_FROM": "y",
    "WANDB_REINIT": "zzz",
    "WANDB_CONFIG_PATHS": "/nope",
}
"""As of a notebook's own run, or of W&B's agent."""

LONG = "learning_rate=0.1 " * 12
"""As of a sweep of eleven varying fields."""
TRIALS = """
import sys
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.tracking.run import WandbRun, WandbSettings
folder, folder_id, mode, *named = sys.argv[1:]
settings = WandbSettings(mode, folder, folder_id, group="g" * 150, project="p", every_s=5)
for each in named:
    trial_id, _, name = each.partition("=")
    config = {**TrialConfig().flat(), **({"data.dataset": "d" * 90} if len(name) > 99 else {})}
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


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_nothing_of_another_run_is_inherited_and_a_long_name_is_cut(
    server: Server, tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "lr_batch"
    named = ["a=lr=0.1", "b=lr=0.1", f"c={LONG}", f"d={LONG}"]
    said = run_script(
        server, tmp_path, ["-c", TRIALS, str(folder), "f", mode, *named],
        PYTHONPATH=str(ROOT), **INHERITED,
    )  # fmt: skip
    assert said.split() == [mode] * 4
    if mode == "offline":
        assert sync(server, folder, **INHERITED, WANDB_PROJECT="p").returncode == 0
    assert losses(server) == dict.fromkeys(["f-a", "f-b", "f-c", "f-d"], ALL)
    for run in server.runs:
        trial = run.id[-1]
        assert (run.entity, run.project, run.group) == ("tester", "p", "g" * 128)
        assert (run.job_type, run.notes) == ("sgd", "")
        long = trial in "cd"
        assert run.tags == ["sgd", "mlp", "d" * 64 if long else "mnist5k"]
        assert run.display_name == (f"{LONG[:126]} {trial}" if long else "lr=0.1")
        assert len(run.display_name) <= 128


def test_the_same_trial_of_another_folder_is_another_run(server: Server, tmp_path: Path) -> None:
    for folder_id in "fg":
        asked = ["-c", TRIALS, str(tmp_path / folder_id), folder_id, "online", "abc=lr=0.1"]
        assert run_script(server, tmp_path, asked, PYTHONPATH=str(ROOT)) == "online\n"
    assert losses(server) == {"f-abc": ALL, "g-abc": ALL}


def test_a_trial_that_goes_on_sends_its_run_what_that_lacks(server: Server, tmp_path: Path) -> None:
    again = f"{TRIALS.replace('range(4)', 'range(6)')}"
    for code in (TRIALS, again):
        asked = ["-c", code, str(tmp_path), "f", "online", "abc=lr=0.1"]
        run_script(server, tmp_path, asked, PYTHONPATH=str(ROOT))
    assert losses(server) == {"f-abc": [*ALL, 1 / 5, 1 / 6]}


def test_a_service_that_is_gone_keeps_no_sweep_offline(server: Server, tmp_path: Path) -> None:
    ask = "from gisgd_ray.tracking.access import access; print(access())"
    said = run_script(server, tmp_path, ["-c", ask], PYTHONPATH=str(ROOT), **INHERITED)
    assert said == "W&B: online, in tester/gisgd-ray.\n"
