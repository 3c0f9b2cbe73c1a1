"""Which fields of a trial go together, and how many steps they make.

Each check is one sentence: which field, which value, what would do.
"""

import json
import math
from dataclasses import dataclass
from typing import Literal

from gisgd_ray.config.catalogue import DATASETS, MODELS
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.sections import Sections


@dataclass(frozen=True)
class DataFacts:
    """What the checks need to know of the data trained on."""

    told: str
    """The data in words."""
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
        told = f"data.dataset = {data.dataset!r}"
        return DataFacts(told, num_train_samples(data), known.shape, real=known.classes is None)


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
    if config.replicas is not None:
        _check_replicas(config, config.replicas)


def _check_sizes(config: Sections, data: DataFacts) -> None:
    n = data.num_samples
    b = config.training.batch_size
    if b > n:
        raise ValueError(
            f"training.batch_size = {b} exceeds the {n} training samples of {data.told} at "
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
            f"model.name = {model!r} has one real output, but {data.told} has classes; {remedy}"
        )
    if not real:
        return
    if config.training.loss != "squared":
        raise ValueError(
            f"{data.told} has real targets: training.loss = {config.training.loss!r} does not "
            "apply; choose 'squared'"
        )
    for field, value, plain in (
        ("data.label_noise", config.data.label_noise, 0.0),
        ("training.stop_at_full_accuracy", config.training.stop_at_full_accuracy or None, None),
    ):
        if value != plain:
            raise ValueError(
                f"{field} = {json.dumps(value)} needs classes, and {data.told} has real targets; "
                f"choose {field} = {json.dumps(plain)}"
            )


def _check_normalization(config: Sections, data: DataFacts) -> None:
    asked = config.data.normalization
    told = f"data.normalization = {asked!r}"
    if asked == "auto":
        return
    if data.given or data.real:
        raise ValueError(f"{told} does not apply: {data.told} is taken as it is; choose 'auto'")
    if asked == "authors" and config.data.moments is None:
        known = ", ".join(name for name, record in DATASETS.items() if record.authors)
        raise ValueError(
            f"{told}: the authors' code has no numbers for {data.told}, only for {known}; choose "
            "'auto', or numbers"
        )
    moments = config.data.moments
    channels = data.input_shape[0]
    if moments is not None and len(moments[0]) not in (1, channels):
        raise ValueError(
            f"{told} has {len(moments[0])} channels, and {data.told} has {channels}; give one mean "
            f"and std for all, or {channels} of each"
        )


def _check_replicas(config: Sections, replicas: int) -> None:
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
