"""Taking turns, and printing a figure beside its target."""

import time
from collections.abc import Callable

import torch

from gisgd_ray.data.dataset import Dataset


def least_seconds(
    candidates: dict[str, Callable[[], object]], *, repetitions: int
) -> dict[str, float]:
    """Least wall time of each candidate, after one round to warm up."""
    best = dict.fromkeys(candidates, float("inf"))
    for round_ in range(repetitions + 1):
        for name, candidate in candidates.items():
            begun = time.perf_counter()
            candidate()
            if round_ > 0:
                best[name] = min(best[name], time.perf_counter() - begun)
    return best


def verdict(what: str, figure: float, *, at_most: float | None = None, at_least: float = 0) -> bool:
    """Print a figure with its target; whether it is met."""
    met = figure >= at_least and (at_most is None or figure <= at_most)
    target = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    print(f"  {what}: {figure:.2f} ({target}): {'met' if met else 'MISSED'}")
    return met


def random_mnist(samples: int = 60_000) -> Dataset:
    """Random inputs and labels of MNIST's shape."""
    generator = torch.Generator().manual_seed(0)
    return Dataset(
        train_x=torch.randn(samples, 1, 28, 28, generator=generator),
        train_y=torch.randint(10, (samples,), generator=generator),
        test_x=torch.randn(1_000, 1, 28, 28, generator=generator),
        test_y=torch.randint(10, (1_000,), generator=generator),
        num_classes=10,
        normalization_mean=(0.0,),
        normalization_std=(1.0,),
    )
