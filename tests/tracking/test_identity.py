"""Which run a trial's is: never one that the environment names, and of a name that W&B takes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.tracking.access import IDENTITY
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, run_script
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

LONG = "learning_rate=0.1 " * 12
TRIALS = """
import sys
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.tracking.run import WandbRun, WandbSettings
folder, mode, *named = sys.argv[1:]
settings = WandbSettings(mode, folder, group="g", project="p", every_s=5)
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
        server, tmp_path, ["-c", TRIALS, str(folder), mode, *named],
        PYTHONPATH=str(ROOT), **INHERITED,
    )  # fmt: skip
    assert said.split() == [mode] * 4
    if mode == "offline":
        assert sync(server, folder, **INHERITED).returncode == 0
    assert losses(server) == dict.fromkeys("abcd", ALL)
    for run in server.runs:
        assert (run.entity, run.project, run.group) == ("tester", "p", "g")
        assert (run.job_type, run.notes) == ("sgd", "")
        long = run.id in "cd"
        assert run.tags == ["sgd", "mlp", "d" * 64 if long else "mnist5k"]
        assert run.display_name == (f"{LONG[:126]} {run.id}" if long else "lr=0.1")
        assert len(run.display_name) <= 128


def test_a_service_that_is_gone_keeps_no_sweep_offline(server: Server, tmp_path: Path) -> None:
    ask = "from gisgd_ray.tracking.access import access; print(access())"
    said = run_script(server, tmp_path, ["-c", ask], PYTHONPATH=str(ROOT), **INHERITED)
    assert said == "W&B: online, in tester/gisgd-ray.\n"


def test_a_run_of_that_id_with_other_settings_is_left_alone(server: Server, tmp_path: Path) -> None:
    asked = ["-c", TRIALS, str(tmp_path / "lr_batch"), "online", "abc=lr=0.1", f"abc={LONG}"]
    first, second = run_script(server, tmp_path, asked, PYTHONPATH=str(ROOT)).splitlines()
    assert first == "online"
    assert second.startswith(
        "off: OtherSettingsError: the run p/abc exists with other settings (data.dataset is "
        "mnist5k there, and ddd"
    )
    assert losses(server) == {"abc": ALL}
    (run,) = server.runs
    assert run.config["data.dataset"] == "mnist5k"


def test_account_and_settings_are_inherited() -> None:
    kept = ("API_KEY", "BASE_URL", "ENTITY", "PROJECT", "MODE", "DIR", "CACHE_DIR", "INIT_TIMEOUT")
    assert not [name for name in kept if IDENTITY.match(f"WANDB_{name}")]
    assert not [name for name in INHERITED if not IDENTITY.match(name)]


def test_a_run_that_was_kept_under_too_long_a_name_is_uploaded(
    server: Server, tmp_path: Path
) -> None:
    """By an earlier version: ``wandb sync`` can upload its record never."""
    folder = tmp_path / "lr_batch"
    name = results(folder)
    code = f"import gisgd_ray.tracking.run as w; w.LONGEST_NAME = 999\n{TRIALS}"
    named = [f"{trial_id}={LONG[:200]}" for trial_id in (name, "stranger")]
    kept = ["-c", code, str(folder), "offline", *named]
    run_script(server, tmp_path, kept, PYTHONPATH=str(ROOT))
    done = sync(server, folder)
    assert done.returncode == 1
    assert "left out: the run tester/p/stranger: the journal in" in done.stderr
    (run,) = server.runs
    assert losses(server) == {name: ALL}
    assert run.display_name == f"{LONG[:115]} {name}"
    assert (run.group, run.state, run.summary["status"]) == ("g", "finished", "finished")
    assert "mnist5k" in run.tags
