"""What every row and every measuring point has, whatever else is measured."""

from statistics import fmean

from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.training.evaluation import evaluate_splits
from gisgd_ray.training.measure import standard_error
from gisgd_ray.training.state import Point, TrainState


def losses_and_gap(state: TrainState) -> Point:
    """Train and test loss and accuracy, and the gaps; with replicas, the gap's standard error."""
    loss = state.config.training.loss
    found = [evaluate_splits(r.model, r.dataset, loss=loss) for r in state.replicas]
    point: Point = {name: fmean(each[name] for each in found) for name in found[0]}
    if len(found) > 1:
        point["gap/loss_stderr"] = standard_error([each["gap/loss"] for each in found])
    return point


def dispersion_estimator(config: TrialConfig) -> Point:
    """How and of which gradient the dispersion was measured, in words; empty if it was not."""
    m = config.measurement
    if not m.dispersion:
        return {}
    by_groups = config.dispersion_estimator == "groups"
    return {
        "measure/gradient_dispersion_estimator": f"between {m.dispersion_groups} groups"
        if by_groups
        else "per-sample norms",
        "measure/gradient_dispersion_of": f"{m.dispersion_of} gradient",
    }
