"""How figures and printed tables look: Altair charts, their theme, declarations for W&B's panels.

Begin with :mod:`gisgd_ray.figures.charts`. What a figure shows is declared in ``sweeps/``. Imports
results, and no claims.
"""
