"""Theorem 3 or 4 after T = the steps so far, W_T being the present weights."""

import math
from statistics import fmean

from gisgd_ray.config.model import TwoLayerReLUConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.activation import mean_active_units
from gisgd_ray.theory import bounds
from gisgd_ray.training.measure import Measure
from gisgd_ray.training.state import Point, TrainState


class NetworkTheorem(Measure):
    at_every_point = True

    def is_on(self, config: TrialConfig) -> bool:
        return config.network_theorem is not None

    def measure(self, state: TrainState, point: Point) -> Point:
        del point
        theorem = state.config.network_theorem
        # T sum_t lambda_t^2 l_t, and NaN before the first step and where a loss was not finite.
        terms, name = state.terms, f"bound/{theorem}"
        known = terms.steps > 0 and math.isfinite(terms.lr2_loss)
        if theorem == "theorem3":
            losses = [terms.steps * terms.lr2_loss]
            return {
                name: bounds.theorem3(**terms.as_one_step, losses=losses) if known else math.nan
            }
        assert isinstance(state.config.model, TwoLayerReLUConfig)
        active = fmean(mean_active_units(r.model, r.dataset.train_x) for r in state.replicas)
        value = math.nan
        if known:
            value = bounds.theorem4(
                **terms.as_one_step,
                width=state.config.model.width,
                active_losses=[terms.steps * terms.lr2_active_loss],
                final_active_units=active,
            )
        return {name: value, "measure/active_units": active}
