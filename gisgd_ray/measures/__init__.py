"""What is measured along a training run; every estimator is named and has a brute force in tests.

None of them changes what it measures: parameters, gradients, mode, buffers and random streams
are bit-identical afterwards (see :mod:`gisgd_ray.measures.invisible`).
"""
