"""The stand-in W&B server against the real client: what arrives, and after which troubles."""

import base64
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.launches import ROOT, wait_until
from tests.support.wandb_server import Server, environment

KEY = "k" * 40
POINTS = 25
TRIAL = f"""
import sys, time
from gisgd_ray.tracking.run import WandbRun, WandbSettings
settings = WandbSettings("online", sys.argv[1], "", group="g", project="p", every_s=1)
run = WandbRun(settings, trial_id="abc", name="abc", config={{}})
for step in range({POINTS}):
    run.log({{"step": step, "train/loss": 1.0 / (step + 1)}})
    time.sleep(0.4)
run.finish({{"status": "finished"}}, steps={{"step": [1, 2]}})
print(run.status)
"""


def post(server: Server, path: str, body: Any, key: str = KEY) -> tuple[int, Any]:
    """A request by hand."""
    request = urllib.request.Request(server.url + path, json.dumps(body).encode())
    token = base64.b64encode(f"api:{key}".encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def test_what_it_does_not_know_is_told() -> None:
    with Server() as server:
        status, answer = post(server, "/graphql", {"query": "query Q { viewer { shoeSize } }"})
        assert status == 200
        assert "shoeSize" in answer["errors"][0]["message"]
        post(server, "/graphql", {"query": "mutation M { makeTea(input: {}) { ok } }"})
        assert post(server, "/tea", {})[0] == 404
        assert server.unknown == ["Q: viewer.shoeSize", "M: makeTea", "POST /tea"]
        assert [r.operation for r in server.requests] == ["Q", "M", ""]


def test_a_fault_meets_only_what_it_is_for() -> None:
    asked = {"query": "query Viewer { viewer { entity } }"}
    with Server() as server:
        server.fail(500, 1, "UpsertBucket")
        assert post(server, "/graphql", asked) == (200, {"data": {"viewer": {"entity": "tester"}}})
        server.fail(429, 1, "Viewer")
        assert post(server, "/graphql", asked)[0] == 429
        assert post(server, "/graphql", asked)[0] == 200
        server.cut(1, "graphql")
        with pytest.raises(OSError, match="closed connection"):
            post(server, "/graphql", asked)
        with server.away(), pytest.raises(OSError, match="refused"):
            post(server, "/graphql", asked)
        assert post(server, "/graphql", asked)[0] == 200
        assert post(server, "/graphql", asked, key="short")[0] == 401
        assert server.faults_left() == 1


def is_away(server: Server) -> None:
    with server.away():
        time.sleep(4)


FAULTS: dict[str, Callable[[Server], object]] = {
    "429 to the stream": lambda s: s.fail(429, 3, "file_stream"),
    "429 for a second": lambda s: s.fail(429, 1, "file_stream", retry_after=1),
    "500 to the stream": lambda s: s.fail(500, 3, "file_stream"),
    "500 to everything": lambda s: s.fail(500, 4),
    "500 to an upload": lambda s: s.fail(500, 2, "storage"),
    "cut before it is done": lambda s: s.cut(2, "file_stream"),
    "cut after it is done": lambda s: s.cut(2, "file_stream", after=True),
    "slow": lambda s: s.slow(0.5, 3),
    "away": is_away,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Server, str]]]:
    """A server for every fault, which came after the first points, and what its trial said."""
    folder = tmp_path_factory.mktemp("trials")
    with ExitStack() as stack:
        servers = {fault: stack.enter_context(Server()) for fault in FAULTS}
        trials = {
            fault: subprocess.Popen(
                [sys.executable, "-c", TRIAL, str(folder / fault)],
                env={**environment(server, folder), "PYTHONPATH": str(ROOT)},
                cwd=folder,
                stdout=subprocess.PIPE,
                text=True,
            )
            for fault, server in servers.items()
        }
        for fault, server in servers.items():
            wait_until(lambda server=server: server.runs and server.runs[0].history, seconds=60)
            FAULTS[fault](server)
        yield {f: (servers[f], trial.communicate(timeout=90)[0]) for f, trial in trials.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_no_point(
    told: dict[str, tuple[Server, str]], fault: str
) -> None:
    server, said = told[fault]
    assert said == "online\n"
    assert server.faults_left() == 0
    assert server.unknown == []
    (run,) = server.runs
    held = [(row["step"], row["train/loss"], row["_step"]) for row in run.history]
    assert held == [(step, 1.0 / (step + 1), step) for step in range(POINTS)]
    assert (run.state, run.summary["status"]) == ("finished", "finished")
    (steps,) = server.artifacts
    assert steps.committed
    assert set(steps.files) == {"steps.parquet"}
