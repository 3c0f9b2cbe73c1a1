"""Figure 1's claims: the trajectory terms of Theorem 2 and of Neu et al. along one run."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from gisgd_ray.claims import figure1
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.statistics import Verdict, short_number
from tests.support.tables import NO_TRIALS, Tables, history, trial

NAN = math.nan
POINTS = 10
FALLING = np.linspace(10, 1, POINTS)
RISING = FALLING[::-1]
PSI = "measure/local_gradient_sensitivity@1e-05"
STDERR = "measure/local_gradient_sensitivity_stderr@1e-05"


def run(
    trial_id: str = "a",
    *,
    dispersion: Any = FALLING,
    sensitivity: Any = RISING,
    error: Any = NAN,
    std: str = "1e-05",
) -> pd.DataFrame:
    """A trial's history from V and Psi at steps 10, 20, ...; at step 0 nothing is summed."""
    v, psi = np.asarray(dispersion, float), np.asarray(sensitivity, float)
    return history(
        trial_id,
        sum__dispersion=[0, *np.cumsum(v)],
        measure__gradient_dispersion=[NAN, *v],
        **{
            f"sum__sensitivity_at_{std}": [0, *np.cumsum(psi)],
            f"measure__local_gradient_sensitivity_at_{std}": [1e9, *psi],
            f"measure__local_gradient_sensitivity_stderr_at_{std}": [1e9, *(error * psi / psi)],
        },
    )


def claims(*runs: pd.DataFrame, stds: Sequence[float] = (1e-5,), **fields: Any) -> list[Claim]:
    """One trial per run, seeds 0, 1, ..."""
    fields = {
        "measurement__noise_stds": np.array(stds),
        "measurement__sensitivity_draws": 20,
    } | fields
    rows = [trial(r["trial_id"].iloc[0], seed=i, **fields) for i, r in enumerate(runs)]
    return figure1.claims(Tables(pd.DataFrame(rows), pd.concat(runs, ignore_index=True)))


def verdicts(*runs: pd.DataFrame) -> list[Verdict]:
    return [claim.verdict for claim in claims(*runs)]


def test_the_curves_are_those_of_the_figure() -> None:
    points = history("a", sum__dispersion=[4, 9], **{"sum__sensitivity_at_0.01": [4, NAN]})
    curves = figure1.figure_curves(points, 0.01)
    assert list(curves["ours"]) == [2, 3]
    assert curves["neu"].iloc[0] == 4  # sqrt(2 (4 + 4))
    assert math.isnan(curves["neu"].iloc[1])


def seeds(n: int = 3, *, scatter: float = 0.01, **values: Any) -> list[pd.DataFrame]:
    """Runs that differ by the scatter."""
    rng = np.random.default_rng(0)
    return [
        run(str(i), **{k: v * np.exp(scatter * rng.normal(size=len(v))) for k, v in values.items()})
        for i in range(n)
    ]


def test_claims_hold_on_the_paper_s_picture() -> None:
    grows, falls = claims(*seeds(dispersion=FALLING, sensitivity=RISING))
    assert [c.verdict for c in (grows, falls)] == ["holds", "holds"]
    assert "(MLP on mnist, σ = 1e-05)" in grows.text
    # Thirds of three points: 1, 2, 3 against 8, 9, 10.
    assert grows.evidence.startswith("last third / first third 4.5 × (")
    assert "over n = 3 seeds), above 1 in 3 of 3 trials; Spearman's ρ with" in grows.evidence
    assert falls.evidence.startswith("last third / first third 0.22 × ")
    assert falls.text == "The gradient dispersion V falls with training (MLP on mnist)."
    assert "corrected for 2 claims together" in falls.evidence


def test_claims_fail_on_the_opposite_picture() -> None:
    assert verdicts(*seeds(dispersion=RISING, sensitivity=FALLING)) == ["fails", "fails"]


def test_one_seed_is_a_single_run_that_points_one_way() -> None:
    grows, falls = claims(run())
    assert [c.verdict for c in (grows, falls)] == ["single run", "single run"]
    assert grows.evidence.startswith(
        "last third / first third 4.5 × (one seed: no interval), above 1 in 1 of 1 trials; "
        "Spearman's ρ with the step +1.00 (a description"
    )
    assert all(c.evidence.endswith("; with the one seed it is so") for c in (grows, falls))
    opposite = claims(run(dispersion=RISING, sensitivity=FALLING))
    assert all(c.evidence.endswith("; with the one seed it is not so") for c in opposite)


def test_one_seed_s_sensitivity_is_no_surer_than_its_draws() -> None:
    """Thirds 2 and 9 with errors e / sqrt(3) each: 4.5 times, log 1.50."""
    grows, _ = claims(run(error=0.3))
    share = [(0.3 / math.sqrt(3) / mean) ** 2 for mean in (2, 9)]
    # 19 degrees of freedom at each of 3 points of either third.
    degrees = sum(share) ** 2 / sum(s**2 / (3 * 19) for s in share)
    half = stats.t.ppf(0.975, degrees) * math.sqrt(sum(share))
    low, high = (short_number(4.5 * math.exp(sign * half)) for sign in (-1, 1))
    words = f"third 4.5 × ({low} to {high} by the Monte-Carlo error of the one seed)"
    assert words in grows.evidence
    assert grows.verdict == "single run"
    grows, falls = claims(run(error=3.0))
    assert grows.verdict == "undecided"
    assert grows.evidence.endswith("; the one seed leaves it open")
    assert falls.verdict == "single run"  # V has no such error
    # Of several seeds the scatter over seeds is all that counts, and holds that of the draws.
    noisy = [r.assign(**{STDERR: 100.0}) for r in seeds(dispersion=FALLING, sensitivity=RISING)]
    assert verdicts(*noisy) == ["holds", "holds"]


def test_the_figure_shows_how_far_below_ours_is() -> None:
    """Sums of Psi and of V are equal at the end: the ratio is 2."""
    points = run().query("step > 0")
    assert figure1.ratio_at_end(points, 1e-5).center == pytest.approx(2)
    vanishing = run("b", sensitivity=0 * FALLING).query("step > 0")
    both = figure1.ratio_at_end(pd.concat([points, vanishing]), 1e-5)
    assert both.center == pytest.approx(math.sqrt(2 * math.sqrt(2)))
    # The last point is the last at which Psi was due.
    sparse = points.assign(**{PSI: np.where(points["step"] > 50, NAN, 1.0)})
    v, psi = np.cumsum(FALLING)[4], np.cumsum(RISING)[4]
    assert figure1.ratio_at_end(sparse, 1e-5).center == pytest.approx(math.sqrt(2 + 2 * psi / v))
    assert figure1.ratio_at_end(points, 1e-4).n == 0


def test_several_seeds_are_judged_by_their_interval() -> None:
    mixed = [run(str(i), sensitivity=RISING if i % 2 else FALLING) for i in range(4)]
    unsure, _ = claims(*mixed)
    assert unsure.verdict == "undecided"
    assert "above 1 in 2 of 4 trials" in unsure.evidence


def test_two_seeds_that_agree_may_not_be_enough() -> None:
    slow, fast = RISING**0.05, RISING**2
    assert verdicts(run("a", sensitivity=slow), run("b", sensitivity=fast))[0] == "undecided"


def test_each_noise_std_has_its_own_claim_largest_first() -> None:
    both = run().merge(run(std="1e-06", sensitivity=FALLING))
    found = claims(both, stds=(1e-6, 1e-5))
    assert ["is so" in c.evidence for c in found] == [True, False, True]
    assert ["1e-05" in c.text for c in found] == [True, False, False]
    assert "σ" not in found[2].text


def test_what_was_not_measured_is_undecided() -> None:
    bare = run()[["trial_id", "step", "measure/gradient_dispersion"]]
    grows, falls = claims(bare)
    assert [c.verdict for c in (grows, falls)] == ["undecided", "single run"]
    assert grows.evidence == "not measured in this run"
    (nothing,) = claims(bare[["trial_id", "step"]], stds=())
    assert (nothing.verdict, nothing.evidence) == ("undecided", "not measured in this run")
    no_history = Tables(pd.DataFrame([trial("a")]))
    assert [c.verdict for c in figure1.claims(no_history)] == ["undecided"]


def test_points_where_psi_was_not_due_are_none_of_the_figure() -> None:
    sparse = run()
    sums, at_points = "sum/sensitivity@1e-05", "measure/local_gradient_sensitivity@1e-05"
    sparse.loc[sparse["step"] % 20 == 10, [sums, at_points]] = NAN
    grows, _ = claims(sparse)
    # Psi at steps 20, 40, ...: one point a third.
    assert grows.evidence.startswith("last third / first third 5.0 ×")
    sparse.loc[sparse["step"] > 40, at_points] = NAN
    short = claims(sparse)[0]
    assert short.verdict == "undecided"
    assert short.evidence == "Ψ measured at fewer than three points of each trial"


def test_step_0_is_no_point() -> None:
    """There Psi has no noise yet and nothing is summed (the helper puts nonsense there)."""
    first = run()
    assert first["measure/local_gradient_sensitivity@1e-05"].iloc[0] == 1e9
    assert claims(first)[0].evidence.startswith("last third / first third 4.5 × ")


def test_a_dispersion_that_vanishes_has_fallen() -> None:
    gone = np.where(np.arange(POINTS) < 5, 1.0, 0.0)
    falls = claims(run(dispersion=gone))[1]
    assert falls.verdict == "single run"
    assert "0 × (one seed" in falls.evidence


def test_other_models_and_other_settings_have_panels_of_their_own() -> None:
    rows = [
        trial("a", measurement__noise_stds=[1e-5], training__learning_rate=0.1),
        trial("b", measurement__noise_stds=[1e-5], training__learning_rate=0.2),
        trial("c", measurement__noise_stds=[1e-5], model__name="alexnet", data__dataset="cifar10"),
        trial("d", measurement__noise_stds=[1e-5]) | {"status": "diverged"},
    ]
    runs = [run("a"), run("b", sensitivity=FALLING), run("c"), run("d", dispersion=RISING)]
    found = figure1.claims(Tables(pd.DataFrame(rows), pd.concat(runs)))
    assert ["is so" in c.evidence for c in found] == [True, True, False, True, True, True]
    assert "(MLP on mnist, learning_rate = 0.2, σ = 1e-05)" in found[2].text
    assert "(AlexNet on cifar10)" in found[5].text


def test_nothing_finished_is_no_claim() -> None:
    assert figure1.claims(NO_TRIALS) == []


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_rows_does_not_matter(order: int) -> None:
    assert claims(run().iloc[::order]) == claims(run())


def test_a_second_seed_that_measured_nothing_changes_nothing() -> None:
    """The first is judged by its Monte-Carlo error, as when it is alone."""
    source = np.random.default_rng(0)
    noisy = 1 + 0.2 * source.standard_normal(POINTS)
    alone = claims(run("a", sensitivity=noisy, error=0.2))[0]
    beside = claims(
        run("a", sensitivity=noisy, error=0.2),
        run("b", dispersion=FALLING[:2], sensitivity=RISING[:2], error=0.2),
    )[0]
    assert alone.verdict == beside.verdict == "undecided"
    assert alone.p_values == beside.p_values
    assert " of 1 trials" in beside.evidence
