"""Per-sample losses l(w, z) and what the measures need to know about them."""

from typing import Literal, assert_never

import torch.nn.functional as F
from torch import Tensor

LossName = Literal["cross_entropy", "squared"]


def per_sample_loss(name: LossName, outputs: Tensor, targets: Tensor) -> Tensor:
    """l(w, z_i) for every sample: outputs (b, K), targets (b,) class indices -> (b,).

    Cross-entropy in nats, or half the squared distance to the one-hot target,
    1/2 ||f(w, x) - e_y||^2, so that its Hessian in f is the identity.
    """
    match name:
        case "cross_entropy":
            return F.cross_entropy(outputs, targets, reduction="none")
        case "squared":
            one_hot = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
            return 0.5 * (outputs - one_hot).square().sum(dim=1)
        case _:
            assert_never(name)


class MeanLoss:
    """Mean of :func:`per_sample_loss` over the batch, as a callable (outputs, targets) -> ()."""

    def __init__(self, name: LossName):
        self.name = name

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return per_sample_loss(self.name, outputs, targets).mean()
