"""AMP (Zheng et al., CVPR 2021) and SAM (Foret et al., ICLR 2021): a step from the worst neighbour.

One ascent step along the plain gradient g inside an L2 ball of radius r, then the gradient at the
point reached, applied to the weights one came from::

    AMP   w_p + min(eta, r / ||g_p||) g_p   for every parameter tensor p: a ball each; eta = 1
    SAM   w + r g / ||g||                   over all the weights: one ball

AMP steps by a rate and is projected into the ball (its Algorithm 1); SAM goes to the ball's edge,
where to first order the loss is largest (its Eq. 2).
"""

import torch
from torch import Tensor

from gisgd_ray.models import trainable
from gisgd_ray.schemes.base import Stateless, Step
from gisgd_ray.schemes.perturbed import WeightsAside


class _Ascent(Stateless):
    """``radius`` = 0 is plain SGD, by two passes."""

    def __init__(self, *, radius: float):
        self.radius = radius
        self._aside = WeightsAside()

    def gradient(self, step: Step) -> None:
        step.plain()
        weights = [w for w in trainable(step.model) if w.grad is not None]
        ascent = [w.grad for w in weights if w.grad is not None]
        with self._aside.kept(weights), step.aside():
            torch._foreach_mul_(ascent, self.scales(ascent))
            torch._foreach_add_([w.detach() for w in weights], ascent)
            step.zero_grad()
            del ascent  # the last of the plain gradient, before the next one is formed
            with torch.enable_grad():
                step.losses(step.forward(step.batch.inputs)).mean().backward()

    def scales(self, gradients: list[Tensor]) -> list[Tensor]:
        """What each tensor's gradient is multiplied by to give the step, shapes ()."""
        raise NotImplementedError

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
