"""What Figure 6 shows is what the tables hold, and nothing is averaged over but seeds."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import figure6
from gisgd_ray.config.space import make_space
from gisgd_ray.figures.charts import save_charts
from gisgd_ray.figures.theme import COLOURS, WIDTH
from sweeps import lr_batch
from sweeps.lr_batch import BATCH, FLATNESS, RATE, TRAJECTORY
from tests.support.charts import drawn, legend
from tests.support.tables import Tables

RATES, BATCHES = (0.1, 0.2), (20, 40, 60)


def table(**fields: Any) -> pd.DataFrame:
    """Trials of a small space; each factor a different number in each row."""
    space = make_space(
        {
            RATE: list(RATES),
            BATCH: list(BATCHES),
            **{k.replace("__", "."): v for k, v in fields.items()},
        },
        seeds=2,
    )
    rows = [t.flat() | {"trial_id": t.trial_id, "status": "finished"} for t in space.trials()]
    frame = pd.DataFrame(rows)
    order = np.arange(len(frame), dtype=float)
    frame[TRAJECTORY], frame[FLATNESS] = 100.0 + order**2, 1.0 + 1 / (1 + order)
    return frame


def test_each_curve_is_the_mean_over_seeds_of_its_column() -> None:
    trials = table()
    (figure,) = lr_batch.plot(Tables(trials)).values()
    assert legend(figure) == {"lr = 0.1": COLOURS[0], "lr = 0.2": COLOURS[1]}
    left, right = drawn(figure)
    assert (left.title, right.title) == (["(a) MLP on MNIST-5k"], ["(b) MLP on MNIST-5k"])
    for shown, column, name in (
        (left, TRAJECTORY, "trajectory factor"),
        (right, FLATNESS, "flatness factor"),
    ):
        assert [axis["title"] for axis in shown.axes] == ["batch size", name]
        assert shown.axes[1]["scale"]["type"] == "log"
        for rate in RATES:
            curve = shown.curve(f"lr = {rate}")
            assert list(curve["x"]) == list(BATCHES)
            for batch, mean, std in zip(BATCHES, curve["y"], curve["std"], strict=True):
                mine = [
                    row[column]
                    for row in trials.to_dict("records")
                    if row[RATE] == rate and row[BATCH] == batch
                ]
                assert len(mine) == 2
                assert mean == pytest.approx(sum(mine) / 2, rel=1e-12)
                assert std == pytest.approx(abs(mine[0] - mine[1]) / 2**0.5, rel=1e-9)


def test_only_finished_trials_are_shown() -> None:
    trials = table()
    trials.loc[trials[BATCH] == 60, "status"] = "diverged"
    (figure,) = lr_batch.plot(Tables(trials)).values()
    assert list(drawn(figure)[0].curve("lr = 0.1")["x"]) == [20, 40]
    assert lr_batch.plot(Tables(trials.assign(status="failed"))) == {}


def test_another_swept_field_has_panels_and_claims_of_its_own() -> None:
    widths, noises = (32, 64), (0.0, 0.2)
    trials = table(model__width=list(widths), data__label_noise=list(noises))
    (figure,) = lr_batch.plot(Tables(trials)).values()
    titles = [" ".join(shown.title) for shown in drawn(figure)]
    assert len(titles) == 8
    for (width, noise), title in zip(itertools.product(widths, noises), titles[::2], strict=True):
        assert f"width = {width}" in title
        assert f"label noise = {noise:g}" in title
    found = figure6.claims(Tables(trials))
    assert len(found) == 2 * 4
    # 2 rates x 3 batches x 2 seeds of one width and one noise: nothing else is mixed in.
    assert all("; 12 trials" in claim.evidence for claim in found)


def test_claims_about_what_does_not_vary_say_so() -> None:
    trials = table()
    claim = figure6.claims(Tables(trials[trials[BATCH] == 20]))[1].evidence
    assert claim == "not varied in this run (n = 0)"


def test_a_trace_below_zero_is_shown_by_its_size_and_zero_is_told() -> None:
    trials = table()
    first = trials[BATCH] == 20
    trials.loc[first, FLATNESS] *= -1
    (figure,) = lr_batch.plot(Tables(trials)).values()
    shown = drawn(figure)[1]
    names = [f"lr = {rate} below 0 (size)" for rate in RATES]
    assert list(legend(figure)) == [*(f"lr = {rate}" for rate in RATES), *names]
    for rate, name in zip(RATES, names, strict=True):
        mean = -trials[first & (trials[RATE] == rate)][FLATNESS].mean()
        assert shown.curve(name)[["x", "y"]].values.tolist() == [[20, pytest.approx(mean)]]
    trials.loc[first, FLATNESS] = 0.0
    (figure,) = lr_batch.plot(Tables(trials)).values()
    assert drawn(figure)[1].title == ["(b) MLP on MNIST-5k", "not shown: 2 points at 0"]


@pytest.mark.parametrize("count", [8, 10])
def test_many_rates_fit_a_page_and_look_unlike(count: int, tmp_path: Path) -> None:
    rates = [0.05 + place / 100 for place in range(count)]
    trials = pd.concat([table().assign(**{RATE: rate}) for rate in rates])
    charts = lr_batch.plot(Tables(trials))
    svg = save_charts(charts, tmp_path)["figure6"].read_text(encoding="utf-8")
    wide = re.search(r'width="([\d.]+)"', svg)
    assert wide
    assert float(wide[1]) <= WIDTH
    shapes = next(
        layer["encoding"]["shape"]["scale"]["range"]
        for layer in drawn(charts["figure6"])[0].layers
        if "shape" in layer["encoding"]
    )
    looks = list(zip(legend(charts["figure6"]).values(), shapes, strict=True))
    assert len(set(looks)) == count
