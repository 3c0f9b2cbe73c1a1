"""MixUp (Zhang et al., ICLR 2018), a baseline of the paper's Tables 1-2."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gisgd_ray.config.scheme import MixUpConfig
from gisgd_ray.networks.losses import per_sample_loss
from gisgd_ray.schemes.base import Draws, Objective, Setting, Step


class MixUp:
    """Loss of pairs (i, j) mixed by one lambda ~ Beta(alpha, alpha) a batch, j a permutation of i.

    lambda l(f(x~), y_i) + (1 - lambda) l(f(x~), y_j) at x~ = lambda x_i + (1 - lambda) x_j;
    lambda = 1 is plain SGD.
    """

    def __init__(self, *, alpha: float, setting: Setting):
        self.alpha = alpha
        self.draws_by_sample = None  # lambda is the batch's
        self._draws = Draws(setting, "mixup")

    def gradient(self, step: Step) -> None:
        source = np.random.RandomState(self._draws.next_seed() % 2**32)
        share = self.draw_share(source)
        inputs, targets = step.batch
        partner = torch.from_numpy(source.permutation(len(inputs))).to(inputs.device)

        def objective() -> Objective:
            outputs = step.forward(mix(inputs, inputs[partner], share))
            losses = mix(
                per_sample_loss(step.loss, outputs, targets),
                per_sample_loss(step.loss, outputs, targets[partner]),
                share,
            )
            return Objective(losses, losses)

        step.own(objective)

    def draw_share(self, source: np.random.RandomState) -> float:
        """lambda of one batch."""
        return float(source.beta(self.alpha, self.alpha))

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state)


def build(config: MixUpConfig, _: nn.Module, setting: Setting) -> MixUp:
    return MixUp(alpha=config.alpha, setting=setting)


def mix(first: Tensor, second: Tensor, share: float) -> Tensor:
    """share * first + (1 - share) * second."""
    return share * first + (1 - share) * second
