"""How often the real client tells a run's points: what the requests a minute are counted from."""

import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from gisgd_ray.tracking.run import LEAST_EVERY_S, MOST_EVERY_S
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, environment

SECONDS = 31
TRIAL = f"""
import sys, time
from gisgd_ray.tracking.run import WandbRun, WandbSettings
every_s, folder = float(sys.argv[1]), sys.argv[2]
settings = WandbSettings("online", folder, "", group="g", project="p", every_s=every_s)
run = WandbRun(settings, trial_id="abc", name="abc", config={{}})
for step in range({SECONDS * 5}):
    run.log({{"step": step, "train/loss": 1.0}})
    time.sleep(0.2)
run.finish({{"status": "finished"}})
"""


def test_a_run_tells_its_points_as_seldom_as_asked_and_all_of_them(tmp_path: Path) -> None:
    asked = (LEAST_EVERY_S, 10.0, MOST_EVERY_S)
    with ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in asked]
        trials = [
            subprocess.Popen(
                [sys.executable, "-c", TRIAL, str(every_s), str(tmp_path / f"{every_s:g}")],
                env={**environment(server, tmp_path), "PYTHONPATH": str(ROOT)},
                cwd=tmp_path,
            )
            for server, every_s in zip(servers, asked, strict=True)
        ]
        assert [trial.wait(timeout=120) for trial in trials] == [0, 0, 0]
    for server, every_s in zip(servers, asked, strict=True):
        *regular, _ = [r.time for r in server.requests if r.kind == "file_stream"]
        # After 30 s without a request the client sends a sign of life, which would come between.
        assert min(b - a for a, b in pairwise(regular)) > every_s - 1
        assert len(regular) == pytest.approx(1 + SECONDS // every_s, abs=1)
        run = server.run("tester", "p", "abc")
        assert [point["step"] for point in run.history] == list(range(SECONDS * 5))
