"""The networks, their losses, and per-sample gradient norms taken from a backward pass.

Begin with :mod:`gisgd_ray.networks.models`. Imports the configuration, and knows nothing of data,
schemes or what is measured.
"""
