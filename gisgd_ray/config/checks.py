"""Which fields of a trial go together, and how many steps they make.

Each check is one sentence: which field, which value, what would do.
"""

import json
import math
from dataclasses import dataclass
from typing import Literal

from gisgd_ray.config.catalogue import DATASETS, MODELS, SCHEMES
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.sections import Sections


@dataclass(frozen=True)
class DataFacts:
    """What the checks need to know of the data trained on."""

    name: str
    """What a sentence calls the data."""
    num_samples: int
    """n, after ``train_fraction``."""
    input_shape: tuple[int, ...]
    real: bool
    """Whether the targets are real values, not classes."""
    given: bool = False
    """Whether they are data of the user's own, and not the configured set."""

    @staticmethod
    def of(data: DataConfig) -> "DataFacts":
        """Of a configured set."""
        known = DATASETS[data.dataset]
        n, name = num_train_samples(data), f"data.dataset = {data.dataset!r}"
        return DataFacts(name, n, known.shape, real=known.classes is None)


def num_train_samples(data: DataConfig) -> int:
    """n: training samples left by ``train_fraction`` (at least 1)."""
    return max(1, round(DATASETS[data.dataset].train * data.train_fraction))


def steps_per_epoch(num_samples: int, batch_size: int, last_batch: Literal["keep", "drop"]) -> int:
    """m: batches in one epoch. A smaller last one counts if it is kept.

    Raises:
        ValueError: the batch size is not from 1 to ``num_samples``.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(f"batch_size = {batch_size} must be from 1 to num_samples = {num_samples}")
    full, rest = divmod(num_samples, batch_size)
    return full + (rest > 0 and last_batch == "keep")


def planned_epoch_steps(config: Sections, num_samples: int | None = None) -> int:
    """m: updates in an epoch; ``num_samples`` is n where the data are not the configured set."""
    t = config.training
    n = num_train_samples(config.data) if num_samples is None else num_samples
    return steps_per_epoch(n, t.batch_size, t.last_batch)


def planned_steps(config: Sections, epoch_steps: int | None = None) -> int:
    """T at most: updates up to the first of the limits on epochs and steps.

    ``epoch_steps`` is m where the data trained on are not the configured set.
    """
    t = config.training
    epoch_steps = epoch_steps or planned_epoch_steps(config)
    return int(min(t.max_epochs * epoch_steps, t.max_steps or math.inf))


def check_consistency(config: Sections, given: DataFacts | None = None) -> None:
    """Refuse a trial whose fields contradict one another, or the data ``given`` for it.

    Raises:
        ValueError: the first contradiction found.
    """
    data = given or DataFacts.of(config.data)
    _check_sizes(config, data)
    _check_schedules(config, data)
    _check_regression(config, data)
    _check_normalization(config, data)
    _check_images(config, data)
    _check_targets(config, data)
    _check_lag(config, data)
    _check_dispersion(config, data)
    if config.replicas is not None:
        _check_replicas(config, config.replicas)


def _check_sizes(config: Sections, data: DataFacts) -> None:
    n = data.num_samples
    b = config.training.batch_size
    if b > n:
        raise ValueError(
            f"training.batch_size = {b} exceeds the {n} training samples of {data.name} at "
            f"data.train_fraction = {config.data.train_fraction:g}; choose at most {n}"
        )
    samples = config.measurement.hessian_samples
    if samples is not None and samples > n:
        raise ValueError(
            f"measurement.hessian_samples = {samples} exceeds the {n} training samples; choose "
            f"at most {n}, or null for all"
        )
    if config.measurement.dispersion:
        if b == 1:
            raise ValueError(
                "training.batch_size = 1 gives batches of a single sample, whose dispersion is "
                "undefined; choose at least 2, or measurement.dispersion = false"
            )
        # Of one's own data n may be what it is: the row then says why it has no bounds.
        if n % b == 1 and config.training.last_batch == "keep" and not data.given:
            raise ValueError(
                f"training.batch_size = {b} gives a last batch (n = {n}) of a single sample, "
                "whose dispersion is undefined; choose another batch size, "
                "training.last_batch = 'drop' or measurement.dispersion = false"
            )


def _check_schedules(config: Sections, data: DataFacts) -> None:
    per_epoch = planned_epoch_steps(config, data.num_samples)
    last = planned_steps(config, per_epoch)
    m = config.measurement
    schedules = {
        "hessian_schedule": m.hessian_schedule if m.hessian_trace != "off" else None,
        "sensitivity_schedule": m.sensitivity_schedule if m.sensitivity else None,
    }
    for name, schedule in schedules.items():
        if schedule is None or (first := schedule.period(per_epoch)) <= last:
            continue
        largest = last // (per_epoch if schedule.unit == "epoch" else 1)
        remedy = f"measurement.{name}.every = {largest} or less"
        if largest == 0:
            remedy = f"measurement.{name}.unit = 'step' with .every = {last} or less"
        raise ValueError(
            f"measurement.{name}.every = {schedule.every} {schedule.unit}(s) never fires during "
            f"training: its first point would be step {first:,}, and the last step is {last:,}; "
            f"choose {remedy}"
        )


def _check_regression(config: Sections, data: DataFacts) -> None:
    real, model = data.real, config.model.name
    own = MODELS[model].theorem
    asked = config.measurement.network_theorem
    if asked in ("theorem3", "theorem4") and asked != own:
        needed = next(name for name, known in MODELS.items() if known.theorem == asked)
        raise ValueError(
            f"measurement.network_theorem = {asked!r} holds for model.name = {needed!r}, not "
            f"for {model!r}; choose that model, or measurement.network_theorem = 'auto'"
        )
    if own is not None and not real:
        remedy = "give real targets" if data.given else "choose data.dataset = 'teacher'"
        raise ValueError(
            f"model.name = {model!r} has one real output, but {data.name} has classes; {remedy}"
        )
    if not real:
        return
    if config.training.loss != "squared":
        raise ValueError(
            f"{data.name} has real targets: training.loss = {config.training.loss!r} does not "
            "apply; choose 'squared'"
        )
    for field, value, plain in (
        ("data.label_noise", config.data.label_noise, 0.0),
        ("training.stop_at_full_accuracy", config.training.stop_at_full_accuracy or None, None),
    ):
        if value != plain:
            raise ValueError(
                f"{field} = {json.dumps(value)} needs classes, and {data.name} has real targets; "
                f"choose {field} = {json.dumps(plain)}"
            )


def _check_normalization(config: Sections, data: DataFacts) -> None:
    asked = config.data.normalization
    field = f"data.normalization = {asked!r}"
    if asked == "auto":
        return
    if data.given or data.real:
        raise ValueError(f"{field} does not apply: {data.name} is taken as it is; choose 'auto'")
    if asked == "authors" and config.data.moments is None:
        known = ", ".join(name for name, record in DATASETS.items() if record.authors)
        raise ValueError(
            f"{field}: the authors' code has no numbers for {data.name}, only for {known}; choose "
            "'auto', or numbers"
        )
    moments = config.data.moments
    channels = data.input_shape[0]
    if moments is not None and len(moments[0]) not in (1, channels):
        raise ValueError(
            f"{field} has {len(moments[0])} channels, and {data.name} has {channels}; give one "
            f"mean and std for all, or {channels} of each"
        )


def _check_images(config: Sections, data: DataFacts) -> None:
    shape = data.input_shape
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
                    f"{field} needs images, and {data.name} has vectors; choose another "
                    f"data.dataset, or {instead}"
                )
        return
    side, needed = min(shape[1:]), smallest or 1
    if side < needed:
        raise ValueError(
            f"model.name = {config.model.name!r} needs images of at least {needed}x{needed} "
            f"pixels, and those of {data.name} are {side}x{side}; choose another data.dataset, or "
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
            f"{scheme} needs classes, and {data.name} has real targets; choose another scheme"
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
    t, model = config.training, config.model.name
    if MODELS[model].batchnorm:
        raise ValueError(
            f"replicas = {replicas} needs a network that treats the samples of a batch one by one, "
            f"and the BatchNorm of model.name = {model!r} mixes them; choose another model, or "
            "replicas = null"
        )
    for name, value, plain in (
        ("scheme.name", config.scheme.name, "sgd"),
        ("training.momentum", t.momentum, 0.0),
        ("training.weight_decay", t.weight_decay, 0.0),
        ("data.crop_padding", config.data.crop_padding, 0),
        ("data.flip", config.data.flip, False),
        ("training.max_gradient_norm", t.max_gradient_norm, None),
        ("training.precision", t.precision, "float32"),
        ("measurement.dispersion_estimator", config.dispersion_estimator, "per_sample"),
    ):
        if value != plain:
            raise ValueError(
                f"replicas = {replicas} needs plain SGD on networks without BatchNorm, measured by "
                f"sample, but {name} = {json.dumps(value)}; choose {name} = {json.dumps(plain)}, "
                "or replicas = null"
            )
    if config.network_theorem == "theorem4":
        raise ValueError(
            f"replicas = {replicas}: Theorem 4's activation counts are taken of one run; choose "
            "replicas = null, or measurement.network_theorem = 'off'"
        )
