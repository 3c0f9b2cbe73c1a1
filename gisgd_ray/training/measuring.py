"""What is measured at the present weights of a run, as metrics by name.

With replicas every metric is the mean over them, an expectation over W.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from gisgd_ray.config.model import TwoLayerReLUConfig
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.measures.activation import mean_active_units
from gisgd_ray.measures.curvature import hessian_trace
from gisgd_ray.measures.flatness import (
    LEAST_DRAWS,
    FlatnessEstimate,
    FlatnessRun,
    combined,
    flatness_gaps,
)
from gisgd_ray.measures.mean_gradient_gap import block_products
from gisgd_ray.measures.mean_gradient_gap import combined as combined_gap
from gisgd_ray.measures.sensitivity import local_gradient_sensitivity
from gisgd_ray.measures.smoothness import smoothness
from gisgd_ray.theory import bounds
from gisgd_ray.training.evaluation import evaluate_splits
from gisgd_ray.training.state import Point, TrainState
from gisgd_ray.training.stepping import Replica
from gisgd_ray.training.terms import LEMMA2_POPULATION, at, bounds_at


def losses_and_gap(state: TrainState) -> Point:
    """Train and test loss and accuracy, and the gaps; with replicas, the gap's standard error."""
    loss = state.config.training.loss
    found = [evaluate_splits(r.model, r.dataset, loss=loss) for r in state.replicas]
    point: Point = {name: fmean(each[name] for each in found) for name in found[0]}
    if len(found) > 1:
        point["gap/loss_stderr"] = _standard_error([each["gap/loss"] for each in found])
    return point


def dispersion_estimator(config: TrialConfig) -> Point:
    """How and of which gradient the dispersion was measured, in words; empty if it was not."""
    m = config.measurement
    if not m.dispersion:
        return {}
    by_groups = config.dispersion_estimator == "groups"
    return {
        "measure/gradient_dispersion_estimator": f"between {m.dispersion_groups} groups"
        if by_groups
        else "per-sample norms",
        "measure/gradient_dispersion_of": f"{m.dispersion_of} gradient",
    }


def trace(state: TrainState) -> Point:
    """Tr H over the training data (E_Z of Eq. 3 is over S), and the bounds that need it."""
    m, t = state.config.measurement, state.config.training
    method = m.hessian_trace
    assert method != "off"

    def measured(replica: Replica) -> Any:
        data, samples = replica.dataset, slice(m.hessian_samples)
        return hessian_trace(
            replica.model,
            data.train_x[samples],
            data.train_y[samples],
            loss=t.loss,
            method=method,
            probes=m.hessian_probes,
            seed=replica.seed,
        )

    found = [measured(replica) for replica in state.replicas]
    values = [trace.value for trace in found]
    error = _standard_error(values) if len(found) > 1 else found[0].standard_error
    return {
        "measure/hessian_trace": fmean(values),
        "measure/hessian_trace_stderr": error,
        "measure/hessian_trace_estimator": found[0].estimator,
        **state.terms.closed_forms(fmean(values), state.series),
    }


def sensitivity(state: TrainState) -> Point:
    """Psi at every noise std with its standard error, and the terms made of it."""
    m, t = state.config.measurement, state.config.training
    # Psi(W_t) belongs to step t + 1: zeta ~ N(0, sum_{s<=t} sigma_s^2 I).
    stds = [noise_std * state.step**0.5 for noise_std in m.noise_stds]
    found = [
        local_gradient_sensitivity(
            r.model,
            r.dataset.train_x,
            r.dataset.train_y,
            loss=t.loss,
            perturbation_stds=stds,
            draws=m.sensitivity_draws,
            seed=r.seed,
            step=state.step,
            samples=_sensitivity_samples(state),
        )
        for r in state.replicas
    ]
    by_std = list(zip(*found, strict=True))
    state.sensitivity.add_point(
        [[each.value for each in group] for group in by_std],
        [group[0].standard_error for group in by_std],
    )
    point: Point = dict(state.sensitivity.metrics(state.terms))
    for noise_std, group in zip(m.noise_stds, by_std, strict=True):
        # Over replicas the draws are independent, W being part of what varies.
        values = [each.value for each in group]
        error = _standard_error(values) if len(values) > 1 else group[0].standard_error
        point[at("measure/local_gradient_sensitivity_stderr", noise_std)] = error
    return point


def sensitivity_estimator(state: TrainState) -> Point:
    """Over how many samples each draw of Psi was taken, and how, in words."""
    samples, whole = _sensitivity_samples(state), state.num_samples
    return {
        "measure/sensitivity_samples": samples,
        "measure/sensitivity_estimator": f"two halves of {samples} training samples, others a draw"
        if samples < whole
        else "all training samples",
    }


def mean_gradient_gap(state: TrainState, terms: Point) -> Point:
    """||grad L_mu - grad L_S||^2, and Lemma 2's term with V~_t about the mean over mu.

    ``terms`` holds the sums over Psi where it was measured at these weights as well.
    """
    loss = state.config.training.loss
    found = combined_gap(
        [
            block_products(
                r.model,
                r.dataset.train_x,
                r.dataset.train_y,
                r.dataset.test_x,
                r.dataset.test_y,
                loss=loss,
            )
            for r in state.replicas
        ]
    )
    point: Point = {
        "measure/mean_gradient_gap": found.value,
        "measure/mean_gradient_gap_stderr": found.standard_error,
    }
    if not state.config.measurement.sensitivity:
        return point
    state.mean_gradient_gap.add_point(found.value)
    lr2_gap = point["sum/lr2_mean_gradient_gap"] = state.mean_gradient_gap.total
    for noise_std in state.config.measurement.noise_stds:
        lr2_sensitivity = terms.get(at("sum/lr2_sensitivity", noise_std))
        if lr2_sensitivity is not None:
            point[at(LEMMA2_POPULATION, noise_std)] = state.terms.lemma2_population_trajectory(
                lr2_sensitivity, lr2_gap, noise_std
            )
    return point


def _sensitivity_samples(state: TrainState) -> int:
    """m: all of the training samples, or an even number of them, at least 2."""
    n = state.num_samples
    even = 2 * max(1, round(state.config.measurement.sensitivity_fraction * n / 2))
    return n if state.config.measurement.sensitivity_fraction == 1 else min(n, even)


def flatness(state: TrainState, terms: Point) -> Point:
    """The flatness gap, R of the losses around W_T and beta at W_T, and the bounds at every noise
    std.

    ``terms`` holds the trajectory terms known at W_T, and Eq. 3's sigma* if it is defined.
    """
    m, t = state.config.measurement, state.config.training
    point: Point = {}
    gaps: dict[float, float] = {}
    constants: dict[float, float] = {}
    if m.flatness and state.step > 0:
        # Eq. 3 lives at sigma*: what it takes for granted is looked at there, without further draws
        # for the sake of the gap, which it does not take.
        best = terms.get("term/optimal_noise_std", math.nan)
        optimum = [best] if 0 < best < math.inf else []
        found = _flatness_estimates(state, m.noise_stds, optimum)
        for noise_std, estimate in zip(m.noise_stds, found, strict=False):
            gaps[noise_std] = abs(estimate.signed)
            constants[noise_std] = estimate.subgaussian_constant
            named = {
                "measure/flatness_gap": gaps[noise_std],
                "measure/flatness_gap_signed": estimate.signed,
                "measure/flatness_gap_stderr": estimate.standard_error,
                "measure/flatness_gap_sampling_stderr": estimate.sampling_error,
                **_around(estimate),
            }
            point |= {at(name, noise_std): value for name, value in named.items()}
        for estimate in found[len(m.noise_stds) :]:
            point |= {f"{name}_at_optimum": value for name, value in _around(estimate).items()}
    beta = math.nan
    if m.smoothness:
        each = [
            smoothness(r.model, r.dataset.train_x, r.dataset.train_y, loss=t.loss, seed=r.seed)
            for r in state.replicas
        ]
        beta = fmean(found.value for found in each)
        point["measure/smoothness"] = beta
        point["measure/smoothness_residual"] = fmean(found.residual for found in each)
    return point | bounds_at(
        m.noise_stds,
        terms,
        flatness_gaps=gaps,
        perturbed_constants=constants,
        smoothness=beta,
        num_parameters=state.num_parameters,
        steps=state.step,
    )


def _flatness_estimates(
    state: TrainState, noise_stds: Sequence[float], roughly: Sequence[float]
) -> list[FlatnessEstimate]:
    """One for every noise std and then for every one of ``roughly``, over the replicas."""
    m = state.config.measurement
    runs = [
        FlatnessRun(
            r.model,
            r.dataset.train_x,
            r.dataset.train_y,
            r.dataset.test_x,
            r.dataset.test_y,
            loss=state.config.training.loss,
            perturbation_stds=[std * state.step**0.5 for std in (*noise_stds, *roughly)],
            seed=r.seed,
        )
        for r in state.replicas
    ]
    draws = [m.flatness_draws] * len(noise_stds)
    draws += [min(m.flatness_draws, LEAST_DRAWS)] * len(roughly)
    return [combined(gaps) for gaps in flatness_gaps(runs, draws=draws, target=m.flatness_target)]


def _around(estimate: FlatnessEstimate) -> Point:
    """What the losses at W_T + Delta_T say of a bound's premises, and from how many draws."""
    return {
        "measure/flatness_draws": estimate.draws,
        "measure/subgaussian_constant_perturbed": estimate.subgaussian_constant,
        "measure/test_loss_increase": estimate.test_increase,
        "measure/test_loss_increase_stderr": estimate.test_increase_error,
    }


def network_theorem(state: TrainState) -> Point:
    """Theorem 3 or 4 after T = the steps so far, W_T being the present weights."""
    theorem = state.config.network_theorem
    if theorem is None:
        return {}
    # T sum_t lambda_t^2 l_t, and NaN before the first step and where a loss was not finite.
    terms, name = state.terms, f"bound/{theorem}"
    known = terms.steps > 0 and math.isfinite(terms.lr2_loss)
    if theorem == "theorem3":
        losses = [terms.steps * terms.lr2_loss]
        return {name: bounds.theorem3(**terms.as_one_step, losses=losses) if known else math.nan}
    assert isinstance(state.config.model, TwoLayerReLUConfig)
    active = fmean(mean_active_units(r.model, r.dataset.train_x) for r in state.replicas)
    value = math.nan
    if known:
        value = bounds.theorem4(
            **terms.as_one_step,
            width=state.config.model.width,
            active_losses=[terms.steps * terms.lr2_active_loss],
            final_active_units=active,
        )
    return {name: value, "measure/active_units": active}


def _standard_error(values: list[float]) -> float:
    """Of a mean over replicas."""
    return stdev(values) / len(values) ** 0.5 if all(map(math.isfinite, values)) else math.nan
