"""One training run, step by step, with all that is measured along it; no Ray.

Begin with :mod:`gisgd_ray.training.loop`: ``start``, ``advance`` and ``summary``. What takes a step
is in :mod:`~gisgd_ray.training.stepping`, of trials that share it in
:mod:`~gisgd_ray.training.stack`, what is measured between steps in
:mod:`~gisgd_ray.training.measured`, the bounds of a row in :mod:`~gisgd_ray.training.terms`.
Imports measures, schemes, networks, data, config and theory.
"""
