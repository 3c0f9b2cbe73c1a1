"""What a finished sweep leaves, and what another launch makes of that."""

import shutil
from pathlib import Path

import pytest

from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables
from tests.support.launches import assert_undisturbed, here
from tests.support.shared_ray import Head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


def test_everything_that_a_sweep_leaves(undisturbed: Path) -> None:
    tables = ResultTables(undisturbed)
    trials, history = tables.trials, tables.history
    assert len(trials) == 4
    assert set(trials["status"]) == {"finished"}
    assert set(trials["wandb/status"]) == {"offline"}
    assert set(trials["stop_reason"]) == {"max_epochs"}
    assert set(history["trial_id"]) == set(trials["trial_id"])
    for row in trials.itertuples():
        steps = tables.steps(row.trial_id)
        assert list(steps["step"]) == list(range(1, row.steps + 1))
        mine = history[history["trial_id"] == row.trial_id]
        assert list(mine["step"]) == sorted(set(mine["step"]))
        assert mine["step"].iloc[-1] == row.steps
        runs = list(undisturbed.glob(f"wandb/offline-run-*-{row.trial_id}/*.wandb"))
        assert len(runs) == 1
    for name in ("figures/figure6.pdf", "figures/figure6.svg", "report.html"):
        assert (undisturbed / name).stat().st_size > 1000
    assert not list(undisturbed.glob("checkpoints/*/*"))


def test_every_bound_can_be_recomputed_from_the_tables(undisturbed: Path) -> None:
    tables = ResultTables(undisturbed)
    for _, row in tables.trials.iterrows():
        last = tables.history.query("trial_id == @row.trial_id").iloc[-1]
        r, n, trace = (
            row["measure/subgaussian_constant"],
            row["num_samples"],
            row["measure/hessian_trace"],
        )
        steps = tables.steps(row["trial_id"])
        r_steps = (steps["loss_max"].max() - steps["loss_min"].min()) / 2
        assert r == pytest.approx(r_steps, rel=1e-12)
        for column, source, per_step in (
            ("bound/theorem2_closed_form", "sum/lr2_dispersion", "gradient_dispersion"),
            ("bound/lemma7", "sum/lr2_gradient_norm2", "squared_gradient_norm"),
        ):
            total = (steps["learning_rate"] ** 2 * steps[per_step]).sum()
            assert last[source] == pytest.approx(total, rel=1e-9)
            by_hand = 1.5 * (r**2 * last["step"] / n * last[source] * trace) ** (1 / 3)
            assert row[column] == pytest.approx(by_hand, rel=1e-6)
        factor = r**2 * row["steps"] / n * row["sum/lr2_dispersion"]
        assert row["term/trajectory_factor"] == pytest.approx(factor, rel=1e-6)
        assert row["term/flatness_factor"] == trace


def test_another_launch_adds_only_what_is_nowhere_to_be_had(
    undisturbed: Path, shared_ray: Head, tmp_path: Path
) -> None:
    """Of four trials two are here, whole; a crash has cut the journal of the third off; the fourth
    is in another folder."""
    old = ResultTables(undisturbed).trials.set_index(
        ["training.learning_rate", "training.batch_size"]
    )
    whole, cut = old["trial_id"][0.02, 20], old["trial_id"][0.04, 20]
    too, elsewhere = old["trial_id"][0.02, 40], old["trial_id"][0.04, 40]
    folder, other = tmp_path / "here" / "lr_batch", tmp_path / "other" / "lr_batch"
    for copy, lacking in ((folder, [elsewhere]), (other, [whole, too, cut])):
        shutil.copytree(undisturbed, copy)
        for name in lacking:
            for path in copy.rglob(f"{name}*"):
                path.unlink()
    journal = Journal(folder).path(cut)
    journal.write_bytes(journal.read_bytes()[:-10])
    assert Journal(folder).read(cut).row is None
    # Halved by a crash, tables are made again from the journals.
    for path in folder.rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    # And what a driver leaves that is lost between a trial's row and its checkpoints' end.
    left = [folder / "checkpoints" / whole / "000000000100.ckpt"]
    left.append(Journal(folder).path(whole).with_suffix(".jsonl.partial"))
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = here(folder.parent, "--training.batch_size=20", **shared_ray.environment)
    assert refused.status == 2
    (line,) = refused.err.strip().splitlines()
    assert "already holds 1 finished of these 2 trials; add --resume" in line
    assert {path: path.read_bytes() for path in before} == before

    source = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    said = here(folder.parent, "--resume", f"--reuse={other}", **shared_ray.environment)
    assert said.status == 0, said.err
    assert "4 finished (3 from an earlier launch)" in said.out
    assert_undisturbed(folder, undisturbed)
    assert not any(path.exists() for path in left)
    new = ResultTables(folder).trials.set_index("trial_id")
    times = old.set_index("trial_id")["time/training_s"]
    # Not even the times of the others are new.
    kept = [whole, too, elsewhere]
    assert new.loc[kept, "time/training_s"].equals(times[kept])
    assert new.loc[cut, "time/training_s"] != times[cut]
    assert {path: path.read_bytes() for path in source} == source
