"""From what a run has measured so far to the terms and bounds of the paper, by name.

``name@0.01`` is ``name`` at noise std sigma = 0.01 of the auxiliary process, the same at all steps.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from inspect import signature
from math import inf, isfinite, nan
from typing import Any

import numpy as np

from gisgd_ray.measures.step_series import ROUNDING, StepSeries
from gisgd_ray.theory import bounds
from gisgd_ray.theory.quantities import QUANTITIES, at

Metrics = dict[str, float]

UNDEFINED_REASON = "bound/undefined_reason"
"""Column that says why a bound of the row is NaN; empty where none is."""

REMARK = "bound/remark"
"""Column that says what a reader must know of a bound that is a number; mostly empty."""

THEOREM2 = "term/theorem2_trajectory"
THEOREM1 = "term/theorem1_trajectory"
"""Of replicas alone: in the deterministic setting it is Theorem 2's."""
LEMMA2 = "term/lemma2_trajectory"
LEMMA2_POPULATION = "term/lemma2_population_trajectory"
"""Lemma 2's trajectory term with V~_t about the population's mean gradient."""
LEMMA2_FLOOR = "term/lemma2_without_sensitivity"
"""Lemma 2's trajectory term with Psi = 0: what it is at least, known without measuring Psi."""

Formula = Callable[..., float]


def arguments(formula: Callable[..., Any]) -> Set[str]:
    """Their names."""
    return signature(formula).parameters.keys()


def _taken(formula: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the values those that the formula takes."""
    return {name: values[name] for name in arguments(formula) if name in values}


def _formulas(kind: str, *, taking: Set[str]) -> dict[str, Formula]:
    """Those that the catalogue gives to columns, by column, and that take no other arguments.

    Args:
        kind: "bound/" of whole bounds, "term/" of terms at a noise std.
        taking: names of arguments.
    """
    found = {
        q.name.removesuffix("@"): getattr(bounds, q.defined.removeprefix(_BOUNDS))
        for q in QUANTITIES.values()
        if q.name.startswith(kind) and q.defined.startswith(_BOUNDS)
        if q.at_noise_std == (kind == "term/")
    }
    return {name: formula for name, formula in found.items() if arguments(formula) <= taking}


_BOUNDS = "theory.bounds."
_RUN = {"subgaussian_constant", "num_samples", "learning_rates"}
_NOISY = {*_RUN, "num_parameters", "noise_stds"}
_OF_A_STEP = {"dispersions", "squared_gradient_norms"}
CLOSED = _formulas("bound/", taking={*_RUN, *_OF_A_STEP, "hessian_trace"})
"""Whole bounds that take the run by T sum_t lambda_t^2 x_t Tr H alone, x_t = V_t or ||g_t||^2, so
that all steps may stand in one (:meth:`TrajectoryTerms.closed_forms`)."""
ADDITIVE = _formulas("term/", taking={*_NOISY, *_OF_A_STEP, "conditional_dispersions"})
"""Trajectory terms that are the root of a sum over t, of what is known of step t."""
LINEAR = _formulas("term/", taking={*_RUN, "noise_stds", "dispersions", "sensitivities"})
LINEAR = {name: formula for name, formula in LINEAR.items() if name not in ADDITIVE}
"""Trajectory terms linear in V~_t and Psi_t, which is measured at some steps alone."""


@dataclass(kw_only=True)
class StepSums:
    """Everything about steps 1..T that a row tells of them without the noise stds.

    Of a dispersion that was not measured at every step, or was not finite, the sums are not either.
    """

    steps: int = 0
    """T."""
    loss_min: float = inf
    loss_max: float = -inf
    dispersion: float = 0.0
    """sum_t V_t"""
    dispersion_neu: float = 0.0
    """sum_t V~_t"""
    per_sample_dispersion: float = 0.0
    """sum_t s2, between groups where it is so measured"""
    gradient_norm: float = 0.0
    """sum_t ||g_t||"""
    gradient_factor: float = 0.0
    """sum_t of what the scheme multiplied the plain gradient by"""
    lr2_dispersion: float = 0.0
    """sum_t lambda_t^2 V_t"""
    lr2_dispersion_neu: float = 0.0
    """sum_t lambda_t^2 V~_t"""
    lr2_gradient_norm2: float = 0.0
    """sum_t lambda_t^2 ||g_t||^2"""
    lr2_loss: float = 0.0
    """sum_t lambda_t^2 l_t, of the batches' mean losses"""
    lr2_active_loss: float = 0.0
    """The same of Theorem 4's losses times active units; NaN of other networks."""
    by_groups: bool = False
    """Whether s2 is from between groups at some step."""
    shortened: bool = False
    """Whether the scheme's factor was below 1 at some step."""
    is_rounding: bool = True
    """Whether no step has a dispersion within its batch beyond what rounding alone may make."""
    is_alike: bool = True
    """Whether none has a V_t beyond that, over replicas or not."""
    ill_conditioned_steps: int = 0
    """Steps at which the gradients agreed so well that float32 cancels."""
    single_sample: int = 0
    """The first step whose V_t is undefined, its batch being a single sample; 0: none."""
    single_sample_within: int = 0
    """The first whose V~_t is, where V_t is not."""

    @property
    def radius(self) -> float:
        """R = (max l - min l) / 2 over every loss of a sample met so far (appendix E.1)."""
        return (self.loss_max - self.loss_min) / 2

    @property
    def is_measured(self) -> bool:
        """Whether R and V are known at every step, and there is one."""
        return self.steps > 0 and isfinite(self.dispersion) and isfinite(self.radius)

    def add(self, steps: StepSeries) -> None:
        """Take the next steps in."""
        if len(steps) == 0:
            return
        lr2, norms2 = steps.learning_rate**2, steps.squared_gradient_norm
        v, neu = steps.gradient_dispersion, steps.gradient_dispersion_neu
        alone = steps.batch_size == 1
        for name, undefined in (
            ("single_sample", alone & np.isnan(v) & np.isfinite(norms2)),
            ("single_sample_within", alone & np.isnan(neu) & np.isfinite(v)),
        ):
            if not getattr(self, name) and undefined.any():
                setattr(self, name, self.steps + int(undefined.argmax()) + 1)
        self.steps += len(steps)
        self.loss_min = min(self.loss_min, float(steps.loss_min.min()))
        self.loss_max = max(self.loss_max, float(steps.loss_max.max()))
        self.dispersion += float(v.sum())
        self.dispersion_neu += float(neu.sum())
        self.per_sample_dispersion += float(steps.per_sample_dispersion.sum())
        self.gradient_norm += float((norms2**0.5).sum())
        self.gradient_factor += float(steps.gradient_factor.sum())
        self.lr2_dispersion += float((lr2 * v).sum())
        self.lr2_dispersion_neu += float((lr2 * neu).sum())
        self.lr2_gradient_norm2 += float((lr2 * norms2).sum())
        self.lr2_loss += float((lr2 * steps.loss).sum())
        self.lr2_active_loss += float((lr2 * steps.active_loss).sum())
        self.by_groups |= steps.group_dispersion is not None
        self.shortened |= bool((steps.gradient_factor < 1).any())
        self.is_rounding &= steps.is_rounding
        self.is_alike &= bool((v <= ROUNDING * steps.mean_squared_norm).all())
        self.ill_conditioned_steps += steps.ill_conditioned_steps

    def means(self) -> Metrics:
        """The per-step measures, each its mean over the steps; NaN without any.

        s2 between groups of the batch has a name of its own: with BatchNorm in train mode there is
        no gradient by sample that it could be the dispersion of.
        """
        s2 = "between_group_dispersion" if self.by_groups else "per_sample_dispersion"
        sums = {
            "measure/gradient_dispersion": self.dispersion,
            "measure/gradient_dispersion_neu": self.dispersion_neu,
            f"measure/{s2}": self.per_sample_dispersion,
            "measure/gradient_norm": self.gradient_norm,
        }
        if self.shortened:
            sums["measure/gradient_factor"] = self.gradient_factor
        return {name: value / self.steps if self.steps else nan for name, value in sums.items()}


@dataclass(kw_only=True)
class TrajectoryTerms(StepSums):
    """Everything about the steps 1..T so far that needs no curvature, kept up as steps come.

    A measuring point then costs what its own steps cost, not what the whole run does: every term
    here is a sum over t, times powers of R, T and n that are put in at the end.
    """

    num_samples: int
    num_parameters: int
    noise_stds: tuple[float, ...]
    stochastic: bool = False
    """Whether W is random, over replicas: in the deterministic setting Theorem 1 is Eq. 2."""
    squares: dict[str, list[float]] = field(default_factory=dict)
    """For each of :data:`ADDITIVE` and noise std, the square of the term at R = 1."""

    def add(self, steps: StepSeries) -> None:
        """Take the next steps in."""
        if len(steps) == 0:
            return
        super().add(steps)
        for name in self._additive():
            squares = self.squares.setdefault(name, [0.0] * len(self.noise_stds))
            for i, noise_std in enumerate(self.noise_stds):
                squares[i] += self._trajectory(name, steps, 1.0, noise_std, i) ** 2

    def _additive(self) -> list[str]:
        """In the deterministic setting there are no conditional dispersions."""
        return [
            name
            for name, formula in ADDITIVE.items()
            if self.stochastic or "conditional_dispersions" not in arguments(formula)
        ]

    def _trajectory(
        self, name: str, steps: StepSeries, radius: float, noise_std: float, i: int = 0
    ) -> float:
        """A term of these steps at R = ``radius`` and the i-th noise std throughout.

        NaN where a step was not measured, or not finite: all that follows is so too, as it must.
        """
        formula = ADDITIVE[name]
        draws = steps.conditional_dispersions
        by_step = {
            "dispersions": steps.gradient_dispersion,
            "squared_gradient_norms": steps.squared_gradient_norm,
            "conditional_dispersions": np.array(nan) if draws is None else draws[:, i],
        }
        measured = _taken(formula, by_step)
        if not all(np.isfinite(values).all() for values in measured.values()):
            return nan
        run = {
            "subgaussian_constant": radius,
            "num_samples": self.num_samples,
            "num_parameters": self.num_parameters,
            "learning_rates": steps.learning_rate,
            "noise_stds": [noise_std] * len(steps),
        }
        return formula(**_taken(formula, run), **measured)

    def metrics(self) -> Metrics:
        """The terms, and the sums they are made of, from which a reader can recompute them.

        R is that of the losses met so far. NaN at T = 0 and where dispersion was not measured.
        """
        sums = {
            "sum/dispersion": self.dispersion,
            "sum/dispersion_neu": self.dispersion_neu,
            "sum/lr2_dispersion": self.lr2_dispersion,
            "sum/lr2_dispersion_neu": self.lr2_dispersion_neu,
            "sum/lr2_gradient_norm2": self.lr2_gradient_norm2,
        }
        names = ["measure/subgaussian_constant", *sums, "term/trajectory_factor"]
        of_noise = [*self._additive(), LEMMA2_FLOOR]
        names += [at(name, noise_std) for noise_std in self.noise_stds for name in of_noise]
        metrics = dict.fromkeys(names, nan)
        if self.steps == 0:
            return metrics
        metrics["measure/subgaussian_constant"] = self.radius
        metrics |= sums
        metrics["term/trajectory_factor"] = (
            self.radius**2 * self.steps / self.num_samples * self.lr2_dispersion
        )
        for i, noise_std in enumerate(self.noise_stds):
            for name, squares in self.squares.items():
                metrics[at(name, noise_std)] = self.radius * squares[i] ** 0.5
            metrics[at(LEMMA2_FLOOR, noise_std)] = self.linear(LEMMA2, 0.0, noise_std)
        return metrics

    @property
    def as_one_step(self) -> dict[str, Any]:
        """R, n and rates for the formulas of :mod:`gisgd_ray.theory.bounds`, which with one noise
        std for all steps see a sum with lambda_t^2 as a single step of rate 1."""
        return {
            "subgaussian_constant": self.radius,
            "num_samples": self.num_samples,
            "learning_rates": [1.0],
        }

    def closed_forms(self, hessian_trace: float, series: StepSeries) -> Metrics:
        """The bounds that need Tr H at W_T: Eq. 3 with its factors and terms, and Lemma 7.

        NaN where undefined (see :func:`undefined_reason`).

        Args:
            hessian_trace: Tr H.
            series: all steps so far, for the one term that is no sum: Eq. 2's at Eq. 3's sigma*,
                which is known only now.
        """
        metrics = dict.fromkeys(CLOSED_FORMS, nan) | {"term/flatness_factor": hessian_trace}
        if not self.is_measured:
            return metrics
        # The flatness of T steps is that of one at which the trace counts T times.
        run = {
            **self.as_one_step,
            "hessian_trace": self.steps * hessian_trace,
            "dispersions": [self.lr2_dispersion],
            "squared_gradient_norms": [self.lr2_gradient_norm2],
        }
        trajectory, flatness = bounds.terms_at_optimum(**_taken(bounds.terms_at_optimum, run))
        best = bounds.optimal_noise_std(**_taken(bounds.optimal_noise_std, run))
        # At sigma* = 0 V is 0 at every step, and the term is 0 at any noise.
        at_best = self._trajectory(THEOREM2, series, self.radius, best) if best > 0 else best
        return metrics | {
            "term/trajectory_at_optimum": trajectory,
            "term/flatness_at_optimum": flatness,
            "term/optimal_noise_std": best,
            "term/theorem2_trajectory_at_optimum": at_best,
            **{name: formula(**_taken(formula, run)) for name, formula in CLOSED.items()},
        }

    def linear(self, name: str, lr2_sensitivity: float, noise_std: float) -> float:
        """One of :data:`LINEAR`, from sum_t lambda_t^2 Psi_t (its sums are additive in t)."""
        if not isfinite(self.radius + lr2_sensitivity + self.lr2_dispersion_neu):
            return nan
        if lr2_sensitivity < 0:  # an estimate's noise: SensitivityTerms says so
            return nan
        return LINEAR[name](
            **self.as_one_step,
            noise_stds=[noise_std],
            sensitivities=[lr2_sensitivity],
            dispersions=[self.lr2_dispersion_neu],
        )

    def lemma2_population_trajectory(
        self, lr2_sensitivity: float, lr2_gap: float, noise_std: float
    ) -> float:
        """Lemma 2's trajectory term with V~_t about the population's mean gradient.

        ``lr2_gap`` = sum_t lambda_t^2 ||grad L_mu - grad L_S||^2 comes on top of V~_t; an estimate,
        it may be negative. NaN before the first step and where nothing positive is left.
        """
        about_population = self.lr2_dispersion_neu + lr2_gap
        if self.steps == 0 or not about_population >= 0:
            return nan
        moved = replace(self, lr2_dispersion_neu=about_population)
        return moved.linear(LEMMA2, lr2_sensitivity, noise_std)

    def population_undefined_reason(self, lr2_gap: float) -> str | None:
        """Why Lemma 2 about the population's mean has no value, where Lemma 2 itself has one."""
        about_sample = self.lr2_dispersion_neu
        if self.steps == 0 or not isfinite(about_sample) or about_sample + lr2_gap >= 0:
            return None
        if not isfinite(lr2_gap):
            return (
                "Lemma 2 about the population's mean: its squared distance from the sample's was "
                "not measured, which takes two test samples at least, or was not finite"
            )
        return (
            "Lemma 2 about the population's mean: the squared distance of the two means, estimated "
            "less its sampling error, sums to less than -V~; more test samples would do"
        )


CLOSED_FORMS = (
    *("term/flatness_factor", "term/trajectory_at_optimum", "term/flatness_at_optimum"),
    *("term/optimal_noise_std", "term/theorem2_trajectory_at_optimum"),
    *CLOSED,
)
"""What needs Tr H at W_T: see :meth:`TrajectoryTerms.closed_forms`."""


TRAJECTORIES = {q.name[:-1]: q.trajectory for q in QUANTITIES.values() if q.trajectory}
"""The bounds that are a trajectory term plus the flatness gap."""

PERTURBED_R = "_perturbed_r"
"""What the name of a bound ends in that takes R of the losses at W_T + Delta_T, as Lemma 1 asks."""


def bounds_at(
    noise_stds: Sequence[float],
    terms: Mapping[str, Any],
    *,
    num_parameters: int,
    steps: int,
) -> Metrics:
    """The bounds at every noise std: trajectory term + flatness gap; Corollary 2's own flatness.

    Args:
        noise_stds: sigma, the same at all steps.
        terms: the run's metrics so far, which hold R and what was measured of the trajectory
            terms, the flatness gaps with R of the losses at W_T + Delta_T, and beta.
        num_parameters, steps: d and T.
    """
    metrics: Metrics = {}
    for noise_std in noise_stds:
        gap = terms.get(at("measure/flatness_gap", noise_std), nan)
        # Every trajectory term is R times what does not depend on it; of R = 0 that is not known.
        radius = terms["measure/subgaussian_constant"]
        around = terms.get(at("measure/subgaussian_constant_perturbed", noise_std), nan)
        factor = around / radius if radius > 0 else nan
        for bound, term in TRAJECTORIES.items():
            if at(term, noise_std) not in terms:
                continue
            value = terms[at(term, noise_std)]
            metrics[at(bound, noise_std)] = value + gap
            if f"{bound}{PERTURBED_R}@" in QUANTITIES:
                metrics[at(bound + PERTURBED_R, noise_std)] = factor * value + gap
        # Corollary 2: beta d sum_t sigma_t^2 in place of the flatness gap (bounds.corollary2).
        flatness = terms.get("measure/smoothness", nan) * num_parameters * steps * noise_std**2
        metrics[at("term/corollary2_flatness", noise_std)] = flatness
        metrics[at("bound/corollary2", noise_std)] = terms[at(THEOREM2, noise_std)] + flatness
    return metrics


def undefined_reason(
    terms: TrajectoryTerms, *, hessian_trace: float, trace_off: bool
) -> str | None:
    """Why Eq. 3 and Lemma 7 are NaN in this row, or None when they are defined."""
    if terms.steps == 0:
        return "no training step was taken"
    if terms.single_sample:
        return _single_sample(terms.single_sample, "dispersion")
    if not terms.is_measured:
        return "gradient dispersion was not measured at every step, or was not finite"
    if trace_off:
        return "measurement.hessian_trace is off"
    if not isfinite(hessian_trace):
        return f"the Hessian trace is {hessian_trace}"
    if hessian_trace <= 0:
        return f"the Hessian trace is {hessian_trace:.4g}, and Eq. 3 needs it positive"
    return None


def within_undefined_reason(terms: TrajectoryTerms) -> str | None:
    """Why what takes V~, within a replica, is NaN where V, between them, is not; or None."""
    if not terms.single_sample_within:
        return None
    reason = _single_sample(terms.single_sample_within, "dispersion within a replica")
    return f"Theorem 1, Lemma 2, Corollary 1: {reason}"


def _single_sample(step: int, what: str) -> str:
    return (
        f"the batch of step {step} is a single sample, whose {what} is "
        "undefined; choose another training.batch_size, or training.last_batch = 'drop'"
    )


def remark(terms: TrajectoryTerms) -> str | None:
    """What must be known of the dispersion in Eqs. 2 and 3 although they are defined, or None."""
    if not terms.is_measured:
        return None
    if not terms.is_rounding:
        return _remark_on_replicas(terms) if terms.stochastic else None
    what, whose = "the dispersion", "Eqs. 2 and 3 have"
    if terms.stochastic:
        what, whose = "the dispersion V~ within the replicas", "Theorem 1, Eqs. 2 and 3 have"
        # V between replicas is another matter where their weights differ.
        if not terms.is_alike:
            whose = "Theorem 1, at noise that leaves no doubt of the replica, has"
    return (
        f"{what} is 0, or no more than rounding, at every step: in every batch the samples' "
        f"gradients agree, as those of identical samples do, and {whose} a trajectory term of 0, "
        "or of rounding, whatever the gap"
    )


def _remark_on_replicas(terms: TrajectoryTerms) -> str | None:
    """V >= V~ and Eq. 2 >= Theorem 1 by definition; estimates from few replicas may be in another
    order, by more than rounding."""
    ours, neu = terms.lr2_dispersion, terms.lr2_dispersion_neu
    pairs = [(neu, ours), *zip(terms.squares[THEOREM1], terms.squares[THEOREM2], strict=True)]
    if not any(lesser > greater * (1 + ROUNDING) for lesser, greater in pairs):
        return None
    return (
        f"the dispersion over the replicas comes to sum lambda^2 V = {ours:.3g}, within them to "
        f"sum lambda^2 V~ = {neu:.3g}; by the sampling error of the former, of few replicas whose "
        "weights differ little, Eqs. 2 and 3 are too small, or Theorem 1 above Eq. 2 at one sigma "
        "or more"
    )
