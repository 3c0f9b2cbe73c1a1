"""Psi at every noise std with its standard error, and the terms made of it."""

from collections.abc import Sequence

from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.displaced import WeightNoise
from gisgd_ray.measures.sensitivity import local_gradient_sensitivity
from gisgd_ray.theory.quantities import at
from gisgd_ray.training.measure import Measure, standard_error
from gisgd_ray.training.state import Point, TrainState


class Sensitivity(Measure):
    """At the end as well: the steps since the last measurement lie between two known values."""

    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.sensitivity

    def schedules(self, config: TrialConfig) -> Sequence[Schedule]:
        return (config.measurement.sensitivity_schedule,)

    def cost(self, config: TrialConfig) -> float:
        """Gradients over the samples: at W, and at each draw."""
        return 1 + config.measurement.sensitivity_draws

    def measure(self, state: TrainState, point: Point) -> Point:
        del point
        m, t = state.config.measurement, state.config.training
        # Psi(W_t) belongs to step t + 1: zeta ~ N(0, sum_{s<=t} sigma_s^2 I).
        stds = [noise_std * state.step**0.5 for noise_std in m.noise_stds]
        found = [
            local_gradient_sensitivity(
                r.model,
                r.samples(t.loss)[0],
                WeightNoise(stds, r.seed),
                draws=m.sensitivity_draws,
                step=state.step,
                samples=_samples(state),
            )
            for r in state.replicas
        ]
        by_std = list(zip(*found, strict=True))
        state.sensitivity.add_point(
            [[each.value for each in group] for group in by_std],
            [group[0].standard_error for group in by_std],
        )
        columns: Point = dict(state.sensitivity.metrics(state.terms))
        for noise_std, group in zip(m.noise_stds, by_std, strict=True):
            # Over replicas the draws are independent, W being part of what varies.
            values = [each.value for each in group]
            error = standard_error(values) if len(values) > 1 else group[0].standard_error
            columns[at("measure/local_gradient_sensitivity_stderr", noise_std)] = error
        return columns

    def row(self, state: TrainState) -> Point:
        """Psi as the mean over steps; over how many samples each draw was taken, and how."""
        samples, whole = _samples(state), state.num_samples
        return {
            **state.sensitivity.means(state.terms.steps),
            "measure/sensitivity_interpolation": state.sensitivity.interpolation,
            "measure/sensitivity_samples": samples,
            "measure/sensitivity_estimator": f"two halves of {samples} training samples, others a "
            "draw"
            if samples < whole
            else "all training samples",
        }

    def undefined_reason(self, state: TrainState) -> str | None:
        return state.sensitivity.undefined_reason()


def _samples(state: TrainState) -> int:
    """m: all of the training samples, or an even number of them, at least 2."""
    n = state.num_samples
    even = 2 * max(1, round(state.config.measurement.sensitivity_fraction * n / 2))
    return n if state.config.measurement.sensitivity_fraction == 1 else min(n, even)
