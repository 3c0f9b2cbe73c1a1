"""beta at W_T, for Corollary 2."""

from statistics import fmean

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.smoothness import smoothness
from gisgd_ray.training.measure import Measure
from gisgd_ray.training.state import Point, TrainState


class Smoothness(Measure):
    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.smoothness

    def measure(self, state: TrainState, point: Point) -> Point:
        del point
        loss = state.config.training.loss
        found = [
            smoothness(r.model, r.dataset.train_x, r.dataset.train_y, loss=loss, seed=r.seed)
            for r in state.replicas
        ]
        return {
            "measure/smoothness": fmean(each.value for each in found),
            "measure/smoothness_residual": fmean(each.residual for each in found),
        }
