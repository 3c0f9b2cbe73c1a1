"""Figure 5's claims: Theorem 2 against Lemma 2, and V against Neu et al.'s, over replicas."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import figure5
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.statistics import Verdict
from tests.support.tables import NO_TRIALS, Tables, history, trial

NAN = math.nan
STDS = (1e-2, 1e-4, 1e-6)
STEPS = 100


def run(trial_id: str = "a", **ratios: tuple[float, float]) -> pd.DataFrame:
    """Lemma 2 / Theorem 2 at the first and last point after step 0 (``s0_01=(0.5, 3)``)."""
    given = {"0.01": (0.5, 3.0), "0.0001": (20.0, 50.0), "1e-06": (1e3, 1e4)}
    given |= {name.removeprefix("s").replace("_", "."): pair for name, pair in ratios.items()}
    terms = {}
    for std, (first, last) in given.items():
        terms[f"term__theorem2_trajectory_at_{std}"] = [NAN, 2, 2, 4]
        terms[f"term__lemma2_trajectory_at_{std}"] = [NAN, 2 * first, 7, 4 * last]
    return history(trial_id, **terms)


def steps(early: float = 5.0, late: float = 1.1, middle: float = 100.0) -> pd.DataFrame:
    """V and V~ with these ratios of the means over the first and last 10 of 100 steps."""
    neu = np.linspace(4, 1, STEPS)
    ratio = np.full(STEPS, middle)
    ratio[:10], ratio[-10:] = early, late
    columns = {"gradient_dispersion": ratio * neu, "gradient_dispersion_neu": neu}
    return pd.DataFrame({"step": np.arange(1, STEPS + 1), **columns})


def tables(*trials: tuple[pd.DataFrame, pd.DataFrame], stds: Any = STDS, **fields: Any) -> Tables:
    """One trial of 20 replicas per pair of history and steps, seeds 0, 1, ..."""
    ids = [points["trial_id"].iloc[0] for points, _ in trials]
    settings = {"replicas": 20, "measurement__noise_stds": list(stds)} | fields
    rows = [trial(name, seed=i, **settings) for i, name in enumerate(ids)]
    taken = {name: table for name, (_, table) in zip(ids, trials, strict=True)}
    return Tables(pd.DataFrame(rows), pd.concat([points for points, _ in trials]), taken)


def claims(*trials: tuple[pd.DataFrame, pd.DataFrame]) -> list[Claim]:
    return figure5.claims(tables(*trials))


def agreeing(points: pd.DataFrame, table: pd.DataFrame) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Three seeds that agree to the last digit."""
    return [(points.assign(trial_id=name), table) for name in ("a", "b", "c")]


def verdicts(*trials: tuple[pd.DataFrame, pd.DataFrame]) -> list[Verdict]:
    return [claim.verdict for claim in claims(*trials)]


def test_claims_hold_on_the_paper_s_picture() -> None:
    found = claims((run(), steps()))
    assert {c.verdict for c in found} == {"single run"}
    swap, small, smaller, early, late = found
    assert "smaller than that of Theorem 2 at the beginning" in swap.text
    assert swap.evidence == (
        "first 0.50 × (one seed: no interval) at step 10; last 3.0 × (one seed: no interval) at "
        "step 30; averages over 20 replicas; with the one seed it is so"
    )
    assert "(MLP on mnist, σ = 0.0001)" in small.text
    assert "σ = 1e-06" in smaller.text
    assert "above 10, which is what far means here" in small.test
    assert small.evidence.startswith("50 × (one seed: no interval) at step 30; averages over 20")
    assert early.evidence.startswith("5.0 × (one seed: no interval); averages over 20 replicas")
    assert late.evidence.startswith("1.10 × (one seed: no interval); averages over 20 replicas")
    assert "above 2 over the first 10 % of the steps" in early.test
    assert "between 1/1.5 and 1.5 over the last 10 % of the steps" in late.test
    assert all("%%" not in c.test and "  " not in c.test for c in found)


def test_claims_fail_on_the_opposite_picture() -> None:
    ratios = {"s0_01": (2.0, 0.5), "s0_0001": (20.0, 9.0), "s1e-06": (0.1, 0.2)}
    assert verdicts(*agreeing(run(**ratios), steps(1.5, 3.0))) == ["fails"] * 5


@pytest.mark.parametrize("pair", [(0.5, 0.9), (1.5, 3.0)])
def test_both_halves_of_the_swap_are_needed(pair: tuple[float, float]) -> None:
    assert verdicts(*agreeing(run(s0_01=pair), steps()))[0] == "fails"


def test_about_equal_has_two_sides() -> None:
    late = [verdicts(*agreeing(run(), steps(late=ratio)))[4] for ratio in (0.5, 0.7, 1.4, 1.6)]
    assert late == ["fails", "holds", "holds", "fails"]


def test_several_trials_are_judged_by_their_interval() -> None:
    alike = [(run(str(i), s0_01=(0.5 + i / 50, 3 + i / 10)), steps(5 + i / 10)) for i in range(4)]
    found = claims(*alike)
    assert [c.verdict for c in found] == ["holds"] * 5
    assert "over n = 4 seeds" in found[0].evidence
    apart = [
        (run(str(i), s0_01=(r, 1 / r), s0_0001=(1.0, 10 * r)), steps(2 * r, 1.5 * r))
        for i, r in enumerate((0.3, 0.6, 1.7, 3.2))
    ]
    unsure = verdicts(*apart)
    assert [unsure[i] for i in (0, 1, 3, 4)] == ["undecided"] * 4
    bad = [(run(str(i), s0_0001=(9.0, 5 + i / 10)), steps(1 + i / 100)) for i in range(3)]
    assert [verdicts(*bad)[i] for i in (1, 3)] == ["fails"] * 2


def test_what_was_not_measured_is_undecided() -> None:
    bare = run()[["trial_id", "step"]]
    found = claims((bare, steps().drop(columns="gradient_dispersion_neu")))
    assert [c.verdict for c in found] == ["undecided"] * 5
    assert {c.evidence for c in found} == {"not measured in this run"}
    no_steps = Tables(pd.DataFrame([trial("a", measurement__noise_stds=[1e-2])]), run())
    swap, early, late = figure5.claims(no_steps)
    assert (swap.verdict, early.verdict, late.verdict) == ("single run", "undecided", "undecided")
    assert "replicas" not in swap.evidence
    assert len(figure5.claims(Tables(pd.DataFrame([trial("a")])))) == 2  # no noise std asked for


def test_nan_points_are_passed_over() -> None:
    gaps = run()
    gaps.loc[gaps["step"] == 30, "term/lemma2_trajectory@0.01"] = NAN
    gaps.loc[gaps["step"] > 0, "term/lemma2_trajectory@0.0001"] = NAN
    gaps.loc[gaps["step"] > 10, "term/lemma2_trajectory@1e-06"] = NAN
    holes = steps()
    holes.loc[3, "gradient_dispersion"] = NAN
    swap, small, smaller, early, late = claims((gaps, holes))
    assert "last 3.5 × (one seed: no interval) at step 20" in swap.evidence
    assert (small.verdict, small.evidence) == ("undecided", "not measured in this run")
    assert (smaller.verdict, "at step 10" in smaller.evidence) == ("single run", True)
    assert (early.verdict, late.verdict) == ("single run", "single run")


def test_a_single_point_shows_no_swap() -> None:
    (swap, *_) = claims((run().head(2), steps()))
    assert swap.verdict == "undecided"
    assert swap.evidence == "measured at a single point of each trial"


def test_other_settings_have_panels_of_their_own_and_only_finished_trials_count() -> None:
    both = tables((run("a"), steps()), (run("b", s0_0001=(1.0, 1.0)), steps()))
    trials = both.trials.assign(seed=0)
    trials["training.batch_size"] = [60, 120]
    found = figure5.claims(Tables(trials, both.history, {"a": steps(), "b": steps()}))
    assert [c.verdict for c in found] == ["single run"] * 10
    assert "batch_size = 120" in found[6].text
    trials["status"] = ["finished", "diverged"]
    assert len(figure5.claims(Tables(trials, both.history, {"a": steps()}))) == 5
    assert figure5.claims(NO_TRIALS) == []
