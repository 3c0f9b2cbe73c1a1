"""AMP (Zheng et al., CVPR 2021) and SAM (Foret et al., ICLR 2021): a step from the worst neighbour.

One ascent step along the plain gradient g inside an L2 ball of radius r, then the gradient at the
point reached, applied to the weights one came from::

    AMP   w_p + min(eta, r / ||g_p||) g_p   for every parameter tensor p: a ball each; eta = 1
    SAM   w + r g / ||g||                   over all the weights: one ball

AMP steps by a rate and is projected into the ball (its Algorithm 1); SAM goes to the ball's edge,
where to first order the loss is largest (its Eq. 2).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from gisgd_ray.config.scheme import AMPConfig, SAMConfig
from gisgd_ray.schemes.base import Stateless, Step
from gisgd_ray.schemes.perturbed import StandIns


class _Ascent(Stateless, ABC):
    """``radius`` = 0 is plain SGD, by two passes."""

    def __init__(self, *, radius: float):
        self.radius = radius
        self._stand_ins = StandIns()

    def gradient(self, step: Step) -> None:
        step.plain()
        with self._stand_ins.placed(step.model) as stand_ins, step.aside():
            self._ascend(stand_ins)
            for weight in stand_ins:
                weight.grad = None  # its memory is used again by the second pass
            step.losses(step.forward(step.batch.inputs)).mean().backward()
            for weight, stand_in in stand_ins.items():
                weight.grad, stand_in.grad = stand_in.grad, None

    @torch.no_grad()
    def _ascend(self, stand_ins: Mapping[Tensor, Tensor]) -> None:
        """w + scale * g into the stand-ins; w itself where there is no gradient."""
        moved = {weight: weight.grad for weight in stand_ins if weight.grad is not None}
        for weight in stand_ins.keys() - moved.keys():
            stand_ins[weight].copy_(weight)
        scales = self.scales(list(moved.values()))
        for (weight, gradient), scale in zip(moved.items(), scales, strict=True):
            torch.addcmul(weight, gradient, scale, out=stand_ins[weight])

    @abstractmethod
    def scales(self, gradients: list[Tensor]) -> list[Tensor]:
        """What each tensor's gradient is multiplied by to give the step, shapes ()."""

    def _to_edge(self, norm: Tensor) -> Tensor:
        """r / norm; 0 where the norm is."""
        return torch.where(norm > 0, self.radius / norm, torch.zeros_like(norm))


class AMP(_Ascent):
    """A ball for every parameter tensor."""

    def __init__(self, *, radius: float, inner_learning_rate: float = 1.0):
        super().__init__(radius=radius)
        self.inner_learning_rate = inner_learning_rate

    def scales(self, gradients: list[Tensor]) -> list[Tensor]:
        norms = torch._foreach_norm(gradients)
        return [self._to_edge(norm).clamp(max=self.inner_learning_rate) for norm in norms]


class SAM(_Ascent):
    """One ball around all the weights."""

    def scales(self, gradients: list[Tensor]) -> list[Tensor]:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return [self._to_edge(norm)] * len(gradients)


def build_amp(config: AMPConfig, *_: object) -> AMP:
    return AMP(radius=config.radius, inner_learning_rate=config.inner_learning_rate)


def build_sam(config: SAMConfig, *_: object) -> SAM:
    return SAM(radius=config.radius)
