"""Every random draw comes from a generator named by (seed, purpose).

Seeds are derived by hashing, so two purposes never share a stream, and a purpose may carry a
counter (an epoch, say): such a draw needs no saved state, and a restored trial repeats it exactly.
Generators live on the CPU whatever the device of training, so that the same seed gives the same
initialisation, batches and labels on every machine. Only the perturbations that Psi and the
flatness gap are averaged over are drawn where they are used: they are as many as the weights, and
change no trajectory.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gisgd_ray.device import started_gpus


def derived_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derived_seed(0, "batching", epoch)``."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for one purpose."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


@contextmanager
def isolated_rng(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed the global generators for code that knows no other; restore them afterwards."""
    with torch.random.fork_rng(devices=started_gpus()):
        torch.manual_seed(derived_seed(seed, *purpose))
        yield
