"""The main job on a GPU cluster, rehearsed without a GPU: a CPU counts as one, nothing else is
replaced (:mod:`tests.support.stand_in`)."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner import cluster
from gisgd_ray.training import loop as training
from tests.support import kinds, stand_in
from tests.support.processes import training_below
from tests.support.runs import finish

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MEMORY = 3 * stand_in.CONTEXT
"""Of the GPU, in bytes: room for two trials of less than half a context each."""
ANOTHER_PROGRAM = 5 * stand_in.CONTEXT // 4
"""Leaves room for one."""
SMALL = [
    *("--model.filters", "4", "--model.hidden", "16", "--training.max_epochs", "20"),
    *("--training.batch_size", "20", "--training.learning_rate", "0.005,0.01"),
]
TRIALS = 4
ONE = ["--panel", "mlp_mnist", "--training.batch_size", "20", "--training.learning_rate", "0.01"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Of the stand-in, on a Ray that counts a GPU and four CPUs."""
    for name, value in stand_in.prepared(tmp_path / "gpu", memory=MEMORY).items():
        monkeypatch.setenv(name, value)
    for name, value in cluster._RAY_ENVIRONMENT.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    yield tmp_path / "gpu"
    ray.shutdown()


def typed(*argv: str) -> "subprocess.Popen[str]":
    """``python sweeps/lr_batch.py`` with these words."""
    command = [sys.executable, "-m", "tests.support.rehearsed", "sweeps/lr_batch.py", *argv]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


class Watch(threading.Thread):
    """How many processes held a trial at each look, until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self.counts: list[int] = []

    def run(self) -> None:
        while not self.over.is_set():
            self.counts.append(len(training_below(os.getpid())))
            time.sleep(0.1)


def trials_on(folder: Path) -> list[int]:
    """The processes of trials that have taken memory of the GPU."""
    return [pid for pid in training_below(os.getpid()) if (folder / "taken" / str(pid)).exists()]


def until(condition: Callable[[], Any], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.05)


def test_the_main_job_from_the_command_to_the_page(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    begun = time.monotonic()
    dry = typed("--dry-run", *ONE, "--out", str(out))
    told = dry.communicate(timeout=200)[0]
    print(told)
    assert dry.returncode == 0
    assert "Scale paper: the Ray cluster has a GPU; joined the running Ray cluster" in told
    assert "Each takes 1 CPU and 0.5 of a GPU; 2 at once on 1 GPU." in told

    watch = Watch()
    watch.start()
    driver = typed(
        "--out", str(out), "--checkpoint-every", "0.3", "--trials-per-stack", "1", *SMALL
    )
    sweep = out / "lr_batch"
    try:
        until(lambda: len(trials_on(folder)) == 2, "two trials on the GPU")
        (folder / "taken" / "another program").write_text(str(ANOTHER_PROGRAM))
        until(lambda: list(sweep.glob("checkpoints/*/*.ckpt")), "a checkpoint")
        until(lambda: trials_on(folder), "a trial on the GPU")
        os.kill(trials_on(folder)[0], signal.SIGKILL)
        told = driver.communicate(timeout=250)[0]
    finally:
        driver.kill()
        watch.over.set()
        watch.join()
    print(told)
    print(f"the rehearsal took {time.monotonic() - begun:.0f} s")
    assert driver.returncode == 0

    assert told.startswith("Scale paper: the Ray cluster has a GPU; joined the running Ray cluster")
    assert f"Figure 6: {TRIALS} trials, results in" in told
    assert re.search(
        r"Each trial takes 1 CPU and 0\.5 of a GPU: the largest takes 1\.[012]\d GB of a GPU's "
        r"3\.0 GB\s+\(stand-in, measured\), and there are 4 CPUs to a GPU\.",
        told,
    )
    assert re.search(
        r"ran out of memory with 1 CPU and 0\.5 of a GPU each; run\s+again with 1 CPU and 1 of a "
        r"GPU",
        told,
    )
    assert f"{TRIALS} finished in" in told
    assert "Once a trial was lost, and taken up again." in told
    assert max(watch.counts) == 2
    tables = ResultTables(sweep)
    assert len(tables.trials) == TRIALS
    assert set(tables.trials["status"]) == {"finished"}
    assert (sweep / "report.html").exists()
    assert sorted(path.name for path in (sweep / "figures").iterdir()) == [
        "figure6.pdf",
        "figure6.svg",
    ]
    equal_to_runs_without_ray(folder, tables.trials)


def equal_to_runs_without_ray(folder: Path, trials: pd.DataFrame) -> None:
    """One trial of each network, every number of its row to the bit."""
    with pytest.MonkeyPatch.context() as patch:
        kinds.few_samples(folder / "data", patch, num_train=stand_in.NUM_TRAIN)
        for _, of_network in trials.groupby("model.name"):
            row = of_network.iloc[-1]
            trial = next(t for t in planned() if t.trial_id == row["trial_id"])
            expected = finish(training.start(trial)).row
            for name, value in expected.items():
                if isinstance(value, float) and not name.startswith("time/"):
                    assert row[name] == value or (row[name] != row[name] and value != value), name


def planned() -> list[TrialConfig]:
    from gisgd_ray.runner import cli
    from gisgd_ray.runner.plan import make_plan

    options = cli.parse(["--scale", "paper", *SMALL], prog="", description="")
    return make_plan(kinds.SWEEPS["lr_batch"].panels["paper"], options, "paper").trials
