"""Gaussian model perturbation (Wang & Mao, section 6 and Algorithm 2; Table 3 for "absolute").

With delta_i ~ N(0, std^2 I) on every trainable weight, one draw shared by the batch, and L the mean
loss of the batch, the gradient left is that of::

    average    (1 - rho) L(w) + (rho/k) sum_{i<=k} L(w + delta_i)
    absolute   L(w) + (rho/k) sum_{i<=k} | L(w + delta_i) - L(w) |

each term differentiated where it is evaluated: the gradient of L(w + delta_i) is taken *at*
w + delta_i. BatchNorm's running statistics are updated by the clean pass alone.

``local`` estimates the gradient of the average variant in one noisy pass instead of k: see
:mod:`gisgd_ray.schemes.preactivation_noise` for where its expectation is the same.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gisgd_ray.config.scheme import GMPConfig
from gisgd_ray.networks.models import trainable
from gisgd_ray.schemes.base import Draws, Setting, Step
from gisgd_ray.schemes.perturbed import Fold, StandIns, folded
from gisgd_ray.schemes.preactivation_noise import check_layers, noisy_preactivations

PIECE = 2**15
"""Numbers drawn at once on a CPU: still in its cache when the weights are added."""


def noise_std_at(config: GMPConfig, step: int, planned_steps: int) -> float:
    """sigma_t of update ``step`` + 1: from ``noise_std`` at the first update to
    ``final_noise_std`` at the last planned one."""
    first, last = config.noise_std, config.final_noise_std
    if last is None:
        return first
    way = min(1.0, step / max(planned_steps - 1, 1))
    if config.noise_schedule == "geometric":
        return math.exp((1 - way) * math.log(first) + way * math.log(last))
    if config.noise_schedule == "cosine":
        way = (1 - math.cos(math.pi * way)) / 2
    return (1 - way) * first + way * last


class GMP:
    """Keeps one copy of the weights (none with ``local``), whatever k; the absolute variant holds
    the clean gradient as well while a step lasts.

    ``rho`` = 0 is plain SGD; so is, bit for bit, a std that no weight feels.
    """

    def __init__(self, config: GMPConfig, setting: Setting):
        self._config, self._planned_steps = config, setting.planned_steps
        self._draws = Draws(setting, "gmp")
        self.draws_by_sample = self._draws if config.estimator == "local" else None
        self._stand_ins = StandIns()
        self._step = 0

    def gradient(self, step: Step) -> None:
        losses = step.plain()
        std = noise_std_at(self._config, self._step, self._planned_steps)
        self._step += 1
        generator = self._draws.next()
        if self._config.rho == 0:
            return
        with step.aside():
            if self._config.estimator == "local":
                self._local(step, std, generator)
            elif self._config.variant == "average":
                self._average(step, std, generator)
            else:
                self._absolute(step, std, generator, losses.mean())

    def _average(self, step: Step, std: float, generator: torch.Generator) -> None:
        """The weighted mean of the clean gradient and those of the draws, taken in one by one.

        As a running mean it moves by a multiple of (new - mean): equal gradients leave it as it is
        to the bit.
        """
        share = self._config.rho / self._config.draws
        total = 1 - self._config.rho
        with self._stand_ins.placed(step.model) as stand_ins:
            for _ in range(self._config.draws):
                self.perturb(stand_ins, std, generator)
                total += share
                with folded(stand_ins, _towards(share / total), stand_ins=stand_ins):
                    _loss(step).backward()

    def _absolute(
        self, step: Step, std: float, generator: torch.Generator, clean_loss: Tensor
    ) -> None:
        """g + (rho/k) sum_i sign(L_i - L) (g_i - g); g is needed at every draw, so kept as well."""
        share = self._config.rho / self._config.draws
        weights = trainable(step.model)
        clean = {w.grad: w.grad.clone() for w in weights if w.grad is not None}
        with self._stand_ins.placed(step.model) as stand_ins:
            for _ in range(self._config.draws):
                self.perturb(stand_ins, std, generator)
                loss = _loss(step)
                signed = share * torch.sign(loss.detach() - clean_loss)

                def fold(sum_: Tensor, new: Tensor, signed: Tensor = signed) -> None:
                    sum_.add_(new.sub_(clean[sum_]).mul_(signed))

                with folded(stand_ins, fold, stand_ins=stand_ins):
                    loss.backward()

    def _local(self, step: Step, std: float, generator: torch.Generator) -> None:
        with (
            noisy_preactivations(step.model, std=std, generator=generator),
            folded(trainable(step.model), _towards(self._config.rho)),
        ):
            _loss(step).backward()

    @torch.no_grad()
    def perturb(
        self, stand_ins: Mapping[Tensor, Tensor], std: float, generator: torch.Generator
    ) -> None:
        """w + delta in the stand-ins of w, drawn there: the noise needs no memory of its own."""
        for weight, stand_in in stand_ins.items():
            size = PIECE if weight.is_cpu else weight.numel()
            for part, clean in zip(
                stand_in.view(-1).split(size), weight.view(-1).split(size), strict=True
            ):
                part.normal_(0, std, generator=generator).add_(clean)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "draws": self._draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])
        self._draws.load_state_dict(state["draws"])


def _towards(weight: float) -> Fold:
    """The mean moves by this share of the way to the new gradient."""
    return lambda mean, new: mean.lerp_(new, weight)


def _loss(step: Step) -> Tensor:
    """L of the batch at the weights as they stand."""
    return step.losses(step.forward(step.batch.inputs)).mean()


def build(config: GMPConfig, model: nn.Module, setting: Setting) -> GMP:
    if config.estimator == "local":
        check_layers(model)
    return GMP(config, setting)


__all__ = ["GMP", "check_layers", "noise_std_at"]
