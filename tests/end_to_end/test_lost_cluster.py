"""A sweep whose whole cluster is lost: it ends by itself, with all that was measured."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from tests.end_to_end.test_faults import SMALL, Running, assert_undisturbed
from tests.runner.test_launch import ROOT, environment, wait_until
from tests.support.processes import left_of, own, private_folder_of

pytestmark = pytest.mark.ray

TWO = ["--training.batch_size=20"]
"""Two trials, one for each of the machine's cores."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    status, _, err = Running(out, *TWO).end()
    assert status == 0, err
    return out / "lr_batch"


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
    assert process
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
    assert "Raylet is terminated" not in out + err
    assert (running.folder / "report.html").exists()
    assert "failed" not in set(ResultTables(running.folder).trials.get("status", []))
    wait_until(lambda: not left_of(folder), seconds=10)
    assert not folder.exists()
    status, _, err = Running(tmp_path, *TWO, "--resume").end()
    assert status == 0, err
    assert_undisturbed(running.folder, undisturbed)


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
