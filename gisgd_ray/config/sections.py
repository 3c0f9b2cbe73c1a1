"""The sections of a trial's configuration, and what follows from them."""

from typing import Any, Literal

from pydantic import Field, field_validator

from gisgd_ray.config.catalogue import MODELS, SCHEMES
from gisgd_ray.config.data import DataConfig
from gisgd_ray.config.frozen import Frozen, flatten
from gisgd_ray.config.measurement import MeasurementConfig
from gisgd_ray.config.model import MLPConfig, ModelConfig
from gisgd_ray.config.scheme import SchemeConfig, SGDConfig
from gisgd_ray.config.training import TrainingConfig


class Sections(Frozen):
    """A trial's sections and what follows from them, whether or not they go together."""

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
        le=1_000_000,
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
        asked, own = self.measurement.network_theorem, MODELS[self.model.name].theorem
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
        mixing = MODELS[self.model.name].batchnorm
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
        return applied and SCHEMES[self.scheme.name].gradient == "another"

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
        if MODELS[self.model.name].batchnorm:
            reasons.append("batch normalisation")
        if SCHEMES[self.scheme.name].gradient != "plain":
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
