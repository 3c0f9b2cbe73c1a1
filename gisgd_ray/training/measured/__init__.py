"""What is measured at the weights of a run, a file each: :data:`MEASURES` is what it walks through.

Another quantity takes a file here, its place in that list and its columns in
:mod:`gisgd_ray.theory.quantities`.
"""

from gisgd_ray.training.measure import Measure
from gisgd_ray.training.measured.flatness import Flatness
from gisgd_ray.training.measured.mean_gradient_gap import MeanGradientGap
from gisgd_ray.training.measured.network_theorem import NetworkTheorem
from gisgd_ray.training.measured.sensitivity import Sensitivity
from gisgd_ray.training.measured.smoothness import Smoothness
from gisgd_ray.training.measured.trace import Trace

MEASURES: tuple[Measure, ...] = (
    Trace(),
    Sensitivity(),
    MeanGradientGap(),
    NetworkTheorem(),
    Flatness(),
    Smoothness(),
)
"""In order: a later one may take what an earlier one has found."""
