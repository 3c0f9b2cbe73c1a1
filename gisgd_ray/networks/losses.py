"""Per-sample losses l(w, z) and what the measures need to know about them."""

from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["cross_entropy", "squared"]


def per_sample_loss(name: LossName, outputs: Tensor, targets: Tensor) -> Tensor:
    """l(w, z_i) for every sample: outputs (b, K), targets (b,) -> (b,).

    Targets are class indices (int64), or real values in regression (then K = 1). Cross-entropy in
    nats; or half the squared distance to the target, 1/2 ||f(w, x) - e_y||^2 to the one-hot vector
    of a class and 1/2 (f(w, x) - y)^2 to a real value, so that its Hessian in f is the identity.
    """
    match name:
        case "cross_entropy":
            return F.cross_entropy(outputs, targets, reduction="none")
        case "squared":
            if targets.is_floating_point():
                return 0.5 * (outputs.squeeze(-1) - targets).square()
            # F.one_hot checks the values of the targets, which vmap forbids.
            classes = torch.arange(outputs.shape[1], device=targets.device)
            one_hot = (targets.unsqueeze(1) == classes).to(outputs.dtype)
            return 0.5 * (outputs - one_hot).square().sum(dim=1)
        case _:
            assert_never(name)


def losses_and_gradient(name: LossName, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`per_sample_loss`, (b,), and its gradient in each sample's outputs, (b, K), without
    autograd: softmax (cross-entropy) or the outputs themselves (squared), less the target."""
    if targets.is_floating_point():
        gradient = outputs - targets.unsqueeze(-1)
        return 0.5 * gradient.squeeze(-1).square(), gradient
    if name == "cross_entropy":
        logarithms = outputs.log_softmax(dim=1)
        losses = F.nll_loss(logarithms, targets, reduction="none")
        gradient = logarithms.exp_()
    else:
        losses, gradient = per_sample_loss(name, outputs, targets), outputs.clone()
    one = outputs.new_full((), -1.0).expand(len(targets), 1)
    return losses, gradient.scatter_add_(1, targets.unsqueeze(1), one)


class MeanLoss:
    """Mean of :func:`per_sample_loss` over the batch, as a callable (outputs, targets) -> ()."""

    def __init__(self, name: LossName):
        self.name = name

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return per_sample_loss(self.name, outputs, targets).mean()
