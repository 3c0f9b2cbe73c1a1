"""Flooding (Ishida et al., ICML 2020), a baseline of the paper's Tables 1-2."""

import torch
from torch import nn

from gisgd_ray.models import trainable
from gisgd_ray.schemes.base import Batch, PlainGradient, Stateless


class Flooding(Stateless):
    """Gradient of |L - level| + level, with L the mean batch loss: sign(L - level) g(w, B).

    ``level`` = 0 is plain SGD for any loss that is never negative.
    """

    def __init__(self, *, level: float):
        self.level = level

    @torch.no_grad()
    def gradient(self, model: nn.Module, batch: Batch, plain: PlainGradient) -> None:
        with torch.enable_grad():
            losses = plain(batch)
        # A tensor, not a float: the sign is taken on the device without waiting for it.
        sign = torch.sign(losses.mean() - self.level)
        grads = [p.grad for p in trainable(model) if p.grad is not None]
        torch._foreach_mul_(grads, sign)
