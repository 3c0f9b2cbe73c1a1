"""Training schemes: each turns a batch into the gradient that the optimizer then applies.

One short file per scheme. What is measured on line is the *plain* gradient of the mean batch loss
unless asked otherwise, whatever the scheme makes of the batch: see
:class:`gisgd_ray.schemes.base.Step`.
"""

import math
from typing import assert_never

from torch import nn

from gisgd_ray.scheme_config import (
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
from gisgd_ray.schemes.adversarial import Adversarial
from gisgd_ray.schemes.ascent import AMP, SAM
from gisgd_ray.schemes.base import Batch, Draws, Meter, Objective, Scheme, Setting, Step
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
        UserError: the scheme does not know a layer of the model.
    """
    match config:
        case SGDConfig():
            return SGD()
        case FloodingConfig():
            return Flooding(level=config.level)
        case ClippingConfig():
            return _clipping(config, setting)
        case GMPConfig():
            if config.estimator == "local":
                check_layers(model)
            return GMP(config, setting)
        case AMPConfig():
            return AMP(radius=config.radius, inner_learning_rate=config.inner_learning_rate)
        case SAMConfig():
            return SAM(radius=config.radius)
        case DropoutConfig():
            return Dropout(rate=config.rate, setting=setting)
        case LabelSmoothingConfig():
            return LabelSmoothing(smoothing=config.smoothing)
        case MixUpConfig():
            return MixUp(alpha=config.alpha, setting=setting)
        case AdversarialConfig():
            assert setting.black is not None
            assert setting.white is not None
            return Adversarial(pixels=config.pixels, black=setting.black, white=setting.white)
        case _:
            assert_never(config)


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


__all__ = [
    "AMP",
    "GMP",
    "SAM",
    "SGD",
    "Adversarial",
    "Batch",
    "Clipping",
    "Draws",
    "Dropout",
    "Flooding",
    "LabelSmoothing",
    "Meter",
    "MixUp",
    "Objective",
    "Scheme",
    "Setting",
    "Step",
    "build_scheme",
]
