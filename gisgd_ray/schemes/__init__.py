"""Training schemes: each turns a batch into the gradient that the optimizer then applies.

One short file per scheme, found by its record in :mod:`gisgd_ray.config.catalogue`; begin with
:mod:`gisgd_ray.schemes.base`. Imports networks and the configuration.

What is measured on line is the *plain* gradient of the mean batch loss unless asked otherwise,
whatever the scheme makes of the batch: see :class:`gisgd_ray.schemes.base.Step`.
"""
