"""What one trial is: frozen pydantic models, checked in full before anything runs.

``TrialConfig`` = data + model + scheme + training + measurement + seed. Every field has its
bounds and a description here and nowhere else: the command line, the search space, the table
columns and the W&B config are all derived from these models.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

DatasetName = Literal["mnist5k", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"]


class Frozen(BaseModel):
    """Base of every configuration model: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _fits_a_table(cls, value: Any) -> Any:
        """No integer beyond 64 bits: the tables could not be written once the trial is over."""
        if isinstance(value, int) and value >= 2**63:
            raise PydanticCustomError("too_large", "input should be less than 2**63")
        return value


class Schedule(Frozen):
    """When something happens along training: every so many epochs, or every so many steps."""

    every: int = Field(1, ge=1, description="how many epochs or steps lie between two points")
    unit: Literal["epoch", "step"] = Field("epoch", description="what `every` counts")


class DataConfig(Frozen):
    """Which samples, and what is done to their labels."""

    dataset: DatasetName = Field(
        "mnist5k", description="mnist5k is 5,000 real MNIST digits that need no download"
    )
    train_fraction: float = Field(
        1.0, gt=0, le=1, description="random fraction of the training split used, the same always"
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="fraction of train and of test labels redrawn uniformly over the K classes, "
        "once per seed and split",
    )


class MLPConfig(Frozen):
    """One hidden ReLU layer (paper, section 5 and appendix E.1)."""

    name: Literal["mlp"] = Field("mlp", description="model family")
    width: int = Field(512, ge=1, description="hidden units")


class AlexNetConfig(Frozen):
    """AlexNet for 32x32 (or 28x28) images, without dropout or BatchNorm (appendix E.1)."""

    name: Literal["alexnet"] = Field("alexnet", description="model family")
    filters: int = Field(
        64, ge=1, description="filters F of the first layer; then 3F, 6F, 256, 256"
    )


ModelConfig = Annotated[MLPConfig | AlexNetConfig, Field(discriminator="name")]


class SGDConfig(Frozen):
    """Empirical risk minimisation: the gradient of the mean batch loss."""

    name: Literal["sgd"] = Field("sgd", description="training scheme")


class FloodingConfig(Frozen):
    """Flooding (Ishida et al. 2020): descend on |L - level| + level, so ascend below the level."""

    name: Literal["flooding"] = Field("flooding", description="training scheme")
    level: float = Field(0.02, ge=0, description="loss (nats) below which the batch step ascends")


SchemeConfig = Annotated[SGDConfig | FloodingConfig, Field(discriminator="name")]


class TrainingConfig(Frozen):
    """The optimizer, the stopping rule and the points at which train and test are evaluated."""

    learning_rate: float = Field(0.01, gt=0, description="step size lambda_t before any schedule")
    batch_size: int = Field(60, ge=1, description="samples per mini-batch, b")
    last_batch: Literal["keep", "drop"] = Field(
        "keep",
        description="when b does not divide n: keep the smaller last batch of every epoch, or drop "
        "it (other samples are left out in each epoch)",
    )
    loss: Literal["cross_entropy", "squared"] = Field(
        "cross_entropy", description="cross-entropy (nats), or half the squared error to one-hot"
    )
    initialization: Literal["pytorch", "xavier"] = Field(
        "pytorch",
        description="PyTorch's default, or Xavier-normal weights with N(0,1) linear biases as in "
        "the authors' code",
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="of the SGD step; outside the theorem when not 0"
    )
    nesterov: bool = Field(False, description="Nesterov's form of the momentum")
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty of the SGD step; outside the theorem when not 0"
    )
    lr_milestones: tuple[int, ...] = Field(
        (), description="epochs after which the learning rate is multiplied by lr_factor"
    )
    lr_factor: float = Field(0.1, gt=0, description="factor applied at every milestone")
    stop_loss: float | None = Field(
        1e-4, gt=0, description="stop once the mean training loss is below this; null: never"
    )
    stop_at_full_accuracy: bool | None = Field(
        None,
        description="stop at 100 % training accuracy; null: exactly when there is label noise",
    )
    max_epochs: int = Field(500, ge=1, description="epoch limit")
    max_steps: int | None = Field(None, ge=1, description="step limit; null: none beyond epochs")
    divergence_loss: float = Field(
        1e3, gt=0, description="a batch loss above this, or not finite, ends the trial as diverged"
    )
    evaluation: Schedule = Field(
        Schedule(), description="when train and test are evaluated and the stopping rule is asked"
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainingConfig":
        if self.nesterov and self.momentum == 0:
            raise ValueError("training.nesterov = true needs training.momentum > 0, but it is 0")
        if any(m < 1 for m in self.lr_milestones) or list(self.lr_milestones) != sorted(
            set(self.lr_milestones)
        ):
            raise ValueError(
                f"training.lr_milestones = {list(self.lr_milestones)} must be epochs from 1, "
                "ascending"
            )
        return self


class MeasurementConfig(Frozen):
    """What is measured. Measuring never changes the trajectory."""

    dispersion: bool = Field(
        True, description="gradient dispersion and gradient norm at every step"
    )
    hessian_trace: Literal["auto", "exact", "pyhessian", "off"] = Field(
        "auto",
        description="auto: exact where the network is piecewise linear, else PyHessian's estimate",
    )
    hessian_schedule: Schedule | None = Field(
        None, description="when to measure the trace during training; null: at the end alone"
    )
    hessian_samples: int | None = Field(
        None, ge=1, description="first so many training samples for the trace; null: all of them"
    )
    hessian_probes: int = Field(
        50, ge=2, description="Rademacher probes of PyHessian's estimate (its error is reported)"
    )
    noise_stds: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-2, 1e-4, 1e-6),
        min_length=1,
        description="noise stds at which Theorem 2 (Eq. 2) is evaluated, besides its optimum",
    )


class TrialConfig(Frozen):
    """One training run, completely: equal configs give bit-identical runs on one machine."""

    data: DataConfig = Field(DataConfig(), description="samples and labels")
    model: ModelConfig = Field(MLPConfig(), description="network")
    scheme: SchemeConfig = Field(SGDConfig(), description="how a batch becomes a gradient")
    training: TrainingConfig = Field(TrainingConfig(), description="optimizer and stopping rule")
    measurement: MeasurementConfig = Field(MeasurementConfig(), description="what is measured")
    seed: int = Field(
        0, ge=0, description="of initialisation, batching, label noise; one generator for each"
    )

    @property
    def trial_id(self) -> str:
        """Stable name of this configuration: 12 hex digits of SHA-256 over its sorted JSON."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def outside_theorem(self) -> str | None:
        """Which settings leave the paper's plain SGD, or None: the bounds then have no proof.

        A schedule of the learning rate does not: the theorems take any lambda_t fixed beforehand.
        """
        reasons = []
        if self.training.momentum:
            reasons.append(f"momentum {self.training.momentum:g}")
        if self.training.weight_decay:
            reasons.append(f"weight decay {self.training.weight_decay:g}")
        if self.scheme.name != "sgd":
            reasons.append(f"scheme {self.scheme.name}")
        return ", ".join(reasons) or None

    def flat(self) -> dict[str, Any]:
        """Every field under its dotted path, ``{"training.learning_rate": 0.1, ...}``."""
        return flatten(self.model_dump(mode="json"))

    @model_validator(mode="after")
    def _check_sizes(self) -> "TrialConfig":
        n = num_train_samples(self.data)
        b = self.training.batch_size
        if b > n:
            raise ValueError(
                f"training.batch_size = {b} exceeds the {n} training samples of data.dataset = "
                f"{self.data.dataset!r} at data.train_fraction = {self.data.train_fraction:g}; "
                f"choose at most {n}"
            )
        samples = self.measurement.hessian_samples
        if samples is not None and samples > n:
            raise ValueError(
                f"measurement.hessian_samples = {samples} exceeds the {n} training samples; choose "
                f"at most {n}, or null for all"
            )
        if self.measurement.dispersion:
            if b == 1:
                raise ValueError(
                    "training.batch_size = 1 gives batches of a single sample, whose dispersion is "
                    "undefined; choose at least 2, or measurement.dispersion = false"
                )
            if n % b == 1 and self.training.last_batch == "keep":
                raise ValueError(
                    f"training.batch_size = {b} gives a last batch (n = {n}) of a single sample, "
                    "whose dispersion is undefined; choose another batch size, "
                    "training.last_batch = 'drop' or measurement.dispersion = false"
                )
        return self


TRAIN_SIZES: dict[str, int] = {
    "mnist5k": 4_000,
    "mnist": 60_000,
    "fashion_mnist": 60_000,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "svhn": 73_257,
}
"""Training samples of each dataset, known without loading it so that checks come first."""


def num_train_samples(data: DataConfig) -> int:
    """n: training samples left by ``train_fraction`` (at least 1)."""
    return max(1, round(TRAIN_SIZES[data.dataset] * data.train_fraction))


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to one level, keys joined with dots; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """Inverse of :func:`flatten`."""
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[leaf] = value
    return nested
