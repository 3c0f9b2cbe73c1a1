"""The tables of any two sweeps have the same columns of the same types, and stand together."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import duckdb
import pandas as pd
import polars
import pyarrow
import pytest
from pyarrow import parquet
from pydantic.fields import FieldInfo

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.space import field_paths
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.step_series import StepSeries
from gisgd_ray.results import columns
from gisgd_ray.results.columns import setting_types, trial_columns
from gisgd_ray.results.journal import Journal
from gisgd_ray.results.tables import ResultTables, row_of, steps_path, write_tables
from gisgd_ray.theory.quantities import QUANTITIES
from tests.support.journals import add_point, add_steps, series

DONE = {"status": "finished", "steps": 4, "epochs": 0.5, "train/loss": 0.25, "device": "cpu"}
MEASURED = {
    **DONE,
    "bound/theorem2@0.01": 3.0,
    "measure/flatness_draws@0.01": 32,
    "data/normalization_mean": [0.5],
}
SWEEPS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "sgd": [({}, MEASURED), ({"seed": 1}, {"status": "failed", "error": "lost"})],
    "failed": [({"training.max_steps": 9}, {"status": "failed", "error": "lost"})],
    "gmp": [
        ({"scheme.name": "gmp", "scheme.final_noise_std": 0.1, "model.name": "alexnet"}, DONE),
        ({"scheme.name": "clipping", "scheme.start_epoch": 3}, DONE),
        ({"replicas": 2}, MEASURED),
    ],
    "tables": [
        (
            {
                "model.name": "preactresnet18",
                "training.lr_milestones": [2, 4],
                "training.stop_at_full_accuracy": True,
                "training.stop_loss": None,
                "measurement.hessian_schedule.every": 5,
                "measurement.noise_stds": [1.0],
            },
            {**DONE, "bound/theorem2@1": math.nan, "bound/mine": 1.5, "verdict": "mine"},
        )
    ],
}


def trials_of(name: str) -> list[tuple[TrialConfig, dict[str, Any]]]:
    return [
        (TrialConfig.model_validate(unflatten(fields)), metrics) for fields, metrics in SWEEPS[name]
    ]


def written(folder: Path, name: str) -> Path:
    """The folder of a sweep's tables."""
    journal, configs = Journal(folder / name), []
    for config, metrics in trials_of(name):
        if metrics["status"] == "finished":
            add_steps(journal, config.trial_id, 0, series(4))
            add_point(journal, config.trial_id, {"step": 4, "train/loss": 0.25})
        journal.add_row(config.trial_id, row_of(config, metrics))
        configs.append(config)
    write_tables(folder / name, configs)
    return folder / name


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [written(tmp_path, name) for name in SWEEPS]


def as_told() -> Iterator[dict[str, Any]]:
    """Every row of every sweep as it was written, without what is empty; NaN is."""
    for name in SWEEPS:
        for config, metrics in trials_of(name):
            row = row_of(config, metrics)
            yield {k: v for k, v in row.items() if v is not None and v == v}


def without_empty(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    def plain(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    filled = [{k: plain(v) for k, v in row.items()} for row in rows]
    return [{k: v for k, v in row.items() if v is not None and v == v} for row in filled]


# ---------------------------------------------------------------- one below the other


@pytest.mark.parametrize("table", ["trials.parquet", "history.parquet"])
def test_tables_of_different_sweeps_concatenate_in_pyarrow(folders: list[Path], table: str) -> None:
    tables = [parquet.read_table(folder / table) for folder in folders]
    whole = pyarrow.concat_tables(tables, promote_options="default")
    assert pyarrow.null() not in whole.schema.types
    if table == "trials.parquet":
        assert without_empty(whole.to_pylist()) == list(as_told())


def test_with_the_same_noise_stds_they_concatenate_as_they_are(folders: list[Path]) -> None:
    alike = [parquet.read_table(folder / "trials.parquet") for folder in folders[:3]]
    assert len(pyarrow.concat_tables(alike)) == 6


@pytest.mark.filterwarnings("error")
def test_they_concatenate_in_pandas(folders: list[Path]) -> None:
    whole = pd.concat([ResultTables(folder).trials for folder in folders], ignore_index=True)
    assert without_empty(whole.to_dict("records")) == list(as_told())
    assert whole["steps"].tolist()[0] == whole["steps"].sum() / 5 == 4
    numbers = [name for name in setting_types() if setting_types()[name] == pyarrow.float64()]
    assert {str(whole[name].dtype) for name in numbers} == {"float64"}


def test_they_concatenate_in_polars(folders: list[Path]) -> None:
    tables = [polars.read_parquet(folder / "trials.parquet") for folder in folders]
    assert without_empty(polars.concat(tables, how="diagonal").to_dicts()) == list(as_told())
    assert len(polars.concat(tables[:3])) == 6


def test_they_concatenate_in_duckdb(folders: list[Path]) -> None:
    files = [str(folder / "trials.parquet") for folder in folders]
    whole = duckdb.sql(f"select * from read_parquet({files}, union_by_name=true)")
    rows = [dict(zip(whole.columns, row, strict=True)) for row in whole.fetchall()]
    assert without_empty(rows) == list(as_told())


# ---------------------------------------------------------------- the columns


def test_the_columns_are_the_catalogue_s_and_the_configuration_s_in_their_order(
    tmp_path: Path,
) -> None:
    schema = parquet.read_schema(written(tmp_path, "failed") / "trials.parquet")
    catalogue = [
        f"{q.name}{std}"
        for q in QUANTITIES.values()
        if "t" in q.tables
        for std in (("0.01", "0.0001", "1e-06") if q.at_noise_std else ("",))
    ]
    identity = ["trial_id", "status", "settings"]
    assert schema.names == [*identity, *field_paths(), *catalogue[3:]]
    assert schema.field("bound/theorem3").type == pyarrow.float64()
    assert schema.field("steps").type == pyarrow.int64()
    assert schema.field("bound/remark").type == pyarrow.string()
    assert schema.field("data/normalization_std").type == pyarrow.list_(pyarrow.float64())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("data.dataset", pyarrow.string()),
        ("data.flip", pyarrow.bool_()),
        ("training.learning_rate", pyarrow.float64()),
        ("training.max_steps", pyarrow.int64()),
        ("training.stop_at_full_accuracy", pyarrow.bool_()),
        ("training.lr_milestones", pyarrow.list_(pyarrow.int64())),
        ("measurement.noise_stds", pyarrow.list_(pyarrow.float64())),
        ("measurement.hessian_schedule", pyarrow.string()),
        ("measurement.hessian_schedule.every", pyarrow.int64()),
        ("scheme.variant", pyarrow.string()),
        ("scheme.start_epoch", pyarrow.int64()),
        ("model.width", pyarrow.int64()),
        ("replicas", pyarrow.int64()),
    ],
)
def test_the_type_of_a_setting_is_its_field_s(path: str, kind: pyarrow.DataType) -> None:
    assert setting_types()[path] == kind


def test_every_setting_has_a_type_that_takes_its_values() -> None:
    assert setting_types().keys() == field_paths().keys()
    for name in SWEEPS:
        for config, _ in trials_of(name):
            for path, value in config.flat().items():
                kind = setting_types()[path]
                assert pyarrow.array([value], kind).to_pylist() == [value]


def test_a_field_of_two_types_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = field_paths()
    owner, width = declared["model.width"][0]
    other = FieldInfo.from_annotation(Annotated[str, "of another model"])
    declared["model.width"] = [(owner, width), (owner, other)]
    monkeypatch.setattr(columns, "field_paths", lambda: declared)
    with pytest.raises(TypeError, match=r"model\.width is of several types: int64, string"):
        setting_types.__wrapped__()
    other.annotation = float | None  # counts are numbers
    assert setting_types.__wrapped__()["model.width"] == pyarrow.float64()


def test_before_anything_has_ended_the_columns_are_there(tmp_path: Path) -> None:
    tables = write_tables(tmp_path, [TrialConfig()])
    assert (len(tables.trials), list(tables.trials)) == (0, trial_columns([1e-2, 1e-4, 1e-6]))
    assert (len(tables.history), list(tables.history)) == (0, ["trial_id", "step"])


def test_history_has_what_its_points_have_in_the_catalogue_s_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    point = {"bound/theorem2@0.0001": 1.0, "mine": None, "bound/theorem2@0.01": 2.0, "epoch": 1}
    add_point(journal, "a", {"train/loss": math.nan, **point, "step": 4})
    write_tables(tmp_path, [TrialConfig()])
    journal.add_row(TrialConfig().trial_id, row_of(TrialConfig(), DONE))
    (tmp_path / "journal" / "a.jsonl").rename(Journal(tmp_path).path(TrialConfig().trial_id))
    write_tables(tmp_path, [TrialConfig()])
    schema = parquet.read_schema(tmp_path / "history.parquet")
    bounds = ["bound/theorem2@0.01", "bound/theorem2@0.0001"]
    assert schema.names == ["trial_id", "step", "epoch", "train/loss", *bounds, "mine"]
    assert schema.types == [pyarrow.string(), pyarrow.int64(), *[pyarrow.float64()] * 5]


def test_the_steps_have_the_same_columns_whatever_was_measured(folders: list[Path]) -> None:
    (config, _), *_ = trials_of("sgd")
    schema = parquet.read_schema(steps_path(folders[0], config.trial_id))
    assert set(schema.names) == {q.name for q in QUANTITIES.values() if "s" in q.tables}
    assert schema.types == [pyarrow.int64(), *[pyarrow.float64()] * (len(schema) - 1)]
    assert set(StepSeries.empty().columns()) < set(schema.names)


# ---------------------------------------------------------------- what does not fit


def one_row(folder: Path, **metrics: Any) -> pyarrow.Table:
    config = TrialConfig()
    Journal(folder).add_row(config.trial_id, row_of(config, DONE) | metrics)
    write_tables(folder, [config])
    return parquet.read_table(folder / "trials.parquet")


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("steps", 2.5, pyarrow.float64()),  # no count, and kept as it is
        ("steps", 4.0, pyarrow.int64()),
        ("epochs", 3, pyarrow.float64()),
        ("bound/mine", 3, pyarrow.float64()),
        ("bound/mine", None, pyarrow.float64()),
        ("mine", None, pyarrow.float64()),
        ("mine", "word", pyarrow.string()),
        ("mine", [1, 2], pyarrow.list_(pyarrow.int64())),
        ("training.of_tomorrow", "word", pyarrow.string()),
        ("data/normalization_mean", "word", pyarrow.string()),
        ("measure/hessian_trace_estimator", None, pyarrow.string()),
    ],
)
def test_a_value_is_kept_whatever_its_column_is(
    tmp_path: Path, name: str, value: Any, kind: pyarrow.DataType
) -> None:
    table = one_row(tmp_path, **{name: value})
    assert table[name].to_pylist() == [value]
    assert table.schema.field(name).type.equals(kind)


def test_a_setting_that_this_version_does_not_have_stands_with_the_settings(
    tmp_path: Path,
) -> None:
    names = one_row(tmp_path, **{"training.of_tomorrow": 1, "mine": 1}).column_names
    assert names.index("training.of_tomorrow") == 3 + len(field_paths())
    assert names[-1] == "mine"


def test_a_table_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    folder = written(tmp_path, "sgd")
    table = parquet.read_table(folder / "trials.parquet").drop_columns(
        ["scheme.rho", "bound/theorem3"]
    )
    (folder / "journal").rename(tmp_path / "away")
    parquet.write_table(table.replace_schema_metadata(), folder / "trials.parquet")
    read = ResultTables(folder).trials
    assert list(read) == table.column_names
    assert read["status"].tolist() == ["finished", "failed"]
