"""A sweep whose whole cluster is lost: it ends by itself, with all that was measured."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from tests.support.launches import ROOT, Launch, assert_undisturbed, environment, wait_until
from tests.support.processes import left_of, own, private_folder_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

TWO = "--training.batch_size=20"
"""Two trials, one for each of the machine's cores."""


OUTLIVING = """
import time
from gisgd_ray.runner import cluster
from gisgd_ray.runner.handover import Handover, handed_over

cluster.connect(address="local")
from ray._private import worker
with handed_over(Handover("/nowhere", {})):
    worker._global_node.all_processes["gcs_server"][0].process.kill()
print("left", flush=True)
time.sleep(65)
print("written down", flush=True)
"""


LEAVING = """
import os, sys, time
from gisgd_ray.runner import cluster

cluster.connect(address="local")
from ray import tune
tune.register_trainable("one", lambda config: None)
from ray._private import worker
name, number = sys.argv[1:]
os.kill(worker._global_node.all_processes[name][0].process.pid, int(number))
time.sleep(1)
cluster.leave(3)
sys.exit(3)
"""


@pytest.fixture(scope="module")
def outliving() -> Iterator[subprocess.Popen[str]]:
    """A driver that has lost its cluster, and has more to do than a minute's work."""
    with subprocess.Popen(
        [sys.executable, "-c", OUTLIVING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    ) as process:
        yield process
        process.kill()


def test_lost_clusters_end_their_sweeps_which_are_resumed(
    undisturbed: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    lose(Launch(tmp_path, TWO), signal.SIGKILL, "its raylet has ended")
    lose(Launch(tmp_path, TWO, "--resume"), signal.SIGSTOP, "its raylet has been halted for 15 s")
    request.getfixturevalue("outliving")  # which is at work from here on
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


def test_a_driver_goes_on_without_its_cluster(outliving: subprocess.Popen[str]) -> None:
    out, err = outliving.communicate(timeout=120)
    assert (outliving.returncode, out.splitlines()) == (0, ["left", "written down"]), err


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("raylet", signal.SIGSTOP),
        ("gcs_server", signal.SIGSTOP),
        ("gcs_server", signal.SIGTERM),
        ("raylet", signal.SIGKILL),
    ],
)
def test_a_driver_is_not_held_by_a_ray_that_is_gone_at_its_end(name: str, number: int) -> None:
    command = [sys.executable, "-c", LEAVING, name, str(int(number))]
    done = subprocess.run(command, env=environment(), cwd=ROOT, timeout=60)
    assert done.returncode == 3
