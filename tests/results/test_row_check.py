"""Rows that are not their trial's are told, and neither adopted nor shown."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.config.frozen import id_of
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.row_check import config_of, is_of_this_version, require_numbers
from gisgd_ray.results.tables import (
    ResultTables,
    finished_ids,
    require_own_rows,
    reusable,
    reuse,
    row_of,
    write_tables,
)
from tests.results.test_journal import OLD
from tests.support.journals import add_point
from tests.support.sweep_runs import measured

MINE, OTHER = TrialConfig(seed=1), TrialConfig(seed=2)
ROW = row_of(MINE, {"status": "finished", "train/loss": 0.5, "steps": 4})
STRANGE: dict[str, tuple[dict[str, Any], str]] = {
    "another's id": ({"trial_id": OTHER.trial_id}, f"is of trial '{OTHER.trial_id}', not of "),
    "no id": ({"trial_id": None}, "is of trial None, not of "),
    "another's settings": ({"seed": 2}, f"has the settings of trial {OTHER.trial_id}, not of "),
    "a setting that is none": (
        {"training.learning_rate": "fast"},
        "has settings that are not valid, or not in this version of gisgd-ray "
        "(training.learning_rate = 'fast': input should be a valid number",
    ),
    "a section that is a field": ({"data.dataset.x": 1}, "has settings that do not go together"),
    "a status that is none": ({"status": "won"}, "has the status 'won', which is none of finished"),
}


def folder_with(folder: Path, row: dict[str, Any], **point: Any) -> Path:
    """A folder of results in which the trial MINE has this row."""
    journal = Journal(folder)
    add_point(journal, MINE.trial_id, {"step": 4, **point})
    journal.add_row(MINE.trial_id, row)
    return folder


@pytest.mark.parametrize("name", STRANGE)
def test_a_row_that_is_another_trials_is_told(tmp_path: Path, name: str) -> None:
    change, why = STRANGE[name]
    theirs, mine = folder_with(tmp_path / "theirs", ROW | change), tmp_path / "mine"
    path = theirs / "journal" / f"{MINE.trial_id}.jsonl"
    for read in (
        lambda: reuse(mine, [MINE], [theirs]),
        lambda: finished_ids(theirs, [MINE]),
        lambda: require_own_rows(theirs, [MINE]),
        lambda: write_tables(theirs, []),
        lambda: write_tables(theirs, [MINE]),
    ):
        with pytest.raises(UserError) as caught:
            read()
        said = str(caught.value)
        assert said.startswith(f"the row in {path} {why}")
        assert said.endswith(
            f"; move that file away to have trial {MINE.trial_id} run again, or restore it"
        )
    assert not mine.exists()
    assert not (theirs / "trials.parquet").exists()


def test_a_journal_under_another_trials_name_is_told(tmp_path: Path) -> None:
    path = Journal(folder_with(tmp_path, ROW)).path(MINE.trial_id)
    path.rename(path.with_name(f"{OTHER.trial_id}.jsonl"))
    with pytest.raises(UserError, match=f"is of trial '{MINE.trial_id}', not of {OTHER.trial_id}"):
        finished_ids(tmp_path, [OTHER])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train/loss", "0.5"),
        ("gap/loss", [1.0]),
        ("bound/theorem2_closed_form", {"a": 1}),
        ("measure/smoothness", True),
        ("term/trajectory_factor", 2**64),
        ("steps", "many"),
        ("time/training_s", "<b>"),
    ],
)
@pytest.mark.parametrize("where", ["row", "point"])
def test_a_word_where_a_number_belongs_is_told(
    tmp_path: Path, name: str, value: Any, where: str
) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    in_row, in_point = ({name: value}, {}) if where == "row" else ({}, {name: value})
    folder_with(theirs, ROW | in_row, **in_point)
    said = rf"{name} = .* of trial {MINE.trial_id} in {theirs}/journal.* is no number"
    with pytest.raises(UserError, match=said):
        write_tables(theirs, [MINE])
    with pytest.raises(UserError, match=said):
        reuse(mine, [MINE], [theirs])
    assert not mine.exists()


def test_columns_of_several_kinds_are_told(tmp_path: Path) -> None:
    journal = Journal(folder_with(tmp_path, ROW | {"hostname": "a"}))
    journal.add_row(OTHER.trial_id, row_of(OTHER, {"status": "finished", "hostname": [5]}))
    with pytest.raises(UserError, match=r'hostname = "\[5\]" of trial .* is no word'):
        write_tables(tmp_path, [])


def test_a_table_with_words_for_numbers_is_told(tmp_path: Path) -> None:
    for name in ("trials", "history"):
        pd.DataFrame([{"trial_id": "a", "train/loss": "0.5"}]).to_parquet(
            tmp_path / f"{name}.parquet"
        )
        with pytest.raises(UserError, match=f'train/loss = "0.5" of trial a in .*{name}.parquet'):
            getattr(ResultTables(tmp_path), name)


def test_what_real_trials_write_is_taken(tmp_path: Path) -> None:
    """Whatever a row may hold: nothing, infinities, counts, words; and settings of every kind."""
    trials = [
        TrialConfig(),
        TrialConfig.model_validate({"measurement": {"hessian_schedule": {"every": 2}}}),
        TrialConfig.model_validate({"data": {"dataset": "cifar10"}, "model": {"name": "vgg16"}}),
        TrialConfig.model_validate({"training": {"weight_decay": 1e-07, "lr_milestones": [1, 2]}}),
        TrialConfig.model_validate({"replicas": 3, "training": {"stop_loss": None}}),
    ]
    summary, points = measured(trials[0])
    odd = {"bound/lemma7": math.nan, "bound/theorem3": math.inf, "measure/smoothness": None}
    odd |= {"measure/own": "a word", "own": True}
    journal = Journal(tmp_path / "theirs")
    for trial in trials:
        journal.add_row(trial.trial_id, row_of(trial, {**summary, **odd}))
        for point in points:
            add_point(journal, trial.trial_id, point)
    assert reuse(tmp_path / "mine", trials, [tmp_path / "theirs"]) == len(trials)
    assert require_own_rows(tmp_path / "mine", trials[:1]) == []
    assert len(write_tables(tmp_path / "mine", trials).trials) == len(trials)


def of_another_version(**fields: Any) -> dict[str, Any]:
    """A row whose settings are not valid here; its id is that of what differs from its defaults."""
    changed = {"schema": 2, "seed": 1, "training": {"news": 1}}
    settings = json.dumps(changed, sort_keys=True, separators=(",", ":"))
    flat = {**MINE.flat(), "training.news": 1}
    del flat["measurement.flatness"]
    head = {"trial_id": id_of(settings), "status": "finished", "settings": settings}
    return {**head, **flat, **fields}


def test_rows_of_other_versions_are_kept_and_shown_and_not_taken(tmp_path: Path) -> None:
    row = of_another_version()
    journal = Journal(tmp_path)
    journal.add_row(row["trial_id"], row)
    mine = row_of(MINE, {"status": "finished"})
    journal.add_row(MINE.trial_id, mine)
    assert require_own_rows(tmp_path, []) == [row["trial_id"]]
    journal.path(MINE.trial_id).unlink()
    assert finished_ids(tmp_path, [MINE]) == set()
    assert write_tables(tmp_path, [MINE]).trials["trial_id"].tolist() == [row["trial_id"]]


def test_a_newer_version_s_field_at_its_default_makes_no_other_trial(tmp_path: Path) -> None:
    theirs = folder_with(tmp_path, ROW | {"training.news": 1})
    assert finished_ids(theirs, [MINE]) == {MINE.trial_id}
    assert require_own_rows(theirs, [MINE]) == []


@pytest.mark.parametrize(
    "fields",
    [
        {"training.news": 2},
        {"seed": 3},
        {"settings": '{"schema":2,"seed":1,"training":{"news":2}}'},
        {"settings": "no JSON"},
        {"settings": None},
        {"settings": "[]"},
    ],
    ids=str,
)
def test_rows_of_other_versions_have_the_settings_of_their_id(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    row = of_another_version(**fields)
    Journal(tmp_path).add_row(row["trial_id"], row)
    with pytest.raises(UserError, match="has settings that are not valid, or not in this version"):
        require_own_rows(tmp_path, [])


def of_the_old_schema(config: TrialConfig) -> dict[str, Any]:
    """A row as it was when all settings made the name."""
    row = row_of(config, {"status": "finished", "train/loss": 0.5, "steps": 4})
    del row["settings"]
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return row | {"trial_id": id_of(text)}


def test_trials_of_the_old_names_are_taken_over_under_their_present_ones(tmp_path: Path) -> None:
    old, mine = of_the_old_schema(MINE), tmp_path / "mine"
    theirs = Journal(tmp_path / "theirs")
    add_point(theirs, old["trial_id"], {"step": 4, "train/loss": 0.5})
    theirs.add_row(old["trial_id"], old)
    assert old["trial_id"] != MINE.trial_id
    with pytest.raises(UserError, match=f"add --reuse {tmp_path / 'theirs'} to take its finished"):
        require_own_rows(tmp_path / "theirs", [MINE])
    assert finished_ids(tmp_path / "theirs", [MINE]) == set()
    assert reusable(tmp_path / "theirs", [MINE, OTHER]) == {MINE.trial_id: old["trial_id"]}
    assert reuse(mine, [MINE, OTHER], [tmp_path / "theirs"]) == 1
    assert require_own_rows(mine, [MINE]) == []
    row = Journal(mine).read_row(MINE.trial_id)
    assert row == row_of(MINE, {"status": "finished", "train/loss": 0.5, "steps": 4})
    tables = write_tables(mine, [MINE])
    assert tables.trials["trial_id"].tolist() == [MINE.trial_id]
    assert tables.history["trial_id"].tolist() == [MINE.trial_id]
    # The old folder's own page can still be made.
    kept = write_tables(tmp_path / "theirs", []).trials
    assert kept["trial_id"].tolist() == [old["trial_id"]]


def test_of_an_older_journal_a_field_that_is_newer_has_its_default(tmp_path: Path) -> None:
    """A trial had fewer settings then."""
    theirs = Journal(tmp_path / "theirs")
    theirs.folder.mkdir(parents=True)
    theirs.path(OLD.stem).write_bytes(OLD.read_bytes())
    row = theirs.read_row(OLD.stem)
    assert row is not None
    config = config_of(row)
    assert config is not None
    assert not is_of_this_version(row)
    with pytest.raises(UserError, match="named by an earlier version"):
        require_own_rows(tmp_path / "theirs", [MINE])
    assert reuse(tmp_path / "mine", [config], [tmp_path / "theirs"]) == 1
    tables = write_tables(tmp_path / "mine", [config])
    assert tables.trials["test/accuracy"].tolist() == [0.454]
    assert len(tables.steps(config.trial_id)) == 8


def test_an_id_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    pd.DataFrame({"step": [1]}).to_parquet(tmp_path / "x.parquet")
    (tmp_path / "a" / "steps").mkdir(parents=True)
    with pytest.raises(UserError, match=r"'\.\./\.\./x' in .* is no trial's id"):
        ResultTables(tmp_path / "a").steps("../../x")


@pytest.mark.parametrize("name", ["wandb/status", "wandb/run", "measure/hessian_trace_estimator"])
def test_what_is_said_in_words_is_a_word(name: str) -> None:
    for value in (None, math.nan, "off"):
        require_numbers({name: value}, "it", Path("journal"))
    with pytest.raises(UserError, match=f'{name} = "3" of trial it in journal is no word'):
        require_numbers({name: 3}, "it", Path("journal"))
