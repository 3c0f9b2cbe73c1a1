"""The Ray that a sweep starts for itself, where the machine makes it hard."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.private_folder import TOKEN
from tests.runner.test_launch import command, environment, wait_until
from tests.support.processes import own, private_folder_of


@pytest.mark.ray
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_without_a_home_on_one_cpu_and_below_a_long_folder(tmp_path: Path) -> None:
    long = tmp_path / ("l" * 70)
    long.mkdir()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, sys\n"
            "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
            "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])",
            *command(tmp_path / "out", "--training.batch_size=40")[1:],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Nobody, not even root, can make a folder below a file.
        env=environment(HOME="/dev/null", TMPDIR=str(long), WANDB_MODE="offline"),
    )
    wait_until(lambda: own(process.pid, "raylet") or process.poll() is not None)
    raylet = own(process.pid, "raylet")
    assert raylet, process.communicate()
    folder = private_folder_of(raylet)
    assert len(str(folder)) < 43
    # Ray opens its folder to everybody; the one above stays shut.
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder / TOKEN)]
    assert modes == [0o700, 0o600]
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "started Ray on this machine (1 CPUs, 0 GPUs)." in out
    assert "Traceback" not in err
    assert set(ResultTables(tmp_path / "out" / "lr_batch").trials["wandb/status"]) == {"offline"}
    assert not folder.exists()
