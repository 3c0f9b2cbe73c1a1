"""Whole sweeps under Ray: Figure 6 with few digits, in a process of its own, as a user starts it,
or in this one, on the cluster that the tests share.

The four trials take some seconds each, and may save themselves every quarter of a second.
"""

import contextlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pandas as pd

from gisgd_ray.results.tables import ResultTables
from tests.support.processes import runs, training_below

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "sweeps" / "lr_batch.py"
SMALL = [
    "--scale=laptop",
    "--seeds=1",
    "--data.train_fraction=0.1",
    "--model.width=16",
    "--training.learning_rate=0.02,0.04",
    "--training.batch_size=20,40",
    "--training.stop_loss=null",
    "--training.max_epochs=300",
    "--checkpoint-every=0.25",
]


class Said(NamedTuple):
    """How a launch ended."""

    status: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    """That of a launch with a Ray of its own; no W&B unless a test asks for it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "GISGD_DATA")}
    return {**kept, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled", **more}


class Launch:
    """A sweep in a process of its own, and the processes of its trials."""

    def __init__(
        self,
        out: Path | str,
        *arguments: str,
        program: str | None = None,
        own_group: bool = False,
        **environ: str,
    ):
        self.folder = Path(out) / "lr_batch"
        words = [f"--out={out}", *SMALL, *arguments]
        self.process = subprocess.Popen(
            [sys.executable, *(["-c", program] if program else [str(SCRIPT)]), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**environ),
            start_new_session=own_group,
        )

    def workers(self) -> list[int]:
        """Processes that train: descendants of the driver, by way of Ray's."""
        return [pid for pid in training_below(self.process.pid) if runs(pid, "train")]

    def wait_for(self, condition: Callable[[], object], seconds: float = 300) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, seconds=seconds)
        assert self.process.poll() is None, self.process.communicate()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def lose(self) -> None:
        """Kill the driver, and wait for the trials to notice."""
        workers = training_below(self.process.pid)
        assert workers
        self.process.kill()
        self.process.communicate()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=60)

    def checkpoints(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoints/*/*.ckpt"))

    def newest(self) -> dict[str, int]:
        """The step of the newest checkpoint by trial."""
        steps: dict[str, int] = {}
        for path in self.checkpoints():
            steps[path.parent.name] = max(int(path.stem), steps.get(path.parent.name, 0))
        return steps

    def wait_for_recovery(self, what: str) -> None:
        """Until two trials have gone on from their checkpoints, or the one that has any; prints how
        long that took."""
        begun, known = time.monotonic(), self.newest()

        def gone_on() -> int:
            # Further, or to the end, which for one that was nearly there comes without another.
            return sum(self.newest().get(name) != step for name, step in known.items())

        self.wait_for(lambda: gone_on() >= min(2, len(known)))
        print(f"{what}: trained on after {time.monotonic() - begun:.1f} s")

    def end(self, seconds: float = 240) -> Said:
        out, err = self.process.communicate(timeout=seconds)
        return Said(self.process.returncode, out, err)


@contextlib.contextmanager
def joining(environ: Mapping[str, str]) -> Iterator[None]:
    """Context in which this process may join the cluster that is started in ``environ``."""
    import ray

    from gisgd_ray.runner import cluster

    with mock.patch.dict(os.environ, {"WANDB_MODE": "disabled", **environ}):
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
            os.environ.pop(name, None)
        try:
            yield
        finally:
            ray.shutdown()
            cluster._use_token(False)


def here(out: Path | str, *arguments: str, **environ: str) -> Said:
    """The same sweep by its ``main``, in this process; ``environ``: of who started the cluster."""
    from gisgd_ray.runner.main import main
    from sweeps.lr_batch import SWEEP

    argv = [f"--out={out}", *SMALL, *arguments]
    said = io.StringIO(), io.StringIO()
    with (
        joining(environ),
        mock.patch.object(sys, "argv", ["sweeps/lr_batch.py", *argv]),
        contextlib.redirect_stdout(said[0]),
        contextlib.redirect_stderr(said[1]),
    ):
        status = main(SWEEP, argv)
    return Said(status, *(text.getvalue() for text in said))


def wait_until(condition: Callable[[], object], *, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.1)


def comparable(frame: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """Everything but the times, which no two runs share, W&B, which not all tests use, the room,
    which a trial may be given more of, and the machine."""
    others = ("time/", "resources/", "wandb/", "hostname")
    apart = [c for c in frame.columns if c.startswith(others)]
    kept = frame.drop(columns=apart).sort_values(order).reset_index(drop=True)
    # A column without a value has the type of what other trials have there.
    return kept.astype({name: object for name in kept if kept[name].isna().all()})


def assert_undisturbed(folder: Path, undisturbed: Path, *, trials: int = 4) -> None:
    """Rows, points and steps of so many trials are the same to the bit; other trials of either
    folder are left aside. No checkpoint is left behind."""
    found, true = ResultTables(folder), ResultTables(undisturbed)
    ids = set(true.trials["trial_id"]) & set(found.trials["trial_id"])
    assert len(ids) == trials
    for table, order in (("trials", ["trial_id"]), ("history", ["trial_id", "step"])):
        frames = [getattr(tables, table) for tables in (found, true)]
        ours, theirs = (comparable(f[f["trial_id"].isin(ids)], order) for f in frames)
        pd.testing.assert_frame_equal(
            ours, theirs, check_like=True, check_dtype=False, check_exact=True
        )
    for trial_id in ids:
        ours, theirs = found.steps(trial_id), true.steps(trial_id)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert not list(folder.glob("checkpoints/*/*"))


def told_again(folder: Path) -> int:
    """How many times a trial went on from a checkpoint."""
    journals = (folder / "journal").glob("*.jsonl")
    return sum(path.read_text().count('"whole": true') for path in journals)
