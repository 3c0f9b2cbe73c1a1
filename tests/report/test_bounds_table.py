"""The tables of bounds: values under their headings, means over seeds, every dash explained."""

import doctest
import math
import re
import statistics
import warnings
from pathlib import Path

import pandas as pd
import pytest

from gisgd_ray.report import bounds_table
from tests.support.pages import (
    EQ3,
    NAN,
    RATE,
    Document,
    bounds_table_of,
    cell,
    failed,
    finished,
    write,
)


def test_every_trial_is_in_the_table_under_the_right_headings(tmp_path: Path) -> None:
    rows = [finished("aaa"), finished("bbb", training__batch_size=40, **{EQ3: 21.07536})]
    headings, cells = bounds_table_of(write(tmp_path, rows))
    first = dict(zip(headings, cells[0], strict=True))
    assert list(first.items()) == [
        ("learning rate λ", "0.05"),
        ("batch size b", "20"),
        ("status", "finished loss threshold"),
        ("steps T", "1,200"),
        ("train loss", "0.04619"),
        ("test loss", "0.2286"),
        ("test accuracy%", "93.60"),
        ("true gaptest − train", "0.1824"),
        ("Eq. 3Theorem 2", "27.12"),
        ("trajectory factor", "90.97"),
        ("flatness factorTr H", "64.95"),
        ("R", "5.416"),
        ("trial", "aaa"),
    ]
    assert cells[1][1] == "40"
    assert cells[1][headings.index("Eq. 3Theorem 2")] == "21.08"
    assert cells[1][-1] == "bbb"


def test_a_bound_below_the_gap_is_not_counted_as_above() -> None:
    frame = pd.DataFrame([finished("a"), finished("b", **{EQ3: 0.1})])
    assert "above the measured gap in 1 of 2 trials" in bounds_table.coverage(frame)


def test_an_infinite_bound_is_no_part_of_the_median_and_is_told_with_care(tmp_path: Path) -> None:
    rows = [
        finished("a"),
        finished("b", **{EQ3: math.inf}),
        finished("c", **{"gap/loss": math.inf}),
    ]
    told = "Eq. 3 lies above the measured gap in 1 of 1 trials, at the median 149 times as large. "
    told += "In 2 more trials one of the two is infinite."
    assert bounds_table.coverage(pd.DataFrame(rows)) == told
    told = "In 1 more trial one of the two is infinite."
    assert bounds_table.coverage(pd.DataFrame(rows[1:2])) == told
    text = Document(write(tmp_path, rows)).text
    care = text[text.index("To be read with care") :]
    assert re.search(r"Infinite .*: bound/theorem2_closed_form .*: gap/loss", care)
    assert "Nothing: no trial" not in care


def test_the_mean_over_seeds_of_an_infinite_value_is_infinite_without_a_warning(
    tmp_path: Path,
) -> None:
    rows = [finished("a"), finished("b", seed=1, **{EQ3: math.inf})]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = Document(write(tmp_path, rows))
    assert re.search(r"Means over the seeds.* ∞ ", page.text)


def test_nan_is_a_dash_with_its_reason_in_the_row(tmp_path: Path) -> None:
    reason = "the Hessian trace is -3.2, and Eq. 3 needs it positive"
    rows = [finished("a"), finished("b", **{EQ3: NAN, "bound/undefined_reason": reason})]
    text = write(tmp_path, rows)
    _, cells = bounds_table_of(text)
    assert cells[1].count("–") == 1
    assert cells[2] == [f"No value (–): {reason}."]
    assert cell(text, 1, "Eq. 3Theorem 2") == "–"
    assert len(cells) == 3  # nothing under the first trial
    dashes = [attrs for tag, attrs in Document(text).tags if attrs.get("title") == reason]
    assert len(dashes) == 1


def test_a_dash_without_a_reason_is_owned_up_to(tmp_path: Path) -> None:
    text = Document(write(tmp_path, [finished("a", **{EQ3: NAN})])).text
    assert "not measured in this trial, and its row gives no reason" in text


def test_missing_columns_are_left_out(tmp_path: Path) -> None:
    text = write(tmp_path, [{"trial_id": "abc", "status": "finished", "train/loss": 0.5}])
    headings, cells = bounds_table_of(text)
    assert headings == ["status", "train loss", "trial"]
    assert cells == [["finished", "0.5000", "abc"]]


def test_outside_theorem_and_ill_conditioned_steps_are_flagged_in_words(tmp_path: Path) -> None:
    ill = {"measure/ill_conditioned_steps": 7}
    rows = [finished("a"), finished("b", outside_theorem="momentum 0.9", seed=1, **ill)]
    text = write(tmp_path, rows)
    assert cell(text, 0, "status") == "finished loss threshold"
    assert "outside the theorem" in cell(text, 1, "status")
    assert "7 ill-conditioned steps" in cell(text, 1, "status")
    plain = Document(text).text
    assert "momentum 0.9 : learning_rate=0.05 batch_size=20 seed=1" in plain
    assert "learning_rate=0.05 batch_size=20 seed=1: 7 of 1,200 steps" in plain
    assert "Nothing: no trial failed" not in plain
    assert "Nothing: no trial failed" in Document(write(tmp_path, rows[:1])).text


def test_mean_and_std_over_seeds_match_a_computation_by_hand(tmp_path: Path) -> None:
    values = [21.0, 24.0, 33.0]
    rows = [finished(f"a{i}", seed=i, **{EQ3: v}) for i, v in enumerate(values)]
    rows += [finished(f"b{i}", seed=i, training__batch_size=40, **{EQ3: 5.0}) for i in range(2)]
    rows += [failed("b2", "lost", seed=2, training__batch_size=40)]
    rows += [
        finished("c0", training__batch_size=80),
        finished("c1", training__batch_size=80, seed=1),
    ]
    rows[-1][EQ3] = NAN
    text = write(tmp_path, rows)
    headings, cells = bounds_table_of(text, which=-2)
    assert headings[:4] == ["learning rate λ", "batch size b", "seeds", "steps T"]
    eq3 = headings.index("Eq. 3Theorem 2")
    assert (statistics.mean(values), round(statistics.stdev(values), 4)) == (26.0, 6.245)
    assert [[*row[:3], row[eq3]] for row in cells] == [
        ["0.05", "20", "3", "26.0 ± 6.2"],
        ["0.05", "40", "2 of 3", "5 ± 0"],
        ["0.05", "80", "2", "27.12 (n = 1)"],
    ]
    assert cells[0][3] == "1,200 ± 0"
    assert cells[0][headings.index("test accuracy%")].startswith("93.6")
    headings, cells = bounds_table_of(text)
    assert headings[:3] == ["learning rate λ", "batch size b", "seed"]
    assert [row[2] for row in cells if len(row) > 1] == ["0", "1", "2", "0", "1", "2", "0", "1"]


def test_one_seed_makes_no_table_of_means(tmp_path: Path) -> None:
    text = write(tmp_path, [finished("a", seed=3), finished("b", seed=3, training__batch_size=40)])
    assert len(Document(text).tables) == 2  # of ours against Neu et al., and of every trial
    assert "over seeds" not in text


def test_columns_are_those_without_a_noise_std() -> None:
    names = ["bound/mine", "bound/theorem4", "bound/theorem2@0.01", "term/theorem1_trajectory@0.01"]
    names += ["bound/undefined_reason", "bound/lemma7", "trial_id", EQ3, "bound/mine@0.01"]
    names += ["measure/smoothness", "measure/hessian_trace", "gap/loss", "bound/theorem3"]
    names += ["measure/gradient_dispersion", "measure/gradient_dispersion_neu", "replicas"]
    row = dict.fromkeys(names, 1.0) | {"replicas": None}
    columns = bounds_table.table_columns(pd.DataFrame([row]))
    expected = [
        ("true gap", "test − train"),
        ("Eq. 3", "Theorem 2"),
        ("Lemma 7", ""),
        ("Theorem 3", ""),
        ("Theorem 4", ""),
        ("mine", ""),
        ("β", "at W_T"),
    ]
    assert [(c.heading.replace("\xa0", " "), c.detail) for c in columns] == expected
    assert bounds_table.column_groups(columns) == [
        ("Training", 1),
        ("Bounds on the gap", 5),
        ("Also measured", 1),
    ]
    columns = bounds_table.table_columns(pd.DataFrame([row | {"replicas": 20}]))
    assert [(c.heading, c.detail) for c in columns[6:]] == [
        ("V", "Eq. 1"),
        ("Ṽ", "Neu et al."),
        ("β", "at W_T"),
    ]
    # What no trial has is left out, but for Eq. 3 and Lemma 7, of which every row says why.
    columns = bounds_table.table_columns(pd.DataFrame([dict.fromkeys(names)]))
    assert [c.name for c in columns] == [EQ3, "bound/lemma7"]


def test_an_estimated_trace_has_its_standard_error_an_exact_one_none(tmp_path: Path) -> None:
    estimated = {
        "measure/hessian_trace_stderr": 1.83,
        "measure/hessian_trace_estimator": "pyhessian",
    }
    text = write(tmp_path, [finished("a"), finished("b", **estimated)])
    assert cell(text, 0, "flatness factorTr H") == "64.95"
    assert cell(text, 1, "flatness factorTr H") == "64.9 ± 1.8"
    assert "an estimate (pyhessian) with its standard error" in Document(text).text
    assert "Tr H is exact in every trial" in Document(write(tmp_path, [finished("a")])).text


def test_cells_are_sorted_by_their_numbers_not_by_what_is_printed(tmp_path: Path) -> None:
    rows = [
        finished("a", seed=0, training__learning_rate=1e-5),
        finished("b", seed=1, training__learning_rate=1e-5, **{"gap/loss": -2.54321e-7}),
        finished("c", model__width=None, **{"gap/loss": math.inf, EQ3: NAN}),
    ]
    text = write(tmp_path, rows, swept=[RATE, "model.width"])
    table = text[text.rindex("<tbody>") :]
    found = {
        row_id: re.findall(r' data-value="(.*?)"', row)
        for row_id, row in re.findall(r'<tr id="trial-(\w)">(.*?)</tr>', table, re.DOTALL)
    }
    keys = {name: values[:3] for name, values in found.items()}
    assert keys["a"] == ["1e-05", "512", "0"]
    assert keys["c"] == ["0.05", "", "0"]  # it has no width
    headings = [h for h in bounds_table_of(text)[0] if h != "status"]
    gap, eq3 = (headings.index(h) for h in ("true gaptest − train", "Eq. 3Theorem 2"))
    assert [found[name][gap] for name in "abc"] == ["0.182375", "-2.54321e-07", "Infinity"]
    assert [found[name][eq3] for name in "abc"] == ["27.117858", "27.117858", ""]
    means = re.findall(r' data-value="(.*?)"', text[text.rindex("seeds sortable") :])
    assert means[:3] == ["1e-05", "512", "2"]
    assert float(means[3 + headings.index("true gaptest − train") - 3]) == pytest.approx(
        (0.182375 - 2.54321e-7) / 2
    )


def test_counts_stay_integers_beside_a_failed_trial(tmp_path: Path) -> None:
    text = write(
        tmp_path, [finished("a"), failed("b", "lost", model__width=64)], swept=["model.width"]
    )
    assert cell(text, 0, "steps T") == "1,200"
    assert "training samples n 4,000 parameters d 407,050" in Document(text).text


def test_a_trial_is_named_by_the_settings_it_has() -> None:
    paths = ["scheme.name", "scheme.rho", "model.width", "training.stop_loss"]
    row = {"trial_id": "abc", "scheme.name": "gmp", "scheme.rho": 0.5, "model.width": 16}
    row["training.stop_loss"] = 1e-4
    assert bounds_table.trial_label(row, paths) == "scheme=gmp rho=0.5 width=16 stop_loss=0.0001"
    # In a table of several schemes and models, what a trial has no such setting for is missing.
    other = row | {"scheme.name": "sgd", "scheme.rho": NAN, "model.width": None}
    assert bounds_table.trial_label(other, paths) == "scheme=sgd stop_loss=0.0001"
    assert bounds_table.trial_label(other, ["scheme.rho"]) == "abc"
    # Of other sections nothing that is missing means a setting: null is one.
    never = bounds_table.trial_label(row | {"training.stop_loss": None}, paths[3:])
    assert never.startswith("stop_loss=")


def test_docstring_examples() -> None:
    assert doctest.testmod(bounds_table).failed == 0
