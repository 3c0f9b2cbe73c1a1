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
from gisgd_ray.schemes.base import Number, Setting, Step


def where(condition: Tensor | bool, one: Number, other: Number) -> Number:
    """``one`` where the condition holds."""
    if isinstance(condition, Tensor):
        return torch.where(condition, one, other)
    return one if condition else other


def clip_factor(norm: Number, threshold: Number, *, factor: float) -> Number:
    """What a gradient of this norm is multiplied by: 1 up to the threshold, beyond it
    ``factor * threshold / norm``. An infinite threshold never clips."""
    beyond = norm > threshold
    return where(beyond, factor * threshold / where(beyond, norm, 1.0), 1.0)


class Clipping:
    """Scales the plain gradient; the factor of the step is what :meth:`gradient` returns."""

    def __init__(self, config: ClippingConfig, setting: Setting):
        self.draws_by_sample = None
        self._variant, self._factor = config.variant, config.factor
        self._steps_per_epoch, self._device = setting.steps_per_epoch, setting.device
        # T_c, 0 from the first step on; None: found by itself.
        self._start_step = None
        if config.start_epoch is not None:
            self._start_step = config.start_epoch * setting.steps_per_epoch
        self._step = 0
        self._threshold: Number = config.initial_threshold or math.inf
        remembered = config.lag if config.variant == "lag" else 0
        self._last_norms: list[Number] = [math.inf] * remembered
        self._epoch_total: Number = 0.0
        self._epoch_before: Number = math.inf
        self._started: Tensor | bool = False

    def gradient(self, step: Step) -> Number:
        step.plain()
        scale = self.scale(step.gradient_norm())
        step.scale(scale)
        return scale

    def scale(self, norm: Number) -> Number:
        """The factor of the next step, whose gradient has this norm, (); remembers the norm."""
        if isinstance(norm, Tensor) and norm.is_cpu:
            norm = norm.item()
        started = self._started
        if self._start_step is not None:  # known without a look at the device
            started = self._step >= self._start_step
        if self._variant == "lag":
            # The oldest of the last K norms is overwritten by the newest.
            oldest = self._step % len(self._last_norms)
            threshold, self._last_norms[oldest] = self._last_norms[oldest], norm
        else:
            threshold = self._threshold
            lower = where(norm > threshold, threshold, norm)
            self._threshold = where(started, lower, threshold)
        factor = clip_factor(norm, threshold, factor=self._factor)
        scale = where(started, factor, 1.0)
        self._step += 1
        self._end_of_epoch(norm)
        return scale

    def _end_of_epoch(self, norm: Number) -> None:
        if self._start_step is not None:
            return
        self._epoch_total = self._epoch_total + norm
        if self._step % self._steps_per_epoch == 0:
            mean = self._epoch_total / self._steps_per_epoch
            self._started = self._started | (mean > self._epoch_before)
            self._epoch_before, self._epoch_total = mean, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "threshold": self._threshold,
            "last_norms": list(self._last_norms),
            "epoch_total": self._epoch_total,
            "epoch_before": self._epoch_before,
            "started": self._started,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = int(state["step"])
        self._threshold = self._here(state["threshold"])
        self._last_norms = [self._here(norm) for norm in state["last_norms"]]
        self._epoch_total = self._here(state["epoch_total"])
        self._epoch_before = self._here(state["epoch_before"])
        self._started = self._here(state["started"])

    def _here(self, number: Any) -> Any:
        """A number of a state from whichever device."""
        if not isinstance(number, Tensor):
            return number
        return number.item() if self._device.type == "cpu" else number.to(self._device)


def build(config: ClippingConfig, _: nn.Module, setting: Setting) -> Clipping:
    return Clipping(config, setting)
