"""Tr H over the training data (E_Z of Eq. 3 is over S), and the bounds that need it."""

from collections.abc import Sequence
from statistics import fmean

from gisgd_ray.config.frozen import Schedule
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.hessian import HessianOperator
from gisgd_ray.training.measure import Measure, standard_error
from gisgd_ray.training.state import Point, TrainState


class Trace(Measure):
    def is_on(self, config: TrialConfig) -> bool:
        return config.measurement.hessian_trace != "off"

    def schedules(self, config: TrialConfig) -> Sequence[Schedule]:
        schedule = config.measurement.hessian_schedule
        return () if schedule is None else (schedule,)

    def cost(self, config: TrialConfig) -> float:
        """Probes, where it is not exact for sure."""
        m = config.measurement
        return m.hessian_probes if m.hessian_trace == "pyhessian" else 1

    def measure(self, state: TrainState, point: Point) -> Point:
        del point
        m, t = state.config.measurement, state.config.training
        method = m.hessian_trace
        assert method != "off"

        found = []
        for r in state.replicas:
            x, y = (
                values[: m.hessian_samples] for values in (r.dataset.train_x, r.dataset.train_y)
            )
            hessian = HessianOperator(r.model, x, y, t.loss)
            found.append(hessian.trace(method, probes=m.hessian_probes, seed=r.seed))
        values = [trace.value for trace in found]
        error = standard_error(values) if len(found) > 1 else found[0].standard_error
        return {
            "measure/hessian_trace": fmean(values),
            "measure/hessian_trace_stderr": error,
            "measure/hessian_trace_estimator": found[0].estimator,
            **state.terms.closed_forms(fmean(values), state.series),
        }
