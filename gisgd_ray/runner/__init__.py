"""The command line of every sweep, and Ray: from the options to the page.

Begin with :mod:`gisgd_ray.runner.main`, then :mod:`~gisgd_ray.runner.steps`,
:mod:`~gisgd_ray.runner.launch` and :mod:`~gisgd_ray.runner.trainable`. The only package that
imports Ray; it may import all others.
"""
