"""Which schemes, networks, images and ways of measuring go together; a sentence each.

Called from :mod:`gisgd_ray.config.trial` once the sizes are known to be right.
"""

import json

from gisgd_ray.config.catalogue import MODELS, SCHEMES
from gisgd_ray.config.checks import (
    DataFacts,
    planned_epoch_steps,
    planned_steps,
)
from gisgd_ray.config.sections import Sections


def check_scheme(config: Sections, given: DataFacts | None = None) -> None:
    """Refuse a scheme, network or way of measuring that does not suit the rest of the trial, or the
    data ``given`` for it.

    Raises:
        ValueError: the first contradiction found.
    """
    data = given or DataFacts.of(config.data)
    _check_images(config, data)
    _check_targets(config, data)
    _check_lag(config, data)
    _check_dispersion(config, data)
    if config.replicas is not None:
        _check_replicas(config, config.replicas)


def _check_images(config: Sections, data: DataFacts) -> None:
    shape, told = data.input_shape, data.told
    smallest = MODELS[config.model.name].smallest_image
    if len(shape) != 3:
        scheme, padding = config.scheme.name, config.data.crop_padding
        for field, asked, instead in (
            (f"model.name = {config.model.name!r}", smallest is not None, "model.name = 'mlp'"),
            (f"data.crop_padding = {padding}", padding > 0, "data.crop_padding = 0"),
            ("data.flip = true", config.data.flip, "data.flip = false"),
            (f"scheme.name = {scheme!r}", _needs(config, "images"), "scheme.name = 'sgd'"),
        ):
            if asked:
                raise ValueError(
                    f"{field} needs images, and {told} has vectors; choose another "
                    f"data.dataset, or {instead}"
                )
        return
    side, needed = min(shape[1:]), smallest or 1
    if side < needed:
        raise ValueError(
            f"model.name = {config.model.name!r} needs images of at least {needed}x{needed} "
            f"pixels, and those of {told} are {side}x{side}; choose another data.dataset, or "
            "model.name = 'preactresnet18' or 'mlp'"
        )
    if config.data.crop_padding >= side:
        raise ValueError(
            f"data.crop_padding = {config.data.crop_padding} leaves crops without any of the "
            f"{side}x{side} image; choose at most {side - 1}"
        )


def _check_targets(config: Sections, data: DataFacts) -> None:
    scheme = f"scheme.name = {config.scheme.name!r}"
    if data.real and _needs(config, "classes"):
        raise ValueError(
            f"{scheme} needs classes, and {data.told} has real targets; choose another scheme"
        )
    if MODELS[config.model.name].theorem is not None and _needs(config, "layers"):
        raise ValueError(
            f"{scheme} needs units between layers, and model.name = {config.model.name!r} has one "
            "trained layer; choose another scheme"
        )


def _needs(config: Sections, what: str) -> bool:
    return SCHEMES[config.scheme.name].needs == what


def _check_lag(config: Sections, data: DataFacts) -> None:
    scheme = config.scheme
    if scheme.name != "clipping":
        return
    per_epoch = planned_epoch_steps(config, data.num_samples)
    steps = planned_steps(config, per_epoch)
    if scheme.variant == "lag" and scheme.lag >= steps:
        remedy = f"scheme.lag = {steps - 1} or less" if steps > 1 else "another variant"
        raise ValueError(
            f"scheme.lag = {scheme.lag} leaves no step with a norm that much earlier: training "
            f"has {steps:,} steps at most; choose {remedy}"
        )
    if scheme.start_epoch is None and steps <= 2 * per_epoch:
        raise ValueError(
            "scheme.start_epoch = null compares the mean gradient norms of two epochs and begins "
            f"in the third, and training has {steps} steps at most, an epoch having {per_epoch}; "
            "choose scheme.start_epoch = 0, or more epochs"
        )
    epochs, start = config.training.max_epochs, scheme.start_epoch
    if start is not None and start >= epochs:
        raise ValueError(
            f"scheme.start_epoch = {start} starts no clipping within "
            f"training.max_epochs = {epochs}; choose at most {epochs - 1}, or null"
        )
    if start is not None and start * per_epoch >= steps:
        raise ValueError(
            f"scheme.start_epoch = {start} starts no clipping within training.max_steps = "
            f"{steps}, an epoch having {per_epoch}; choose at most {(steps - 1) // per_epoch}, "
            "or null"
        )


def _check_dispersion(config: Sections, data: DataFacts) -> None:
    m, t = config.measurement, config.training
    if not m.dispersion:
        return
    if m.dispersion_estimator == "per_sample":
        if MODELS[config.model.name].batchnorm:
            raise ValueError(
                "measurement.dispersion_estimator = 'per_sample' (BackPACK's) needs gradients by "
                f"sample, and the BatchNorm of model.name = {config.model.name!r} mixes the "
                "samples of a batch in training; choose 'groups' or 'auto'"
            )
        if config.measures_composite:
            raise ValueError(
                "measurement.dispersion_estimator = 'per_sample' with dispersion_of = 'applied' "
                "needs a scheme whose gradient is a multiple of the plain one, not scheme.name = "
                f"{config.scheme.name!r}; choose 'groups' or 'auto'"
            )
    if config.dispersion_estimator != "groups":
        return
    groups, n, b = m.dispersion_groups, data.num_samples, t.batch_size
    rest = n % b if t.last_batch == "keep" else 0
    smallest = min(b, rest or b)
    if groups > smallest:
        which, remedy = "training.batch_size", "or a larger batch size"
        if smallest < b:
            which = f"the last batch (n = {n}) of size"
            remedy = "another batch size, or training.last_batch = 'drop'"
        if smallest > 1:  # one group has no dispersion
            remedy = f"measurement.dispersion_groups = {smallest} or less, {remedy}"
        raise ValueError(
            f"measurement.dispersion_groups = {groups} is more than {which} = {smallest}; choose "
            f"{remedy}"
        )


def _check_replicas(config: Sections, replicas: int) -> None:
    t = config.training
    if MODELS[config.model.name].batchnorm:
        raise ValueError(
            f"replicas = {replicas} needs a network that treats the samples of a batch one by one, "
            f"and the BatchNorm of model.name = {config.model.name!r} mixes them; choose another "
            "model, or replicas = null"
        )
    for name, value, plain in (
        ("data.crop_padding", config.data.crop_padding, 0),
        ("data.flip", config.data.flip, False),
        ("training.max_gradient_norm", t.max_gradient_norm, None),
        ("training.precision", t.precision, "float32"),
        ("measurement.dispersion_estimator", config.dispersion_estimator, "per_sample"),
    ):
        if value != plain:
            raise ValueError(
                f"replicas = {replicas} needs plain SGD on networks without BatchNorm, measured "
                f"by sample, but {name} = {json.dumps(value)}; choose {name} = "
                f"{json.dumps(plain)}, or replicas = null"
            )
