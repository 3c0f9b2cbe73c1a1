"""The flatness gap at every noise std, and what the losses around W_T say of a bound's premises."""

import math
from collections.abc import Sequence

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.displaced import WeightNoise
from gisgd_ray.measures.flatness import (
    LEAST_DRAWS,
    FlatnessEstimate,
    FlatnessRun,
    combined,
    flatness_gaps,
)
from gisgd_ray.theory.quantities import at
from gisgd_ray.training.measure import Measure
from gisgd_ray.training.state import Point, TrainState


class Flatness(Measure):
    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.flatness

    def measure(self, state: TrainState, point: Point) -> Point:
        """``point`` holds Eq. 3's sigma* if it is defined."""
        columns: Point = {}
        if state.step == 0:
            return columns
        noise_stds = state.config.measurement.noise_stds
        # Eq. 3 lives at sigma*: what it takes for granted is looked at there, without further draws
        # for the sake of the gap, which it does not take.
        best = point.get("term/optimal_noise_std", math.nan)
        optimum = [best] if 0 < best < math.inf else []
        found = _estimates(state, noise_stds, optimum)
        for noise_std, estimate in zip(noise_stds, found, strict=False):
            named = {
                "measure/flatness_gap": abs(estimate.signed),
                "measure/flatness_gap_signed": estimate.signed,
                "measure/flatness_gap_stderr": estimate.standard_error,
                "measure/flatness_gap_sampling_stderr": estimate.sampling_error,
                **_around(estimate),
            }
            columns |= {at(name, noise_std): value for name, value in named.items()}
        for estimate in found[len(noise_stds) :]:
            columns |= {f"{name}_at_optimum": value for name, value in _around(estimate).items()}
        return columns


def _estimates(
    state: TrainState, noise_stds: Sequence[float], roughly: Sequence[float]
) -> list[FlatnessEstimate]:
    """One for every noise std and then for every one of ``roughly``, over the replicas."""
    m = state.config.measurement
    stds = [std * state.step**0.5 for std in (*noise_stds, *roughly)]
    runs = [
        FlatnessRun(r.model, *r.samples(state.config.training.loss), WeightNoise(stds, r.seed))
        for r in state.replicas
    ]
    draws = [m.flatness_draws] * len(noise_stds)
    draws += [min(m.flatness_draws, LEAST_DRAWS)] * len(roughly)
    return [combined(gaps) for gaps in flatness_gaps(runs, draws=draws, target=m.flatness_target)]


def _around(estimate: FlatnessEstimate) -> Point:
    """What the losses at W_T + Delta_T say of a bound's premises, and from how many draws."""
    return {
        "measure/flatness_draws": estimate.draws,
        "measure/subgaussian_constant_perturbed": estimate.subgaussian_constant,
        "measure/test_loss_increase": estimate.test_increase,
        "measure/test_loss_increase_stderr": estimate.test_increase_error,
    }
