"""Dynamic gradient clipping (Wang & Mao, section 5 and Algorithm 1), both variants.

With ||g_t|| the norm of the plain gradient of step t, alpha the factor, and T_c the start::

    running minimum   for t > T_c:  ||g_t|| > G  ->  scale g_t to norm alpha * G,  else G <- ||g_t||
    lag K             for t > T_c:  ||g_t|| > ||g_{t-K}||  ->  scale g_t to norm alpha ||g_{t-K}||

T_c is given, or found: clipping begins after the first epoch whose mean ||g_t|| exceeds that of the
epoch before (appendix E.5), and then stays on. Norms remembered are those before clipping.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from gisgd_ray.config.scheme import ClippingConfig
from gisgd_ray.schemes.base import Setting, Step


def clip_factor(norm: Tensor, threshold: Tensor, *, factor: float) -> Tensor:
    """What a gradient of this norm is multiplied by: 1 up to the threshold, beyond it
    ``factor * threshold / norm``. All shapes (); an infinite threshold never clips."""
    return torch.where(norm > threshold, factor * threshold / norm, 1.0)


class Clipping:
    """Scales the plain gradient; the factor of the step is what :meth:`gradient` returns.

    Everything remembered is a tensor on the device: no step waits for a norm.
    """

    def __init__(self, config: ClippingConfig, setting: Setting):
        self.draws_by_sample = None
        self._variant, self._factor = config.variant, config.factor
        self._steps_per_epoch = setting.steps_per_epoch
        # T_c, 0 from the first step on; None: found by itself.
        self._start_step = None
        if config.start_epoch is not None:
            self._start_step = config.start_epoch * setting.steps_per_epoch
        self._step = 0

        def number(value: float) -> Tensor:
            return torch.tensor(value, device=setting.device)

        self._threshold = number(config.initial_threshold or math.inf)
        remembered = config.lag if config.variant == "lag" else 0
        self._last_norms = torch.full((remembered,), math.inf, device=setting.device)
        self._epoch_total, self._epoch_before = number(0.0), number(math.inf)
        self._started = number(0.0).bool()

    def gradient(self, step: Step) -> Tensor:
        step.plain()
        scale = self.scale(step.gradient_norm())
        step.scale(scale)
        return scale

    @torch.no_grad()
    def scale(self, norm: Tensor) -> Tensor:
        """The factor of the next step, whose gradient has this norm; remembers the norm."""
        # A given start is known without a look at the device.
        given = None if self._start_step is None else self._step >= self._start_step
        if self._variant == "lag":
            # The oldest of the last K norms is overwritten by the newest.
            oldest = self._step % len(self._last_norms)
            threshold = self._last_norms[oldest].clone()
            self._last_norms[oldest] = norm
        else:
            threshold = self._threshold
            if given is None:
                lower = torch.minimum(norm, threshold)
                self._threshold = torch.where(self._started, lower, threshold)
            elif given:
                self._threshold = torch.minimum(norm, threshold)
        if given is False:
            scale = torch.ones_like(norm)
        else:
            scale = clip_factor(norm, threshold, factor=self._factor)
            if given is None:
                scale = torch.where(self._started, scale, 1.0)
        self._step += 1
        self._end_of_epoch(norm)
        return scale

    def _end_of_epoch(self, norm: Tensor) -> None:
        if self._start_step is not None:
            return
        self._epoch_total = self._epoch_total + norm
        if self._step % self._steps_per_epoch == 0:
            mean = self._epoch_total / self._steps_per_epoch
            self._started = self._started | (mean > self._epoch_before)
            self._epoch_before, self._epoch_total = mean, torch.zeros_like(mean)

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "threshold": self._threshold.clone(),
            "last_norms": self._last_norms.clone(),
            "epoch_total": self._epoch_total.clone(),
            "epoch_before": self._epoch_before.clone(),
            "started": self._started.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])
        device = self._threshold.device
        self._threshold = state["threshold"].to(device)
        self._last_norms = state["last_norms"].to(device, copy=True)
        self._epoch_total = state["epoch_total"].to(device)
        self._epoch_before = state["epoch_before"].to(device)
        self._started = state["started"].to(device)


def build(config: ClippingConfig, _: nn.Module, setting: Setting) -> Clipping:
    return Clipping(config, setting)
