"""The pages: ``report.html`` of a sweep, and the scoreboard of several.

Begin with :mod:`gisgd_ray.report.sweep_report`, which makes all of them from a folder;
:mod:`~gisgd_ray.report.comparison` is the table of our bounds against Neu et al.'s. Imports the
declaration of a sweep, claims, figures and results; no Ray and no W&B.
"""
