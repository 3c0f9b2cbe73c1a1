"""What is measured at the weights of a run, a file each: :data:`MEASURES` is what it walks through.

Another quantity takes a file here, and its columns in :mod:`gisgd_ray.theory.quantities`.
"""

from graphlib import TopologicalSorter
from importlib import import_module
from pkgutil import iter_modules

from gisgd_ray.training.measure import Measure


def _every_measure() -> tuple[Measure, ...]:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    after = {kind: kind.after for kind in Measure.__subclasses__()}
    return tuple(kind() for kind in TopologicalSorter(after).static_order())


MEASURES = _every_measure()
"""Each after those whose columns it takes."""
