"""Ours against Neu et al.: every cell from its row, lower bounds, means over seeds, the counts."""

import doctest
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gisgd_ray.report import comparison
from gisgd_ray.report.comparison import Comparison, compare
from tests.support.pages import (
    BATCH,
    EQ3,
    NAN,
    RATE,
    Document,
    compared,
    failed,
    finished,
    with_bounds,
    write,
)

LARGE, SMALL = "@0.01", "@1e-06"
"""The noise stds of :func:`tests.support.pages.finished`."""


def table(*rows: dict[str, Any], over_seeds: bool = False, points: list[str] | None = None) -> Any:
    found = compare(pd.DataFrame(rows), points or [RATE, BATCH], over_seeds=over_seeds)
    assert isinstance(found, Comparison)
    return found


def cells(found: Comparison, block: int, line: int) -> dict[str, str]:
    """One line's cells by column name."""
    names = [column.name for column in found.columns]
    texts = [text.replace("\xa0", " ") for text in found.blocks[block].lines[line].cells]
    return dict(zip(names, texts, strict=True))


def test_every_cell_is_its_row_s_value() -> None:
    found = table(with_bounds(finished("a", replicas=20), sensitivity=True))
    assert [line.noise_std for line in found.blocks[0].lines] == ["10⁻²", "10⁻⁶"]
    assert cells(found, 0, 0) == {
        "term/theorem2_trajectory": "2.000",
        "term/lemma2_trajectory": "30.00",
        "ratio": "15.0",
        "term/theorem1_trajectory": "1.500",
        "term/corollary1_trajectory": "20.00",
        "measure/flatness_gap": "0.50 ± 0.12",  # hypot(2.131 * 0.05, 1.960 * 0.025)
        "term/corollary2_flatness": "1.23 × 10¹⁰",
        "bound/theorem2": "2.500 †",
        "bound/lemma2_neu": "30.50 †",
        "bound/theorem1": "2.000 †",
        "bound/corollary1": "20.50 †",
        "bound/corollary2": "1.23 × 10¹⁰ †",
        "excess": "94.0",
        "bound/theorem2_perturbed_r": "188.5",
        "bound/lemma2_neu_perturbed_r": "2,820",
        "measure/local_gradient_sensitivity": "0.7000",
    }
    small = cells(found, 0, 1)
    assert small["measure/flatness_gap"] == "(5.0 ± 1.2) × 10⁻¹³"
    assert small["excess"] == "0.500"
    assert small["bound/theorem2"] == "2.00 × 10⁶"
    assert small["term/lemma2_trajectory"] == "3.00 × 10⁷"
    assert found.groups == [
        ("Trajectory term", 5),
        ("Flatness", 2),
        ("Bound: trajectory + flatness", 5),
        ("Bound with R at σ", 3),
        ("Also measured", 1),
    ]
    sides = {column.name: column.side for column in found.columns if column.side}
    assert sides == {
        "term/theorem2_trajectory": "ours",
        "term/lemma2_trajectory": "neu",
        "bound/theorem2": "ours",
        "bound/lemma2_neu": "neu",
        "bound/theorem2_perturbed_r": "ours",
        "bound/lemma2_neu_perturbed_r": "neu",
    }
    assert not found.lower_bounds


def test_a_block_says_once_what_needs_no_noise_std() -> None:
    row = finished("a", **{"bound/lemma7": 31.2, "term/optimal_noise_std": 1.2e-3})
    found = table(with_bounds(row) | {"bound/theorem3": 3.25}, finished("b", **{EQ3: NAN}))
    plain = [(name.replace("\xa0", " "), text) for name, text in found.blocks[0].facts]
    assert plain == [
        ("true gap", "0.1824"),
        ("Eq. 3", "27.12"),
        ("Lemma 7", "31.20"),
        ("Theorem 3", "3.250"),
        ("σ*", "0.001200"),
    ]
    assert [text for _, text in found.blocks[1].facts] == ["0.1824", "–", "–", "–", "–"]
    assert found.blocks[0].settings == [("learning rate λ", "0.05"), ("batch size b", "20")]


def test_without_the_sensitivity_lemma_2_is_a_lower_bound() -> None:
    found = table(with_bounds(finished("a")))
    line = cells(found, 0, 0)
    assert line["term/lemma2_trajectory"] == "≥ 24.00"
    assert line["ratio"] == "≥ 12.0"
    assert line["bound/lemma2_neu"] == "≥ 24.50 †"
    assert line["bound/lemma2_neu_perturbed_r"] == "≥ 2,256"
    for absent in ("term/corollary1_trajectory", "bound/corollary1"):
        assert absent not in line
    assert found.lower_bounds
    assert found.decided


def test_a_sensitivity_that_came_out_as_nan_leaves_the_lower_bound() -> None:
    row = with_bounds(finished("a"), sensitivity=True)
    row |= {f"term/lemma2_trajectory{LARGE}": NAN, f"bound/lemma2_neu{LARGE}": NAN}
    found = table(row)
    assert cells(found, 0, 0)["bound/lemma2_neu"] == "≥ 24.50 †"
    assert cells(found, 0, 1)["term/lemma2_trajectory"][0] != "≥"


def test_without_the_flatness_gap_no_bound_is_made_up() -> None:
    row = with_bounds(finished("a"))
    for name in [
        name for name in row if "flatness_gap" in name or name.startswith("bound/theorem2")
    ]:
        del row[name]
    names = [column.name for column in table(row).columns]
    assert "term/lemma2_trajectory" in names
    assert "bound/lemma2_neu" not in names
    assert "measure/flatness_gap" not in names


def test_a_lower_bound_below_ours_decides_nothing() -> None:
    row = with_bounds(finished("a", replicas=20))
    row[f"term/theorem2_trajectory{LARGE}"] = 25.0
    found = table(row)
    assert not found.decided
    assert not found.one_draw
    assert "in 1 of 2 comparisons, 1 being undecided while the sensitivity is not" in found.summary


@pytest.mark.parametrize(
    ("sensitivities", "summary"),
    [
        ([True, True], "(Neu et al.) in 4 of 4 comparisons; at the median it is 15 times smaller."),
        (
            [False, False],
            "(Neu et al.), even without its sensitivity term, in 4 of 4 comparisons; "
            "at the median it is at least 12 times smaller.",
        ),
        (
            [True, False],
            "(Neu et al.) in 4 of 4 comparisons (2 of them even without its sensitivity term); "
            "at the median it is at least 14 times smaller.",
        ),
    ],
)
def test_the_summary_counts_finished_trials_times_noise_stds(
    sensitivities: list[bool], summary: str
) -> None:
    rows = [with_bounds(finished(str(i)), sensitivity=s) for i, s in enumerate(sensitivities)]
    rows.append(with_bounds(finished("d", status="diverged"), sensitivity=True))
    rows.append(failed("e", "lost"))
    assert table(*rows).summary == f"Theorem 2’s trajectory term lies below Lemma 2’s {summary}"


def test_where_ours_is_larger_the_summary_says_so() -> None:
    row = with_bounds(finished("a", replicas=20), sensitivity=True)
    for at in (LARGE, SMALL):
        row[f"term/theorem2_trajectory{at}"] = 4 * row[f"term/lemma2_trajectory{at}"]
    assert table(row).summary == (
        "Theorem 2’s trajectory term lies below Lemma 2’s (Neu et al.) in 0 of 2 comparisons; "
        "at the median it is 4.0 times larger."
    )


def test_nothing_learnt_gives_no_ratio() -> None:
    row = with_bounds(finished("a"), sensitivity=True)
    for name in row:
        if name.startswith(("term/theorem2_trajectory@", "term/lemma2_trajectory@")):
            row[name] = 0.0
    found = table(row)
    assert cells(found, 0, 0)["term/theorem2_trajectory"] == "0"
    assert "ratio" not in cells(found, 0, 0)
    assert found.summary.endswith("in 0 of 2 comparisons.")


def test_means_over_the_seeds_that_finished() -> None:
    rows = [with_bounds(finished(f"a{i}", seed=i), scale=1.0 + i, sensitivity=True) for i in (0, 1)]
    rows.append(with_bounds(finished("a2", seed=2, status="diverged"), scale=99.0))
    rows.append(with_bounds(finished("b0", training__batch_size=40), scale=3.0))
    rows[1][f"measure/flatness_gap_stderr{LARGE}"] = 0.12
    rows[0]["bound/lemma7"] = 8.0
    found = table(*rows, over_seeds=True)
    assert [(b.settings[1][1], b.status) for b in found.blocks] == [
        ("20", "2 of 3 seeds"),
        ("40", "1 seed"),
    ]
    first = cells(found, 0, 0)
    assert first["term/theorem2_trajectory"] == "3.000"  # (2 + 4) / 2
    assert first["term/lemma2_trajectory"] == "45.00"
    assert first["ratio"] == "15.0"
    assert first["measure/flatness_gap"] == "0.75 ± 0.16"
    # 2.131 sqrt(0.05² + 0.12²) / 2 by the draws, 1.960 (0.025 + 0.05) / 2 by the same samples.
    assert math.hypot(2.131 * math.hypot(0.05, 0.12), 1.960 * 0.075) / 2 == pytest.approx(
        0.157, 1e-2
    )
    assert cells(found, 1, 0)["bound/lemma2_neu"] == "≥ 73.50 †"
    assert dict(found.blocks[0].facts)["Lemma\xa07"] == "8.000 (n = 1)"


def test_a_mean_with_one_lower_bound_in_it_is_one() -> None:
    rows = [with_bounds(finished(f"a{i}", seed=i), sensitivity=bool(i)) for i in (0, 1)]
    line = cells(table(*rows, over_seeds=True), 0, 0)
    assert line["term/lemma2_trajectory"] == "≥ 27.00"  # (24 + 30) / 2
    assert line["ratio"] == "≥ 13.5"
    assert line["term/corollary1_trajectory"] == "20.00 (n = 1)"


def test_theorem_1_is_eq_2_where_there_are_no_replicas() -> None:
    """One column then, and of a row that an earlier version wrote, no other."""
    row = with_bounds(finished("a"), sensitivity=True)
    row |= {f"{name}{LARGE}": 2057.0 for name in ("term/theorem1_trajectory", "bound/theorem1")}
    alone = table(row)
    headings = {column.name: column.heading for column in alone.columns}
    assert headings["term/theorem2_trajectory"] == headings["bound/theorem2"]
    assert headings["bound/theorem2"].replace("\xa0", " ") == "Eq. 2 = Thm. 1"
    assert not [name for name in headings if "theorem1" in name]
    both = table(row, with_bounds(finished("b", replicas=20)))
    headings = {column.name: column.heading.replace("\xa0", " ") for column in both.columns}
    assert headings["bound/theorem2"] == "Eq. 2"
    assert headings["bound/theorem1"] == "Thm. 1"
    texts = [cells(both, block, 0)["bound/theorem1"] for block in (0, 1)]
    assert texts == ["–", "2.000 †"]


def test_trials_that_diverged_or_failed_are_dashes() -> None:
    rows = [with_bounds(finished("a")), with_bounds(finished("b", status="diverged"))]
    found = table(*rows, failed("c", "lost"))
    for block, status in ((1, "diverged"), (2, "failed")):
        assert found.blocks[block].status == status
        assert len(found.blocks[block].lines) == 1
        assert set(cells(found, block, 0).values()) == {"–"}
        assert found.blocks[block].lines[0].noise_std == "–"


def test_a_finished_trial_without_dispersion_says_why() -> None:
    reason = "gradient dispersion was not measured"
    row = finished("b", **{"bound/undefined_reason": reason})
    row |= {name: NAN for name in row if "@" in name}
    found = table(with_bounds(finished("a")), row)
    assert [block.reason for block in found.blocks] == ["", reason]


def test_noise_stds_of_other_trials_make_no_lines() -> None:
    other = {name: value for name, value in finished("b").items() if "@" not in name}
    rows = [with_bounds(finished("a")), other | {"term/theorem2_trajectory@0.03": 7.0}]
    found = table(*rows)
    assert [[line.noise_std for line in block.lines] for block in found.blocks] == [
        ["10⁻²", "10⁻⁶"],
        ["0.03"],
    ]
    assert cells(found, 1, 0)["term/lemma2_trajectory"] == "–"


def test_a_bound_of_the_user_s_own_is_shown_by_its_name() -> None:
    found = table(with_bounds(finished("a")) | {f"bound/mine{LARGE}": 5.0})
    assert cells(found, 0, 0)["bound/mine"] == "5.000"  # nor marked: R may be none of it
    assert cells(found, 0, 1)["bound/mine"] == "–"


def test_the_sensitivity_is_the_mean_over_the_steps() -> None:
    row = with_bounds(finished("a", steps=100), sensitivity=True) | {f"sum/sensitivity{LARGE}": 3.0}
    assert cells(table(row), 0, 0)["measure/local_gradient_sensitivity"] == "0.03000"


@pytest.mark.parametrize("rows", [[], [failed("a", "lost")], [finished("a", status="diverged")]])
def test_no_value_at_all_makes_no_table(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(rows, columns=None if rows else ["trial_id", "status"])
    assert compare(frame, []) is None
    text = Document(write(tmp_path, rows)).text
    none = "No finished trial has a value at a noise std." if rows else "No trial has ended yet."
    assert f"Ours against Neu et al. {none}" in text


def test_the_page_shows_it_before_the_other_table(tmp_path: Path) -> None:
    rows = [with_bounds(finished("a")), with_bounds(finished("b", training__batch_size=40))]
    text = write(tmp_path, rows)
    document = Document(text)
    order = ["Ours against Neu et al.", "The paper’s claims", "The bounds, trial by trial"]
    places = [document.texts.index(heading) for heading in order]
    assert places == sorted(places)
    headings, blocks = compared(text)
    assert headings[:4] == ["σ", "Eq. 2 = Thm. 1ours", "Lemma 2Neu et al.", "ratioNeu ÷ ours"]
    assert [row[0] for row in blocks[1:3]] == ["10⁻²", "10⁻⁶"]
    assert blocks[0][0].startswith("learning rate λ 0.05 batch size b 20 true gap 0.1824")
    assert blocks[1][1:4] == ["2.000", "≥ 24.00", "≥ 12.0"]
    assert len({len(row) for row in blocks if len(row) > 1} | {len(headings)}) == 1
    assert document.text.count("even without its sensitivity term, in 4 of 4 comparisons") == 2
    assert "the comparison is decided in its favour whatever Ψ is" in document.text
    assert "--measurement.sensitivity true measures Ψ" in document.text
    assert "at least √8 ≈ 2.8 times above ours" in document.text


def test_the_page_does_not_decide_what_is_open(tmp_path: Path) -> None:
    row = with_bounds(finished("a", replicas=20))
    row[f"term/theorem2_trajectory{LARGE}"] = 25.0
    text = Document(write(tmp_path, [row])).text
    assert "Ψ was not measured, and the value is Lemma 2 with Ψ = 0, a lower bound" in text
    assert "decided in its favour" not in text
    assert "√8" not in text


def test_what_is_not_there_is_not_explained(tmp_path: Path) -> None:
    entries = {
        "Local gradient sensitivity at a measuring point": "the steps it was measured at: linear",
        "Theorem 1's trajectory term, of replicas": "about its mean given the noisy weights",
        "Corollary 1's trajectory term": "Lemma 2's with a smaller constant",
        "Likewise of Neu et al.": "the inner mean over Z alone",
        "Of a linear network": "Lemma 7 with E‖g‖² ≤ 2 E ℓ and Tr H = 1",
        "Of a two-layer ReLU network": "where unit r is active",
    }
    row = with_bounds(finished("a"))
    absent = Document(write(tmp_path, [row])).text
    row = with_bounds(finished("a", replicas=20), sensitivity=True)
    row |= {"measure/gradient_dispersion_neu": 1e-3, "bound/theorem3": 1.0, "bound/theorem4": 2.0}
    row["measure/sensitivity_interpolation"] = "linear in t between 51 points"
    row["measure/sensitivity_estimator"] = "two halves of 400 training samples, others a draw"
    present = Document(write(tmp_path, [row])).text
    for entry, words in entries.items():
        assert entry not in absent
        assert entry in present
        assert words.lower() in present.lower()
    assert "estimate may then be below 0: two halves of 400 training samples, others" in present
    for text in (absent, present):
        assert "How differently the noise Δ T raises the two losses" in text
        assert "the local curvature, in place of a constant for all weights" in text


def test_docstring_examples() -> None:
    assert doctest.testmod(comparison).failed == 0
