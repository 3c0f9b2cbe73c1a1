"""The laptop sweep from start to page, and how much of it is not training or measuring."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

from benchmarks.timing import verdict
from gisgd_ray.results.tables import ResultTables

ROOT = Path(__file__).parents[1]
CORES = 2


def run() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "sweeps/lr_batch.py", "--scale=laptop", f"--out={folder}"],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - begun
        trials = ResultTables(Path(folder) / "lr_batch").trials
    busy = float((trials["time/training_s"] + trials["time/measuring_s"]).sum())
    print(f"sweep: {len(trials)} trials, Ray {ray.__version__}, {CORES} at a time")
    met = verdict("seconds", wall, at_most=300)
    return verdict("share not training or measuring", 1 - busy / CORES / wall, at_most=0.25) and met
