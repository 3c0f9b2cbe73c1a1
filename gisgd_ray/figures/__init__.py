"""How figures and printed tables look: style, interactive charts, declarations for W&B's panels.

Begin with :mod:`gisgd_ray.figures.style`. What a figure shows is declared in ``sweeps/``. Imports
results, and no claims.
"""
