"""Every random draw comes from a generator named by (seed, purpose) (:mod:`gisgd_ray.seeds`).

Generators live on the CPU whatever the device of training, so that the same seed gives the same
initialisation, batches and labels on every machine. Only the perturbations that Psi and the
flatness gap are averaged over are drawn where they are used: they are as many as the weights, and
change no trajectory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gisgd_ray.device import started_gpus
from gisgd_ray.seeds import derived_seed


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


@contextmanager
def isolated_rng(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed the global generators for code that knows no other; restore them afterwards."""
    with torch.random.fork_rng(devices=started_gpus()):
        torch.manual_seed(derived_seed(seed, *purpose))
        yield
