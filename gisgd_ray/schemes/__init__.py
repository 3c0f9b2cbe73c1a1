"""Training schemes: each turns a batch into the gradient that the optimizer then applies.

One short file per scheme. A scheme first takes the *plain* gradient of the mean batch loss, which
is what every on-line measurement sees, and then makes of it what it likes.
"""

from typing import assert_never

from gisgd_ray.config import FloodingConfig, SchemeConfig, SGDConfig
from gisgd_ray.schemes.base import Batch, PlainGradient, Scheme
from gisgd_ray.schemes.flooding import Flooding
from gisgd_ray.schemes.sgd import SGD


def build_scheme(config: SchemeConfig) -> Scheme:
    """The scheme a config names, in its initial state."""
    match config:
        case SGDConfig():
            return SGD()
        case FloodingConfig():
            return Flooding(level=config.level)
        case _:
            assert_never(config)


__all__ = ["SGD", "Batch", "Flooding", "PlainGradient", "Scheme", "build_scheme"]
