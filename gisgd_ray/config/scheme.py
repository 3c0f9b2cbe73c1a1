"""Sections of the training schemes (PAPER section 4), each with its record; defaults are the
paper's settings."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from gisgd_ray.config.frozen import Frozen
from gisgd_ray.config.records import SchemeRecord


class SGDConfig(Frozen):
    """Empirical risk minimisation: the gradient of the mean batch loss."""

    record: ClassVar = SchemeRecord("sgd", "ERM", "sgd:build", gradient="plain")
    name: Literal["sgd"] = Field("sgd", description="training scheme")


class FloodingConfig(Frozen):
    """Flooding (Ishida et al. 2020): descend on |L - level| + level, so ascend below the level."""

    record: ClassVar = SchemeRecord("flooding", "Flooding", "flooding:build", gradient="multiple")
    name: Literal["flooding"] = Field("flooding", description="training scheme")
    level: float = Field(0.02, ge=0, description="loss (nats) below which the batch step ascends")


class ClippingConfig(Frozen):
    """Dynamic gradient clipping (Wang & Mao, section 5 and Algorithm 1)."""

    record: ClassVar = SchemeRecord(
        "clipping", "Dynamic clipping", "clipping:build", gradient="multiple"
    )
    name: Literal["clipping"] = Field("clipping", description="training scheme")
    variant: Literal["running_minimum", "lag"] = Field(
        "running_minimum",
        description="running_minimum: Algorithm 1, the threshold is the smallest norm since the "
        "start; lag: section 5, the norm so many steps earlier",
    )
    factor: float = Field(
        0.1, gt=0, le=1, description="alpha: a clipped gradient has alpha times the threshold norm"
    )
    start_epoch: int | None = Field(
        None,
        ge=0,
        description="T_c: clipping begins after so many epochs (authors: 15 for the MLP, 20 for "
        "AlexNet); null: once an epoch's mean gradient norm exceeds that of the epoch before",
    )
    initial_threshold: float | None = Field(
        None,
        gt=0,
        description="running_minimum: G before the first step compared; null: infinite, so that "
        "the first norm after the start sets it",
    )
    lag: int = Field(50, ge=1, description="lag: K, how many steps earlier the norm is taken")


class GMPConfig(Frozen):
    """Gaussian model perturbation (Wang & Mao, section 6 and Algorithm 2)."""

    record: ClassVar = SchemeRecord("gmp", "GMP", "gmp:build", keeps_weights=True)
    name: Literal["gmp"] = Field("gmp", description="training scheme")
    draws: int = Field(
        3, ge=1, description="k: draws of the perturbation per batch (estimator weights)"
    )
    rho: float = Field(
        0.5,
        ge=0,
        le=1,
        description="weight of the perturbed loss; the unperturbed one has 1 - rho (variant "
        "average) or 1 (absolute)",
    )
    noise_std: float = Field(
        0.03, gt=0, description="std of the perturbation of every trainable weight, at step 1"
    )
    final_noise_std: float | None = Field(
        None, gt=0, description="std at the last planned step; null: constant"
    )
    noise_schedule: Literal["linear", "cosine", "geometric"] = Field(
        "linear", description="how the std goes from noise_std to final_noise_std over the steps"
    )
    variant: Literal["average", "absolute"] = Field(
        "average",
        description="average: (1-rho) L(w) + rho E L(w+delta); absolute: L(w) + rho "
        "E|L(w+delta) - L(w)| (Table 3)",
    )
    estimator: Literal["weights", "local"] = Field(
        "weights",
        description="weights: k draws of the weights' noise, each shared by the batch (paper); "
        "local: one pass with noise in the pre-activations, each sample its own",
    )

    @model_validator(mode="after")
    def _check(self) -> "GMPConfig":
        if self.variant == "absolute" and self.estimator == "local":
            raise ValueError(
                "scheme.variant = 'absolute' takes the mean loss of a batch under one perturbation "
                "of the weights, which scheme.estimator = 'local' has none of; choose "
                "scheme.estimator = 'weights'"
            )
        return self


class AMPConfig(Frozen):
    """Adversarial model perturbation (Zheng et al. 2021): one ascent step, a ball per tensor."""

    record: ClassVar = SchemeRecord("amp", "AMP", "ascent:build_amp", keeps_weights=True)
    name: Literal["amp"] = Field("amp", description="training scheme")
    radius: float = Field(
        0.5,
        ge=0,
        description="L2 radius of every parameter tensor's ball (paper: 0.5 for PreActResNet18, "
        "0.1 for VGG16)",
    )
    inner_learning_rate: float = Field(
        1.0, gt=0, description="rate of the ascent step before it is projected into the ball"
    )


class SAMConfig(Frozen):
    """Sharpness-aware minimisation (Foret et al. 2021): one ascent step, one ball for all."""

    record: ClassVar = SchemeRecord("sam", "SAM", "ascent:build_sam", keeps_weights=True)
    name: Literal["sam"] = Field("sam", description="training scheme")
    radius: float = Field(0.05, ge=0, description="L2 radius of the ball around all the weights")


class DropoutConfig(Frozen):
    """Dropout (Srivastava et al. 2014) at the input of every layer but the first."""

    record: ClassVar = SchemeRecord("dropout", "Dropout", "dropout:build", needs="layers")
    name: Literal["dropout"] = Field("dropout", description="training scheme")
    rate: float = Field(0.1, ge=0, lt=1, description="fraction of units set to zero")


class LabelSmoothingConfig(Frozen):
    """Label smoothing (Szegedy et al. 2016)."""

    record: ClassVar = SchemeRecord(
        "label_smoothing", "Label smoothing", "label_smoothing:build", needs="classes"
    )
    name: Literal["label_smoothing"] = Field("label_smoothing", description="training scheme")
    smoothing: float = Field(
        0.2, ge=0, lt=1, description="share of the target spread evenly over all K classes"
    )


class MixUpConfig(Frozen):
    """MixUp (Zhang et al. 2018): inputs and losses of pairs mixed with lambda ~ Beta."""

    record: ClassVar = SchemeRecord("mixup", "MixUp", "mixup:build")
    name: Literal["mixup"] = Field("mixup", description="training scheme")
    alpha: float = Field(1.0, gt=0, description="lambda ~ Beta(alpha, alpha), one a batch")


class AdversarialConfig(Frozen):
    """One-step adversarial training (Goodfellow et al. 2015)."""

    record: ClassVar = SchemeRecord(
        "adversarial", "Adv. training", "adversarial:build", needs="images"
    )
    name: Literal["adversarial"] = Field("adversarial", description="training scheme")
    pixels: float = Field(
        1.0, ge=0, le=255, description="perturbation of every pixel, in raw values (1/255)"
    )


SchemeConfig = Annotated[
    SGDConfig
    | FloodingConfig
    | ClippingConfig
    | GMPConfig
    | AMPConfig
    | SAMConfig
    | DropoutConfig
    | LabelSmoothingConfig
    | MixUpConfig
    | AdversarialConfig,
    Field(discriminator="name"),
]
