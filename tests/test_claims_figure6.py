"""Figure 6's claims: what holds on the paper's picture, fails on its opposite, and is undecided."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from gisgd_ray.claims import Claim, Verdict, figure6
from gisgd_ray.claims.figure6 import BATCH, FLATNESS, RATE, TRAJECTORY
from tests.tables import NO_TRIALS, Tables


def table(trajectory: Any, flatness: Any, *, seeds: int = 1, **columns: Any) -> pd.DataFrame:
    """The laptop's grid with the two factors as functions of rate, batch size and noise."""
    rng = np.random.default_rng(0)
    grid = itertools.product([0.05, 0.1, 0.2], [20, 40, 80, 120], range(seeds))
    rows = []
    for rate, batch, seed in grid:
        noise = rng.normal()
        rows.append(
            {
                "trial_id": f"{rate}/{batch}/{seed}",
                "status": "finished",
                "model.name": "mlp",
                "data.dataset": "mnist5k",
                RATE: rate,
                BATCH: batch,
                "seed": seed,
                TRAJECTORY: trajectory(rate, batch, noise),
                FLATNESS: flatness(rate, batch, noise),
            }
            | columns
        )
    return pd.DataFrame(rows)


def claims(frame: pd.DataFrame) -> list[Claim]:
    return figure6.claims(Tables(frame))


def verdicts(frame: pd.DataFrame) -> list[Verdict]:
    return [claim.verdict for claim in claims(frame)]


def test_claims_hold_on_the_paper_s_picture() -> None:
    found = claims(table(lambda r, b, _: r / b, lambda r, b, _: b / r))
    assert [c.verdict for c in found] == ["holds"] * 3
    assert "opposite directions (MLP on mnist5k)" in found[0].text
    assert found[0].evidence.startswith("trajectory ρ = +1.00 (n = 12, p = 0.00")
    assert found[2].evidence.startswith("ρ = +1.00 (n = 12, p = ")
    assert all("5 %" in c.test for c in found)


def test_claims_fail_on_the_opposite_picture() -> None:
    both_rise = table(lambda r, b, _: r * b, lambda r, b, _: r / b)
    assert verdicts(both_rise) == ["fails", "fails", "fails"]
    # One half of the second claim is as expected: the claim still fails.
    half = table(lambda r, b, _: r / b, lambda r, b, _: r / b)
    assert verdicts(half) == ["fails", "fails", "fails"]
    rate_only = table(lambda r, b, _: -r / b, lambda r, b, _: -r * 1e-9 + b)
    assert verdicts(rate_only) == ["fails", "fails", "holds"]


def test_claims_are_undecided_on_noise_and_on_nothing() -> None:
    noisy = table(lambda r, b, noise: noise, lambda r, b, noise: noise)  # noqa: ARG005
    assert verdicts(noisy) == ["undecided"] * 3
    undefined = table(lambda *_: math.nan, lambda *_: math.nan)
    assert verdicts(undefined) == ["undecided"] * 3
    assert "n = 0" in claims(undefined)[0].evidence
    whole = table(lambda r, b, _: r / b, lambda r, b, _: b / r)
    one_rate = whole[whole[RATE] == 0.1]
    assert verdicts(one_rate)[0] == "undecided"
    assert verdicts(whole.head(0)) == []


def test_each_claim_is_undecided_by_itself() -> None:
    flat = table(lambda r, b, _: r / b, lambda r, b, noise: noise)  # noqa: ARG005
    assert verdicts(flat) == ["undecided", "undecided", "undecided"]
    level = table(lambda r, b, noise: noise, lambda r, b, _: b / r)  # noqa: ARG005
    assert verdicts(level) == ["undecided", "undecided", "holds"]


def test_each_model_and_dataset_has_its_own_claims() -> None:
    good = table(lambda r, b, _: r / b, lambda r, b, _: b / r)
    bad = table(lambda r, b, _: r, lambda r, b, _: r / b, **{"model.name": "alexnet"})  # noqa: ARG005
    found = claims(pd.concat([good, bad], ignore_index=True))
    assert [c.verdict for c in found[:3]] == ["holds"] * 3
    assert [c.verdict for c in found[3:]] == ["fails"] * 3
    assert all("AlexNet on mnist5k" in c.text for c in found[3:])


def test_seeds_are_compared_with_themselves() -> None:
    """A seed's own level, however large, takes nothing from the trend."""
    frame = table(lambda r, b, _: r / b, lambda r, b, _: b / r, seeds=3)
    shifted = frame.copy()
    shifted[FLATNESS] += 1e6 * shifted["seed"]
    assert verdicts(shifted) == ["holds"] * 3
    assert claims(shifted)[0].evidence == claims(frame)[0].evidence
    assert "n = 36" in claims(frame)[0].evidence


def test_only_finished_trials_count() -> None:
    frame = table(lambda r, b, _: r / b, lambda r, b, _: b / r)
    ended = frame.assign(status="diverged", **{FLATNESS: 1.0})
    assert claims(pd.concat([frame, ended])) == claims(frame)
    assert claims(ended) == []
    assert figure6.claims(NO_TRIALS) == []
