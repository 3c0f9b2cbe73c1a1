"""Figure 3's claims: the valley of the dispersion, and where test accuracy peaks."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import Claim, figure3
from gisgd_ray.claims.figure3 import Valley, find_valley, running_median
from gisgd_ray.errors import UserError
from sweeps import double_descent
from tests.runs import config
from tests.tables import NO_TRIALS, Tables, history, trial

POINTS = 80
EPOCHS = np.arange(POINTS) / 4


def double(valley: float = 3.0, peak: float = 10.0, height: float = 4.0) -> np.ndarray:
    """V over EPOCHS: from 6 down to 2 at ``valley``, up to 2 + height at ``peak``, down to 0."""
    corners = [0, valley, peak, EPOCHS[-1]]
    return np.interp(EPOCHS, corners, [6.0, 2.0, 2.0 + height, 0.0])


class TestValley:
    def test_of_a_clean_double_descent(self) -> None:
        found = find_valley(double())
        assert found is not None
        # To within half the window: the median leans towards the slower side.
        assert abs(EPOCHS[found.valley] - 3.0) <= 1.0
        assert abs(EPOCHS[found.peak] - 10.0) <= 1.0

    def test_noise_of_a_tenth_moves_it_little(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(20):
            found = find_valley(double() * (1 + 0.1 * rng.standard_normal(POINTS)))
            assert found is not None
            assert abs(EPOCHS[found.valley] - 3.0) <= 1.5
            assert abs(EPOCHS[found.peak] - 10.0) <= 1.5

    @pytest.mark.parametrize(
        "curve",
        [
            np.linspace(6, 0, POINTS),  # only falls
            6 * np.exp(-EPOCHS),
            np.full(POINTS, 2.0),
            np.linspace(0, 6, POINTS),  # rises without a second descent
            np.where(np.arange(POINTS) == 40, 50.0, np.linspace(6, 0, POINTS)),  # one spike
            double(height=0.1),  # a rise of less than 3 % of the largest
            np.interp(EPOCHS, [0, 3, 10, 20], [6, 2, 6, 4]),  # no descent below half the peak
            double()[: figure3.WINDOW - 1],
            np.full(POINTS, math.nan),
            [],
        ],
        ids=["falls", "decays", "constant", "rises", "spike", "low", "stays", "short", "nan", "no"],
    )
    def test_there_is_none(self, curve: Any) -> None:
        assert find_valley(curve) is None

    def test_late_relative_noise_is_no_second_descent(self) -> None:
        """Late in training V is small: threefold changes of it are nothing."""
        late = 6 * np.exp(-EPOCHS / 2) * np.where(np.arange(POINTS) // 10 % 2, 1.5, 0.5)
        late[:20] = np.linspace(12, 4, 20)
        assert find_valley(late) is None

    def test_a_flat_valley_ends_where_the_rise_begins(self) -> None:
        curve = np.interp(EPOCHS, [0, 2, 6, 10, 20], [6, 2, 2, 6, 0])
        found = find_valley(curve)
        assert found is not None
        assert EPOCHS[found.valley] == pytest.approx(6.0, abs=1.1)

    def test_running_median_by_hand(self) -> None:
        values = [5.0, 1.0, 9.0, math.nan, 2.0]
        assert running_median(values, 3).tolist() == [3.0, 5.0, 5.0, 5.5, 2.0]

    def test_it_is_a_pair_of_indices(self) -> None:
        assert Valley(1, 2).peak == 2


def tables(
    curves: list[np.ndarray],
    tests: list[np.ndarray],
    *,
    noise: float = 0.4,
    train: np.ndarray | None = None,
    **fields: Any,
) -> Tables:
    """A trial for every curve of V and of test accuracy; train accuracy rises to 1."""
    rows, points = [], []
    train = np.linspace(0.5, 1, POINTS) if train is None else train
    for seed, (v, test) in enumerate(zip(curves, tests, strict=True)):
        name = f"t{seed}"
        rows.append(trial(name, seed=seed, data__label_noise=noise, **fields))
        # The first point is step 0, at which nothing has been summed.
        frame = history(
            name,
            measure__gradient_dispersion=[math.nan, *v],
            test__accuracy=[0.1, *test],
            train__accuracy=[0.1, *train],
            epoch=[0.0, *EPOCHS],
        )
        points.append(frame)
    return Tables(pd.DataFrame(rows), pd.concat(points, ignore_index=True))


def peaked(at: float, *, best: float = 0.6, end: float = 0.4) -> np.ndarray:
    return np.interp(EPOCHS, [0, at, EPOCHS[-1]], [0.3, best, end])


def claims(found: Tables) -> dict[str, Claim]:
    return {claim.text.partition(" (")[0]: claim for claim in figure3.claims(found)}


DESCENDS = "The gradient dispersion descends, rises and descends again"
MARKS = "The valley marks where test accuracy peaks"
DIVIDES = "Up to the valley the train-test gap stays small"


def test_the_papers_picture_holds() -> None:
    curves = [double(3 + 0.25 * s) for s in range(3)]
    train = np.interp(EPOCHS, [0, 3, 20], [0.3, 0.62, 1.0])
    found = claims(tables(curves, [peaked(3 + 0.25 * s) for s in range(3)], train=train))
    assert {text: claim.verdict for text, claim in found.items()} == {
        DESCENDS: "holds",
        MARKS: "holds",
        DIVIDES: "holds",
    }
    assert "3 of 3 runs" in found[DESCENDS].evidence


def test_a_peak_of_accuracy_long_after_the_valley_fails() -> None:
    curves = [double(2 + 0.25 * s, 8) for s in range(3)]
    late = claims(tables(curves, [peaked(12 + 0.3 * s) for s in range(3)]))
    assert late[MARKS].verdict == "fails"
    assert late[DIVIDES].verdict != "holds"


def test_a_gap_that_was_there_before_fails() -> None:
    curves = [double(3 + 0.25 * s) for s in range(3)]
    found = claims(
        tables(curves, [peaked(3 + 0.2 * s) for s in range(3)], train=np.full(POINTS, 1.0))
    )
    assert found[DIVIDES].verdict == "fails"


def test_without_a_valley_nothing_is_said_of_it() -> None:
    only_falls = [np.linspace(6, 0, POINTS)] * 2
    found = claims(tables(only_falls, [peaked(3)] * 2))
    assert {text: claim.verdict for text, claim in found.items()} == {DESCENDS: "fails"}


def test_without_noise_the_mlp_only_decays_and_a_convolutional_net_descends_twice() -> None:
    only_falls = [np.linspace(6, 0, POINTS)] * 2
    text = "Without label noise the gradient dispersion only decays"
    assert claims(tables(only_falls, [peaked(3)] * 2, noise=0.0))[text].verdict == "holds"
    assert claims(tables([double()] * 2, [peaked(3)] * 2, noise=0.0))[text].verdict == "fails"
    alexnet = claims(tables([double()], [peaked(3)], noise=0.0, model__name="alexnet"))
    assert alexnet[DESCENDS].verdict == "holds"


def test_one_run_leaves_what_is_inferred_undecided() -> None:
    found = claims(tables([double()], [peaked(3)]))
    assert (found[MARKS].verdict, found[DIVIDES].verdict) == ("undecided", "undecided")


def test_noise_levels_and_models_are_panels() -> None:
    one = tables([double()], [peaked(3)], noise=0.2)
    other = tables([double()], [peaked(3)], noise=0.4)
    trials = pd.concat([one.trials, other.trials.assign(trial_id="u0")], ignore_index=True)
    points = pd.concat([one.history, other.history.assign(trial_id="u0")], ignore_index=True)
    found = figure3.panel_facts(Tables(trials, points))
    assert list(found) == [
        "MLP on mnist, label_noise = 0.2",
        "MLP on mnist, label_noise = 0.4",
    ]
    assert figure3.claims(NO_TRIALS) == []


class TestFigure:
    def test_a_panel_a_noise_level_with_valley_and_best_marked(self) -> None:
        figures = double_descent.plot(tables([double()] * 2, [peaked(5)] * 2))
        assert list(figures) == ["figure3_mlp"]
        lines = {
            str(line.get_label()): line.get_xdata()
            for axis in figures["figure3_mlp"].axes
            for line in axis.lines
        }
        assert lines["valley of V"][0] == pytest.approx(3.0, abs=1.0)
        assert lines["best test accuracy"][0] == pytest.approx(5.0, abs=0.3)
        assert {"train accuracy", "test accuracy", "dispersion V"} <= set(lines)

    def test_without_a_valley_its_line_is_empty(self) -> None:
        figures = double_descent.plot(tables([np.linspace(6, 0, POINTS)], [peaked(5)]))
        lines = {str(x.get_label()): x for axis in figures["figure3_mlp"].axes for x in axis.lines}
        assert len(lines["valley of V"].get_xdata()) == 0

    def test_it_needs_the_dispersion(self) -> None:
        with pytest.raises(UserError, match=r"measurement\.dispersion = false leaves out"):
            double_descent.check(config({"measurement.dispersion": False}))
        double_descent.check(config())

    @pytest.mark.parametrize("scale", ["laptop", "paper"])
    def test_four_noise_levels_of_two_models(self, scale: str) -> None:
        spaces = double_descent.SWEEP.panels[scale]
        found = {(t.model.name, t.data.label_noise) for s in spaces.values() for t in s.trials()}
        assert found == {(m, n) for m in ("mlp", "alexnet") for n in (0.0, 0.2, 0.4, 0.6)}
