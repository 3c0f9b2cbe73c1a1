"""Theorem 1 in a trial of replicas, by hand from its weights, and never above Eq. 2."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from gisgd_ray.theory import bounds
from gisgd_ray.training import loop as training
from tests.measures.test_posterior import by_brute_force
from tests.support.runs import Finished, config, run
from tests.training.test_replicas import SEEDS, batches

pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

STDS = [1e-6, 0.7, 30.0]
"""Of noise for the run: the posterior is on one replica; on one, then several; on all."""
RUN: dict[str, Any] = {
    "replicas": 3,
    "seed": 1,
    "training.lr_milestones": [2],
    "data.label_noise": 0.4,
    "measurement.noise_stds": STDS,
    "training.evaluation": {"every": 1, "unit": "step"},
}


@lru_cache
def watched() -> tuple[Finished, np.ndarray, np.ndarray]:
    """A run, and by brute force D_t (T, S, R) and the posteriors (T, S, R, R) of its steps."""
    state, points, found = training.start(config(RUN)), [], []
    assert [replica.seed for replica in state.replicas] == SEEDS
    while state.stopped is None:
        points.append(training.advance(state)[0])
        if state.stopped is None:
            models = [replica.model for replica in state.replicas]
            x, y = batches(state.step)
            # Without noise yet, nothing is taken for anything else.
            stds = STDS if state.step else [1e-100] * 3
            found.append(
                by_brute_force(
                    models, x, y, stds, seed=SEEDS[0], step=max(1, state.step), num_samples=200
                )
            )
    values, shares = zip(*found, strict=True)
    return Finished(state, points, state.series), np.stack(values), np.stack(shares)


class TestInARun:
    def test_the_term_by_hand(self):
        finished, dispersions, shares = watched()
        largest = shares.max(axis=-1)
        assert (largest[:, 0] > 1 - 1e-9).all()
        assert (largest[0] == 1).all()
        assert 0.4 < largest[8:, 1].mean() < 0.95
        assert (largest[1:, 2] < 0.4).all()
        row, series = finished.row, finished.series
        n, d, radius = 200, 12730, row["measure/subgaussian_constant"]
        for i, std in enumerate(STDS):
            logs = [
                math.fsum(math.log1p(rate**2 * float(v) / (d * std**2)) for v in draws[i]) / 3
                for rate, draws in zip(series.learning_rate, dispersions, strict=True)
            ]
            expected = radius * math.sqrt(d / n * math.fsum(logs))
            found = row[f"term/theorem1_trajectory@{std:g}"]
            assert found == pytest.approx(expected, rel=1e-4, abs=0), std
            gap = row[f"measure/flatness_gap@{std:g}"]
            assert row[f"bound/theorem1@{std:g}"] == pytest.approx(found + gap, rel=1e-12)

    def test_at_every_point(self):
        """With or without Psi, whose measuring says nothing of Theorem 1."""
        finished, dispersions, _ = watched()
        assert "measure/local_gradient_sensitivity@0.7" not in finished.row
        for point in finished.points:
            found = point["term/theorem1_trajectory@0.7"]
            step = point["step"]
            if step == 0:
                assert math.isnan(found)
                continue
            expected = bounds.theorem1_trajectory(
                subgaussian_constant=point["measure/subgaussian_constant"],
                num_samples=200,
                num_parameters=12730,
                learning_rates=finished.series.learning_rate[:step],
                noise_stds=[0.7] * step,
                conditional_dispersions=dispersions[:step, 1],
            )
            assert found == pytest.approx(expected, rel=1e-4)

    def test_steps_once_summed_are_dropped(self):
        finished, *_ = watched()
        assert finished.series.conditional_dispersions is None


class TestOrder:
    """Theorem 1 <= Eq. 2: log concave, conditional variance <= variance."""

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize(
        "changes",
        [
            {"replicas": 6},
            {"replicas": 3, "data.label_noise": 0.4},
            {"replicas": 4, "training.loss": "squared", "training.max_epochs": 10},
            {"replicas": 6, "training.learning_rate": 0.5, "training.max_epochs": 15},
        ],
        ids=["plain", "label noise", "squared loss", "to small losses"],
    )
    def test_never_above_eq_2_on_real_runs(self, changes, seed):
        stds = [30.0, 0.3, 0.01, 1e-4, 1e-6, 1e-12]
        changes = {"seed": seed, "measurement.noise_stds": stds, **changes}
        quick = {"measurement.flatness": False, "measurement.smoothness": False}
        row = run({**changes, **quick, "measurement.hessian_trace": "off"}).row
        for std in stds:
            ours, theirs = (row[f"term/theorem{i}_trajectory@{std:g}"] for i in (1, 2))
            assert 0 < ours <= theirs * (1 + 1e-12), std

    def test_with_the_posteriors_on_one_replica_never_above_eq_2_of_the_conditional_dispersion(
        self,
    ):
        """Of the estimates themselves, without any error: the mean of logs below the log of the
        mean, which is V~_t."""
        finished, *_ = watched()
        row, series = finished.row, finished.series
        ceiling = bounds.theorem2_trajectory(
            subgaussian_constant=row["measure/subgaussian_constant"],
            num_samples=200,
            num_parameters=12730,
            learning_rates=series.learning_rate,
            noise_stds=[1e-6] * 12,
            dispersions=series.gradient_dispersion_neu,
        )
        assert row["term/theorem1_trajectory@1e-06"] < ceiling
        assert ceiling == pytest.approx(row["term/theorem1_trajectory@1e-06"], rel=0.01)
