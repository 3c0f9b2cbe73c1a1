"""The catalogue of quantities and what runs report: each has all of the other."""

import importlib
import math
import re
from numbers import Real
from pathlib import Path
from typing import Any

import pytest
from latex2mathml.converter import convert

from gisgd_ray.config.frozen import unflatten
from gisgd_ray.config.space import field_paths
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.results.tables import row_of
from gisgd_ray.theory import quantities
from gisgd_ray.theory.quantities import QUANTITIES, quantity
from gisgd_ray.training import loop as training
from tests.support.runs import SMALL, finish

ROOT = Path(__file__).parents[2]
PSI = {"measurement.sensitivity": True, "measurement.sensitivity_draws": 2}
TEACHER = {"data.dataset": "teacher", "training.loss": "squared", "training.batch_size": 50}
RUNS: dict[str, dict[str, Any]] = {
    "plain": PSI,
    "replicas": {**PSI, "replicas": 2},
    "clipped": {"scheme.name": "clipping", "scheme.start_epoch": 0},
    "groups": {"measurement.dispersion_estimator": "groups"},
    "theorem 3": {**TEACHER, "model.name": "linear"},
    "theorem 4": {**TEACHER, "model.name": "two_layer_relu"},
}
LAUNCHED = {
    "error",
    "wandb/status",
    "wandb/run",
    "device",
    "hostname",
    "resources/cpus",
    "resources/gpus",
}
"""What a launch adds: tests of launches see to it."""

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


def trained(changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By table, the columns of a run with a value of each."""
    fields = SMALL | {"training.max_epochs": 1} | changes
    if fields["model.name"] == "linear":
        del fields["model.width"]
    config = TrialConfig.model_validate(unflatten(fields))
    found = finish(training.start(config))
    row = row_of(config, found.row)
    points = {name: value for point in found.points for name, value in point.items()}
    steps = {name: values[0] for name, values in found.steps.table().items()}
    settings = {*field_paths()}
    return {
        "t": {name: value for name, value in row.items() if name not in settings},
        "h": points | {"trial_id": config.trial_id},
        "s": steps,
    }


@pytest.fixture(scope="module")
def reported() -> dict[str, dict[str, dict[str, Any]]]:
    return {name: trained(changes) for name, changes in RUNS.items()}


@pytest.mark.parametrize("run", RUNS)
def test_every_column_of_a_run_is_in_the_catalogue_with_its_kind(reported: Any, run: str) -> None:
    kinds = {"number": Real, "count": Real, "text": str, "list": list}
    for table, columns in reported[run].items():
        for name, value in columns.items():
            known = quantity(name)
            assert known is not None, (table, name)
            assert table in known.tables, (table, name)
            assert value is None or isinstance(value, kinds[known.kind]), (name, value)
            if known.kind == "count" and value is not None and math.isfinite(value):
                assert value == int(value), name


@pytest.mark.parametrize("table", "ths")
def test_every_entry_of_the_catalogue_is_a_column_of_some_run(reported: Any, table: str) -> None:
    found = {known.name for run in reported.values() for n in run[table] if (known := quantity(n))}
    claimed = {q.name for q in QUANTITIES.values() if table in q.tables}
    assert found == claimed - (LAUNCHED if table == "t" else set())


def test_names_are_once_and_what_computes_a_quantity_is_there() -> None:
    assert len(QUANTITIES) == len({q.name for q in QUANTITIES.values()})
    for q in QUANTITIES.values():
        assert q.meaning
        assert not q.meaning.endswith(".")
        if q.defined:
            parts = q.defined.split(".")
            module = importlib.import_module(".".join(["gisgd_ray", *parts[:2]]))
            for name in parts[2:]:
                module = getattr(module, name)


def test_formulas_are_mathml_without_latex_left_over() -> None:
    for q in QUANTITIES.values():
        if q.latex:
            assert "\\" not in convert(q.latex), q.name
            assert "|" not in q.latex  # it would end a cell of the documentation's table


def test_a_column_of_the_user_s_own_is_none_of_it() -> None:
    assert quantity("bound/mine") is quantity("bound/mine@0.01") is None
    assert quantity("bound/theorem2") is None  # there is none without a noise std
    assert quantities.symbol("bound/mine") == "bound/mine"


def test_the_documentation_is_made_from_it() -> None:
    made = (ROOT / "docs" / "quantities.md").read_text(encoding="utf-8")
    assert made == quantities.markdown(), (
        "python -m gisgd_ray.theory.quantities docs/quantities.md writes it again"
    )


def test_the_readme_names_no_other_columns() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:train|test|gap|bound|term|measure|sum)/[\w@σ]+)`", text)
    assert len(named) > 10
    assert [n for n in named if quantity(n) is None] == []
