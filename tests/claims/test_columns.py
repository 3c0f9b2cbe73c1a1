"""Tables that lack a column, or hold what is no number: of another version, or another sweep's."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import (
    figure1,
    figure2,
    figure3,
    figure4,
    figure5,
    figure6,
    figures7_8,
    tables1_3,
)
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.points import TEST, TRAIN
from gisgd_ray.claims.statistics import trend_ratio
from gisgd_ray.results.tables import ResultTables
from tests.support.tables import Tables, history, trial

Claims = Callable[[ResultTables], list[Claim]]

BOTH = {"trials": ["model.name", "data.dataset", "seed", "status"], "history": ["trial_id", "step"]}
READ: dict[Claims, dict[str, list[str]]] = {
    figure1.claims: BOTH,
    figure2.claims: {"trials": BOTH["trials"]},
    figure3.claims: BOTH | {"trials": [*BOTH["trials"], figure3.NOISE], "history": ["epoch"]},
    figure4.claims: {
        "trials": [*BOTH["trials"], "scheme.name"],
        "history": [*BOTH["history"], "epoch", TEST, TRAIN],
    },
    figure5.claims: BOTH,
    figure6.claims: {"trials": [*BOTH["trials"], figure6.RATE, figure6.BATCH]},
    figures7_8.claims: BOTH,
    tables1_3.claims: {"trials": [*BOTH["trials"], "scheme.name", "steps", TEST]},
}


def whole() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two trials with every column that any of the claims reads, and their points."""
    rows, points = [], []
    for scheme in ("sgd", "clipping"):
        settings = {"scheme__name": scheme, "scheme__variant": "lag", "scheme__lag": 50.0}
        settings |= {"data__label_noise": 0.2, "training__learning_rate": 0.1, "steps": 60}
        rows.append(trial(scheme, model__name="linear", training__batch_size=60, **settings))
        rows[-1][TEST] = 0.5
        measured = {"test__accuracy": [0.5] * 7, "train__accuracy": [0.9] * 7}
        points.append(history(scheme, epoch=range(7), **measured))
    return pd.DataFrame(rows), pd.concat(points)


def each() -> Iterator[Any]:
    for claims, read in READ.items():
        for table, columns in read.items():
            for column in columns:
                name = claims.__module__.rpartition(".")[2]
                yield pytest.param(claims, table, column, id=f"{name}-{column}")


@pytest.mark.parametrize(("claims", "table", "column"), list(each()))
def test_a_column_that_is_lacking_is_named_and_nothing_is_decided(
    claims: Claims, table: str, column: str
) -> None:
    trials, points = whole()
    assert not any("no column" in c.evidence for c in claims(Tables(trials, points)))
    parts = {"trials": trials, "history": points}
    parts[table] = parts[table].drop(columns=column)
    (found,) = claims(Tables(parts["trials"], parts["history"]))
    assert found.verdict == "undecided"
    told = f"not measured in this run: no column {column} in the table {table} (n = 0)"
    assert found.evidence == told


def test_schemes_without_their_settings_have_a_name_all_the_same() -> None:
    assert tables1_3.scheme_label({"scheme.name": "of_tomorrow"}) == "of_tomorrow"
    assert tables1_3.scheme_label({"scheme.name": "gmp"}) == "GMP"
    assert tables1_3.scheme_label({"scheme.name": "gmp", "scheme.draws": math.nan}) == "GMP"
    trials, points = whole()
    bare = trials.drop(columns=["scheme.variant", "scheme.lag"])
    found = figure4.claims(Tables(bare, points))
    assert "running minimum, automatic start" in found[0].text
    found = figure4.claims(Tables(trials.drop(columns="scheme.lag"), points))
    assert "lag of nan steps" in found[0].text


def test_two_rows_of_w_0_are_one() -> None:
    """Figures 7 and 8: a trial that began twice."""
    row = trial("a", model__name="linear")
    points = history("a", gap__loss=[1.0, 3.0], bound__theorem3=[9.0, 2.5])
    (found,) = figures7_8.claims(Tables(pd.DataFrame([row]), pd.concat([points.head(1), points])))
    assert (found.verdict, "at 1 of 1 points" in found.evidence) == ("holds", True)


def test_an_x_without_end_is_left_out_of_a_trend() -> None:
    x = [0.0, 1.0, 2.0, 3.0]
    frame = pd.DataFrame([{"seed": s, "x": v, "y": 2.0**v} for s in range(3) for v in x])
    expected = trend_ratio(frame, "x", "y")
    assert expected.center == pytest.approx(8)
    for infinite in (math.inf, -math.inf):
        odd = pd.DataFrame([{"seed": 0, "x": infinite, "y": 1.0}])
        assert trend_ratio(pd.concat([frame, odd]), "x", "y") == expected


def test_unknown_label_noise_is_one_level_of_which_nothing_is_said() -> None:
    """Of Figure 3, whose claims are about known levels: NaN is not equal to itself."""
    rows, points = [], []
    for seed, noise in enumerate([math.nan, float("nan"), 0.4, float("nan")]):
        rows.append(trial(str(seed), seed=seed, data__label_noise=noise))
        v = [math.nan, *np.geomspace(9, 1, 20)]
        points.append(history(str(seed), epoch=range(21), measure__gradient_dispersion=v))
    found = figure3.claims(Tables(pd.DataFrame(rows), pd.concat(points)))
    assert [("label_noise = 0.4" in c.text) for c in found] == [True] * 3 + [False]
    assert found[-1].verdict == "undecided"
    assert "data.label_noise is not known of 3 trials" in found[-1].evidence
