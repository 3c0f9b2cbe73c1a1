"""The flatness gap at every noise std, and what the losses around W_T say of a bound's premises."""

import math
from collections.abc import Mapping, Sequence

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.displaced import WeightNoise
from gisgd_ray.measures.flatness import (
    LEAST_DRAWS,
    FlatnessEstimate,
    FlatnessRun,
    combined,
    flatness_gaps,
    half_widths,
    independent_estimates,
)
from gisgd_ray.theory.quantities import at
from gisgd_ray.training.measure import Measure
from gisgd_ray.training.measured.trace import Trace
from gisgd_ray.training.state import Point, TrainState


class Flatness(Measure):
    after = (Trace,)

    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.flatness

    def cost(self, config: TrialConfig) -> float:
        """Losses over the samples: at W, and at each draw, of which there may be fewer."""
        return 1 + config.measurement.flatness_draws

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

    def remark(self, state: TrainState) -> str | None:
        replicas = state.config.replicas
        found = [_alone(state), condition_remark(state.last_point, replicas=replicas)]
        return "; ".join(filter(None, found)) or None


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


def _alone(state: TrainState) -> str | None:
    """That a split of one sample leaves the gap's sampling error unknown, or None."""
    measured = any(name.startswith("measure/flatness_gap_") for name in state.last_point)
    counts = {"training": state.num_samples, "test": len(state.dataset.test_y)}
    alone = [name for name, count in counts.items() if count == 1]
    if not (measured and alone):
        return None
    return (
        "the sampling error of the flatness gap is unknown, for the "
        f"{' and the '.join(alone)} split has a single sample; two would do"
    )


def condition_remark(point: Mapping[str, float], *, replicas: int | None) -> str | None:
    """That Eq. 3's condition L_mu(W_T) <= E L_mu(W_T + Delta_T) fails at its own sigma*, or None.

    The test split stands for mu. It fails where the whole 95 % interval of the increase of the test
    loss, by the draws of Delta_T (with replicas: by the runs), is below 0.

    Args:
        point: the last measuring point; without the increase at sigma*, nothing is known.
    """
    increase, error = (
        point.get(f"measure/test_loss_increase{of}_at_optimum", math.nan) for of in ("", "_stderr")
    )
    draws = point.get("measure/flatness_draws_at_optimum")
    independent = independent_estimates(replicas, draws)
    if independent < 2 or not math.isfinite(increase + error):
        return None
    width, _ = half_widths(error, 0.0, independent=independent)
    if increase + width >= 0:
        return None
    return (
        "Eq. 3 takes for granted that noise of std sigma* in the weights does not lower the loss "
        f"on fresh samples; it lowers the test loss by {-increase:.3g} (standard error {error:.2g})"
        ": Eq. 3 is not proved there"
    )
