"""What the paper reads off Figure 2 (section 3, bound verification): Eq. 3 against the gap."""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import pandas as pd

from gisgd_ray.claims.bound_and_gap import GAP, bound_above_gap
from gisgd_ray.claims.claim import Claim, corrected_together
from gisgd_ray.claims.points import finished, numbers, reading
from gisgd_ray.claims.statistics import (
    NOT_MEASURED,
    RatioInterval,
    stratified_rho,
    t_test,
    trend_ratio,
)
from gisgd_ray.results.panels import Title, panels, setting_text
from gisgd_ray.results.tables import ResultTables

BOUND = "bound/theorem2_closed_form"
AXES = {
    "model.width": ("width", -1),
    "model.filters": ("number of filters", -1),
    "data.label_noise": ("label noise level", +1),
}
"""The swept fields: their names on the axis, and the direction the paper finds for the bound."""


@dataclass(frozen=True)
class AxisPanel:
    """One panel of the figure: what is drawn against one swept field."""

    title: Title
    axis: str
    """The field."""
    fixed: tuple[tuple[str, Hashable], ...]
    """The other fields that vary, at the value they have here."""
    trials: pd.DataFrame

    def __str__(self) -> str:
        fixed = [setting_text(path, value) for path, value in self.fixed]
        return ", ".join([str(self.title), f"against {AXES[self.axis][0]}", *fixed])

    @property
    def printed(self) -> str:
        """The title of its axes, which name the field themselves."""
        return replace(self.title, settings=(*self.title.settings, *self.fixed)).printed


def axis_panels(trials: pd.DataFrame) -> list[AxisPanel]:
    """The figure's panels, one per model, dataset and axis that varies there.

    Its trials are those at the most common value of the other axis (the smallest of several), so
    that the two sweeps of a model, over its size at one noise level and over the noise at one size,
    come apart again. Other settings (the stopping rule of the noisy runs, say) are in the title
    where it would not be unique otherwise.
    """
    found = []
    for title, group in panels(trials, list(AXES)).items():
        varied = [axis for axis in AXES if axis in group.columns and group[axis].nunique() > 1]
        for axis in varied:
            frame, fixed = group, []
            for other in (each for each in varied if each != axis):
                value = group[other].mode().iloc[0]
                frame = frame[frame[other] == value]
                fixed.append((other, value))
            if frame[axis].nunique() > 1:
                found.append(AxisPanel(title, axis, tuple(fixed), frame))
    short = [replace(panel, title=replace(panel.title, settings=())) for panel in found]
    texts = [str(panel) for panel in short]
    return [
        brief if texts.count(text) == 1 else panel
        for brief, text, panel in zip(short, texts, found, strict=True)
    ]


@reading("Figure 2")
def claims(tables: ResultTables) -> list[Claim]:
    """Figure 2, three claims a panel: the bound follows the gap, its trend, and it is a bound."""
    found = []
    for each in axis_panels(finished(tables)):
        frame, axis, where = each.trials, each.axis, str(each)
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
    return corrected_together(found)


def _follows(panel: pd.DataFrame, axis: str, where: str) -> Claim:
    """Statistic: by what factor the bound changes along the gap, in each seed. n: seeds.

    Two smooth curves along one axis rise and fall together by chance far more often than
    independent points, however many points the axis has; with other seeds they would not.
    """
    # All are tested on the same samples. What their sampling error adds to every gap alike cancels,
    # the gaps being centred; what it adds to some more than to others is in all seeds alike, so
    # that the interval has none of it: no table tells how large it is.
    known = panel.dropna(subset=["bound", "gap"])
    ratio = trend_ratio(known, "gap", "bound")
    return Claim(
        text=f"The bound of Eq. 3 follows the trend of the generalization gap ({where}).",
        test="by what factor the bound changes from the smallest gap to the largest: least squares "
        "of its logarithm on the gap over the points of a seed, one value per seed; above 1 by a t "
        "test over the seeds, of the gap on these test samples",
        evidence=_words(ratio, known, axis, stratified_rho(known, "gap", "bound", strata=["seed"])),
        p_values=t_test(ratio, 1.0, side="above"),
    )


def _trend(panel: pd.DataFrame, axis: str, where: str) -> Claim:
    """Statistic: by what factor the bound changes along the axis, in each seed. n: seeds.

    The values of the axis are chosen, and the seed is all that chance enters by; a seed is compared
    with itself alone.
    """
    name, expected = AXES[axis]
    verb, sign = ("rises", "above") if expected > 0 else ("falls", "below")
    known = panel.dropna(subset=["bound"])
    ratio = trend_ratio(known, axis, "bound")
    return Claim(
        text=f"The bound of Eq. 3 {verb} with the {name} ({where}).",
        test=f"by what factor the bound changes from the smallest {name} to the largest: least "
        f"squares of its logarithm over the points of a seed, one value per seed; {sign} 1 by a t "
        "test over the seeds",
        evidence=_words(ratio, known, axis, stratified_rho(known, axis, "bound", strata=["seed"])),
        p_values=t_test(ratio, 1.0, side="above" if expected > 0 else "below"),
    )


def _words(ratio: RatioInterval, known: pd.DataFrame, axis: str, rho: float) -> str:
    """The factor and, as a description, Spearman's rho within the seeds; or why there is none."""
    if ratio.n:
        return f"{ratio}, Spearman’s ρ = {rho:+.2f} at {len(known)} points"
    if known.empty:
        return NOT_MEASURED
    return f"defined at {known[axis].nunique()} point of the axis only (n = 0)"
