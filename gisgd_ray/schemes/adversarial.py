"""One-step adversarial training (Goodfellow et al., ICLR 2015), a baseline of Tables 1-2."""

import torch
from torch import Tensor, nn

from gisgd_ray.config.scheme import AdversarialConfig
from gisgd_ray.schemes.base import Batch, Setting, Stateless, Step


class Adversarial(Stateless):
    """Gradient of the loss at x + eps sign(grad_x l(w, (x, y))), kept within the pixels' range.

    Args:
        pixels: eps in raw pixel values; 0 is plain SGD, by two passes.
        black, white: normalised values of raw pixels 0 and 255 by channel, (C,).
    """

    def __init__(self, *, pixels: float, black: Tensor, white: Tensor):
        self._low, self._high = (edge.view(-1, 1, 1) for edge in (black, white))
        self._reach = (self._high - self._low) * (pixels / 255)

    def gradient(self, step: Step) -> None:
        clean, targets = step.batch
        images = clean.detach().requires_grad_()
        step.batch = Batch(images, targets)
        with step.aside():
            step.plain()
        assert images.grad is not None
        with torch.no_grad():
            moved = images + self._reach * images.grad.sign()
            moved = moved.clamp(self._low, self._high)
        step.batch = Batch(moved, targets)
        step.zero_grad()
        step.losses(step.forward(moved)).mean().backward()


def build(config: AdversarialConfig, _: nn.Module, setting: Setting) -> Adversarial:
    assert setting.black is not None
    assert setting.white is not None
    return Adversarial(pixels=config.pixels, black=setting.black, white=setting.white)
