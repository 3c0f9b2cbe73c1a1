"""What tells one run from another on the server: states, tags, axes, values that are no number."""

import math
from collections.abc import Iterator
from io import BytesIO

import pytest
from pyarrow import parquet

from gisgd_ray.tracking.run import BEST
from tests.support.launches import ROOT
from tests.support.wandb_server import Server, run_script

TRIALS = """
import math, sys
from gisgd_ray.tracking.run import WandbRun, WandbSettings
settings = WandbSettings("online", sys.argv[1], "", group="g", project="p", every_s=5)
row = {"status": "diverged", "train/loss": math.inf, "gap/loss": math.nan}
steps = {"step": [1, 2], "loss": [1.0, math.inf]}
for name, *finished in (
    ("finished", {"status": "finished"}, {}),
    ("diverged", row, {"failed": True, "steps": steps}),
    ("failed", None, {"failed": True}),
):
    run = WandbRun(settings, trial_id=name, name="x", config={"scheme.name": "sgd"})
    run.log({"step": 0, "train/loss": 1.0, "test/loss": math.nan, "gap/loss": 0.5})
    run.log({"step": 10, "train/loss": math.inf, "test/loss": 2.0, "gap/loss": 0.25})
    run.finish(finished[0], **finished[1])
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Has three trials that ended differently."""
    folder = tmp_path_factory.mktemp("trials")
    with Server() as made:
        run_script(made, folder, ["-c", TRIALS, str(folder)], PYTHONPATH=str(ROOT))
        yield made
        assert made.unknown == []


@pytest.mark.parametrize(
    ("end", "state", "tags"),
    [
        ("finished", "finished", ["sgd"]),
        ("diverged", "failed", ["sgd", "diverged"]),
        ("failed", "failed", ["sgd"]),
    ],
)
def test_how_a_trial_ended_is_seen(server: Server, end: str, state: str, tags: list[str]) -> None:
    run = server.run("tester", "p", end)
    assert (run.state, run.tags) == (state, tags)
    assert run.summary.get("status") == (None if end == "failed" else end)


def test_what_is_no_number_arrives_and_hides_no_other_value(server: Server) -> None:
    run = server.run("tester", "p", "diverged")
    first, second = run.history
    assert (first["step"], first["train/loss"], first["gap/loss"]) == (0, 1.0, 0.5)
    assert math.isnan(first["test/loss"])
    assert (second["step"], second["train/loss"], second["test/loss"]) == (10, math.inf, 2.0)
    assert run.summary["train/loss"] == math.inf
    assert "gap/loss" not in run.summary  # NaN in the row: undefined, whatever it was on the way
    assert run.summary["min/train/loss"] == 1.0
    assert run.summary["min/test/loss"] == 2.0
    (steps,) = (a for a in server.artifacts if a.type == "steps")
    assert parquet.read_table(BytesIO(steps.files["steps.parquet"])).to_pydict() == {
        "step": [1, 2],
        "loss": [1.0, math.inf],
    }


def test_step_is_the_axis_and_best_and_last_are_kept(server: Server) -> None:
    run = server.run("tester", "p", "failed")
    defined = {
        metric.get("1", metric.get("2")): metric
        for metric in run.raw_config["_wandb"]["value"]["m"]
    }
    assert set(defined) == {"step", "*", *BEST}
    axis = [m.get("1") for m in run.raw_config["_wandb"]["value"]["m"]].index("step") + 1
    assert {name for name, metric in defined.items() if metric.get("5") == axis} == {"*", *BEST}
    # Numbers of MetricSummary in the client's protocol: 1 is min, 2 max, 5 last.
    for name, best in BEST.items():
        assert sorted(defined[name]["7"]) == [{"min": 1, "max": 2}[best], 5], name
    assert run.summary["gap/loss"] == {"last": 0.25, "min": 0.25}
