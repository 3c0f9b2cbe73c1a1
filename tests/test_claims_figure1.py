"""Figure 1's claims: the trajectory terms of Theorem 2 and of Neu et al. along one run."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gisgd_ray.claims import Claim, Verdict, figure1
from tests.tables import NO_TRIALS, Tables, history, trial

NAN = math.nan
POINTS = 10
FALLING = np.linspace(10, 1, POINTS)
RISING = FALLING[::-1]


def run(
    trial_id: str = "a",
    *,
    dispersion: Any = FALLING,
    sensitivity: Any = RISING,
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
        },
    )


def claims(*runs: pd.DataFrame, stds: Sequence[float] = (1e-5,), **fields: Any) -> list[Claim]:
    """One trial per run, seeds 0, 1, ..."""
    rows = [
        trial(r["trial_id"].iloc[0], seed=i, measurement__noise_stds=np.array(stds), **fields)
        for i, r in enumerate(runs)
    ]
    return figure1.claims(Tables(pd.DataFrame(rows), pd.concat(runs, ignore_index=True)))


def verdicts(*runs: pd.DataFrame) -> list[Verdict]:
    return [claim.verdict for claim in claims(*runs)]


def test_the_curves_are_those_of_the_figure() -> None:
    points = history("a", sum__dispersion=[4, 9], **{"sum__sensitivity_at_0.01": [4, NAN]})
    curves = figure1.figure_curves(points, 0.01)
    assert list(curves["ours"]) == [2, 3]
    assert curves["neu"].iloc[0] == 4  # sqrt(2 (4 + 4))
    assert math.isnan(curves["neu"].iloc[1])


def test_claims_hold_on_the_paper_s_picture() -> None:
    below, grows, falls = claims(run())
    assert [c.verdict for c in (below, grows, falls)] == ["holds", "single run", "single run"]
    assert "(MLP on mnist, σ = 1e-05)" in below.text
    assert "must hold whatever the data" in below.test
    # Sums of Psi and of V are equal at the end: the ratio is 2; at the first point it is sqrt(2.2).
    assert below.evidence == (
        "below at 10 of 10 points, worst ratio 1.48; at the end Neu et al.'s term is 2.0 × (one "
        "seed: no interval) ours and Ψ is a share of 0.50 (one seed: no interval) of their sum"
    )
    # Thirds of three points: 1, 2, 3 against 8, 9, 10.
    assert grows.evidence.startswith(
        "last third / first third 4.5 × (one seed: no interval), above 1 in 1 of 1 trials; "
        "Spearman's ρ with the step +1.00 (a description"
    )
    assert falls.evidence.startswith("last third / first third 0.22 × ")
    assert falls.text == "The gradient dispersion V falls with training (MLP on mnist)."


def test_claims_fail_on_the_opposite_picture() -> None:
    opposite = [run(name, dispersion=RISING, sensitivity=FALLING) for name in ("a", "b")]
    assert verdicts(*opposite) == ["holds", "fails", "fails"]
    # Psi < 0 is no sensitivity; but if it were, the count would say so.
    broken = claims(run(sensitivity=-0.6 * FALLING))[0]
    assert (broken.verdict, broken.evidence[:27]) == ("fails", "below at 0 of 10 points, wo")


def test_a_sensitivity_that_vanishes_still_leaves_neu_above() -> None:
    """Strictly: sqrt(2) times ours."""
    below = claims(run(sensitivity=np.zeros(POINTS)))[0]
    assert below.verdict == "holds"
    assert "worst ratio 1.41" in below.evidence
    assert "share of 0" in below.evidence


def test_several_seeds_are_judged_by_their_interval() -> None:
    rng = np.random.default_rng(0)
    alike = [run(str(i), sensitivity=RISING * rng.uniform(0.9, 1.1, POINTS)) for i in range(4)]
    below, grows, falls = claims(*alike)
    assert [c.verdict for c in (below, grows, falls)] == ["holds"] * 3
    assert below.evidence.startswith("below at 40 of 40 points")
    assert "over n = 4 seeds), above 1 in 4 of 4 trials" in grows.evidence
    assert "Neu et al.'s term is 2.0 × (" in below.evidence

    mixed = [run(str(i), sensitivity=RISING if i % 2 else FALLING) for i in range(4)]
    _, unsure, _ = claims(*mixed)
    assert unsure.verdict == "undecided"
    assert "above 1 in 2 of 4 trials" in unsure.evidence

    opposite = [run(str(i), dispersion=RISING * (1 + 0.01 * i)) for i in range(3)]
    assert verdicts(*opposite)[2] == "fails"


def test_two_seeds_that_agree_may_not_be_enough() -> None:
    slow, fast = RISING**0.05, RISING**2
    assert verdicts(run("a", sensitivity=slow), run("b", sensitivity=fast))[1] == "undecided"


def test_each_noise_std_has_its_own_claims_largest_first() -> None:
    both = run().merge(run(std="1e-06", sensitivity=FALLING))
    found = claims(both, stds=(1e-6, 1e-5))
    assert [c.verdict for c in found] == [
        "holds",
        "single run",
        "holds",
        "single run",
        "single run",
    ]
    assert ["1e-05" in c.text for c in found] == [True, True, False, False, False]
    assert "σ" not in found[4].text


def test_what_was_not_measured_is_undecided() -> None:
    bare = run()[["trial_id", "step", "measure/gradient_dispersion"]]
    below, grows, falls = claims(bare)
    assert [c.verdict for c in (below, grows, falls)] == ["undecided", "undecided", "single run"]
    assert below.evidence.startswith("not measured in this run (n = 0 points")
    assert grows.evidence == "not measured in this run"
    (nothing,) = claims(bare[["trial_id", "step"]], stds=())
    assert (nothing.verdict, nothing.evidence) == ("undecided", "not measured in this run")
    no_history = Tables(pd.DataFrame([trial("a")]))
    assert [c.verdict for c in figure1.claims(no_history)] == ["undecided"]


def test_points_where_psi_was_not_due_are_none_of_the_figure() -> None:
    sparse = run()
    sums, at_points = "sum/sensitivity@1e-05", "measure/local_gradient_sensitivity@1e-05"
    sparse.loc[sparse["step"] % 20 == 10, [sums, at_points]] = NAN
    below, grows, _ = claims(sparse)
    assert (below.verdict, grows.verdict) == ("holds", "single run")
    assert "5 of 5 points" in below.evidence
    assert "NaN" not in below.evidence
    lost = sparse.copy()
    lost.loc[lost["step"] == 20, sums] = NAN  # due, and undefined
    assert "1 left out as NaN" in claims(lost)[0].evidence
    sparse.loc[sparse["step"] > 40, at_points] = NAN
    short = claims(sparse)[1]
    assert short.verdict == "undecided"
    assert short.evidence == "Ψ measured at fewer than three points of each trial"


def test_step_0_is_no_point() -> None:
    """There Psi has no noise yet and nothing is summed (the helper puts nonsense there)."""
    first = run()
    assert first["measure/local_gradient_sensitivity@1e-05"].iloc[0] == 1e9
    assert claims(first)[1].evidence.startswith("last third / first third 4.5 × ")


def test_a_dispersion_that_vanishes_has_fallen() -> None:
    gone = np.where(np.arange(POINTS) < 5, 1.0, 0.0)
    falls = claims(run(dispersion=gone))[2]
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
    assert [c.verdict for c in found] == ["holds", "single run", "single run"] * 3
    assert "(MLP on mnist, learning_rate = 0.2, σ = 1e-05)" in found[4].text
    assert "(AlexNet on cifar10)" in found[8].text


def test_nothing_finished_is_no_claim() -> None:
    assert figure1.claims(NO_TRIALS) == []


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_of_the_rows_does_not_matter(order: int) -> None:
    assert claims(run().iloc[::order]) == claims(run())
