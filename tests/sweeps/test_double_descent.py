"""What Figure 3 shows is what the tables hold, and what it cannot show is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims.figure3 import DISPERSION, TEST, TRAIN
from gisgd_ray.runner import main as sweep
from sweeps import double_descent
from sweeps.double_descent import LEGEND, SWEEP
from tests.support.charts import Drawn, drawn, legend
from tests.support.tables import NO_TRIALS, Tables, history, trial

VALLEYS = {"0": 20, "1": 30}
"""The epoch of the valley by seed; the best test accuracy lies five epochs later."""


def tables(**fields: Any) -> Tables:
    """Two seeds at label noise 0.4, which descend twice, and at 0, which only decay."""
    rows, points = [], []
    epochs = np.arange(81.0)
    for noise in (0.4, 0.0):
        for seed, valley in VALLEYS.items():
            name = f"{noise}/{seed}/{fields}"
            rows.append(trial(name, data__label_noise=noise, seed=int(seed), **fields))
            twice = np.interp(
                epochs, [0, valley - 3, valley, valley + 3, 60, 80], [9, 1.3, 1, 1.3, 5, 0]
            )
            best = valley + 5
            points.append(
                history(
                    name,
                    epoch=epochs,
                    measure__gradient_dispersion=twice if noise else np.exp(-epochs / 10),
                    train__accuracy=np.linspace(0.1, 1, 81),
                    test__accuracy=0.6 - np.abs(epochs - best) / 200,
                )
            )
    return Tables(pd.DataFrame(rows), pd.concat(points))


def upright(panel: Drawn) -> dict[str, float]:
    """The epochs marked by vertical lines, by their names."""
    rules = panel.rows[panel.rows["drawn"] == "rule"]
    assert bool(panel.marks("rule")) or rules.empty
    return dict(zip(rules["series"], rules["x"], strict=True))


def test_each_curve_is_the_mean_over_seeds_of_its_column() -> None:
    shown = tables()
    (figure,) = double_descent.plot(shown).values()
    clean, noisy = drawn(figure)
    assert [panel.title[0] for panel in (clean, noisy)] == [
        "(a) MLP on MNIST, label noise = 0",
        "(b) MLP on MNIST, label noise = 0.4",
    ]
    titles = ["epoch", "accuracy (%)", "dispersion"]
    assert [axis["title"] for axis in clean.axes] == titles
    table = shown.history.merge(shown.trials[["trial_id", "data.label_noise"]])
    for noise, panel in ((0.0, clean), (0.4, noisy)):
        mine = table[table["data.label_noise"] == noise].groupby("epoch")
        for label, column, unit in (
            (LEGEND[0], TRAIN, 100),
            (LEGEND[1], TEST, 100),
            (LEGEND[2], DISPERSION, 1),
        ):
            line = panel.curve(label)
            assert list(line["x"]) == list(range(81))
            expected = [unit * part[column].sum() / 2 for _, part in mine]
            assert list(line["y"]) == pytest.approx(expected)
            (axis,) = {
                layer["encoding"]["y"]["title"]
                for layer in panel.marks("line")
                if set(line["drawn"]) <= set(layer["transform"][0]["filter"]["oneOf"])
            }
            assert axis == ("dispersion" if label == LEGEND[2] else "accuracy (%)")


def test_valley_and_best_test_accuracy_are_marked_at_their_means_over_seeds() -> None:
    (figure,) = double_descent.plot(tables()).values()
    clean, noisy = drawn(figure)
    assert upright(noisy) == {"valley of V": 25, "best test accuracy": 30}
    assert upright(clean) == {"best test accuracy": 30}
    assert noisy.title[1:] == ["valley of V at epoch 25, best test accuracy at 30"]
    assert clean.title[1:] == ["best test accuracy at epoch 30"]


def test_one_legend_names_all_that_is_drawn_once() -> None:
    (figure,) = double_descent.plot(tables()).values()
    assert tuple(legend(figure)) == LEGEND
    scales = {
        str(layer["encoding"]["stroke"]["scale"])
        for panel in drawn(figure)
        for layer in panel.layers
        if "stroke" in layer["encoding"]
    }
    assert len(scales) == 1


def test_models_are_not_mixed_and_only_finished_trials_shown() -> None:
    mlp, alexnet = tables(), tables(model__name="alexnet")
    both = Tables(
        pd.concat([mlp.trials, alexnet.trials], ignore_index=True),
        pd.concat([mlp.history, alexnet.history]),
    )
    (figure,) = double_descent.plot(both).values()
    titles = [panel.title[0] for panel in drawn(figure)]
    assert titles == [
        "(a) MLP on MNIST, label noise = 0",
        "(b) MLP on MNIST, label noise = 0.4",
        "(c) AlexNet on MNIST, label noise = 0",
        "(d) AlexNet on MNIST, label noise = 0.4",
    ]
    both.trials.loc[both.trials["seed"] == 1, "status"] = "diverged"
    (figure,) = double_descent.plot(both).values()
    assert upright(drawn(figure)[1])["valley of V"] == VALLEYS["0"]
    assert double_descent.plot(NO_TRIALS) == {}


def test_a_run_without_accuracies_or_dispersion_still_has_its_panel() -> None:
    shown = tables()
    shown.history[[TRAIN, TEST, DISPERSION]] = np.nan
    (figure,) = double_descent.plot(shown).values()
    assert upright(drawn(figure)[1]) == {}


REFUSED = {
    "--measurement.dispersion false": "measurement.dispersion = false leaves out what Figure 3 is "
    "about; leave it true",
    "--replicas 3": "replicas = 3: Figure 3 looks for the valley of V run by run; choose replicas "
    "= null and several seeds",
}


@pytest.mark.parametrize("argv", REFUSED)
def test_what_the_figure_cannot_show_is_refused(
    argv: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--scale", "laptop", "--dry-run", "--out", str(tmp_path), *argv.split()]
    assert sweep.main(SWEEP, given) == 2
    assert capsys.readouterr() == ("", f"error: {REFUSED[argv]}\n")


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_all_four_noise_levels_stop_by_the_same_rule(scale: str) -> None:
    for space in SWEEP.spaces(scale).values():
        trials = space.trials()
        assert sorted({t.data.label_noise for t in trials}) == [0, 0.2, 0.4, 0.6]
        rules = {(t.training.stop_loss, t.training.stop_at_full_accuracy) for t in trials}
        assert rules == {(None, True)}
        assert all(t.measurement.dispersion for t in trials)


def test_the_bounds_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--scale", "laptop", "--dry-run", "--out", str(tmp_path)]
    assert sweep.main(SWEEP, [*given, "--measurement.hessian_trace", "off"]) == 0
    assert "Figure 3: 28 trials, 28 to run" in capsys.readouterr().out
