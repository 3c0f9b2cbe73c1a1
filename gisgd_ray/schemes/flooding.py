"""Flooding (Ishida et al., ICML 2020), a baseline of the paper's Tables 1-2."""

import torch
from torch import Tensor

from gisgd_ray.config.scheme import FloodingConfig
from gisgd_ray.schemes.base import Stateless, Step


class Flooding(Stateless):
    """Gradient of |L - level| + level, with L the mean batch loss: sign(L - level) g(w, B).

    ``level`` = 0 is plain SGD for any loss that is never negative.
    """

    def __init__(self, *, level: float):
        self.level = level

    def gradient(self, step: Step) -> Tensor:
        losses = step.plain()
        # A tensor, not a float: the sign is taken on the device without waiting for it.
        sign = torch.sign(losses.mean() - self.level)
        step.scale(sign)
        return sign


def build(config: FloodingConfig, *_: object) -> Flooding:
    return Flooding(level=config.level)
