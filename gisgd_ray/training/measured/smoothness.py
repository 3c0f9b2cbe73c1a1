"""beta at W_T, for Corollary 2.

Corollary 2 (Wang & Mao 2022; PAPER section 3) assumes a beta-smooth loss, |grad l(w) - grad l(w')|
<= beta |w - w'| for *all* w, w', and holds the bound's flatness term as beta d sum_t sigma_t^2.
That beta is a global constant which no measurement at one point can give. What is measured,
beta(w) = max_i |lambda_i(H_w)| at w = W_T, is its local stand-in and a lower estimate of it; in a
ReLU network, whose gradient jumps, no global constant exists at all.
"""

from statistics import fmean

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.training.measure import Measure
from gisgd_ray.training.state import Point, TrainState


class Smoothness(Measure):
    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.smoothness

    def measure(self, state: TrainState, point: Point) -> Point:
        del point
        found = []
        for r in state.replicas:
            data, loss = r.dataset, state.config.training.loss
            hessian = HessianOperator(r.model, data.train_x, data.train_y, loss)
            found.append(hessian.largest_eigenvalue(seed=r.seed))
        return {
            "measure/smoothness": fmean(each.value for each in found),
            "measure/smoothness_residual": fmean(each.residual for each in found),
        }
