"""A sweep whose whole cluster is lost: it ends by itself, with all that was measured."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gisgd_ray.results import ResultTables
from tests.test_faults import SMALL, Running, assert_undisturbed
from tests.test_launch import ROOT, environment, wait_until

pytestmark = pytest.mark.ray

TWO = ["--training.batch_size=20"]
"""Two trials, one for each of the machine's cores."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    status, _, err = Running(out, *TWO).end()
    assert status == 0, err
    return out / "lr_batch"


def own(driver: int, name: str) -> int:
    """The process of the driver's own Ray that runs the program of this name."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            program = (path / "cmdline").read_bytes().partition(b"\0")[0].decode()
        except OSError:
            continue
        if parent == driver and program.endswith(f"/{name}"):
            return int(path.name)
    raise AssertionError(f"the driver has no {name}")


def left_of(folder: Path) -> list[str]:
    """Processes that still write into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link).startswith(str(folder)) for link in (path / "fd").iterdir()):
                found.append((path / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("raylet", signal.SIGKILL, "its raylet has ended"),
        ("raylet", signal.SIGSTOP, "its raylet has been halted for 15 s"),
    ],
)
def test_a_lost_cluster_ends_the_sweep_which_is_resumed(
    name: str, number: int, said: str, undisturbed: Path, tmp_path: Path
) -> None:
    running = Running(tmp_path, *TWO)
    running.wait_for(lambda: len(running.checkpoints()) >= 2)
    process = own(running.process.pid, name)
    folder = private_folder_of(process)
    assert left_of(folder)
    lost = time.monotonic()
    os.kill(process, number)
    status, out, err = running.end(seconds=60)
    assert time.monotonic() - lost < 30
    assert status == 1, err
    assert (
        f"The Ray cluster was lost ({said}); what was measured is kept: the same command with "
        "--resume runs what is missing." in out
    )
    assert "Traceback" not in err
    assert (running.folder / "report.html").exists()
    assert "failed" not in set(ResultTables(running.folder).trials.get("status", []))
    wait_until(lambda: not left_of(folder), seconds=10)
    assert not folder.exists()
    status, _, err = Running(tmp_path, *TWO, "--resume").end()
    assert status == 0, err
    assert_undisturbed(running.folder, undisturbed)


def private_folder_of(process: int) -> Path:
    """Where the own Ray keeps what it needs, from one of its open files."""
    for link in Path(f"/proc/{process}/fd").iterdir():
        parts = Path(os.readlink(link)).parts
        for i, part in enumerate(parts):
            if part == f"gisgd-{os.geteuid()}":
                return Path(*parts[: i + 2])
    raise AssertionError("no file of it is in a private folder")


def test_sigterm_to_the_whole_group_ends_it_as_a_stop_does(
    undisturbed: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "sweeps" / "lr_batch.py"), f"--out={tmp_path}"),
            *(*SMALL, *TWO),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    folder = tmp_path / "lr_batch"
    wait_until(lambda: len(list(folder.glob("checkpoints/*/*.ckpt"))) >= 2)
    os.killpg(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)  # as `timeout` does: the group, and the process
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Stopping; what is finished is kept." in err
    assert "Stopped before the end: the same command with --resume runs what is missing." in out
    assert "Traceback" not in err
    assert (folder / "report.html").exists()
    assert "failed" not in set(ResultTables(folder).trials.get("status", []))
    status, _, err = Running(tmp_path, *TWO, "--resume").end()
    assert status == 0, err
    assert_undisturbed(folder, undisturbed)
