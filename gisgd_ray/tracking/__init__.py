"""Weights & Biases: a run per trial, what is uploaded later, and the report of a sweep.

Begin with :mod:`gisgd_ray.tracking.run`. The only package that imports wandb; no fault of it may
end or delay a trial. Imports the report.
"""
