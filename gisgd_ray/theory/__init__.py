"""The paper's formulas as pure functions of numbers, and nothing else: NumPy alone is imported.

Begin with :mod:`gisgd_ray.theory.bounds`: every bound, by the equation's number.
"""
