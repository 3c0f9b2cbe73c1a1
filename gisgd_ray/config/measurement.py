"""Configuration of what is measured."""

from typing import Literal

from pydantic import Field, field_validator

from gisgd_ray.config.frozen import Frozen, Schedule


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
        "expensive; auto: per_sample where it applies",
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
        "expensive",
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
        "(with replicas: over these) is at most this fraction of it, at each noise std",
    )
    flatness_draws: int = Field(
        32,
        ge=4,
        multiple_of=2,
        description="or until they are so many, in pairs +-; 16 are always taken, if they may be; "
        "of all replicas together, but 4 of each at least",
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
