"""Five hundred trials of a second: what is not training, the driver's memory, reading back."""

import os
import tempfile
import time
from pathlib import Path

from benchmarks.timing import verdict
from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.cluster import connect
from gisgd_ray.runner.launch import launch
from gisgd_ray.runner.location import Location
from tests.support.sweep_runs import job

TRIALS = 500
CORES = 2
SECOND = {"training.max_steps": 250, "training.stop_loss": None, "data.train_fraction": 0.25}


def run() -> bool:
    """Under a Ray of its own on this machine."""
    import ray

    os.environ["WANDB_MODE"] = "disabled"
    columns = ("time/training_s", "time/measuring_s")
    trials = [
        TrialConfig.model_validate(unflatten({**SECOND, "seed": seed})) for seed in range(TRIALS)
    ]
    connect(address="local")
    with tempfile.TemporaryDirectory() as out:
        location = Location.of(out, "scale")
        # Ray, Tune and pandas are loaded by a first small launch, and counted before it ends.
        launch(job(trials[:4], location))
        before = resident()
        begun = time.perf_counter()
        launch(job(trials, location))
        wall = time.perf_counter() - begun
        grown = (resident() - before) / 1e6
        begun = time.perf_counter()
        tables = ResultTables(Path(out) / "scale")
        rows, points = len(tables.trials), len(tables.history)
        reading = time.perf_counter() - begun
        times = tables.trials[list(columns)].to_dict("records")
    ray.shutdown()
    busy = [sum(row[column] for column in columns) for row in times[4:]]
    print(
        f"scale: {rows} trials of {sum(busy) / len(busy):.2f} s, {points} points, {CORES} at a "
        f"time, {wall:.0f} s"
    )
    share = 1 - sum(busy) / CORES / wall
    met = verdict("share of wall time not training or measuring", share, at_most=0.2)
    met &= verdict("driver's memory grown by, MB", grown, at_most=50)
    return verdict("results read back in, s", reading, at_most=2) and met


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
