"""The stand-in W&B server against the real client: what arrives, and after which troubles."""

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.wandb_server import Client, ClientError, Run, Server, run_script
from tests.support.wandb_server.state import HISTORY

KEY = "k" * 40


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as started:
        yield started
        assert started.unknown == []


def points(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"step": 10 * number, "train/loss": 1.0 / (number + 1)} for number in range(start, stop)
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def assert_holds(run: Run, count: int) -> None:
    """Every point once and in order."""
    held = [{name: row[name] for name in ("step", "train/loss")} for row in run.history]
    assert held == points(0, count)
    assert [row["_step"] for row in run.history] == list(range(count))


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


def test_a_fault_meets_only_what_it_is_for(server: Server) -> None:
    asked = {"query": "query Viewer { viewer { entity } }"}
    server.fail(500, 1, "UpsertBucket")
    assert post(server, "/graphql", asked) == (200, {"data": {"viewer": {"entity": "tester"}}})
    server.fail(429, 1, "viewer")
    assert post(server, "/graphql", asked)[0] == 429
    assert post(server, "/graphql", asked)[0] == 200
    server.cut(1, "graphql")
    with pytest.raises(OSError, match="closed connection"):
        post(server, "/graphql", asked)
    with server.away(), pytest.raises(OSError, match="refused"):
        post(server, "/graphql", asked)
    assert post(server, "/graphql", asked)[0] == 200
    assert post(server, "/graphql", asked, key="short")[0] == 401
    assert server.faults.left() == 1


def test_a_run_and_its_continuation_arrive(server: Server, tmp_path: Path) -> None:
    named = {"project": "p", "id": "abc", "resume": "allow"}
    with Client(server, tmp_path) as client:
        begun = client.init(
            **named,
            name="lr=0.1",
            group="sweep",
            job_type="sgd",
            tags=["one", "two"],
            config={"training.learning_rate": 0.1, "model.widths": [3, 4]},
        )
        assert (begun["resumed"], begun["step"]) == (False, 0)
        run = server.run("tester", "p", "abc")
        assert run.state == "running"
        for point in points(0, 5):
            client.log(point)
        wait_until(lambda: len(run.history) == 5)
        client.summary(status="stopped", best={"loss": 0.2})
        client.finish(exit_code=1)
        assert (run.state, run.exit_code) == ("failed", 1)
        assert_holds(run, 5)
        assert run.summary["status"] == "stopped"
        assert run.summary["best"] == {"loss": 0.2}
        assert set(run.files) == {"config.yaml", "wandb-summary.json"}

        # Another process would be no different: what it knows of the run is the server's.
        again = client.init(**named, config={"more": None})
        assert (again["resumed"], again["step"]) == (True, 5)
        assert run.state == "running"
        client.log(*points(5, 8))
        client.summary(status="finished")
        client.finish()
    assert (run.state, run.exit_code) == ("finished", 0)
    assert_holds(run, 8)
    assert [line.offset for line in run.received_lines if line.file == HISTORY] == list(range(8))
    assert run.config == {
        "training.learning_rate": 0.1,
        "model.widths": [3, 4],
        "more": None,
    }
    assert (run.display_name, run.group, run.job_type) == ("lr=0.1", "sweep", "sgd")
    assert run.tags == ["one", "two"]
    assert run.summary["status"] == "finished"
    assert run.summary["best"] == {"loss": 0.2}
    assert server.runs == [run]


def test_a_killed_client_s_run_crashes_and_continues(tmp_path: Path) -> None:
    named = {"project": "p", "id": "abc", "resume": "allow"}
    with Server(crash_after=1.0) as server:
        with Client(server, tmp_path, TMPDIR=str(tmp_path)) as client:
            client.init(**named)
            client.log(*points(0, 3))
            run = server.run("tester", "p", "abc")
            wait_until(lambda: len(run.history) == 3)
            client.kill()
        wait_until(lambda: run.state != "running")
        assert run.state in ("crashed", "failed")
        with Client(server, tmp_path) as client:
            assert client.init(**named)["step"] == 3
            assert run.state == "running"
            client.log(*points(3, 5))
            client.finish()
        assert run.state == "finished"
        assert_holds(run, 5)
        assert server.unknown == []


def test_an_offline_run_is_synced_under_its_id(server: Server, tmp_path: Path) -> None:
    with Client(server, tmp_path, WANDB_MODE="offline") as client:
        begun = client.init(project="p", id="abc", group="sweep", config={"seed": 7})
        client.log(*points(0, 5))
        client.summary(status="finished")
        client.finish()
    assert server.requests == []
    folder = Path(begun["folder"]).parent
    run_script(server, tmp_path, ["-m", "wandb", "sync", str(folder)])
    run = server.run("tester", "p", "abc")
    assert_holds(run, 5)
    assert (run.config, run.group, run.state) == ({"seed": 7}, "sweep", "finished")
    assert run.summary["status"] == "finished"


ARTIFACT = """
import sys, wandb
from gisgd_ray.tracking import run as wandb_runs
for name in ("first", "second"):
    with wandb.init(project="p", id=name, settings=wandb_runs._slim(15.0)) as run:
        artifact = wandb.Artifact("rows", type="table", metadata={"trials": 2})
        table = wandb.Table(columns=["trial", "bound"], data=[["a", 0.5], ["b", 1.5]])
        artifact.add(table, "rows")
        with artifact.new_file("notes.txt") as file:
            file.write("two trials")
        run.log_artifact(artifact)
        artifact.wait()
        if name == "first":
            run.log({"table": table})
"""


def test_an_artifact_arrives_once(server: Server, tmp_path: Path) -> None:
    run_script(server, tmp_path, ["-c", ARTIFACT])
    rows, logged = server.artifacts
    assert (rows.name, rows.type, rows.run, rows.version) == ("rows", "table", "first", 0)
    assert rows.committed
    assert rows.metadata == {"trials": 2}
    assert rows.files["notes.txt"] == b"two trials"
    table = json.loads(rows.files["rows.table.json"])
    assert (table["columns"], table["data"]) == (["trial", "bound"], [["a", 0.5], ["b", 1.5]])
    assert set(rows.manifest["contents"]) == {"notes.txt", "rows.table.json"}
    assert (logged.type, logged.run, logged.committed) == ("run_table", "first", True)
    run = server.run("tester", "p", "first")
    assert any(name.startswith("media/table/") for name in run.files)
    assert run.history[0]["table"]["_type"] == "table-file"


REPORT = """
import wandb_workspaces.reports.v2 as wr
report = wr.Report(
    entity="tester",
    project="p",
    title="A sweep",
    blocks=[
        wr.H1("Bounds"),
        wr.PanelGrid(
            runsets=[wr.Runset(entity="tester", project="p")],
            panels=[wr.LinePlot(x="step", y=["train/loss"])],
        ),
    ],
)
report.save()
report.blocks.append(wr.P("One more."))
report.save()
loaded = wr.Report.from_url(report.url)
loaded.description = "Loaded."
loaded.save()
wr.Report(entity="tester", project="p", title="Another").save()
"""


def test_a_report_is_saved_and_updated(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    made = {"query": 'mutation M { upsertModel(input: {name: "p"}) { inserted } }'}
    assert post(server, "/graphql", made)[1] == {"data": {"upsertModel": {"inserted": True}}}
    run_script(server, tmp_path, ["-c", REPORT])
    report, another = server.reports
    assert (report["display_name"], report["description"]) == ("A sweep", "Loaded.")
    assert (report["entity"], report["project"], report["saves"]) == ("tester", "p", 3)
    text = json.dumps(report["spec"])
    assert "train/loss" in text
    assert "One more." in text
    assert (another["display_name"], another["saves"]) == ("Another", 1)


FAULTS: dict[str, Callable[[Server], object]] = {
    "429 to the stream": lambda s: s.fail(429, 3, "file_stream"),
    "429 for a second": lambda s: s.fail(429, 1, "file_stream", retry_after=1),
    "500 to the stream": lambda s: s.fail(500, 3, "file_stream"),
    "500 to everything": lambda s: s.fail(500, 4),
    "500 to an upload": lambda s: s.fail(500, 2, "storage"),
    "cut before it is done": lambda s: s.cut(2, "file_stream"),
    "cut after it is done": lambda s: s.cut(2, "file_stream", after=True),
    "slow": lambda s: s.slow(0.5, 3),
}


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Client]]:
    """A server, and a client that logs one run after another there."""
    with Server() as server, Client(server, tmp_path_factory.mktemp("client")) as client:
        yield server, client
        assert server.unknown == []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_no_point(connected: tuple[Server, Client], fault: str) -> None:
    server, client = connected
    name = fault.replace(" ", "-")
    client.init(project="p", id=name, resume="allow")
    run = server.run("tester", "p", name)
    client.log(*points(0, 1))
    wait_until(lambda: len(run.history) == 1)
    FAULTS[fault](server)
    for point in points(1, 10):
        client.log(point)
        time.sleep(0.1)
    client.finish()
    assert server.faults.left() == 0
    assert_holds(run, 10)
    assert (run.state, run.exit_code) == ("finished", 0)
    sent = [line.offset for line in run.received_lines if line.file == HISTORY]
    assert (len(sent) > 10) == (fault == "cut after it is done")


def test_a_server_that_is_away_misses_no_point(connected: tuple[Server, Client]) -> None:
    server, client = connected
    client.init(project="p", id="away", resume="allow")
    run = server.run("tester", "p", "away")
    client.log(*points(0, 3))
    wait_until(lambda: len(run.history) == 3)
    with server.away():
        for point in points(3, 9):
            client.log(point)
            time.sleep(2)  # twice what the client waits between two tries
        assert len(run.history) == 3
    client.log(*points(9, 12))
    client.finish()
    assert_holds(run, 12)
    assert run.state == "finished"


def test_a_stream_that_is_refused_ends_without_a_word(server: Server, tmp_path: Path) -> None:
    """The client takes 403 as final: ``finish`` returns, and the run never ends on the server."""
    with Client(server, tmp_path) as client:
        client.init(project="p", id="abc", resume="allow")
        run = server.run("tester", "p", "abc")
        client.log(*points(0, 2))
        wait_until(lambda: len(run.history) == 2)
        server.fail(403, 1, "file_stream")
        client.log(*points(2, 5))
        client.finish()
    assert_holds(run, 2)
    assert run.state == "running"


def test_refusals_are_told_by_init(server: Server, tmp_path: Path) -> None:
    server.deny("tester", "secret")
    with Client(server, tmp_path) as client:
        with pytest.raises(ClientError, match="permission denied"):
            client.init(project="secret")
        with pytest.raises(ClientError, match="entity nobody not found during upsertBucket"):
            client.init(project="p", entity="nobody")
        server.wrong_key()
        with pytest.raises(ClientError, match="user is not logged in"):
            client.init(project="p")
        server.heal()
        client.init(project="p", id="abc")
        client.finish()
    assert [run.id for run in server.runs] == ["abc"]
