"""The whole path under a local Ray: one process per launch, as a user starts it.

The trials are tiny (400 digits, width 16), so that a launch costs little more than Ray's start.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner import cli
from gisgd_ray.runner.plan import make_plan
from gisgd_ray.training.loop import advance, summary
from gisgd_ray.training.loop import start as start_run
from sweeps.lr_batch import SWEEP

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
SMALL = [
    "--scale=laptop",
    "--seeds=1",
    "--data.train_fraction=0.1",
    "--model.width=16",
    "--training.learning_rate=0.1,0.2",
    "--training.batch_size=20,40",
    "--training.stop_loss=0.5",
]


def command(out: Path, *arguments: str) -> list[str]:
    script = str(ROOT / "sweeps" / "lr_batch.py")
    return [sys.executable, script, f"--out={out}", *SMALL, *arguments]


def environment(**more: str) -> dict[str, str]:
    # Never join a cluster that happens to run on this host; no W&B unless a test asks for it.
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "GISGD_DATA")}
    return {**kept, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", **more}


def sweep(out: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(out, *arguments),
        capture_output=True,
        text=True,
        timeout=240,
        env=environment(**more),
    )


def start(out: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(out, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def wait_until(condition: object, *, seconds: float = 120) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)


def comparable(frame: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Everything but the times, which no two runs share, W&B, which not all tests use, the room,
    which a trial may be given more of, and the machine."""
    others = ("time/", "resources/", "wandb/status", "hostname")
    apart = [c for c in frame.columns if c.startswith(others)]
    return frame.drop(columns=apart).sort_values(order).reset_index(drop=True)


def assert_same_tables(found: Path, true: Path) -> None:
    """Every trial of ``true`` is the same in ``found``, which may hold others as well."""
    ours = list(ResultTables(true).trials["trial_id"])
    for table, order in (("trials", ["trial_id"]), ("history", ["trial_id", "step"])):
        frames = [getattr(ResultTables(f), table) for f in (found, true)]
        mine, theirs = (comparable(f[f["trial_id"].isin(ours)], order) for f in frames)
        pd.testing.assert_frame_equal(mine, theirs, check_like=True, check_dtype=False)


def checkpoints_in(folder: Path) -> list[Path]:
    """Of the one trial there is, newest first."""
    return sorted(folder.glob("checkpoints/*/*.ckpt"), reverse=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small sweep with W&B offline; its folder."""
    out = tmp_path_factory.mktemp("undisturbed")
    done = sweep(out, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("Scale laptop: asked for with --scale; ")
    return out / "lr_batch"


def test_everything_that_a_sweep_leaves(undisturbed: Path) -> None:
    tables = ResultTables(undisturbed)
    trials, history = tables.trials, tables.history
    assert len(trials) == 4
    assert set(trials["status"]) == {"finished"}
    assert set(trials["wandb/status"]) == {"offline"}
    assert set(trials["stop_reason"]) == {"stop_loss"}
    assert set(history["trial_id"]) == set(trials["trial_id"])
    for row in trials.itertuples():
        steps = tables.steps(row.trial_id)
        assert len(steps) == row.steps
        assert list(steps["step"]) == list(range(1, row.steps + 1))
        mine = history[history["trial_id"] == row.trial_id]
        assert list(mine["step"]) == sorted(set(mine["step"]))
        assert mine["step"].iloc[-1] == row.steps
        runs = list(undisturbed.glob(f"wandb/offline-run-*-{row.trial_id}/*.wandb"))
        assert len(runs) == 1
    for name in ("figures/figure6.pdf", "figures/figure6.svg", "report.html"):
        assert (undisturbed / name).stat().st_size > 1000


def test_every_bound_can_be_recomputed_from_the_tables(undisturbed: Path) -> None:
    tables = ResultTables(undisturbed)
    for _, row in tables.trials.iterrows():
        last = tables.history.query("trial_id == @row.trial_id").iloc[-1]
        r, n, trace = (
            row["measure/subgaussian_constant"],
            row["num_samples"],
            row["measure/hessian_trace"],
        )
        steps = tables.steps(row["trial_id"])
        r_steps = (steps["loss_max"].max() - steps["loss_min"].min()) / 2
        assert r == pytest.approx(r_steps, rel=1e-12)
        for column, source, per_step in (
            ("bound/theorem2_closed_form", "sum/lr2_dispersion", "gradient_dispersion"),
            ("bound/lemma7", "sum/lr2_gradient_norm2", "squared_gradient_norm"),
        ):
            total = (steps["learning_rate"] ** 2 * steps[per_step]).sum()
            assert last[source] == pytest.approx(total, rel=1e-9)
            by_hand = 1.5 * (r**2 * last["step"] / n * last[source] * trace) ** (1 / 3)
            assert row[column] == pytest.approx(by_hand, rel=1e-6)
        factor = r**2 * row["steps"] / n * row["sum/lr2_dispersion"]
        assert row["term/trajectory_factor"] == pytest.approx(factor, rel=1e-6)
        assert row["term/flatness_factor"] == trace


def test_a_second_start_is_refused(undisturbed: Path) -> None:
    before = (undisturbed / "trials.parquet").read_bytes()
    done = sweep(undisturbed.parent)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "already holds 4 finished of these 4 trials; add --resume" in line
    assert (undisturbed / "trials.parquet").read_bytes() == before


def test_resume_adds_only_what_is_new(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(undisturbed.parent), str(out)], check=True)
    done = sweep(out, "--resume", "--training.batch_size=20,40,80")
    assert done.returncode == 0, done.stderr
    assert "6 finished (4 from an earlier launch)" in done.stdout
    old, new = ResultTables(undisturbed).trials, ResultTables(out / "lr_batch").trials
    kept = new[new["trial_id"].isin(old["trial_id"])]
    # Bit for bit and with the same times: they were not run again.
    shared = [c for c in old.columns if c in kept.columns]
    pd.testing.assert_frame_equal(
        kept[shared].sort_values("trial_id").reset_index(drop=True),
        old[shared].sort_values("trial_id").reset_index(drop=True),
        check_dtype=False,
    )


def test_failing_and_diverging_trials_and_a_broken_wandb_do_not_stop_the_others(
    tmp_path: Path,
) -> None:
    # Where W&B would put its runs there is a file.
    (tmp_path / "lr_batch").mkdir()
    (tmp_path / "lr_batch" / "wandb").write_text("")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(b"not an IDX file")
    done = sweep(
        tmp_path,
        "--data.dataset=mnist5k,mnist",
        "--training.batch_size=20",
        "--training.learning_rate=0.2,1e4",
        GISGD_DATA=str(tmp_path),
        WANDB_MODE="offline",
    )
    assert done.returncode == 1, done.stderr
    trials = ResultTables(tmp_path / "lr_batch").trials
    statuses = trials.groupby(["data.dataset", "training.learning_rate"])["status"].first()
    assert statuses["mnist5k", 0.2] == "finished"
    assert statuses["mnist5k", 1e4] == "diverged"
    assert statuses["mnist", 0.2] == statuses["mnist", 1e4] == "failed"
    failed = trials.query("status == 'failed'").iloc[0]
    assert "DataError" in failed["error"]
    assert "is damaged" in failed["error"]
    assert "GISGD_DATA" in failed["error"]
    diverged = trials.query("status == 'diverged'").iloc[0]
    assert "batch loss" in diverged["stop_reason"]
    history = ResultTables(tmp_path / "lr_batch").history
    assert len(history.query("trial_id == @diverged.trial_id")) >= 1
    assert "failed: trial" in done.stderr
    ended = trials.query("status != 'failed'")
    assert ended["wandb/status"].str.startswith("off: ").all(), ended["wandb/status"].tolist()
    assert "W&B was switched off for some trials" in done.stderr


def test_stopped_in_mid_sweep_and_resumed_equals_undisturbed(
    undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lr_batch"

    ours = set(ResultTables(undisturbed).trials["trial_id"])

    def finished() -> set[str]:
        journal = Journal(folder)
        return {name for name in journal.trial_ids() if journal.read_row(name) is not None}

    # Ten seeds of each point keep it busy; the seeds 0 among them are the undisturbed sweep's.
    process = start(tmp_path, "--seeds=10")
    wait_until(lambda: finished() & ours or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    before = finished()
    assert before & ours, err
    assert len(before) < 40
    assert process.returncode == 130, err
    assert "--resume" in out
    assert "Traceback" not in err
    assert set(ResultTables(folder).trials["trial_id"]) == before
    assert (folder / "report.html").exists()
    done = sweep(tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert f"4 finished ({len(before & ours)} from an earlier launch)" in done.stdout
    # What else had finished stays in the tables, though this launch did not ask for it.
    assert set(ResultTables(folder).trials["trial_id"]) == before | ours
    assert_same_tables(folder, undisturbed)


FULL_DISK = """
import errno, os, sys
from types import SimpleNamespace
from gisgd_ray.results import journal
from gisgd_ray.runner.main import main
from sweeps.lr_batch import SWEEP
calls = []
def fsync(fd):
    calls.append(fd)
    if len(calls) > 4:
        raise OSError(errno.ENOSPC, "No space left on device")
    os.fsync(fd)
journal.os = SimpleNamespace(fsync=fsync, SEEK_END=os.SEEK_END)
sys.exit(main(SWEEP, sys.argv[1:]))
"""


def test_a_full_disk_is_told_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"--out={tmp_path}", *SMALL],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert done.returncode == 2, done.stderr
    folder = tmp_path / "lr_batch"
    assert done.stderr.splitlines()[-1] == (
        f"error: results can no longer be written to {folder} (No space left on device); what was "
        "measured before is kept: make room, then run the same command with --resume"
    )
    assert "Traceback" not in done.stderr
    assert Journal(folder).trial_ids()


def test_a_trial_killed_between_checkpoints_continues_bit_for_bit(tmp_path: Path) -> None:
    folder = tmp_path / "lr_batch"
    # Several seconds of one trial, a checkpoint with every report.
    one = [
        "--training.learning_rate=0.01",
        "--training.batch_size=30",
        "--training.stop_loss=null",
        "--training.max_epochs=400",
        "--checkpoint-every=0.1",
    ]
    process = start(tmp_path, *one)
    wait_until(lambda: len(checkpoints_in(folder)) > 1 or process.poll() is not None)
    process.kill()
    process.communicate(timeout=60)
    # The crash has cut the newest one off: the one before it must do.
    newest, before = checkpoints_in(folder)[:2]
    newest.write_bytes(newest.read_bytes()[:1000])
    done = sweep(tmp_path, *one, "--resume", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert not checkpoints_in(folder)

    (row,) = ResultTables(folder).trials.to_dict("records")
    # The second launch went on from there, and told all up to there again.
    lines = (folder / "journal" / f"{row['trial_id']}.jsonl").read_text().splitlines()
    stretches = [line for line in map(json.loads, lines) if line["kind"] == "steps"]
    assert [line["after"] for line in stretches if line.get("whole")] == [0]
    assert stretches[1]["after"] >= int(before.stem)

    options = cli.parse([*SMALL, *one], prog="", description="")
    (config,) = make_plan(SWEEP.panels["laptop"], options, "laptop").trials
    state = start_run(config)
    while state.stopped is None:
        advance(state)
    unbroken = summary(state)
    for name, value in unbroken.items():
        if not name.startswith("time/"):
            assert row[name] == value or (value is None and pd.isna(row[name])), name
    steps = ResultTables(folder).steps(row["trial_id"])
    for name, values in state.series.columns().items():
        assert steps[name].to_numpy().tobytes() == values.tobytes(), name
    # The one offline run tells the trial from its first point to its last.
    (record,) = folder.glob("wandb/offline-run-*/*.wandb")
    points = len(ResultTables(folder).history)
    assert logged_points(record) == points == len(state.history)


def logged_points(record: Path) -> int:
    """Points in an offline W&B run, as W&B's own reader finds them."""
    told = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return sum(json.loads(line)["type"] == "history" for line in told.stdout.splitlines())
