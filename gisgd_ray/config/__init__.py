"""What one trial is, as frozen pydantic models, checked in full before anything runs.

Begin with :mod:`gisgd_ray.config.sections` (the sections of a trial, a file each beside it);
:mod:`~gisgd_ray.config.trial` adds the checks of what goes together, and
:mod:`~gisgd_ray.config.space` makes many trials of one space. What is known of datasets, networks
and schemes by name is in :mod:`~gisgd_ray.config.catalogue`. Imports nothing of the package but
errors and seeds.
"""
