"""Label smoothing (Szegedy et al., CVPR 2016), a baseline of the paper's Tables 1-2."""

import torch.nn.functional as F
from torch import Tensor

from gisgd_ray.config.scheme import LabelSmoothingConfig
from gisgd_ray.networks.losses import LossName
from gisgd_ray.schemes.base import Objective, Stateless, Step


def smoothed_loss(name: LossName, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Loss (b,) to (1 - smoothing) e_y + smoothing/K, from outputs (b, K) and classes (b,)."""
    if name == "cross_entropy":
        return F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing)
    classes = outputs.shape[1]
    soft = F.one_hot(targets, classes).to(outputs.dtype) * (1 - smoothing) + smoothing / classes
    return 0.5 * (outputs - soft).square().sum(dim=1)


class LabelSmoothing(Stateless):
    """Smoothing 0 is plain SGD. What is recorded as the loss is the loss to the true labels."""

    def __init__(self, *, smoothing: float):
        self.smoothing = smoothing

    def gradient(self, step: Step) -> None:
        def objective() -> Objective:
            outputs = step.forward(step.batch.inputs)
            smooth = smoothed_loss(step.loss, outputs, step.batch.targets, self.smoothing)
            return Objective(smooth, step.losses(outputs.detach()))

        step.own(objective)


def build(config: LabelSmoothingConfig, *_: object) -> LabelSmoothing:
    return LabelSmoothing(smoothing=config.smoothing)
