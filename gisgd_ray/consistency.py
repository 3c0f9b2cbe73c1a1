"""Which fields of a trial go together, and what is known of data and models without loading them.

Each check is one sentence: which field, which value, what would do.
"""

import json
import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gisgd_ray.config import DataConfig, TrialConfig

TRAIN_SIZES: dict[str, int] = {
    "mnist5k": 4_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
    "teacher": 20_000,
}
"""Training samples of each dataset, known without loading it so that checks come first."""

INPUTS_AND_OUTPUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "mnist5k": ((1, 28, 28), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "svhn": ((3, 32, 32), 10),
    "teacher": ((200,), 1),
}
"""Shape of one input, and a network's outputs: the classes, or one real value."""

NETWORK_THEOREMS: dict[str, Literal["theorem3", "theorem4"]] = {
    "linear": "theorem3",
    "two_layer_relu": "theorem4",
}
"""Models with a theorem of their own."""


def num_train_samples(data: "DataConfig") -> int:
    """n: training samples left by ``train_fraction`` (at least 1)."""
    return max(1, round(TRAIN_SIZES[data.dataset] * data.train_fraction))


def steps_per_epoch(num_samples: int, batch_size: int, last_batch: Literal["keep", "drop"]) -> int:
    """m: batches in one epoch. A smaller last one counts if it is kept.

    Raises:
        ValueError: the batch size is not from 1 to ``num_samples``.
    """
    if not 1 <= batch_size <= num_samples:
        raise ValueError(f"batch_size = {batch_size} must be from 1 to num_samples = {num_samples}")
    full, rest = divmod(num_samples, batch_size)
    return full + (rest > 0 and last_batch == "keep")


def planned_epoch_steps(config: "TrialConfig") -> int:
    """m: updates in an epoch."""
    t = config.training
    return steps_per_epoch(num_train_samples(config.data), t.batch_size, t.last_batch)


def planned_steps(config: "TrialConfig", epoch_steps: int | None = None) -> int:
    """T at most: updates up to the first of the limits on epochs and steps.

    ``epoch_steps`` is m where the data trained on are not the configured set.
    """
    t = config.training
    epoch_steps = epoch_steps or planned_epoch_steps(config)
    return int(min(t.max_epochs * epoch_steps, t.max_steps or math.inf))


def check_consistency(config: "TrialConfig") -> None:
    """Refuse a trial whose fields contradict one another.

    Raises:
        ValueError: the first contradiction found.
    """
    _check_tables(config)
    _check_sizes(config)
    _check_schedules(config)
    _check_regression(config)
    if config.replicas is not None:
        _check_replicas(config, config.replicas)


def _check_tables(config: "TrialConfig") -> None:
    """A dataset that was added by its name alone."""
    name = config.data.dataset
    for table, known, what in (
        ("TRAIN_SIZES", TRAIN_SIZES, "number of training samples"),
        ("INPUTS_AND_OUTPUTS", INPUTS_AND_OUTPUTS, "shape of one input and number of classes"),
    ):
        if name not in known:
            raise ValueError(
                f"data.dataset = {name!r} has no entry in {table} of gisgd_ray/consistency.py; add "
                f"its {what} there"
            )


def _check_sizes(config: "TrialConfig") -> None:
    n = num_train_samples(config.data)
    b = config.training.batch_size
    if b > n:
        raise ValueError(
            f"training.batch_size = {b} exceeds the {n} training samples of data.dataset = "
            f"{config.data.dataset!r} at data.train_fraction = {config.data.train_fraction:g}; "
            f"choose at most {n}"
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
        if n % b == 1 and config.training.last_batch == "keep":
            raise ValueError(
                f"training.batch_size = {b} gives a last batch (n = {n}) of a single sample, "
                "whose dispersion is undefined; choose another batch size, "
                "training.last_batch = 'drop' or measurement.dispersion = false"
            )


def _check_schedules(config: "TrialConfig") -> None:
    per_epoch, last = planned_epoch_steps(config), planned_steps(config)
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


def _check_regression(config: "TrialConfig") -> None:
    real, model = config.data.dataset == "teacher", config.model.name
    own = NETWORK_THEOREMS.get(model)
    asked = config.measurement.network_theorem
    if asked in ("theorem3", "theorem4") and asked != own:
        needed = next(name for name, theorem in NETWORK_THEOREMS.items() if theorem == asked)
        raise ValueError(
            f"measurement.network_theorem = {asked!r} holds for model.name = {needed!r}, not "
            f"for {model!r}; choose that model, or measurement.network_theorem = 'auto'"
        )
    if own is not None and not real:
        raise ValueError(
            f"model.name = {model!r} has one real output, but data.dataset = "
            f"{config.data.dataset!r} has classes; choose data.dataset = 'teacher'"
        )
    if not real:
        return
    if model == "alexnet":
        raise ValueError(
            "model.name = 'alexnet' needs images, and data.dataset = 'teacher' has vectors; "
            "choose 'linear', 'two_layer_relu' or 'mlp'"
        )
    if config.training.loss != "squared":
        raise ValueError(
            "data.dataset = 'teacher' has real targets: training.loss = "
            f"{config.training.loss!r} does not apply; choose 'squared'"
        )
    for field, value, plain in (
        ("data.label_noise", config.data.label_noise, 0.0),
        ("training.stop_at_full_accuracy", config.training.stop_at_full_accuracy or None, None),
    ):
        if value != plain:
            raise ValueError(
                f"{field} = {json.dumps(value)} needs classes, and data.dataset = 'teacher' has "
                f"real targets; choose {field} = {json.dumps(plain)}"
            )


def _check_replicas(config: "TrialConfig", replicas: int) -> None:
    t = config.training
    for name, value, plain in (
        ("scheme.name", config.scheme.name, "sgd"),
        ("training.momentum", t.momentum, 0.0),
        ("training.weight_decay", t.weight_decay, 0.0),
    ):
        if value != plain:
            raise ValueError(
                f"replicas = {replicas} needs plain SGD, but {name} = {value!r}; "
                f"choose {name} = {plain!r}, or replicas = null"
            )
    if config.network_theorem == "theorem4":
        raise ValueError(
            f"replicas = {replicas}: Theorem 4's activation counts are taken of one run; choose "
            "replicas = null, or measurement.network_theorem = 'off'"
        )
