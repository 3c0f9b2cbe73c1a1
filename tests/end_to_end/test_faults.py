"""What a sweep survives, each fault inflicted for real: the outcome is that of the undisturbed one.

The trials take some seconds each and save themselves every quarter of a second.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables
from tests.runner.test_launch import ROOT, assert_same_tables, environment, wait_until
from tests.support.processes import training_below

pytestmark = pytest.mark.ray

SMALL = [
    "--scale=laptop",
    "--seeds=1",
    "--data.train_fraction=0.1",
    "--model.width=16",
    "--training.learning_rate=0.02,0.04",
    "--training.batch_size=20,40",
    "--training.stop_loss=null",
    "--training.max_epochs=200",
    "--checkpoint-every=0.25",
]


class Running:
    """A sweep in a process of its own, and the processes of its trials."""

    def __init__(self, out: Path | str, *arguments: str, program: list[str] | None = None):
        self.folder = Path(out) / "lr_batch"
        script = program or [str(ROOT / "sweeps" / "lr_batch.py")]
        self.process = subprocess.Popen(
            [sys.executable, *script, f"--out={out}", *SMALL, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def workers(self) -> list[int]:
        """Processes that train: descendants of the driver, by way of Ray's."""
        return training_below(self.process.pid)

    def wait_for(self, condition: Callable[[], object], seconds: float = 120) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, seconds=seconds)
        assert self.process.poll() is None, self.process.communicate()

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoints/*/*.ckpt"))

    def newest(self) -> dict[str, int]:
        """The step of the newest checkpoint by trial."""
        steps: dict[str, int] = {}
        for path in self.checkpoints():
            steps[path.parent.name] = max(int(path.stem), steps.get(path.parent.name, 0))
        return steps

    def tell_recovery(self, what: str) -> None:
        """Wait until a trial has gone on from its checkpoint, and print how long it took."""
        begun, known = time.monotonic(), self.newest()
        # Further, or to its end, which for one that was nearly there comes without another.
        self.wait_for(lambda: any(self.newest().get(name) != known[name] for name in known))
        print(f"{what}: trained on after {time.monotonic() - begun:.1f} s")

    def end(self, seconds: float = 240) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


def sweep(out: Path, *arguments: str) -> tuple[int, str, str]:
    return Running(out, *arguments).end()


def told_again(folder: Path) -> int:
    """How many trials went on from a checkpoint."""
    journals = (folder / "journal").glob("*.jsonl")
    return sum('"whole": true' in path.read_text() for path in journals)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    status, _, err = sweep(out)
    assert status == 0, err
    assert told_again(out / "lr_batch") == 0
    return out / "lr_batch"


def assert_undisturbed(folder: Path, undisturbed: Path) -> None:
    """Every row, every point and every step to the bit; no checkpoint is left behind."""
    assert_same_tables(folder, undisturbed)
    for trial_id in ResultTables(undisturbed).trials["trial_id"]:
        found, true = (ResultTables(f).steps(trial_id) for f in (folder, undisturbed))
        pd.testing.assert_frame_equal(found, true, check_exact=True)
    assert not list(folder.glob("checkpoints/*/*"))


def test_killed_trials_go_on_from_their_checkpoints(undisturbed: Path, tmp_path: Path) -> None:
    running = Running(tmp_path)
    for _ in range(2):
        reached = running.newest()
        running.wait_for(
            lambda known=reached: any(
                step > known.get(name, 0) + 200 for name, step in running.newest().items()
            )
        )
        assert running.workers()
        for pid in running.workers():
            os.kill(pid, signal.SIGKILL)
        running.tell_recovery("trials killed")
    status, out, err = running.end()
    assert status == 0, err
    assert "4 finished in" in out
    assert re.search(r"\d+ times a trial was lost, and taken up again", out)
    assert told_again(running.folder) >= 2
    assert_undisturbed(running.folder, undisturbed)


def test_a_notice_makes_a_trial_save_itself_at_once(undisturbed: Path, tmp_path: Path) -> None:
    # By the schedule it would be ten minutes.
    running = Running(tmp_path, "--checkpoint-every=600")
    # Not for their first reports: after those a trial may have less than a second to go.
    running.wait_for(lambda: len(running.workers()) >= 2)
    time.sleep(1)
    assert not running.checkpoints()
    told = time.monotonic()
    for pid in running.workers():
        os.kill(pid, signal.SIGTERM)
    running.wait_for(lambda: len(running.checkpoints()) >= 2, seconds=10)
    assert time.monotonic() - told < 10
    for pid in running.workers():
        os.kill(pid, signal.SIGKILL)
    status, _, err = running.end()
    assert status == 0, err
    assert told_again(running.folder) >= 2
    assert_undisturbed(running.folder, undisturbed)


def test_a_lost_driver_is_resumed_and_a_damaged_checkpoint_passed_over(
    undisturbed: Path, tmp_path: Path
) -> None:
    running = Running(tmp_path)
    running.wait_for(
        lambda: len(running.checkpoints()) >= 4 and len(list(running.folder.glob("journal/*"))) >= 2
    )
    workers = running.workers()
    assert workers
    running.process.kill()
    running.process.communicate()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=60)
    newest = max(running.checkpoints(), key=lambda path: int(path.stem))
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = Running(tmp_path, "--resume")
    resumed.tell_recovery("driver killed, from the start of --resume")
    status, _, err = resumed.end()
    assert status == 0, err
    assert told_again(running.folder) >= 1
    assert_undisturbed(running.folder, undisturbed)


def test_a_second_driver_on_the_folder_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    running = Running(tmp_path)
    running.wait_for(lambda: list(running.folder.glob("journal/*.jsonl")))
    running.process.send_signal(signal.SIGSTOP)  # it shall not be over before the second asks
    status, _, err = sweep(tmp_path, "--resume")
    running.process.send_signal(signal.SIGCONT)
    assert status == 2
    assert err.strip().splitlines()[-1] == (
        f"error: another sweep is writing to {running.folder}; wait for it or choose another --out"
    )
    assert running.end()[0] == 0
    assert_undisturbed(running.folder, undisturbed)


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
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@needs_mount
def test_a_disk_that_fills(undisturbed: Path, small_disk: Path) -> None:
    running = Running(small_disk)
    running.wait_for(lambda: running.checkpoints())
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'filler'}"], capture_output=True)
    status, _, err = running.end()
    assert status == 2
    assert "No space left on device" in err.splitlines()[-1]
    assert "then run the same command with --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    (small_disk / "filler").unlink()
    status, _, err = sweep(small_disk, "--resume")
    assert status == 0, err
    assert_undisturbed(running.folder, undisturbed)


@pytest.fixture
def immutable() -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only, for root as well; undone in the end."""
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        done = subprocess.run(["chattr", "-R", "+i", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot make a folder read-only here: {done.stderr.strip()}")

    yield make
    for folder in made:
        subprocess.run(["chattr", "-R", "-i", str(folder)], check=True)


@needs_mount
def test_a_folder_that_becomes_read_only(
    undisturbed: Path, tmp_path: Path, immutable: Callable[[Path], None]
) -> None:
    running = Running(tmp_path)
    running.wait_for(lambda: running.checkpoints() and list(running.folder.glob("journal/*")))
    immutable(running.folder)
    status, _, err = running.end()
    assert status == 2
    assert "Operation not permitted" in err.splitlines()[-1]
    assert "then run the same command with --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    subprocess.run(["chattr", "-R", "-i", str(running.folder)], check=True)
    status, _, err = sweep(tmp_path, "--resume")
    assert status == 0, err
    assert_undisturbed(running.folder, undisturbed)


OUT_OF_MEMORY = """
import sys
from gisgd_ray.runner import launch
from gisgd_ray.runner import trainable
from gisgd_ray.training import loop as training
from gisgd_ray.runner.main import main
from sweeps.lr_batch import SWEEP

class Small(trainable.TrialTrainable):
    # Stands for a machine on which one of the trials does not fit beside another.
    def _advance(self):
        import ray
        room = ray.get_runtime_context().get_assigned_resources()
        t = self._trial.training
        if (t.learning_rate, t.batch_size) == (0.04, 40) and room["CPU"] < 2:
            raise MemoryError("not beside another")
        return super()._advance()

Small.__name__ = "TrialTrainable"
trainable.TrialTrainable = Small
sys.exit(main(SWEEP, sys.argv[1:]))
"""


def test_out_of_memory_in_one_trial_gives_it_more_room(undisturbed: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, program=["-c", OUT_OF_MEMORY])
    status, out, err = running.end()
    assert status == 0, err
    assert "1 trial ran out of memory with 1 CPU each; run again with 2 CPUs" in err
    assert "4 finished" in out
    assert_undisturbed(running.folder, undisturbed)
    assert sorted(ResultTables(running.folder).trials["resources/cpus"]) == [1, 1, 1, 2]


FAILING = """
import os, sys
from gisgd_ray.runner import trainable
from gisgd_ray.training import loop as training
from gisgd_ray.errors import UserError
from gisgd_ray.runner.main import main
from sweeps.lr_batch import SWEEP

class Failing(trainable.TrialTrainable):
    def _advance(self):
        t = self._trial.training
        if (t.learning_rate, t.batch_size) == (0.04, 40):
            state = self._checkpoints.newest()  # as any later attempt finds it
            if state is not None and state.step > 500:
                with open(os.environ["ATTEMPTS"], "a") as file:
                    file.write("one more; ")
                raise ConnectionError("the network is gone")
        if (t.learning_rate, t.batch_size) == (0.04, 20):
            raise UserError("a setting that does not work")
        if (t.learning_rate, t.batch_size) == (0.02, 40):
            training.learning_rate = broken
        else:
            training.learning_rate = sound
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


def test_a_trial_that_keeps_failing_ends_as_failed_with_its_traceback(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTEMPTS", str(tmp_path / "attempts"))
    running = Running(tmp_path, "--retries=2", program=["-c", FAILING])
    status, out, err = running.end()
    assert status == 1, err
    trials = ResultTables(running.folder).trials
    failed = trials[trials["status"] == "failed"]
    keys = zip(failed["training.learning_rate"], failed["training.batch_size"], strict=True)
    errors = dict(zip(keys, failed["error"], strict=True))
    assert sorted(errors) == [(0.02, 40), (0.04, 20), (0.04, 40)]
    assert "ConnectionError: the network is gone" in errors[0.04, 40]
    assert "UserError: a setting that does not work" in errors[0.04, 20]
    assert "ZeroDivisionError: division by <object object at 0x" in errors[0.02, 40]
    assert all('File "' in text and "in _advance" in text for text in errors.values())
    page = (running.folder / "report.html").read_text()
    assert "the network is gone" in page
    # The first attempt got somewhere, two more no further; a network may come back.
    attempts = (tmp_path / "attempts").read_text()
    assert attempts.count("one more") == 3
    # The same at the same step again: no third attempt would do better.
    assert attempts.count("broken") == 2
    assert "3 times a trial failed, and was tried again." in out
    assert "was lost" not in out
    # Tried again by hand, from where it was.
    status, _, err = sweep(tmp_path, "--resume")
    assert status == 0, err
    assert_undisturbed(running.folder, undisturbed)


def test_finished_trials_are_taken_from_another_folder(undisturbed: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in undisturbed.rglob("*.parquet")}
    status, out, err = sweep(tmp_path, f"--reuse={undisturbed}", "--training.batch_size=20,40,80")
    assert status == 0, err
    assert "6 finished (4 from an earlier launch)" in out
    folder = tmp_path / "lr_batch"
    assert_same_tables(folder, undisturbed)
    # Not even their times are new.
    ours = ResultTables(folder).trials.set_index("trial_id")
    theirs = ResultTables(undisturbed).trials.set_index("trial_id")
    assert ours.loc[theirs.index, "time/training_s"].equals(theirs["time/training_s"])
    assert {p: p.read_bytes() for p in undisturbed.rglob("*.parquet")} == before
    status, _, err = sweep(tmp_path / "other", f"--reuse={tmp_path / 'nothing'}")
    assert status == 2
    assert "holds no results" in err


def test_damaged_tables_are_made_again_from_the_journals(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "lr_batch"
    shutil.copytree(undisturbed, folder)
    for path in folder.rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_undisturbed(folder, undisturbed)
    # A journal whose last line was cut off by a crash tells all but that line.
    journal = next((folder / "journal").glob("*.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-10])
    assert Journal(folder).read(journal.stem).row is None
    # And what a driver leaves that is lost between a trial's row and its checkpoints' end.
    other = next(path for path in (folder / "journal").glob("*.jsonl") if path != journal)
    left = [folder / "checkpoints" / other.stem / "000000000100.ckpt"]
    left.append(other.with_name(other.name + ".partial"))
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    status, _, err = sweep(tmp_path, "--resume")
    assert status == 0, err
    assert_undisturbed(folder, undisturbed)
    assert not any(path.exists() for path in left)
