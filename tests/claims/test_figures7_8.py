"""The claims of Figures 7 and 8: Theorems 3 and 4 stay above the gap."""

import math
from collections.abc import Iterable

import pandas as pd
import pytest

from gisgd_ray.claims import figures7_8
from gisgd_ray.claims.claim import Claim
from tests.support.tables import NO_TRIALS, Tables, history, trial

NAN = math.nan
NETWORKS = {"linear": "bound/theorem3", "two_layer_relu": "bound/theorem4"}


def claims(model: str, *runs: tuple[Iterable[float], Iterable[float]]) -> list[Claim]:
    """One trial per pair of gaps and bounds at steps 0, 10, ..., seeds 0, 1, ..."""
    rows = [
        trial(str(i), model__name=model, data__dataset="teacher", seed=i) for i in range(len(runs))
    ]
    points = [
        history(str(i), gap__loss=gaps, **{NETWORKS[model].replace("/", "__"): bounds})
        for i, (gaps, bounds) in enumerate(runs)
    ]
    return figures7_8.claims(Tables(pd.DataFrame(rows), pd.concat(points)))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("linear", "Theorem 3 stays above the generalization gap (linear network on teacher)."),
        (
            "two_layer_relu",
            "Theorem 4 stays above the generalization gap (two-layer ReLU network on teacher).",
        ),
    ],
)
def test_a_bound_above_the_gap_at_every_iteration(model: str, words: str) -> None:
    (claim,) = claims(model, ([0, 1, 2], [NAN, 4, 5]))
    assert claim.verdict == "holds"
    assert claim.text == f"The bound of {words}"
    assert claim.evidence == (
        "gap less its value at W_0 ≤ bound at 2 of 2 points, worst ratio 2.5 (smallest bound / "
        "|gap|); it was positive at 2 of 2; the gap itself ≤ bound at 2 of 2"
    )
    assert "at every measured iteration after 0" in claim.test


def test_what_the_gap_is_at_w_0_is_taken_off_in_each_trial() -> None:
    """-1 and 2 at W_0, which knows nothing of the samples: 1 and 4 grow to 2 and 2 above it."""
    low, high = ([-1, 1], [NAN, 1.5]), ([2, 4], [NAN, 3])
    (claim,) = claims("linear", low)
    assert (claim.verdict, claim.evidence[:47]) == (
        "fails",
        "gap less its value at W_0 ≤ bound at 0 of 1 poi",
    )
    assert claim.evidence.endswith("the gap itself ≤ bound at 1 of 1")
    (claim,) = claims("linear", high)
    assert claim.verdict == "holds"
    assert claim.evidence.endswith("positive at 1 of 1; the gap itself ≤ bound at 0 of 1")
    (claim,) = claims("linear", low, high)
    assert (claim.verdict, "at 1 of 2 points" in claim.evidence) == ("fails", True)


def test_a_gap_unknown_at_w_0_is_left_out() -> None:
    (claim,) = claims("linear", ([NAN, 1], [NAN, 4]), ([0, 1], [NAN, 4]))
    assert claim.verdict == "holds"
    assert "1 of 1 points, worst ratio 4.0, 1 left out as NaN" in claim.evidence


def test_no_bound_is_tested_by_a_gap_that_is_never_positive() -> None:
    (claim,) = claims("linear", ([2, 1, 2], [NAN, 4, 5]))
    assert claim.verdict == "undecided"
    assert "positive at 0 of 2" in claim.evidence


def test_one_point_below_fails_it() -> None:
    (claim,) = claims("linear", ([0, 1, 2, 3], [NAN, 4, 1, 5]))
    assert claim.verdict == "fails"
    assert "bound at 2 of 3 points, worst ratio 0.50" in claim.evidence


def test_every_seed_counts() -> None:
    good, bad = ([0, 1, 2], [NAN, 4, 5]), ([0, 1, 2], [NAN, 4, 1])
    (claim,) = claims("linear", good, good, good)
    assert (claim.verdict, "6 of 6 points" in claim.evidence) == ("holds", True)
    (claim,) = claims("linear", good, good, bad)
    assert (claim.verdict, "5 of 6 points" in claim.evidence) == ("fails", True)


def test_a_signed_gap_is_what_is_bounded() -> None:
    (claim,) = claims("two_layer_relu", ([0, -3, 0.5], [NAN, 1, 1]))
    assert claim.verdict == "holds"
    assert "2 of 2 points, worst ratio 0.33" in claim.evidence
    assert "positive at 1 of 2" in claim.evidence


def test_undefined_points_are_left_out_and_counted() -> None:
    (claim,) = claims("linear", ([0, 1, NAN, 1], [NAN, 2, 2, NAN]))
    assert claim.verdict == "holds"
    assert "1 of 1 points, worst ratio 2.0, 2 left out as NaN" in claim.evidence


def test_what_was_not_measured_is_undecided() -> None:
    (nothing,) = claims("linear", ([0, 1], [NAN, NAN]))
    assert nothing.verdict == "undecided"
    assert nothing.evidence == "not measured in this run (n = 0 points, 1 left out as NaN)"
    row = trial("a", model__name="linear", data__dataset="teacher")
    for table in (None, history("a", gap__loss=[1, 2])):
        (bare,) = figures7_8.claims(Tables(pd.DataFrame([row]), table))
        assert bare.verdict == "undecided"
        assert bare.evidence.startswith("not measured in this run")


def test_each_network_has_its_own_claim_and_others_have_none() -> None:
    rows = [
        trial("a", model__name="linear"),
        trial("b", model__name="two_layer_relu", training__learning_rate=0.5),
        trial("c", model__name="two_layer_relu", training__learning_rate=0.1),
        trial("d", model__name="mlp"),
        trial("e", model__name="linear") | {"status": "diverged"},
    ]
    above = {"gap__loss": [0, 1], "bound__theorem3": [9, 9], "bound__theorem4": [9, 0]}
    points = pd.concat([history(name, **above) for name in "abcde"])
    found = figures7_8.claims(Tables(pd.DataFrame(rows), points))
    assert [c.verdict for c in found] == ["holds", "fails", "fails"]
    assert "learning_rate = 0.1" in found[2].text
    assert "1 of 1" in found[0].evidence
    assert figures7_8.claims(NO_TRIALS) == []
