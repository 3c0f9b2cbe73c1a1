"""The Ray that a sweep starts for itself, where the machine makes it hard."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.private_folder import TOKEN
from tests.support.launches import SCRIPT, SMALL, assert_undisturbed, environment, wait_until
from tests.support.processes import children_of, own, private_folder_of

ON_ONE_CPU = """
import os, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.ray
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_without_a_home_on_one_cpu_below_uv_and_a_long_folder(
    undisturbed: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("l" * 70)
    long.mkdir()
    # From a folder below the project's, as in `cd sweeps && uv run lr_batch.py`: Ray looks for a
    # process above its own whose command line is `uv run ...`, and would start its workers by uv.
    # Here that is a shell's.
    (tmp_path / "pyproject.toml").write_text("")
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "run").write_text('"$@"\n')
    # Somebody's results may lie there, and this among them.
    (folder / "torch.py").write_text("raise RuntimeError('another torch')")
    shell = ["bash", "-c", 'exec -a uv bash run "$@"', "bash"]
    alone = [sys.executable, "-c", ON_ONE_CPU]
    typed = [str(SCRIPT), f"--out={tmp_path / 'out'}", *SMALL, "--training.batch_size=40"]
    process = subprocess.Popen(
        [*shell, *alone, *typed],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Nobody, not even root, can make a folder below a file.
        env=environment(HOME="/dev/null", TMPDIR=str(long), WANDB_MODE="offline"),
    )

    def raylet() -> int | None:
        return next(filter(None, (own(pid, "raylet") for pid in children_of(process.pid))), None)

    wait_until(lambda: raylet() or process.poll() is not None)
    found = raylet()
    assert found, process.communicate()
    private = private_folder_of(found)
    assert len(str(private)) < 43
    # Ray opens its folder to everybody; the one above stays shut.
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (private.parent, private / TOKEN)]
    assert modes == [0o700, 0o600]
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "started Ray on this machine (1 CPUs, 0 GPUs)." in out
    assert "Traceback" not in err
    results = tmp_path / "out" / "lr_batch"
    assert_undisturbed(results, undisturbed, trials=2)
    assert set(ResultTables(results).trials["wandb/status"]) == {"offline"}
    assert not private.exists()
