"""Every kind of trial that a user can launch at the paper's scale runs, measures and goes on."""

import math
from collections.abc import Iterator

import pytest

from gisgd_ray.results.tables import row_of
from gisgd_ray.runner.estimate import with_few_draws
from gisgd_ray.runner.resources import PROBE_STEPS
from gisgd_ray.training import checkpoint
from gisgd_ray.training import loop as training
from tests.support import kinds
from tests.support.runs import untimed, weight_bits


@pytest.fixture(scope="module", autouse=True)
def _few_samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from kinds.on_few_samples(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", kinds.SWEEPS)
def test_every_kind_of_trial_of_a_sweep(name: str) -> None:
    found = kinds.kinds(name)
    assert found
    for config in found:
        trial = with_few_draws(config)
        state = training.start(trial)
        training.try_out(state, PROBE_STEPS)
        assert state.stopped == "broken off", trial
        assert state.step == PROBE_STEPS
        row = row_of(trial, training.summary(state))
        assert row["status"] == "finished"
        m = trial.measurement
        expected = {"train/loss", "test/loss", "gap/loss"}
        expected |= {"measure/gradient_dispersion"} if m.dispersion else set()
        expected |= {"measure/hessian_trace"} if m.hessian_trace != "off" else set()
        expected |= {"measure/smoothness"} if m.smoothness else set()
        expected |= {"measure/mean_gradient_gap"} if m.mean_gradient_gap else set()
        for std in m.noise_stds:
            expected |= {f"measure/flatness_gap@{std:g}"} if m.flatness else set()
            if m.sensitivity:
                expected |= {f"measure/local_gradient_sensitivity@{std:g}"}
                expected |= {f"bound/lemma2_neu@{std:g}"}
        expected |= {f"bound/{trial.network_theorem}"} if trial.network_theorem else set()
        assert {n for n in expected if not math.isfinite(row[n])} == set(), trial
        again = checkpoint.load(trial, checkpoint.dump(state))
        assert weight_bits(again) == weight_bits(state)
        assert untimed(training.summary(again)) == untimed(training.summary(state))
