"""Sweeps that test information-theoretic generalization bounds on real SGD runs."""
