"""What Figures 4 and 9 show is what the tables hold; and what the sweep plans can be compared."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims.figure4 import FACTOR, TEST, TRAIN, begun, figure_panels
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from sweeps import clipping
from tests.support.charts import drawn, legend
from tests.support.runs import config, run
from tests.support.tables import Tables

EPOCHS = 5


def planned(spaces: dict[str, SearchSpace]) -> list[TrialConfig]:
    return [trial for space in spaces.values() for trial in space.trials()]


def tables(trials: Sequence[TrialConfig]) -> Tables:
    """The trials as if they had run, each accuracy a different number in each point."""
    rows, points = [], []
    for i, trial in enumerate(trials):
        rows.append(trial.flat() | {"trial_id": trial.trial_id, "status": "finished"})
        for epoch in range(EPOCHS + 1):
            clips = trial.scheme.name == "clipping" and epoch > 1 + trial.seed
            points.append(
                {
                    "trial_id": trial.trial_id,
                    "step": 10 * epoch,
                    "epoch": float(epoch),
                    TEST: 0.1 + 0.001 * i + 0.01 * epoch**2,
                    TRAIN: 0.2 + 0.0015 * i + 0.02 * epoch,
                    FACTOR: 0.3 if clips else np.nan,
                }
            )
    return Tables(pd.DataFrame(rows), pd.DataFrame(points))


@pytest.mark.parametrize("spaces", [clipping.LAPTOP, clipping.PAPER], ids=["laptop", "paper"])
def test_the_runs_of_a_panel_differ_in_the_scheme_and_the_seed_alone(
    spaces: dict[str, SearchSpace],
) -> None:
    trials = planned(spaces)
    by_model: dict[str, set[str]] = {}
    for trial in trials:
        clipping.check(trial)
        rest = trial.model_dump(exclude={"scheme", "seed"})
        noise = rest["data"].pop("label_noise")
        assert noise in (0.2, 0.4)
        by_model.setdefault(trial.model.name, set()).add(str(rest))
    assert {name: len(rests) for name, rests in by_model.items()} == {"mlp": 1, "alexnet": 1}
    found = figure_panels(tables(trials).trials)
    assert len(found) == 4
    for schemes in found.values():
        assert schemes[0].label == "SGD"
        assert {v.setting.get("scheme.variant") for v in schemes[1:]} == {"running_minimum", "lag"}
        assert len({tuple(v.trials["seed"]) for v in schemes}) == 1


def test_paper_scale_has_the_starts_of_the_authors_commands() -> None:
    starts = {
        (trial.model.name, trial.scheme.variant, trial.scheme.start_epoch)
        for trial in planned(clipping.PAPER)
        if trial.scheme.name == "clipping"
    }
    assert starts == {
        ("mlp", "running_minimum", None),
        ("mlp", "running_minimum", 15),
        ("mlp", "lag", 15),
        ("alexnet", "running_minimum", None),
        ("alexnet", "running_minimum", 20),
        ("alexnet", "lag", 20),
    }


def test_each_curve_is_the_mean_over_seeds_of_its_column() -> None:
    shown = tables(planned(clipping.LAPTOP))
    figures = clipping.plot(shown)
    assert list(figures) == ["figure4", "figure9"]
    joined = shown.history.merge(shown.trials, on="trial_id")
    for name, model, schemes in (("figure4", "mlp", 3), ("figure9", "alexnet", 4)):
        panels = drawn(figures[name])
        assert len(panels) == 2
        for panel, noise in zip(panels, (0.2, 0.4), strict=True):
            assert f"label noise = {noise}" in " ".join(panel.title)
            assert panel.rows["scheme"].nunique() == schemes
            here = joined[(joined["model.name"] == model) & (joined["data.label_noise"] == noise)]
            sgd = here[(here["scheme.name"] == "sgd") & (here["step"] > 0)]
            for series, column in (("test accuracy", TEST), ("train accuracy", TRAIN)):
                line = panel.curve(series, scheme="SGD")
                by_hand = [
                    100 * sgd[sgd["epoch"] == e][column].mean() for e in range(1, EPOCHS + 1)
                ]
                assert list(line["x"]) == list(range(1, EPOCHS + 1))
                assert list(line["y"]) == pytest.approx(by_hand, rel=1e-12)


def test_a_scheme_has_one_colour_and_each_accuracy_its_line() -> None:
    for figure in clipping.plot(tables(planned(clipping.LAPTOP))).values():
        colours = legend(figure)
        assert colours["SGD"] == "#000000"
        assert len(set(colours.values())) == len(colours)
        for panel in drawn(figure):
            assert set(panel.rows["scheme"]) == set(colours)
            (line,) = panel.marks("line")
            dashes = line["encoding"]["strokeDash"]["scale"]
            kinds = ["test accuracy", "train accuracy", "clipping begins (each seed)"]
            assert dashes == {"domain": kinds, "range": [[1, 0], [5, 3], [1, 0]]}


def test_triangles_stand_where_each_seed_began_to_clip() -> None:
    mlp = [t for t in planned(clipping.LAPTOP) if t.model.name == "mlp"]
    (figure,) = clipping.plot(tables(mlp)).values()
    for panel in drawn(figure):
        marks = panel.curve("clipping begins (each seed)")
        assert sorted(marks["x"]) == sorted([1.0, 2.0, 3.0, 4.0] * 2)  # two schemes; SGD has none
        low, high = panel.axes[1]["scale"]["domain"]
        assert marks["y"].between(low, high).all()
        assert marks.groupby("scheme")["y"].nunique().tolist() == [1, 1]


def test_only_finished_trials_are_shown() -> None:
    shown = tables(planned(clipping.LAPTOP))
    shown.trials.loc[shown.trials["model.name"] == "alexnet", "status"] = "diverged"
    assert list(clipping.plot(shown)) == ["figure4"]
    shown.trials["status"] = "failed"
    assert clipping.plot(shown) == {}


def test_a_fifth_scheme_gets_a_colour_of_its_own() -> None:
    space = SearchSpace(fields={**clipping.AUTOMATIC, "scheme.factor": [0.1, 0.2, 0.5, 1.0]})
    trials = [TrialConfig(), *space.trials()]
    (figure,) = clipping.plot(tables(trials)).values()
    assert len(set(legend(figure).values())) == 5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.stop_loss": 0.01}, "training.stop_loss = 0.01 may end runs"),
        ({"training.stop_at_full_accuracy": True}, "training.stop_at_full_accuracy = true may"),
        ({"training.stop_at_full_accuracy": None}, "training.stop_at_full_accuracy = null may"),
    ],
)
def test_runs_that_may_end_at_different_epochs_are_refused(
    changes: dict[str, Any], told: str
) -> None:
    sound: dict[str, Any] = {
        "data.label_noise": 0.2,
        "training.stop_loss": None,
        "training.stop_at_full_accuracy": False,
    }
    clipping.check(config(sound))
    with pytest.raises(UserError, match=told):
        clipping.check(config(sound | changes))


def test_a_real_run_is_sgd_until_the_epoch_after_which_it_is_said_to_clip() -> None:
    same: dict[str, Any] = {
        "data.label_noise": 0.4,
        "training.max_epochs": 4,
        "training.stop_loss": None,
        "training.stop_at_full_accuracy": False,
    }
    sgd = run(same)
    clipped = run(same | clipping.running_minimum(2))
    points = pd.DataFrame(clipped.points)
    assert begun(points) == 2.0
    assert begun(pd.DataFrame(sgd.points)) == np.inf
    losses, of_sgd = (np.array([p["train/loss"] for p in r.points]) for r in (clipped, sgd))
    assert (losses[:3] == of_sgd[:3]).all()
    assert (losses[3:] != of_sgd[3:]).all()
