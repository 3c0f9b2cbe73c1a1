"""How a figure's panels are rebuilt from run data: plain declarations, next to a sweep's ``plot``.

:mod:`gisgd_ray.tracking.report` makes W&B panels of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from gisgd_ray.results.panels import setting_text

Kind = Literal["lines", "scatter", "bars"]


@dataclass(frozen=True)
class RunPanel:
    """One panel. Metrics go by their names in the tables, settings by their dotted fields.

    A metric that ends in ``@`` is that metric at every noise std measured, a panel for each.

    Attributes:
        title: what the panel shows.
        kind: ``lines``: metrics of the history against ``x``, one of its columns; ``scatter``: a
            metric of the rows against the setting ``x``, a point a trial; ``bars``: metrics of
            the rows.
        y: the metrics; of a scatter one.
        x: see ``kind``; bars have none.
        log_x, log_y: whether the axes are logarithmic; bars have none that could be.
        colour: the setting that colours a scatter's points.
        grouped_by: settings; trials that share them are shown as their mean with one standard
            deviation. None: the swept ones, for means over seeds. A scatter is of single trials.
        each: a setting with a panel for each of its values.
        only: settings that the panel's trials have.
        without: settings that they do not have.
    """

    title: str
    kind: Kind
    y: Sequence[str]
    x: str = ""
    log_x: bool = False
    log_y: bool = False
    colour: str = ""
    grouped_by: Sequence[str] | None = None
    each: str = ""
    only: Mapping[str, Any] = field(default_factory=dict)
    without: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind == "scatter" and (len(self.y) != 1 or not self.x):
            raise ValueError(f"{self.title}: a scatter has one x and one y, not {list(self.y)}")
        if self.kind == "lines" and not self.x:
            raise ValueError(f"{self.title}: lines need an x, the history's step or epoch")
        if self.kind != "scatter" and self.colour:
            raise ValueError(f"{self.title}: colour is for a scatter, not for {self.kind}")


def expanded(
    panel: RunPanel, trials: pd.DataFrame, noise_stds: Mapping[str, str]
) -> list[RunPanel]:
    """The panels that one declaration stands for among these trials.

    >>> trials = pd.DataFrame({"data.label_noise": [0.4, 0.2, 0.4]})
    >>> psi = RunPanel("Ψ", "lines", ["measure/psi@"], x="step", each="data.label_noise")
    >>> for one in expanded(psi, trials, {"@0.01": "0.01"}):
    ...     print(one.title, one.y, one.only)
    Ψ, label_noise = 0.2, σ = 0.01 ['measure/psi@0.01'] {'data.label_noise': 0.2}
    Ψ, label_noise = 0.4, σ = 0.01 ['measure/psi@0.01'] {'data.label_noise': 0.4}
    """
    found = [panel]
    if panel.each:
        known = panel.each in trials.columns
        values = set(trials[panel.each].dropna().tolist()) if known else set[Any]()
        found = [
            replace(
                panel,
                title=f"{panel.title}, {setting_text(panel.each, value)}",
                each="",
                only={**panel.only, panel.each: value},
            )
            for value in sorted(values)
        ]
    if not any(name.endswith("@") for name in panel.y):
        return found
    return [
        replace(
            one,
            title=f"{one.title}, σ = {text}",
            y=[f"{name[:-1]}{at}" if name.endswith("@") else name for name in one.y],
        )
        for one in found
        for at, text in noise_stds.items()
    ]


def shown_trials(panel: RunPanel, trials: pd.DataFrame) -> pd.DataFrame:
    """The trials that are part of the panel; none where they lack one of its settings."""
    shown = trials
    for path, value in panel.only.items():
        shown = shown[_equal(shown, path, value)]
    for path, value in panel.without.items():
        shown = shown[~_equal(shown, path, value)]
    if panel.kind == "scatter":
        shown = shown[shown[panel.x].notna()] if panel.x in shown.columns else shown.iloc[:0]
    return shown


def _equal(trials: pd.DataFrame, path: str, value: Any) -> "pd.Series[bool]":
    if path not in trials.columns:
        return pd.Series(False, index=trials.index)
    return trials[path].map(lambda found: bool(found == value)).astype(bool)


def measured(names: Sequence[str], frame: pd.DataFrame) -> list[str]:
    """Those of the columns that have a value in some row."""
    return [name for name in names if name in frame.columns and frame[name].notna().any()]
