"""Panel grids of a W&B report from declared panels.

A run's configuration has flat keys with dots in them, ``training.learning_rate``; W&B keeps them as
``{"training.learning_rate": {"value": 0.1}}``, so that the address of one ends in ``.value``
(:func:`config_key`). wandb_workspaces takes a dot for nesting unless it is told the whole address,
and W&B's server does not filter by such keys; run sets are therefore filtered by run id, which is
the trial's.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from gisgd_ray.errors import UserError
from gisgd_ray.figures.run_panels import RunPanel, expanded, measured, shown_trials
from gisgd_ray.numbers import suffixes
from gisgd_ray.results.panels import by_model_and_dataset
from gisgd_ray.training.terms import LEMMA2, LEMMA2_FLOOR, THEOREM2

MOST_IDS = 1000
"""A run set of more trials, if it is of all of them, is filtered by its group alone."""
MOST_SHOWN = 100
"""Lines or bars in a panel; W&B shows 10 unless told."""
COLUMNS, WIDTH, HEIGHT = 24, 12, 8
"""Of a report's grid, and of a panel in it."""


def reports() -> Any:
    """The package that makes reports.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("wandb_workspaces.reports.v2")
    except ModuleNotFoundError as missing:
        raise UserError(
            f"W&B reports need the package wandb-workspaces, and {missing.name} is not installed; "
            "pip install wandb-workspaces"
        ) from None


def config_key(path: str) -> str:
    """Where W&B keeps a setting.

    >>> config_key("training.learning_rate")
    'training.learning_rate.value'
    """
    return f"{path}.value"


def figure_grids(
    trials: pd.DataFrame,
    history: pd.DataFrame,
    run_panels: Sequence[RunPanel],
    *,
    name: str,
    swept: Sequence[str],
) -> list[Any]:
    """Headings and panel grids: for each model and dataset, the panels that have data there.

    Args:
        trials: rows of finished trials.
        history: of the same sweep.
        name: the W&B group.
        swept: dotted fields in which the trials differ, ``seed`` aside.
    """
    wr = reports()
    blocks: list[Any] = []
    for title, group in _by_model_and_dataset(trials):
        grids: dict[tuple[Any, ...], list[Any]] = {}
        for declared in run_panels:
            for panel in expanded(declared, group, suffixes(_filled(group))):
                shown = shown_trials(panel, group)
                made = _panel(panel, shown, history)
                if made is None:
                    continue
                grouped = swept if panel.grouped_by is None else panel.grouped_by
                grouped = [] if panel.kind == "scatter" else _grouping(grouped, shown)
                grids.setdefault((*shown["trial_id"], None, *grouped), []).append(made)
        if grids:
            blocks.append(wr.H2(text=title))
        for key, panels in grids.items():
            at = key.index(None)
            runs = run_set(title, name, key[:at], of=len(trials), grouped=key[at + 1 :])
            blocks.append(grid(runs, panels))
    return blocks


def comparison_grid(
    trials: pd.DataFrame, history: pd.DataFrame, *, name: str, swept: Sequence[str]
) -> list[Any]:
    """Theorem 2's trajectory term beside Lemma 2's, at every noise std, along training.

    Where Psi was measured nowhere, Lemma 2's term without it: what that is at least.
    """
    panels = []
    for at, text in suffixes(trials).items():
        neu = LEMMA2 + at if measured([LEMMA2 + at], history) else LEMMA2_FLOOR + at
        what = "Lemma 2" if neu.startswith(LEMMA2) else "Lemma 2 without Ψ"
        panel = RunPanel(
            f"Trajectory terms: Theorem 2 (ours), {what} (Neu et al.), σ = {text}",
            "lines",
            [THEOREM2 + at, neu],
            x="step",
            log_y=True,
        )
        made = _panel(panel, trials, history)
        if made is not None:
            panels.append(made)
    if not panels:
        return []
    grouped = _grouping(swept, trials)
    runs = run_set("All trials", name, list(trials["trial_id"]), of=len(trials), grouped=grouped)
    return [grid(runs, panels)]


def run_set(title: str, group: str, ids: Sequence[str], *, of: int, grouped: Sequence[str]) -> Any:
    """The runs of these trials; ``of``: how many the sweep has; ``grouped``: W&B's keys."""
    expr = importlib.import_module("wandb_workspaces.expr")
    # By ids where that can be: a run of another sweep with the same settings has its last group.
    by_group = len(ids) == of and len(ids) > MOST_IDS
    filters = [expr.Metric("ID").isin(list(ids))]
    if by_group:  # which has the runs of trials that diverged or failed as well
        filters = [expr.Metric("Group") == group, expr.Metric("State") == "finished"]
    return reports().Runset(
        name=title,
        filters=expr.And(*filters),
        groupby=list(grouped),
    )


def grid(runs: Any, panels: Sequence[Any]) -> Any:
    """A panel grid, two panels a row."""
    wr = reports()
    for place, panel in enumerate(panels):
        row, column = divmod(place, COLUMNS // WIDTH)
        panel.layout = wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
    return wr.PanelGrid(runsets=[runs], panels=list(panels))


def _panel(panel: RunPanel, trials: pd.DataFrame, history: pd.DataFrame) -> Any | None:
    """The W&B panel of what these trials have measured; None where that is nothing."""
    wr = reports()
    if panel.kind == "lines":
        points = history[history["trial_id"].isin(trials["trial_id"])]
        names = measured(panel.y, points)
        if not names or not measured([panel.x], points):
            return None
        return wr.LinePlot(
            title=panel.title,
            x=panel.x,
            y=names,
            log_x=panel.log_x,
            log_y=panel.log_y,
            title_x=panel.x,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            smoothing_type="none",
            max_runs_to_show=MOST_SHOWN,
        )
    names = measured(panel.y, trials)
    if not names:
        return None
    if panel.kind == "bars":
        return wr.BarPlot(
            title=panel.title,
            metrics=names,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_runs_to_show=MOST_SHOWN,
            max_bars_to_show=MOST_SHOWN,
        )
    return _scatter(panel)


def _scatter(panel: RunPanel) -> Any:
    """A scatter over a setting, which is addressed as W&B keeps it."""
    wr = reports()

    def to_model(self: Any) -> Any:
        model = wr.ScatterPlot._to_model(self)
        model.config.x_axis = f"config:{config_key(panel.x)}"
        if panel.colour:
            model.config.z_axis = f"config:{config_key(panel.colour)}"
        return model

    return type("FlatScatter", (wr.ScatterPlot,), {"_to_model": to_model})(
        title=panel.title,
        x=wr.Config(panel.x),
        y=wr.SummaryMetric(panel.y[0]),
        z=wr.Config(panel.colour) if panel.colour else None,
        log_x=panel.log_x,
        log_y=panel.log_y,
    )


def _by_model_and_dataset(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The trials of each model and dataset under a title."""
    if trials.empty or not {"model.name", "data.dataset"} <= set(trials.columns):
        return []
    return [(str(title), group) for title, group in by_model_and_dataset(trials)]


def _filled(trials: pd.DataFrame) -> pd.DataFrame:
    """The columns in which some of these trials have a value."""
    return trials.loc[:, trials.notna().any()]


def _grouping(paths: Sequence[str], trials: pd.DataFrame) -> list[str]:
    """By those of the settings in which these trials differ; all in one group where by none."""
    if len(trials) < 2:
        return []
    known = [path for path in paths if path in trials.columns and path != "seed"]
    varying = [path for path in known if trials[path].astype(str).nunique(dropna=False) > 1]
    return [f"config.{config_key(path)}" for path in varying] or ["run.group"]
