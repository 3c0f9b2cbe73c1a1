"""Figure 2's claims: the bound of Eq. 3 against the gap, over size and over label noise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import figure2
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.statistics import Verdict
from tests.support.tables import NO_TRIALS, Tables, trial

WIDTHS, FILTERS = (100, 200, 300, 400, 500, 512), (10, 20, 30, 40, 50, 60)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
Values = Callable[[float, float, int], float]


def grid(
    bound: Values, gap: Values, *, seeds: int = 3, size: str = "width", **fields: Any
) -> pd.DataFrame:
    """The two sweeps of a model: sizes without noise, noises at the last size."""
    sizes = WIDTHS if size == "width" else FILTERS
    points = [(s, 0.0) for s in sizes] + [(sizes[-1], noise) for noise in NOISES[1:]]
    rows = []
    for seed in range(seeds):
        for s, noise in points:
            row = {f"model__{size}": s, "data__label_noise": noise, "seed": seed}
            name = f"{fields.get('model__name', 'mlp')}/{s}/{noise}/{seed}"
            rows.append(
                trial(name, **fields | row)
                | {figure2.BOUND: bound(s, noise, seed), "gap/loss": gap(s, noise, seed)}
            )
    return pd.DataFrame(rows)


def papers_bound(size: float, noise: float, seed: int) -> float:
    scatter = math.sin(seed + size + 7 * noise) / 100
    return 10 * (1 + noise) * (1 + 100 / size) * math.exp(scatter) + 0.01 * seed


def papers_gap(size: float, noise: float, seed: int) -> float:
    return papers_bound(size, noise, seed) / 20


def claims(frame: pd.DataFrame) -> list[Claim]:
    return figure2.claims(Tables(frame))


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    return [claim.verdict for claim in claims(frame)]


def test_the_two_sweeps_of_a_model_come_apart() -> None:
    frame = grid(papers_bound, papers_gap, seeds=2)
    found = figure2.axis_panels(frame)
    assert list(map(str, found)) == [
        "MLP on mnist, against width, label_noise = 0",
        "MLP on mnist, against label noise level, width = 512",
    ]
    (width, widths), (noise, noises) = ((panel.axis, panel.trials) for panel in found)
    assert (width, noise) == ("model.width", "data.label_noise")
    # Beside an axis that is named, a panel has a title of what is fixed.
    assert [panel.printed for panel in found] == [
        "MLP on MNIST, label noise = 0",
        "MLP on MNIST, width = 512",
    ]
    assert sorted(set(widths[width])) == list(WIDTHS)
    assert set(widths[noise]) == {0.0}
    assert sorted(set(noises[noise])) == list(NOISES)
    assert set(noises[width]) == {512}
    assert (len(widths), len(noises)) == (12, 14)


def test_one_sweep_alone_is_one_panel() -> None:
    frame = grid(papers_bound, papers_gap)
    one = figure2.axis_panels(frame[frame["data.label_noise"] == 0])
    assert list(map(str, one)) == ["MLP on mnist, against width"]
    assert figure2.axis_panels(frame.head(1)) == []
    assert figure2.axis_panels(frame.head(0)) == []


def test_a_full_grid_is_cut_at_the_most_common_or_smallest_value() -> None:
    rows = [trial(f"{w}{p}", model__width=w, data__label_noise=p) for w in (1, 2) for p in (0, 0.5)]
    found = figure2.axis_panels(pd.DataFrame(rows))
    assert list(map(str, found)) == [
        "MLP on mnist, against width, label_noise = 0",
        "MLP on mnist, against label noise level, width = 1",
    ]
    assert [len(panel.trials) for panel in found] == [2, 2]


def test_two_sweeps_that_also_stop_differently_keep_the_paper_s_titles() -> None:
    frame = grid(papers_bound, papers_gap)
    by_size = frame[frame["data.label_noise"] == 0].assign(**{"training.max_epochs": 500})
    by_noise = frame[frame["model.width"] == 512].assign(**{"training.max_epochs": 900})
    found = figure2.axis_panels(pd.concat([by_size, by_noise]))
    assert {str(panel): len(panel.trials) for panel in found} == {
        "MLP on mnist, against width": 18,
        "MLP on mnist, against label noise level": 21,
    }


def test_models_have_the_axis_of_their_size() -> None:
    alexnet = {"size": "filters", "model__name": "alexnet", "data__dataset": "cifar10"}
    frames = [grid(papers_bound, papers_gap), grid(papers_bound, papers_gap, **alexnet)]
    found = figure2.axis_panels(pd.concat(frames, ignore_index=True))
    assert [panel.axis for panel in found] == [
        "model.width",
        "data.label_noise",
        "model.filters",
        "data.label_noise",
    ]
    assert str(found[2]) == "AlexNet on cifar10, against number of filters, label_noise = 0"


def test_claims_hold_on_the_paper_s_picture() -> None:
    found = claims(grid(papers_bound, papers_gap))
    assert [c.verdict for c in found] == ["holds"] * 6
    follows, falls, above = found[:3]
    assert "over n = 3 seeds), Spearman’s ρ = +1.00" in follows.evidence
    assert "at 18 points; p = " in follows.evidence
    assert falls.text.startswith("The bound of Eq. 3 falls with the width (MLP on mnist, against")
    # A straight line through the logarithms of 2, 1.5, 1.33, 1.25, 1.2 and 1.2.
    assert falls.evidence.startswith("0.6")
    assert above.evidence == (
        "gap ≤ bound at 18 of 18 points, worst ratio 20 (smallest bound / |gap|); it was positive "
        "at 18 of 18"
    )
    assert found[4].text.startswith("The bound of Eq. 3 rises with the label noise level (")
    assert found[4].evidence.startswith("1.62 × (")
    assert all("corrected for 4 claims together" in c.evidence for c in (follows, falls, found[4]))


def test_claims_fail_on_the_opposite_picture() -> None:
    frame = grid(
        lambda s, noise, seed: (s + seed) * (1 - noise),
        lambda s, noise, seed: 1e3 * (1 / (s + seed) + noise),
    )
    assert verdicts(frame) == ["fails"] * 2 + ["holds"] + ["fails"] * 2 + ["fails"]


def test_claims_are_undecided_on_noise() -> None:
    rng = np.random.default_rng(1)
    frame = grid(lambda *_: rng.uniform(5, 6), lambda *_: rng.uniform(0, 1))
    assert verdicts(frame) == ["undecided", "undecided", "holds"] * 2


def test_one_seed_shows_its_own_curve() -> None:
    found = claims(grid(papers_bound, papers_gap, seeds=1))
    assert [c.verdict for c in found] == ["single run", "single run", "holds"] * 2
    assert found[0].evidence.endswith("at 6 points; with the one seed it is so")
    assert "(one seed: no interval)" in found[1].evidence


def test_points_of_one_smooth_curve_are_no_independent_evidence() -> None:
    """Bound and gap both straight in every seed, in one of three the other way.

    Their means over the seeds rise together at every point: as points, ρ = +1 with p = 0.003.
    """
    frame = grid(
        lambda s, *_: math.exp(s / 500),
        lambda s, _, seed: (s + 20 * seed) / 500 * (-1 if seed == 2 else 1) + 10,
    )
    follows = claims(frame[frame["data.label_noise"] == 0])[0]
    assert follows.verdict == "undecided"
    means = frame[frame["data.label_noise"] == 0].groupby("model.width")[["gap/loss"]].mean()
    assert means["gap/loss"].is_monotonic_increasing


def test_a_seed_is_compared_with_itself() -> None:
    """Levels of the seeds, however far apart, are no trend."""
    frame = grid(papers_bound, papers_gap)
    scaled = frame.assign(**{figure2.BOUND: frame[figure2.BOUND] * 10.0 ** frame["seed"]})
    assert [c.evidence for c in claims(scaled)][1::3] == [c.evidence for c in claims(frame)][1::3]


def test_a_signed_gap_is_what_is_bounded() -> None:
    frame = grid(lambda *_: 1.0, lambda s, *_: 0.5 if s == 100 else -3.0, seeds=1)
    above = claims(frame)[2]
    assert above.verdict == "holds"
    assert above.evidence == (
        "gap ≤ bound at 6 of 6 points, worst ratio 0.33 (smallest bound / |gap|); it was positive "
        "at 1 of 6"
    )
    nowhere = claims(grid(lambda *_: 1.0, lambda *_: -3.0))[2]
    assert (nowhere.verdict, "positive at 0 of 18" in nowhere.evidence) == ("undecided", True)


def test_undefined_bounds_are_left_out_and_counted() -> None:
    frame = grid(papers_bound, papers_gap)
    frame.loc[frame["model.width"] == 100, figure2.BOUND] = math.nan
    follows, falls, above = claims(frame)[:3]
    assert "at 15 points" in follows.evidence
    assert "at 15 points" in falls.evidence
    assert "15 of 15 points" in above.evidence
    assert "3 left out as NaN" in above.evidence
    frame.loc[frame["model.width"] < 512, figure2.BOUND] = math.nan
    falls = claims(frame)[1]
    assert falls.evidence == "defined at 1 point of the axis only (n = 0)"


@pytest.mark.parametrize("missing", [[figure2.BOUND], [figure2.BOUND, "gap/loss"]])
def test_what_was_not_measured_is_undecided(missing: list[str]) -> None:
    found = claims(grid(papers_bound, papers_gap).drop(columns=missing))
    assert [c.verdict for c in found] == ["undecided"] * 6
    assert all(c.evidence.startswith("not measured in this run") for c in found)


def test_a_bound_without_a_gap_still_has_a_trend() -> None:
    frame = grid(papers_bound, papers_gap).drop(columns="gap/loss")
    assert verdicts(frame) == ["undecided", "holds", "undecided"] * 2


def test_only_finished_trials_count() -> None:
    frame = grid(papers_bound, papers_gap)
    assert claims(frame.assign(status="diverged")) == []
    assert figure2.claims(NO_TRIALS) == []


def test_other_settings_have_panels_of_their_own() -> None:
    frames = [
        grid(papers_bound, papers_gap, training__learning_rate=0.1),
        grid(lambda *a: 1 / papers_bound(*a), papers_gap, training__learning_rate=0.2),
    ]
    found = claims(pd.concat(frames, ignore_index=True))
    assert [c.verdict for c in found[:6]] == ["holds"] * 6
    assert [c.verdict for c in found[6:8]] == ["fails"] * 2
    assert "learning_rate = 0.2, against width" in found[6].text
