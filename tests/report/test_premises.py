"""Where a bound's premises fail: marked beside it, counted, and explained; never of older rows."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from gisgd_ray.report import premises
from gisgd_ray.report.bounds_table import exceeded
from gisgd_ray.tracking.report_text import comparison_markdown
from tests.report.test_comparison import cells, table
from tests.support.pages import (
    Document,
    bounds_table_of,
    cell,
    compared,
    finished,
    with_bounds,
    write,
)

LARGE, SMALL = "@0.01", "@1e-06"
AT_OPTIMUM = "measure/subgaussian_constant_perturbed_at_optimum"
NEW = ("_signed", "_sampling_stderr", "flatness_draws", "_perturbed", "test_loss_increase")


def row(trial_id: str = "a", *, times_at_optimum: float | None = 239.0, **columns: Any) -> Any:
    """A finished trial, whose R is exceeded 94 times at the larger of its noise stds."""
    made = with_bounds(finished(trial_id)) | columns
    if times_at_optimum is not None:
        made[AT_OPTIMUM] = times_at_optimum * made["measure/subgaussian_constant"]
    return made


def older(made: dict[str, Any]) -> dict[str, Any]:
    """As it was written before any of this was measured."""
    return {name: value for name, value in made.items() if not any(new in name for new in NEW)}


class TestInterval:
    def test_half_widths_by_hand(self):
        made = row()
        draws, samples = premises.gap_half_widths(made, LARGE)
        assert draws == pytest.approx(stats.t.ppf(0.975, 15) * 0.05)  # 32 draws, 16 pairs
        assert samples == pytest.approx(stats.norm.ppf(0.975) * 0.025)
        assert premises.mean_half_width([made], LARGE) == math.hypot(draws, samples)

    def test_over_replicas_it_is_their_number_that_counts(self):
        draws, _ = premises.gap_half_widths(row(replicas=3), LARGE)
        assert draws == pytest.approx(stats.t.ppf(0.975, 2) * 0.05)

    @pytest.mark.parametrize(("stderr", "sampling", "zero"), [(0.2, 0.01, 0), (0.24, 0.01, 1)])
    def test_zero_is_inside_by_the_draws(self, stderr, sampling, zero):
        """2.131 * 0.2 = 0.43 and 2.131 * 0.24 = 0.51 beside a gap of 0.5."""
        self.check(stderr, sampling, zero)

    @pytest.mark.parametrize(("stderr", "sampling", "zero"), [(0.01, 0.25, 0), (0.01, 0.26, 1)])
    def test_zero_is_inside_by_the_samples(self, stderr, sampling, zero):
        self.check(stderr, sampling, zero)

    def test_zero_is_inside_by_both_together(self):
        self.check(0.17, 0.18, 1)
        self.check(0.17, 0.01, 0)
        self.check(0.01, 0.18, 0)

    def check(self, stderr: float, sampling: float, zero: bool) -> None:
        made = row(**{"measure/flatness_gap_stderr" + LARGE: stderr})
        made["measure/flatness_gap_sampling_stderr" + LARGE] = sampling
        assert premises.gap_may_be_zero(made, LARGE) == zero
        found = table(made)
        assert cells(found, 0, 0)["measure/flatness_gap"].endswith(" ‡") == zero
        assert f"interval in {int(zero)} of 2" in found.premises
        assert any(note.startswith("‡: zero is inside") for note in found.notes) == zero

    def test_of_older_rows_nothing_is_said(self):
        made = older(row(times_at_optimum=None))
        assert premises.gap_half_widths(made, LARGE) is None
        found = table(made)
        assert (found.premises, found.notes) == ("", [])
        line = cells(found, 0, 0)
        assert line["measure/flatness_gap"] == "0.5000"
        assert line["bound/theorem2"] == "2.500"
        assert "excess" not in line


class TestExceeded:
    def test_the_bounds_at_that_std_are_marked(self):
        found = table(row())
        assert found.premises.startswith(
            "R from training is exceeded in 1 of 2 comparisons, up to 94 times; zero is inside"
        )
        large, small = cells(found, 0, 0), cells(found, 0, 1)
        for name, text in large.items():
            marked = name.startswith("bound/") and "perturbed" not in name
            assert text.endswith(" †") == marked, name
        assert not any("†" in text for text in small.values())
        (note,) = [note for note in found.notes if note.startswith("†")]
        assert "exceed it at this σ, 94 times and at Eq. 3’s own σ*, 239 times" in note

    def test_a_mean_over_seeds_is_marked_for_any_of_them(self):
        rows = [row("a"), row("b") | {"seed": 1}]
        rows[1][f"measure/subgaussian_constant_perturbed{LARGE}"] = 1.0
        line = cells(table(*rows, over_seeds=True), 0, 0)
        assert line["bound/theorem2"] == "2.500 †"
        assert line["excess"] == f"{(94 + 1 / 5.416209) / 2:.3g}"

    def test_where_r_suffices_nothing_is_marked(self, tmp_path: Path):
        made = row(times_at_optimum=1.0)
        made[f"measure/subgaussian_constant_perturbed{LARGE}"] = made[
            "measure/subgaussian_constant"
        ]
        assert table(made).premises.startswith("R from training is exceeded in 0 of 2 comparisons;")
        assert "†" not in Document(write(tmp_path, [made])).text

    def test_the_page_marks_eq_3_and_says_so(self, tmp_path: Path):
        text = write(tmp_path, [row(), row("b", times_at_optimum=0.5)])
        headings, _ = bounds_table_of(text)
        assert headings[headings.index("R") + 1] == "Rat σ*"
        assert cell(text, 0, "Eq. 3Theorem 2") == "27.12 †"
        assert cell(text, 0, "Rat σ*") == "1,294"
        assert cell(text, 1, "Eq. 3Theorem 2") == "27.12"
        _, blocks = compared(text)
        assert "Eq. 3 27.12 †" in blocks[0][0]
        plain = Document(text).text
        assert plain.count("R from training is exceeded in 2 of 4 comparisons") == 2
        assert "exceed it at Eq. 3’s own σ*, 239 times: nothing proves the number" in plain
        assert "Half the range of the losses at W" in plain

    def test_a_mean_over_seeds_in_the_other_table(self, tmp_path: Path):
        rows = [row("a"), row("b", times_at_optimum=None) | {"seed": 1}]
        headings, found = bounds_table_of(write(tmp_path, rows), which=-2)
        assert found[0][headings.index("Eq. 3Theorem 2")] == "27.12 ± 0 †"

    def test_a_bound_of_the_user_s_own_may_take_no_r(self, tmp_path: Path):
        assert cell(write(tmp_path, [row(**{"bound/mine": 3.0})]), 0, "mine") == "3.000"

    def test_it_is_explained_on_w_and_b_as_well(self):
        assert "2.500 †" in comparison_markdown(table(row())).replace("\xa0", " ")

    def test_of_older_rows_nothing_is_said(self, tmp_path: Path):
        made = older(row(times_at_optimum=None))
        assert exceeded(pd.DataFrame([made])) == ""
        text = Document(write(tmp_path, [made])).text
        assert "†" not in text
        assert "R from training is exceeded" not in text
