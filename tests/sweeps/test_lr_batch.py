"""What Figure 6 shows is what the tables hold, and nothing is averaged over but seeds."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import figure6
from gisgd_ray.config.space import make_space
from sweeps import lr_batch
from sweeps.lr_batch import BATCH, FLATNESS, RATE, TRAJECTORY
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
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == (
        "(a) MLP on MNIST-5k",
        "(b) MLP on MNIST-5k",
    )
    assert (left.get_ylabel(), right.get_ylabel()) == ("trajectory factor", "flatness factor")
    for axis, column in ((left, TRAJECTORY), (right, FLATNESS)):
        curves = [bar.lines[0] for bar in axis.containers]
        assert [bar.get_label() for bar in axis.containers] == ["lr = 0.1", "lr = 0.2"]
        for rate, curve in zip(RATES, curves, strict=True):
            assert list(curve.get_xdata()) == list(BATCHES)
            for batch, shown in zip(BATCHES, curve.get_ydata(), strict=True):
                mine = [
                    row[column]
                    for row in trials.to_dict("records")
                    if row[RATE] == rate and row[BATCH] == batch
                ]
                assert len(mine) == 2
                assert shown == pytest.approx(sum(mine) / 2, rel=1e-12)


def test_only_finished_trials_are_shown() -> None:
    trials = table()
    trials.loc[trials[BATCH] == 60, "status"] = "diverged"
    (figure,) = lr_batch.plot(Tables(trials)).values()
    assert list(figure.axes[0].containers[0].lines[0].get_xdata()) == [20, 40]


def test_another_swept_field_has_panels_and_claims_of_its_own() -> None:
    widths, noises = (32, 64), (0.0, 0.2)
    trials = table(model__width=list(widths), data__label_noise=list(noises))
    (figure,) = lr_batch.plot(Tables(trials)).values()
    titles = [axis.get_title() for axis in figure.axes]
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
