"""Training schemes: each turns a batch into the gradient that the optimizer then applies.

One short file per scheme; begin with :mod:`gisgd_ray.schemes.base`, and what builds them is in
:mod:`gisgd_ray.schemes.builders`. Imports networks and the configuration.

What is measured on line is the *plain* gradient of the mean batch loss unless asked otherwise,
whatever the scheme makes of the batch: see :class:`gisgd_ray.schemes.base.Step`.
"""
