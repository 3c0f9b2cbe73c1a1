"""A sweep whose whole cluster is lost: it ends by itself, with all that was measured."""

import os
import signal
import time
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from tests.support.launches import Launch, assert_undisturbed, wait_until
from tests.support.processes import left_of, own, private_folder_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TWO = "--training.batch_size=20"
"""Two trials, one for each of the machine's cores."""


def test_lost_clusters_end_their_sweeps_which_are_resumed(
    undisturbed: Path, tmp_path: Path
) -> None:
    lose(Launch(tmp_path, TWO), signal.SIGKILL, "its raylet has ended")
    lose(Launch(tmp_path, TWO, "--resume"), signal.SIGSTOP, "its raylet has been halted for 15 s")
    status, _, err = Launch(tmp_path, TWO, "--resume").end()
    assert status == 0, err
    assert_undisturbed(tmp_path / "lr_batch", undisturbed, trials=2)


def lose(running: Launch, number: int, said: str) -> None:
    """Kill or halt the raylet in mid-training; the sweep ends in order within half a minute."""
    before = running.newest()
    running.wait_for(lambda: len(running.newest()) == 2 and running.newest() != before)
    process = own(running.process.pid, "raylet")
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
