"""What one trial is: frozen pydantic models, checked in full before anything runs.

``TrialConfig`` = data + model + scheme + training + measurement + seed. Every field has its
bounds and a description here and nowhere else: the command line, the search space, the table
columns and the W&B config are all derived from these models.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gisgd_ray.consistency import NETWORK_THEOREMS, check_consistency
from gisgd_ray.data_config import DataConfig, DatasetName
from gisgd_ray.frozen import Frozen, Schedule, flatten, id_of, unflatten
from gisgd_ray.model_config import (
    AlexNetConfig,
    LinearConfig,
    MLPConfig,
    ModelConfig,
    PreActResNet18Config,
    TwoLayerReLUConfig,
    VGG16Config,
)
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
from gisgd_ray.scheme_consistency import BATCHNORM_MODELS, SCALING_SCHEMES, check_scheme

__all__ = [
    "AMPConfig",
    "AdversarialConfig",
    "AlexNetConfig",
    "ClippingConfig",
    "DataConfig",
    "DatasetName",
    "DropoutConfig",
    "FloodingConfig",
    "Frozen",
    "GMPConfig",
    "LabelSmoothingConfig",
    "LinearConfig",
    "MLPConfig",
    "MeasurementConfig",
    "MixUpConfig",
    "ModelConfig",
    "PreActResNet18Config",
    "SAMConfig",
    "SGDConfig",
    "Schedule",
    "SchemeConfig",
    "TrainingConfig",
    "TrialConfig",
    "TwoLayerReLUConfig",
    "VGG16Config",
    "flatten",
    "id_of",
    "unflatten",
]


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
        "cross_entropy",
        description="cross-entropy (nats), or half the squared error to one-hot or to the target",
    )
    initialization: Literal["pytorch", "xavier", "kaiming"] = Field(
        "pytorch",
        description="PyTorch's default; Xavier-normal weights with N(0,1) linear biases as in the "
        "authors' code; or Kaiming-normal weights by fan-out with zero biases as in the AMP "
        "paper's code (Tables 1-3)",
    )
    momentum: float = Field(
        0.0, ge=0, lt=1, description="of the SGD step; outside the theorem when not 0"
    )
    nesterov: bool = Field(False, description="Nesterov's form of the momentum")
    weight_decay: float = Field(
        0.0, ge=0, description="L2 penalty of the SGD step; outside the theorem when not 0"
    )
    max_gradient_norm: float | None = Field(
        None,
        gt=0,
        description="the scheme's gradient is scaled down to this norm where it is longer (Tables "
        "1-3: 50); null: never",
    )
    lr_milestones: tuple[int, ...] = Field(
        (), description="epochs after which the learning rate is multiplied by lr_factor"
    )
    lr_factor: float = Field(0.1, gt=0, description="factor applied at every milestone")
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of the training passes: tf32 and bfloat16 (mixed precision) are for speed on "
        "a GPU; what is measured in them is then rounded alike",
    )
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
        1e3,
        gt=0,
        description="a batch loss (with replicas: their mean) above this, or not finite, ends the "
        "trial as diverged",
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
    """What is measured. Measuring never changes the trajectory.

    On by default is all that costs little: everything but the local gradient sensitivity, and so
    Lemma 2 and Corollary 1.
    """

    dispersion: bool = Field(
        True, description="gradient dispersion and gradient norm at every step"
    )
    dispersion_of: Literal["plain", "applied"] = Field(
        "plain",
        description="of which gradient: that of the mean batch loss, whatever the scheme makes of "
        "it; or that which the scheme hands to the optimizer",
    )
    dispersion_estimator: Literal["auto", "per_sample", "groups"] = Field(
        "auto",
        description="per_sample: from per-sample gradient norms (BackPACK's quantity); groups: "
        "between independent groups of the batch, also with BatchNorm in train mode and twice as "
        "dear; auto: per_sample where it applies",
    )
    dispersion_groups: int = Field(2, ge=2, description="groups of a batch (estimator groups)")
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
    noise_stds: tuple[float, ...] = Field(
        (1e-2, 1e-4, 1e-6),
        description="stds sigma of the auxiliary noise, > 0 and at most 1e6, at which the bounds "
        "are evaluated",
    )
    sensitivity: bool = Field(
        False,
        description="local gradient sensitivity Psi, for Neu et al.'s Lemma 2 and for Corollary 1; "
        "dear",
    )
    sensitivity_schedule: Schedule = Field(
        Schedule(), description="when Psi is measured; linear in t in between"
    )
    sensitivity_draws: int = Field(20, ge=2, description="draws of the perturbation zeta for Psi")
    sensitivity_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="fraction of the training data over which each draw of Psi is taken; below 1 "
        "at random, in two halves, which takes the samples' own noise out",
    )
    flatness: bool = Field(True, description="flatness gap at the end of training")
    flatness_target: float = Field(
        0.1,
        gt=0,
        le=1,
        description="draws of Delta_T go on until the standard error of the flatness gap over them "
        "is at most this fraction of it, at each noise std",
    )
    flatness_draws: int = Field(
        32,
        ge=4,
        multiple_of=2,
        description="or until they are so many, in pairs +-; 16 are always taken, if they may be",
    )
    smoothness: bool = Field(
        True, description="largest Hessian eigenvalue at the end, for Corollary 2's beta"
    )
    mean_gradient_gap: bool = Field(
        True,
        description="squared distance of the mean gradients over S and over mu (the test split), "
        "which V~ about the population's mean is larger by: at the end, and wherever the trace or "
        "Psi is measured",
    )
    network_theorem: Literal["auto", "theorem3", "theorem4", "off"] = Field(
        "auto",
        description="auto: Theorem 3 for model linear, Theorem 4 for model two_layer_relu",
    )

    @field_validator("noise_stds")
    @classmethod
    def _usable(cls, stds: tuple[float, ...]) -> tuple[float, ...]:
        name = f"measurement.noise_stds = {list(stds)}"
        if not stds:
            raise ValueError(f"{name} is empty; give at least one noise std above 0, as in 1e-4")
        if min(stds) <= 0:
            raise ValueError(f"{name} has {min(stds):g}; a noise std must be above 0")
        if max(stds) > 1e6:  # times sqrt(T) it must stay far within float32, as the weights do
            raise ValueError(f"{name} has {max(stds):g}; a noise std must be at most 1e6")
        if len({f"{std:g}" for std in stds}) < len(stds):
            twice = next(s for i, s in enumerate(stds) if f"{s:g}" in {f"{t:g}" for t in stds[:i]})
            raise ValueError(f"{name} has {twice:g} twice (to six digits); leave one out")
        return stds


class TrialConfig(Frozen):
    """One training run, completely: equal configs give bit-identical runs on a machine's CPU."""

    data: DataConfig = Field(DataConfig(), description="samples and labels")
    model: ModelConfig = Field(MLPConfig(), description="network")
    scheme: SchemeConfig = Field(SGDConfig(), description="how a batch becomes a gradient")
    training: TrainingConfig = Field(TrainingConfig(), description="optimizer and stopping rule")
    measurement: MeasurementConfig = Field(MeasurementConfig(), description="what is measured")
    seed: int = Field(
        0,
        ge=0,
        description="of initialisation, batching, label noise and the teacher's samples; one "
        "generator for each",
    )
    replicas: int | None = Field(
        None,
        description="stochastic setting: so many runs (>= 2) of seeds of their own advance "
        "together, and expectations over W are means over them (with label noise or teacher data "
        "over S as well); null: the deterministic setting, one run",
    )

    @property
    def replica_seeds(self) -> range:
        """The seeds of the runs in this trial; no other trial of as many replicas has one."""
        count = self.replicas or 1
        return range(self.seed * count, (self.seed + 1) * count)

    @property
    def network_theorem(self) -> Literal["theorem3", "theorem4"] | None:
        """Which of Theorems 3 and 4 applies to the model and is asked for."""
        asked, own = self.measurement.network_theorem, NETWORK_THEOREMS.get(self.model.name)
        return None if asked == "off" else own

    @property
    def dispersion_estimator(self) -> Literal["per_sample", "groups"]:
        """How the dispersion of a step is measured.

        Per-sample gradients do not exist in BatchNorm's train mode. Of a gradient that is not a
        multiple of the plain one the norms by sample are not known either.
        """
        m = self.measurement
        if m.dispersion_estimator != "auto":
            return m.dispersion_estimator
        mixing = self.model.name in BATCHNORM_MODELS
        return "groups" if mixing or self.measures_composite else "per_sample"

    @property
    def stops_at_full_accuracy(self) -> bool:
        """Whether 100 % training accuracy ends the run."""
        asked = self.training.stop_at_full_accuracy
        return self.data.label_noise > 0 if asked is None else asked

    @property
    def measures_composite(self) -> bool:
        """Whether the dispersion is of a gradient that is no multiple of the plain one."""
        applied = self.measurement.dispersion_of == "applied"
        return applied and self.scheme.name not in SCALING_SCHEMES

    @property
    def trial_id(self) -> str:
        """Stable name of this configuration, :func:`id_of` all its fields."""
        return id_of(self.model_dump(mode="json"))

    def changed(self, fields: Mapping[str, Any]) -> "TrialConfig":
        """The trial with other values of some fields, by dotted path; validated like any other.

        Raises:
            ValidationError: there is no such trial.
        """
        return TrialConfig.model_validate(unflatten({**self.flat(), **fields}))

    def outside_theorem(self) -> str | None:
        """Which settings leave the paper's plain SGD, or None: the bounds then have no proof.

        A schedule of the learning rate does not: the theorems take any lambda_t fixed beforehand.
        """
        reasons = []
        if self.training.momentum:
            reasons.append(f"momentum {self.training.momentum:g}")
        if self.training.weight_decay:
            reasons.append(f"weight decay {self.training.weight_decay:g}")
        if self.training.max_gradient_norm is not None:
            reasons.append(f"gradient norm limited to {self.training.max_gradient_norm:g}")
        if self.training.precision != "float32":
            reasons.append(f"passes in {self.training.precision}")
        if self.data.augmented:
            reasons.append("augmented data")
        if self.model.name in BATCHNORM_MODELS:
            reasons.append("batch normalisation")
        if self.scheme.name != "sgd":
            reasons.append(f"scheme {self.scheme.name}")
        return ", ".join(reasons) or None

    def flat(self) -> dict[str, Any]:
        """Every field under its dotted path, ``{"training.learning_rate": 0.1, ...}``."""
        return flatten(self.model_dump(mode="json"))

    @field_validator("replicas")
    @classmethod
    def _at_least_two(cls, value: int | None) -> int | None:
        if value is not None and value < 2:
            raise ValueError(
                f"replicas = {value}: the stochastic setting needs at least 2; choose 2 or more, "
                "or null for one run in the deterministic setting"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> "TrialConfig":
        check_consistency(self)
        check_scheme(self)
        return self
