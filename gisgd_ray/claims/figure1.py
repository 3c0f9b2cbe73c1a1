"""What the paper reads off Figure 1 (Remark 1, appendix E.2): the trajectory terms, one draw.

With the constants R, lambda, sigma and n dropped, the figure compares

    ours           sqrt(sum_{s<=t} V_s)                 Theorem 2, weakened by log(1 + x) <= x
    Neu et al.'s   sqrt(2 sum_{s<=t} (Psi_s + V_s))     Lemma 2

along one deterministic run: W_0 and the batching trajectory are fixed by the seed, so that V and
Neu et al.'s V~ coincide. Other seeds are other deterministic runs.
"""

import math

import numpy as np
import pandas as pd

from gisgd_ray.claims import (
    NOT_MEASURED,
    Claim,
    count_below,
    count_verdict,
    interval_verdict,
    mean_interval,
    ratio_interval,
    stratified_rho,
)
from gisgd_ray.claims.points import finished, noise_stds, numbers, points_after_start
from gisgd_ray.claims.statistics import Side
from gisgd_ray.panels import panels
from gisgd_ray.results import ResultTables
from gisgd_ray.terms import at

SUM_DISPERSION, DISPERSION = "sum/dispersion", "measure/gradient_dispersion"
SUM_SENSITIVITY, SENSITIVITY = "sum/sensitivity", "measure/local_gradient_sensitivity"
"""At each noise std."""


def figure_curves(points: pd.DataFrame, noise_std: float) -> pd.DataFrame:
    """The two curves of the figure at each measuring point: columns ``ours`` and ``neu``."""
    dispersion = numbers(points, SUM_DISPERSION)
    sensitivity = numbers(points, at(SUM_SENSITIVITY, noise_std))
    with np.errstate(invalid="ignore"):  # a sum below zero has no root: NaN
        neu = np.sqrt(2 * (sensitivity + dispersion))
        ours = np.sqrt(dispersion)
    return pd.DataFrame({"ours": ours, "neu": neu})


def claims(tables: ResultTables) -> list[Claim]:
    """Figure 1 for each model and dataset: per noise std two claims, and one on V alone."""
    trials = finished(tables)
    found = []
    for where, group in panels(trials, []).items():
        points = points_after_start(tables, group)
        for std in noise_stds(group):
            there = f"{where}, σ = {std:g}"
            found += [_ours_below(points, std, there), _sensitivity_grows(points, std, there)]
        found.append(_dispersion_falls(points, where))
    return found


def _ours_below(points: pd.DataFrame, std: float, where: str) -> Claim:
    """Statistic: count of points; ratio of the curves at the last one. n: points; trials."""
    # Between the points of Psi there is no second curve: those points are not part of the figure.
    points = points[numbers(points, at(SENSITIVITY, std)).notna()]
    curves = figure_curves(points, std)
    count = count_below(curves["ours"], curves["neu"])
    sensitivity = numbers(points, at(SUM_SENSITIVITY, std))
    frame = curves.assign(
        trial_id=points["trial_id"],
        share=sensitivity / (sensitivity + numbers(points, SUM_DISPERSION)),
    )
    last = frame.dropna(subset=["ours", "neu"]).groupby("trial_id").last()
    evidence = str(count)
    if count.n:
        evidence = (
            f"below at {count}; at the end Neu et al.'s term is "
            f"{ratio_interval(last['neu'], last['ours'])} ours and Ψ is a share of "
            f"{mean_interval(last['share'])} of their sum"
        )
    return Claim(
        text=f"Our trajectory term lies below that of Neu et al. at every epoch ({where}).",
        test="√Σ V < √(2 Σ (Ψ + V)) at every measured point, a count; with one draw it must hold "
        "whatever the data, since Ψ ≥ 0 makes the ratio at least √2: what the data say is the "
        "ratio at the end",
        evidence=evidence,
        verdict=count_verdict(count),
    )


def _sensitivity_grows(points: pd.DataFrame, std: float, where: str) -> Claim:
    return _trend(
        points,
        at(SENSITIVITY, std),
        side="above",
        text=f"The local gradient sensitivity Ψ grows with training ({where}).",
        symbol="Ψ",
    )


def _dispersion_falls(points: pd.DataFrame, where: str) -> Claim:
    return _trend(
        points,
        DISPERSION,
        side="below",
        text=f"The gradient dispersion V falls with training ({where}).",
        symbol="V",
    )


def _trend(points: pd.DataFrame, column: str, *, side: Side, text: str, symbol: str) -> Claim:
    """Statistic: mean over the last third of the points / mean over the first. n: trials.

    Neighbouring points of a run depend on each other, so that a permutation test of a rank
    correlation with the step would be far too sure of itself; rho is given as a description.
    """
    frame = points[["trial_id", "step"]].assign(value=numbers(points, column))
    thirds = [_thirds(part) for _, part in frame.dropna().groupby("trial_id")["value"]]
    ratio = ratio_interval([last for _, last in thirds], [first for first, _ in thirds])
    evidence = NOT_MEASURED
    if thirds:
        evidence = f"{symbol} measured at fewer than three points of each trial"
    if ratio.n:
        as_said = sum(last > first if side == "above" else last < first for first, last in thirds)
        rho = stratified_rho(frame, "step", "value", strata=["trial_id"])
        evidence = (
            f"last third / first third {ratio}, {side} 1 in {as_said} of {len(thirds)} trials; "
            f"Spearman's ρ with the step {rho:+.2f} (a description: the points of a run are not "
            "independent)"
        )
    return Claim(
        text=text,
        test=f"mean {symbol} over the last third of the measured points against the first third: "
        f"ratio {side} 1, with several seeds the whole 95 % interval; one seed is one "
        "deterministic run, taken as it is",
        evidence=evidence,
        verdict=interval_verdict(ratio, 1.0, side=side),
    )


def _thirds(values: "pd.Series[float]") -> tuple[float, float]:
    """Means over the first and the last third of the points; NaN with fewer than three."""
    size = len(values) // 3
    if size == 0:
        return math.nan, math.nan
    return float(values.iloc[:size].mean()), float(values.iloc[-size:].mean())
