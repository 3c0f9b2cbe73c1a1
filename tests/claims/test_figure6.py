"""Figure 6's claims: what holds on the paper's picture, fails on its opposite, and is undecided."""

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd

from gisgd_ray.claims import figure6
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.figure6 import BATCH, FLATNESS, RATE, TRAJECTORY
from gisgd_ray.claims.statistics import Verdict
from tests.support.tables import NO_TRIALS, Tables


def table(trajectory: Any, flatness: Any, *, seeds: int = 3, **columns: Any) -> pd.DataFrame:
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


def papers(rate: float, batch: float, noise: float, sign: int = 1) -> float:
    """What rises with the rate and falls with the batch size (or the reverse), and scatters."""
    return float((rate / batch) ** sign * math.exp(0.01 * noise))


def papers_table(**columns: Any) -> pd.DataFrame:
    return table(papers, lambda r, b, noise: papers(r, b, noise, -1), **columns)


def test_claims_hold_on_the_paper_s_picture() -> None:
    rate, batch = claims(papers_table())
    assert (rate.verdict, batch.verdict) == ("holds", "holds")
    assert "opposite directions (MLP on mnist5k)" in rate.text
    # From 0.05 to 0.2, and from 20 to 120.
    assert rate.evidence.startswith("trajectory 4.0 × (")
    assert "over n = 3 seeds), ρ = +1.00; flatness 0.25 × (" in rate.evidence
    assert "over n = 3 seeds), ρ = -1.00; 36 trials; p = " in rate.evidence
    assert batch.evidence.startswith("trajectory 0.17 × (")
    assert "flatness 6.0 × (" in batch.evidence
    assert rate.evidence.endswith(", corrected for 2 claims together")


def test_claims_fail_on_the_opposite_picture() -> None:
    both_rise = table(lambda r, b, e: papers(r, 1 / b, e), papers)
    assert verdicts(both_rise) == ["fails", "fails"]
    # One half of the second claim is as expected: the claim still fails.
    assert verdicts(table(papers, papers)) == ["fails", "fails"]
    batch_only = table(lambda r, b, e: papers(1 / r, b, e), lambda r, b, e: papers(1 / r, 1 / b, e))
    assert verdicts(batch_only) == ["fails", "holds"]


def test_claims_are_undecided_on_noise_and_on_nothing() -> None:
    noise = table(*2 * (lambda _, __, e: math.exp(e),))
    assert verdicts(noise) == ["undecided"] * 2
    undefined = table(lambda *_: math.nan, lambda *_: math.nan)
    assert verdicts(undefined) == ["undecided"] * 2
    assert "trajectory not measured in this run (n = 0)" in claims(undefined)[0].evidence
    one_rate = papers_table()
    rate, batch = claims(one_rate[one_rate[RATE] == 0.1])
    assert (rate.verdict, rate.evidence) == ("undecided", "not varied in this run (n = 0)")
    assert batch.verdict == "holds"
    assert verdicts(papers_table().head(0)) == []


def test_one_factor_alone_decides_neither_claim() -> None:
    assert verdicts(table(papers, lambda _, __, e: math.exp(e))) == ["undecided"] * 2


def test_one_seed_describes_the_order_of_its_runs() -> None:
    rate, batch = claims(papers_table(seeds=1))
    assert (rate.verdict, batch.verdict) == ("single run", "single run")
    assert "trajectory 4.0 × (one seed: no interval), ρ = +1.00" in rate.evidence
    assert rate.evidence.endswith("12 trials; with the one seed it is so")
    _, batch = claims(table(papers, papers, seeds=1))
    assert batch.evidence.endswith("with the one seed it is not so")


def test_cells_of_one_seed_are_no_independent_evidence() -> None:
    """What a seed has in common at one rate looked like a trend in all twelve of its cells.

    Every batch size tells the same, and one of the three seeds disagrees: the permutation of its
    36 cells had ρ = +0.50 with p = 0.018.
    """
    effects = {0.05: (0, 0, 1), 0.1: (1, 1, 2), 0.2: (2, 2, 0)}
    frame = papers_table()
    shared = [effects[rate][seed] for rate, seed in zip(frame[RATE], frame["seed"], strict=True)]
    frame[TRAJECTORY] = np.exp(shared) * np.exp(0.01 * np.arange(36) % 7)
    assert verdicts(frame)[0] == "undecided"


def test_each_model_and_dataset_has_its_own_claims() -> None:
    bad = table(papers, papers, **{"model.name": "alexnet"})
    found = claims(pd.concat([papers_table(), bad], ignore_index=True))
    assert [c.verdict for c in found] == ["holds", "holds", "fails", "fails"]
    assert all("AlexNet on mnist5k" in c.text for c in found[2:])
    assert all("corrected for 4 claims together" in c.evidence for c in found)


def test_seeds_are_compared_with_themselves() -> None:
    """A seed's own level, however large, takes nothing from the trend."""
    frame = papers_table()
    scaled = frame.assign(**{FLATNESS: frame[FLATNESS] * 10.0 ** frame["seed"]})
    assert verdicts(scaled) == ["holds"] * 2
    assert [c.evidence for c in claims(scaled)] == [c.evidence for c in claims(frame)]


def test_only_finished_trials_count() -> None:
    frame = papers_table()
    ended = frame.assign(status="diverged", **{FLATNESS: 1.0})
    assert claims(pd.concat([frame, ended])) == claims(frame)
    assert claims(ended) == []
    assert figure6.claims(NO_TRIALS) == []
