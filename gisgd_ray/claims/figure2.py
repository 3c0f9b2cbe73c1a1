"""What the paper reads off Figure 2 (section 3, bound verification): Eq. 3 against the gap."""

import pandas as pd

from gisgd_ray.claims import (
    NOT_MEASURED,
    Claim,
    RankCorrelation,
    sign_verdict,
    stratified_rank_correlation,
)
from gisgd_ray.claims.bound_and_gap import GAP, bound_above_gap
from gisgd_ray.claims.points import finished, numbers
from gisgd_ray.panels import model_and_dataset, panels, setting_text
from gisgd_ray.results import ResultTables

BOUND = "bound/theorem2_closed_form"
AXES = {
    "model.width": ("width", -1),
    "model.filters": ("number of filters", -1),
    "data.label_noise": ("label noise level", +1),
}
"""The swept fields: their names on the axis, and the direction the paper finds for the bound."""


def panel_axis(trials: pd.DataFrame) -> dict[str, tuple[str, pd.DataFrame]]:
    """The figure's panels by title: the swept field, and the trials that lie on its curve.

    One panel per model, dataset and axis that varies there. Its trials are those at the most common
    value of the other axis (the smallest of several), so that the two sweeps of a model, over its
    size at one noise level and over the noise at one size, come apart again. Other settings (the
    stopping rule of the noisy runs, say) are in the title where it would not be unique otherwise.
    """
    found = []
    for where, group in panels(trials, list(AXES)).items():
        varied = [axis for axis in AXES if axis in group.columns and group[axis].nunique() > 1]
        for axis in varied:
            frame, against = group, f", against {AXES[axis][0]}"
            for other in (a for a in varied if a != axis):
                value = group[other].mode().iloc[0]
                frame = frame[frame[other] == value]
                against += f", {setting_text(other, value)}"
            if frame[axis].nunique() > 1:
                short = model_and_dataset(frame) + against
                found.append((short, where + against, axis, frame))
    short_titles = [short for short, *_ in found]
    return {
        short if short_titles.count(short) == 1 else full: (axis, frame)
        for short, full, axis, frame in found
    }


def claims(tables: ResultTables) -> list[Claim]:
    """Figure 2, three claims a panel: the bound follows the gap, its trend, and it is a bound."""
    found = []
    for where, (axis, frame) in panel_axis(finished(tables)).items():
        panel = frame.assign(bound=numbers(frame, BOUND), gap=numbers(frame, GAP))
        found += [
            _follows(panel, axis, where),
            _trend(panel, axis, where),
            bound_above_gap(
                panel,
                BOUND,
                text=f"The bound of Eq. 3 lies above the generalization gap ({where}).",
                where="in every trial",
            ),
        ]
    return found


def _follows(panel: pd.DataFrame, axis: str, where: str) -> Claim:
    """Statistic: Spearman's rho of bound and gap. n: points of the curve, each a mean over seeds.

    Two curves that have nothing to do with each other look the same with every seed, and would be
    called related with enough of them if each seed counted anew; the unit is the point of the axis.
    """
    known = panel.dropna(subset=["bound", "gap"])
    means = known.groupby(axis, as_index=False)[["bound", "gap"]].mean()
    follows = stratified_rank_correlation(means, "gap", "bound", strata=[])
    seeds = known["seed"].nunique()
    each = f"; each a mean over up to {seeds} seeds" if seeds > 1 else ""
    return Claim(
        text=f"The bound of Eq. 3 follows the trend of the generalization gap ({where}).",
        test="Spearman's ρ of bound and gap over the points of the panel, each the mean over its "
        "seeds; positive, established at 5 % (which takes at least five points)",
        evidence=_words(follows, known, axis) + (each if follows.n else ""),
        verdict=sign_verdict(follows, expected=+1),
    )


def _trend(panel: pd.DataFrame, axis: str, where: str) -> Claim:
    """Statistic: Spearman's rho of the bound with the axis, seeds as strata. n: trials.

    The values of the axis are chosen, and the seed is all that chance enters by; a seed is compared
    with itself alone.
    """
    name, expected = AXES[axis]
    verb, sign = ("rises", "positive") if expected > 0 else ("falls", "negative")
    trend = stratified_rank_correlation(panel, axis, "bound", strata=["seed"])
    return Claim(
        text=f"The bound of Eq. 3 {verb} with the {name} ({where}).",
        test=f"Spearman's ρ of the bound with the {name} within each seed; {sign}, established at "
        "5 %",
        evidence=_words(trend, panel.dropna(subset=["bound"]), axis),
        verdict=sign_verdict(trend, expected=expected),
    )


def _words(correlation: RankCorrelation, known: pd.DataFrame, axis: str) -> str:
    """The correlation, or why there is none."""
    if correlation.n:
        return str(correlation)
    if known.empty:
        return NOT_MEASURED
    return f"defined at {known[axis].nunique()} point of the axis only (n = 0)"
