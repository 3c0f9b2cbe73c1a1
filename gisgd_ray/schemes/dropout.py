"""Dropout (Srivastava et al., JMLR 2014) in every layer, whatever the network."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gisgd_ray.config.scheme import DropoutConfig
from gisgd_ray.schemes.base import Draws, Objective, Setting, Step


class Dropout:
    """Loss with every unit between two layers set to zero with probability ``rate``.

    Units are the single entries of the input of every linear and convolution layer but the first;
    those left are divided by 1 - rate, so that evaluation needs no change. The network itself has
    no dropout layers: other passes, and all measurements, see it whole.
    """

    def __init__(self, *, rate: float, setting: Setting):
        self.rate = rate
        self._draws = self.draws_by_sample = Draws(setting, "dropout")

    def gradient(self, step: Step) -> None:
        generator = self._draws.next()

        def objective() -> Objective:
            with dropped_inputs(step.model, rate=self.rate, generator=generator):
                losses = step.losses(step.forward(step.batch.inputs))
            return Objective(losses, losses)

        step.own(objective)

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state)


def build(config: DropoutConfig, _: nn.Module, setting: Setting) -> Dropout:
    return Dropout(rate=config.rate, setting=setting)


@contextmanager
def dropped_inputs(model: nn.Module, *, rate: float, generator: torch.Generator) -> Iterator[None]:
    """Forward passes inside see dropout before every linear or convolution layer but the first."""

    def drop(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        (given,) = inputs
        kept = torch.empty_like(given).bernoulli_(1 - rate, generator=generator)
        return given * kept.div_(1 - rate)

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    with ExitStack() as hooks:
        for layer in layers[1:]:
            hooks.enter_context(layer.register_forward_pre_hook(drop))
        yield
