"""What a sweep leaves in its folder: journals, and the tables that are made from them.

Begin with :mod:`gisgd_ray.results.tables`; :mod:`~gisgd_ray.results.journal` keeps what trials
report, so that a crash loses nothing. Imports the configuration and the names of what is measured.
"""
