"""What builds each scheme from its configuration."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from gisgd_ray.config.frozen import Frozen
from gisgd_ray.config.scheme import (
    AdversarialConfig,
    AMPConfig,
    ClippingConfig,
    DropoutConfig,
    FloodingConfig,
    GMPConfig,
    LabelSmoothingConfig,
    MixUpConfig,
    SAMConfig,
    SchemeConfig,
    SGDConfig,
)
from gisgd_ray.errors import UserError
from gisgd_ray.schemes.adversarial import Adversarial
from gisgd_ray.schemes.ascent import AMP, SAM
from gisgd_ray.schemes.base import Scheme, Setting
from gisgd_ray.schemes.clipping import Clipping
from gisgd_ray.schemes.dropout import Dropout
from gisgd_ray.schemes.flooding import Flooding
from gisgd_ray.schemes.gmp import GMP, check_layers
from gisgd_ray.schemes.label_smoothing import LabelSmoothing
from gisgd_ray.schemes.mixup import MixUp
from gisgd_ray.schemes.sgd import SGD


def build_scheme(config: SchemeConfig, model: nn.Module, setting: Setting) -> Scheme:
    """The scheme a config names, in its initial state.

    Raises:
        UserError: the scheme does not know a layer of the model, or has no entry in
            :data:`BUILDERS`.
    """
    require_builder(config)
    return BUILDERS[type(config)](config, model, setting)


def require_builder(config: SchemeConfig) -> None:
    """See that a scheme can be built at all.

    Raises:
        UserError: it has no entry in :data:`BUILDERS`.
    """
    if type(config) not in BUILDERS:
        raise UserError(
            f"scheme.name = {config.name!r} has no entry in BUILDERS of "
            f"gisgd_ray/schemes/builders.py; add {type(config).__name__} and what builds it there"
        )


def _clipping(config: ClippingConfig, setting: Setting) -> Clipping:
    start = config.start_epoch
    return Clipping(
        variant=config.variant,
        factor=config.factor,
        start_step=None if start is None else start * setting.steps_per_epoch,
        initial_threshold=config.initial_threshold or math.inf,
        lag=config.lag,
        steps_per_epoch=setting.steps_per_epoch,
        device=setting.device,
    )


def _gmp(config: GMPConfig, model: nn.Module, setting: Setting) -> GMP:
    if config.estimator == "local":
        check_layers(model)
    return GMP(config, setting)


def _adversarial(config: AdversarialConfig, setting: Setting) -> Adversarial:
    assert setting.black is not None
    assert setting.white is not None
    return Adversarial(pixels=config.pixels, black=setting.black, white=setting.white)


BUILDERS: dict[type[Frozen], Callable[[Any, nn.Module, Setting], Scheme]] = {
    SGDConfig: lambda *_: SGD(),
    FloodingConfig: lambda config, *_: Flooding(level=config.level),
    ClippingConfig: lambda config, _, setting: _clipping(config, setting),
    GMPConfig: _gmp,
    AMPConfig: lambda config, *_: AMP(
        radius=config.radius, inner_learning_rate=config.inner_learning_rate
    ),
    SAMConfig: lambda config, *_: SAM(radius=config.radius),
    DropoutConfig: lambda config, _, setting: Dropout(rate=config.rate, setting=setting),
    LabelSmoothingConfig: lambda config, *_: LabelSmoothing(smoothing=config.smoothing),
    MixUpConfig: lambda config, _, setting: MixUp(alpha=config.alpha, setting=setting),
    AdversarialConfig: lambda config, _, setting: _adversarial(config, setting),
}
"""What builds each scheme, from its config, the network and the run."""
