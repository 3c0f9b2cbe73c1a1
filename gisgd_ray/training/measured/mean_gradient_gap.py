"""||grad L_mu - grad L_S||^2, and Lemma 2's term with V~_t about the mean over mu.

The latter where Psi is measured at the same weights.
"""

from collections.abc import Sequence

from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.mean_gradient_gap import block_products, combined
from gisgd_ray.theory.quantities import at
from gisgd_ray.training.measure import Measure
from gisgd_ray.training.measured.sensitivity import Sensitivity
from gisgd_ray.training.measured.trace import Trace
from gisgd_ray.training.state import Point, TrainState
from gisgd_ray.training.terms import LEMMA2_POPULATION


class MeanGradientGap(Measure):
    after = (Sensitivity,)

    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.mean_gradient_gap

    def schedules(self, config: TrialConfig) -> Sequence[Schedule]:
        """Whenever Tr H or Psi is."""
        others = [other for other in (Trace(), Sensitivity()) if other.is_on(config)]
        return [schedule for other in others for schedule in other.schedules(config)]

    def measure(self, state: TrainState, point: Point) -> Point:
        loss = state.config.training.loss
        found = combined([block_products(r.model, *r.samples(loss)) for r in state.replicas])
        columns: Point = {
            "measure/mean_gradient_gap": found.value,
            "measure/mean_gradient_gap_stderr": found.standard_error,
        }
        if not state.config.measurement.sensitivity:
            return columns
        state.mean_gradient_gap.add_point(found.value)
        lr2_gap = columns["sum/lr2_mean_gradient_gap"] = state.mean_gradient_gap.total
        for noise_std in state.config.measurement.noise_stds:
            lr2_sensitivity = point.get(at("sum/lr2_sensitivity", noise_std))
            if lr2_sensitivity is not None:
                columns[at(LEMMA2_POPULATION, noise_std)] = (
                    state.terms.lemma2_population_trajectory(lr2_sensitivity, lr2_gap, noise_std)
                )
        return columns

    def undefined_reason(self, state: TrainState) -> str | None:
        if not state.config.measurement.sensitivity:
            return None
        return state.terms.population_undefined_reason(state.mean_gradient_gap.total)
