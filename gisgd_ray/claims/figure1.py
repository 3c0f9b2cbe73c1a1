"""What the paper reads off Figure 1 (Remark 1, appendix E.2): the trajectory terms, one draw.

With the constants R, lambda, sigma and n dropped, the figure compares

    ours           sqrt(sum_{s<=t} V_s)                 Theorem 2, weakened by log(1 + x) <= x
    Neu et al.'s   sqrt(2 sum_{s<=t} (Psi_s + V_s))     Lemma 2

along one deterministic run: W_0 and the batching trajectory are fixed by the seed, so that V and
Neu et al.'s V~ coincide. Other seeds are other deterministic runs.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.points import finished, noise_stds, numbers, points_after_start, reading
from gisgd_ray.claims.statistics import (
    NOT_MEASURED,
    RatioInterval,
    Side,
    ratio_interval,
    stratified_rho,
    t_test,
)
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.theory.quantities import at

SUM_DISPERSION, DISPERSION = "sum/dispersion", "measure/gradient_dispersion"
SUM_SENSITIVITY, SENSITIVITY = "sum/sensitivity", "measure/local_gradient_sensitivity"
SENSITIVITY_ERROR = "measure/local_gradient_sensitivity_stderr"
"""At each noise std."""
DRAWS = "measurement.sensitivity_draws"


def figure_curves(points: pd.DataFrame, noise_std: float) -> pd.DataFrame:
    """The two curves of the figure at each measuring point: columns ``ours`` and ``neu``."""
    dispersion = numbers(points, SUM_DISPERSION)
    sensitivity = numbers(points, at(SUM_SENSITIVITY, noise_std))
    with np.errstate(invalid="ignore"):  # a sum below zero has no root: NaN
        neu = np.sqrt(2 * (sensitivity + dispersion))
        ours = np.sqrt(dispersion)
    return pd.DataFrame({"ours": ours, "neu": neu})


@reading("Figure 1", history=["step"])
def claims(tables: ResultTables) -> list[Claim]:
    """Figure 1 for each model and dataset: a claim on Psi per noise std, and one on V.

    That our curve lies below is no claim: Psi >= 0 puts the ratio of the two at sqrt(2) or more,
    whatever the data. What they say is how much more (:func:`ratio_at_end`), and the figure shows
    it.
    """
    trials = finished(tables)
    found = []
    for title, group in panels(trials, []).items():
        where = str(title)
        points = points_after_start(tables, group)
        for std in noise_stds(group):
            found.append(_sensitivity_grows(points, std, group, f"{where}, σ = {std:g}"))
        found.append(_dispersion_falls(points, where))
    return corrected_together(found)


def ratio_at_end(points: pd.DataFrame, noise_std: float) -> RatioInterval:
    """Neu et al.'s curve over ours at the last point of Psi; geometric mean over the trials."""
    known = figure_curves(points, noise_std).assign(
        trial_id=points["trial_id"], psi=numbers(points, at(SENSITIVITY, noise_std))
    )
    last = known.dropna().groupby("trial_id").last()
    return ratio_interval(last["neu"], last["ours"])


class MonteCarlo(NamedTuple):
    """What draws, independent at each point, leave open of a column."""

    errors: "pd.Series[float]"
    """Standard errors, point by point."""
    draws: float
    """Of a point."""


def _sensitivity_grows(points: pd.DataFrame, std: float, trials: pd.DataFrame, where: str) -> Claim:
    draws = numbers(trials, DRAWS)
    return _trend(
        points,
        at(SENSITIVITY, std),
        noise=MonteCarlo(numbers(points, at(SENSITIVITY_ERROR, std)), float(draws.min())),
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


def _trend(
    points: pd.DataFrame,
    column: str,
    *,
    side: Side,
    text: str,
    symbol: str,
    noise: MonteCarlo | None = None,
) -> Claim:
    """Statistic: mean over the last third of the points / mean over the first. n: trials.

    Neighbouring points of a run depend on each other, so that a permutation test of a rank
    correlation with the step would be far too sure of itself; rho is given as a description.

    Args:
        noise: of the column; it is in the scatter over several seeds, and all there is to go by of
            one.
    """
    frame = points[["trial_id", "step"]].assign(
        value=numbers(points, column), variance=math.nan if noise is None else noise.errors**2
    )
    frame = frame.dropna(subset=["value"])
    runs = [part for _, part in frame.groupby("trial_id")]
    thirds = [_thirds(run["value"]) for run in runs]
    ratio = ratio_interval([last for _, last in thirds], [first for first, _ in thirds])
    defined = [run for run, (first, _) in zip(runs, thirds, strict=True) if first > 0]
    if noise is not None and ratio.n == len(defined) == 1:
        ratio = _by_monte_carlo(defined[0], ratio, noise.draws)
    evidence = NOT_MEASURED
    if thirds:
        evidence = f"{symbol} measured at fewer than three points of each trial"
    if ratio.n:
        as_said = sum(last > first if side == "above" else last < first for first, last in thirds)
        rho = stratified_rho(frame, "step", "value", strata=["trial_id"])
        evidence = (
            f"last third / first third {ratio}, {side} 1 in {as_said} of {ratio.n} trials; "
            f"Spearman's ρ with the step {rho:+.2f} (a description: the points of a run are not "
            "independent)"
        )
    return Claim(
        text=text,
        test=f"mean {symbol} over the last third of the measured points against the first third: "
        f"ratio {side} 1 by a t test over the seeds"
        + (", of one seed by its Monte-Carlo error" if noise is not None else ""),
        evidence=evidence,
        p_values=t_test(ratio, 1.0, side=side),
    )


def _thirds(values: "pd.Series[float]") -> tuple[float, float]:
    """Means over the first and the last third of the points; NaN with fewer than three."""
    size = len(values) // 3
    if size == 0:
        return math.nan, math.nan
    return float(values.iloc[:size].mean()), float(values.iloc[-size:].mean())


def _by_monte_carlo(run: pd.DataFrame, ratio: RatioInterval, draws: float) -> RatioInterval:
    """The ratio of one run's thirds with its Monte-Carlo error, where that is known.

    The error of the logarithm of a mean is that of the mean over the mean; the degrees of freedom
    are Welch and Satterthwaite's, of draws - 1 at each point.
    """
    size = len(run) // 3
    shares = np.concatenate(
        [
            part["variance"] / (size * part["value"].mean()) ** 2
            for part in (run.iloc[:size], run.iloc[-size:])
        ]
    )
    if ratio.n == 0 or not (draws > 1 and 0 < shares.sum() < math.inf):
        return ratio
    degrees = (draws - 1) * shares.sum() ** 2 / (shares**2).sum()
    return replace(ratio, error=math.sqrt(shares.sum()), degrees=float(degrees))
