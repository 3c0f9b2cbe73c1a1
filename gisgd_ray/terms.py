"""From what a run has measured so far to the bounds of the paper and their terms, by name."""

from collections.abc import Sequence
from math import isfinite
from typing import Any

from gisgd_ray import bounds
from gisgd_ray.measures.dispersion import StepSeries, subgaussian_constant

Metrics = dict[str, float]

UNDEFINED_REASON = "bound/undefined_reason"
"""Column that says why a bound of the row is NaN; empty where none is."""


def trajectory_metrics(
    series: StepSeries, *, num_samples: int, num_parameters: int, noise_stds: Sequence[float]
) -> Metrics:
    """Everything about the steps 1..T so far that needs no curvature.

    Besides the terms, the sums they are made of are reported, so that a reader can recompute
    every bound from a row: sum_t lambda_t^2 V_t and sum_t lambda_t^2 ||g_t||^2. R is that of the
    losses met up to T. NaN at T = 0, and where dispersion was not measured.
    """
    names = ["sum/lr2_dispersion", "sum/lr2_gradient_norm2", "term/trajectory_factor"]
    names += [theorem2_trajectory_name(noise_std) for noise_std in noise_stds]
    radius = subgaussian_constant(series)
    metrics = {"measure/subgaussian_constant": radius, **dict.fromkeys(names, float("nan"))}
    if not _is_measured(series):
        return metrics
    rates, dispersions = series.learning_rate, series.gradient_dispersion
    metrics["sum/lr2_dispersion"] = float((rates**2 * dispersions).sum())
    metrics["sum/lr2_gradient_norm2"] = float((rates**2 * series.squared_gradient_norm).sum())
    metrics["term/trajectory_factor"] = bounds.trajectory_factor(
        subgaussian_constant=radius,
        num_samples=num_samples,
        learning_rates=rates,
        dispersions=dispersions,
    )
    for noise_std in noise_stds:
        metrics[theorem2_trajectory_name(noise_std)] = _theorem2_trajectory(
            series, num_samples=num_samples, num_parameters=num_parameters, noise_std=noise_std
        )
    return metrics


def bound_metrics(
    series: StepSeries, *, num_samples: int, num_parameters: int, hessian_trace: float
) -> Metrics:
    """The bounds that need Tr H at W_T: Eq. 3 with its factors and terms, and Lemma 7.

    NaN where undefined (see :func:`undefined_reason`).
    """
    names = ["term/flatness_factor", "term/trajectory_at_optimum", "term/flatness_at_optimum"]
    names += ["term/optimal_noise_std", "term/theorem2_trajectory_at_optimum"]
    names += ["bound/theorem2_closed_form", "bound/lemma7"]
    metrics = dict.fromkeys(names, float("nan"))
    metrics["term/flatness_factor"] = hessian_trace
    if not _is_measured(series):
        return metrics
    run: dict[str, Any] = {
        "subgaussian_constant": subgaussian_constant(series),
        "num_samples": num_samples,
        "learning_rates": series.learning_rate,
        "hessian_trace": hessian_trace,
    }
    dispersions = series.gradient_dispersion
    metrics["bound/theorem2_closed_form"] = bounds.theorem2_closed_form(
        **run, dispersions=dispersions
    )
    trajectory, flatness = bounds.terms_at_optimum(**run, dispersions=dispersions)
    metrics["term/trajectory_at_optimum"] = trajectory
    metrics["term/flatness_at_optimum"] = flatness
    noise_std = bounds.optimal_noise_std(**run, dispersions=dispersions)
    metrics["term/optimal_noise_std"] = noise_std
    if noise_std > 0:
        metrics["term/theorem2_trajectory_at_optimum"] = _theorem2_trajectory(
            series, num_samples=num_samples, num_parameters=num_parameters, noise_std=noise_std
        )
    metrics["bound/lemma7"] = bounds.lemma7(
        **run, squared_gradient_norms=series.squared_gradient_norm
    )
    return metrics


def undefined_reason(series: StepSeries, *, hessian_trace: float, trace_off: bool) -> str | None:
    """Why Eq. 3 and Lemma 7 are NaN in this row, or None when they are defined."""
    if len(series) == 0:
        return "no training step was taken"
    if not _is_measured(series):
        return "gradient dispersion was not measured at every step, or was not finite"
    if trace_off:
        return "measurement.hessian_trace is off"
    if not isfinite(hessian_trace):
        return f"the Hessian trace is {hessian_trace}"
    if hessian_trace <= 0:
        return f"the Hessian trace is {hessian_trace:.4g}, and Eq. 3 needs it positive"
    return None


def theorem2_trajectory_name(noise_std: float) -> str:
    """Column of Theorem 2's trajectory term (Eq. 2) at one noise std."""
    return f"term/theorem2_trajectory@{noise_std:g}"


def _theorem2_trajectory(
    series: StepSeries, *, num_samples: int, num_parameters: int, noise_std: float
) -> float:
    return bounds.theorem2_trajectory(
        subgaussian_constant=subgaussian_constant(series),
        num_samples=num_samples,
        num_parameters=num_parameters,
        learning_rates=series.learning_rate,
        noise_stds=[noise_std] * len(series),
        dispersions=series.gradient_dispersion,
    )


def _is_measured(series: StepSeries) -> bool:
    dispersions = series.gradient_dispersion
    return (
        len(series) > 0
        and isfinite(float(dispersions.sum()))
        and isfinite(subgaussian_constant(series))
    )
