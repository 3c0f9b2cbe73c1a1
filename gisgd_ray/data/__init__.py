"""Datasets as whole tensors: read, checked, noised, augmented and cut into batches.

Begin with :mod:`gisgd_ray.data.dataset`; :mod:`~gisgd_ray.data.stored` reads the files that
:mod:`~gisgd_ray.data.downloads` fetches, and :mod:`~gisgd_ray.data.own` takes data of the user's
own. Imports the configuration.
"""
