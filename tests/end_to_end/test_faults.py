"""What a sweep survives, each fault inflicted for real: it ends as the undisturbed one does."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.launch import sole_driver
from tests.support.launches import Launch, assert_undisturbed, told_again
from tests.support.wandb_records import points_in

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_trials_save_themselves_at_a_notice_and_killed_go_on_from_there(
    undisturbed: Path, tmp_path: Path
) -> None:
    # By the schedule it would be ten minutes.
    running = Launch(tmp_path, "--checkpoint-every=600")
    # Not for their first reports: after those a trial may have less than a second to go.
    running.wait_for(lambda: len(running.workers()) >= 2)
    assert not running.checkpoints()
    for pid in running.workers():
        os.kill(pid, signal.SIGTERM)
    running.wait_for(lambda: len(running.checkpoints()) >= 2, seconds=30)
    for _ in range(2):
        killed = running.workers()
        assert killed
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        running.wait_for(lambda before=set(killed): len(set(running.workers()) - before) >= 2)
    status, out, err = running.end()
    assert status == 0, err
    assert "4 finished in" in out
    assert "4 times a trial was lost, and taken up again" in out
    assert told_again(running.folder) >= 2
    assert_undisturbed(running.folder, undisturbed)


def test_stacks_that_are_killed_go_on_each_trial_from_its_own_checkpoint(
    undisturbed: Path, tmp_path: Path
) -> None:
    """Two stacks of two; the numbers are those of each alone, but for rounding."""
    running = Launch(
        tmp_path, "--checkpoint-every=600", "--trials-per-stack=2", WANDB_MODE="offline"
    )
    running.wait_for(lambda: len(running.workers()) >= 2)
    for pid in running.workers():
        os.kill(pid, signal.SIGTERM)
    running.wait_for(
        lambda: len({path.parent.name for path in running.checkpoints()}) == 4, seconds=60
    )
    killed = running.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    status, out, err = running.end()
    assert status == 0, err
    assert "4 finished in" in out
    assert "4 times a trial was lost, and taken up again" in out
    assert told_again(running.folder) == 4
    found, expected = (ResultTables(folder) for folder in (running.folder, undisturbed))
    for name in ("trials", "history"):
        keys = ["trial_id", *(["step"] if name == "history" else [])]
        ours, theirs = (getattr(t, name).set_index(keys).sort_index() for t in (found, expected))
        assert list(ours.index) == list(theirs.index)
        for column in ("train/loss", "test/loss", "measure/gradient_dispersion"):
            # Near interpolation rounding has grown, in what is by then a thousandth.
            reached = theirs[column].max()
            pd.testing.assert_series_equal(
                ours[column], theirs[column], rtol=1e-3, atol=1e-3 * reached
            )
    for trial_id, points in found.history.groupby("trial_id"):
        (record,) = running.folder.glob(f"wandb/offline-run-*-{trial_id}/*.wandb")
        assert points_in(record) == len(points)


def test_a_driver_that_is_killed_stopped_or_told_to_end_is_resumed_each_time(
    undisturbed: Path, tmp_path: Path
) -> None:
    """The last one of four brings all to its end."""
    folder = tmp_path / "lr_batch"
    first = Launch(tmp_path)

    def saved_twice() -> list[str]:
        kept = [path.parent.name for path in first.checkpoints()]
        return [name for name in kept if kept.count(name) >= 2]

    first.wait_for(lambda: saved_twice() and list(folder.glob("journal/*")))
    message = f"another sweep is writing to {folder}; wait for it or choose another --out"
    with pytest.raises(UserError) as refused, sole_driver(folder):
        pass
    assert str(refused.value) == message
    first.lose()
    # The crash has cut the newest checkpoint off: the one before it must do.
    trial = saved_twice()[0]
    damaged = folder / "checkpoints" / trial / f"{first.newest()[trial]:012d}.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-100])

    second = Launch(tmp_path, "--resume")
    second.wait_for_recovery("driver killed, from the start of --resume")
    # It tells all up to there again: what was told before may be lost with the driver.
    journal = folder / "journal" / f"{trial}.jsonl"
    second.wait_for(lambda: journal.exists() and '"whole": true' in journal.read_text())
    second.signal(signal.SIGINT)
    assert_stopped(second)

    third = Launch(tmp_path, "--resume", own_group=True)
    third.wait_for_recovery("driver stopped, from the start of --resume")
    os.killpg(third.process.pid, signal.SIGTERM)
    third.signal(signal.SIGTERM)  # as `timeout` does: the group, and the process
    assert_stopped(third)

    done = set(ResultTables(folder).trials.get("trial_id", []))
    status, out, err = Launch(tmp_path, "--resume", WANDB_MODE="offline").end()
    assert status == 0, err
    assert (f"4 finished ({len(done)} from an earlier launch)" if done else "4 finished in") in out
    assert_undisturbed(folder, undisturbed)
    # The one offline run of a trial has its points from the first to the last.
    for name, points in ResultTables(folder).history.groupby("trial_id"):
        if name not in done:
            (record,) = folder.glob(f"wandb/offline-run-*-{name}/*.wandb")
            assert points_in(record) == len(points)


def assert_stopped(launch: Launch) -> None:
    """By the user or a scheduler: in order, with what was finished kept."""
    status, out, err = launch.end(seconds=120)
    assert status == 130, err
    assert "Stopping; what is finished is kept." in err
    assert "Stopped before the end: the same command with --resume runs what is missing." in out
    assert "Traceback" not in err
    journal, tables = Journal(launch.folder), ResultTables(launch.folder)
    finished = {name for name in journal.trial_ids() if journal.read_row(name) is not None}
    assert len(finished) < 4
    assert set(tables.trials.get("trial_id", [])) == finished
    assert "failed" not in set(tables.trials.get("status", []))
    assert (launch.folder / "report.html").exists()


needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="needs root, to mount a small disk"
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)])
    if made.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        yield path
    finally:
        subprocess.run(["chattr", "-R", "-i", str(path)], capture_output=True)
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@needs_mount
def test_a_disk_that_fills_and_a_folder_that_becomes_read_only(
    undisturbed: Path, small_disk: Path
) -> None:
    full = Launch(small_disk)
    full.wait_for(full.checkpoints)
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'filler'}"], capture_output=True)
    assert_cannot_write(full, "No space left on device")
    (small_disk / "filler").unlink()

    locked = Launch(small_disk, "--resume")
    locked.wait_for_recovery("a full disk, from the start of --resume")
    done = subprocess.run(["chattr", "-R", "+i", str(locked.folder)], capture_output=True)
    if not done.returncode:  # for root as well
        assert_cannot_write(locked, "Operation not permitted")
        subprocess.run(["chattr", "-R", "-i", str(locked.folder)], check=True)
        locked = Launch(small_disk, "--resume")
    status, _, err = locked.end()
    assert status == 0, err
    assert_undisturbed(locked.folder, undisturbed)


def assert_cannot_write(launch: Launch, reason: str) -> None:
    status, _, err = launch.end()
    assert status == 2
    assert err.splitlines()[-1] == (
        f"error: results can no longer be written to {launch.folder} ({reason}); what was measured "
        "before is kept: make room, then run the same command with --resume"
    )
    assert "Traceback" not in err


FAILING = """
import os, sys
import ray
from gisgd_ray.runner import trainable
from gisgd_ray.training import loop as training
from gisgd_ray.errors import UserError
from gisgd_ray.runner.main import main
from sweeps.lr_batch import SWEEP

class Failing(trainable.TrialTrainable):
    def _advance(self):
        (member,) = self._members
        t = member.trial.training
        which = (t.learning_rate, t.batch_size)
        if which == (0.04, 40):
            state = member._checkpoints.newest()  # as any later attempt finds it
            if state is not None and state.step > 500:
                with open(os.environ["ATTEMPTS"], "a") as file:
                    file.write("one more; ")
                raise ConnectionError("the network is gone")
        if which == (0.04, 20):
            raise UserError("a setting that does not work")
        # Stands for a machine on which one of the trials does not fit beside another.
        if which == (0.02, 20) and ray.get_runtime_context().get_assigned_resources()["CPU"] < 2:
            raise MemoryError("not beside another")
        training.learning_rate = broken if which == (0.02, 40) else sound
        return super()._advance()

sound = training.learning_rate

def broken(config, epoch):
    # As a scheme of one's own that cannot go on: at the same step every time.
    if epoch == 120:
        with open(os.environ["ATTEMPTS"], "a") as file:
            file.write("broken; ")
        raise ZeroDivisionError(f"division by {object()}")
    return sound(config, epoch)

Failing.__name__ = "TrialTrainable"
trainable.TrialTrainable = Failing
trainable.REPORT_S = 0.3
sys.exit(main(SWEEP, sys.argv[1:]))
"""


def test_trials_that_fail_or_diverge_or_lack_memory_and_a_broken_wandb_stop_no_other(
    undisturbed: Path, tmp_path: Path
) -> None:
    # Where W&B would put its runs there is a file.
    (tmp_path / "lr_batch").mkdir()
    (tmp_path / "lr_batch" / "wandb").write_text("")
    rates = "--training.learning_rate=0.02,0.04,1e4"
    attempts = tmp_path / "attempts"
    running = Launch(
        tmp_path, "--retries=2", rates, program=FAILING, ATTEMPTS=str(attempts),
        WANDB_MODE="offline",
    )  # fmt: skip
    status, out, err = running.end()
    assert status == 1, err
    tables = ResultTables(running.folder)
    keys = ["training.learning_rate", "training.batch_size"]
    rows = tables.trials.set_index(keys)
    errors = rows.loc[rows["status"] == "failed", "error"]
    assert sorted(errors.index) == [(0.02, 40), (0.04, 20), (0.04, 40)]
    assert "ConnectionError: the network is gone" in errors[0.04, 40]
    assert "UserError: a setting that does not work" in errors[0.04, 20]
    assert "ZeroDivisionError: division by <object object at 0x" in errors[0.02, 40]
    assert all('File "' in text and "in _advance" in text for text in errors)
    assert "failed: trial" in err
    assert "the network is gone" in (running.folder / "report.html").read_text()
    # The first attempt got somewhere, two more no further; a network may come back.
    assert attempts.read_text().count("one more") == 3
    # The same at the same step again: no third attempt would do better.
    assert attempts.read_text().count("broken") == 2
    assert "3 times a trial failed, and was tried again." in out
    assert "was lost" not in out

    assert "1 trial ran out of memory with 1 CPU each; run again with 2 CPUs" in err
    roomy = rows.loc[0.02, 20]
    assert (roomy["status"], roomy["resources/cpus"]) == ("finished", 2)

    diverged = rows.loc[1e4]
    assert set(diverged["status"]) == {"diverged"}
    assert diverged["stop_reason"].str.contains("batch loss").all()
    assert set(diverged["trial_id"]) <= set(tables.history["trial_id"])

    ended = rows.loc[rows["status"] != "failed", "wandb/status"]
    assert ended.str.startswith("off: ").all(), ended.tolist()
    assert "W&B was switched off for some trials" in err

    # Tried again by hand, those that failed go on from where they were.
    status, _, err = Launch(tmp_path, "--resume").end()
    assert status == 0, err
    assert_undisturbed(running.folder, undisturbed)
    rows = ResultTables(running.folder).trials.set_index(keys)
    assert (rows.loc[[0.02, 0.04], "resources/cpus"] == 2).sum() == 1
    assert pd.notna(rows.loc[1e4, "stop_reason"]).all()
