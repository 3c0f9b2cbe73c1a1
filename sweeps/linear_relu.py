"""Figures 7 and 8: Theorem 3 for a linear network, Theorem 4 for a two-layer ReLU network.

    python sweeps/linear_relu.py                   # the paper's own size at either scale

Teacher data (d_0 = 200, n = 20,000), batch 100, learning rate 0.5, 5,000 iterations (Wang & Mao,
ICLR 2022, Figures 7 and 8, appendix E.4). Every 50 iterations, with T = the iterations so far:

    Theorem 3   bounds.theorem3, from the batch losses l(W_{t-1}, B_t)
    Theorem 4   bounds.theorem4, from the active units of every sample, measured at every step

against the gap, test loss minus training loss. Each seed draws its own samples.
"""

import sys

import pandas as pd

from gisgd_ray.claims.figures7_8 import BOUNDS, claims
from gisgd_ray.claims.points import finished, points_after_start
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.style import (
    COLOURS,
    Axes,
    Figure,
    curve,
    hollow_below_zero,
    log_scale,
    new_figure,
    style,
)
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.runner.main import main
from gisgd_ray.sweep import Sweep

COMMON = {
    "data.dataset": "teacher",
    "training.loss": "squared",
    "training.learning_rate": 0.5,
    "training.batch_size": 100,
    "training.stop_loss": None,
    "training.max_steps": 5000,
    "training.evaluation.unit": "step",
    "training.evaluation.every": 50,
}

PANELS = {
    "linear": SearchSpace(fields={"model.name": "linear", **COMMON}, seeds=3),
    "two_layer_relu": SearchSpace(
        fields={"model.name": "two_layer_relu", "model.width": 100, **COMMON}, seeds=3
    ),
}

THEOREMS = {
    model: (*BOUNDS[model], figure)
    for model, figure in (("linear", "figure7"), ("two_layer_relu", "figure8"))
}


def check(config: TrialConfig) -> None:
    """Theorems 3 and 4 are about these two networks."""
    if config.network_theorem is None:
        raise UserError(
            f"model.name = {config.model.name!r} with measurement.network_theorem = "
            f"{config.measurement.network_theorem!r}: Figures 7 and 8 show Theorem 3 of model "
            "'linear' and Theorem 4 of model 'two_layer_relu'; choose one of those, and 'auto'"
        )


def plot(tables: ResultTables) -> dict[str, Figure]:
    """Figure 7 (linear) and Figure 8 (two-layer ReLU): gap and bound against iterations."""
    trials = finished(tables)
    figures: dict[str, Figure] = {}
    for model, (bound, theorem, name) in THEOREMS.items():
        shown = panels(trials[trials["model.name"] == model], [])
        if not shown:
            continue
        with style():
            figure = new_figure(4.5, 3.0 * len(shown) + 0.5)
            axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
            for axis, (title, group) in zip(axes, shown.items(), strict=True):
                _panel(axis, points_after_start(tables, group), bound, theorem)
                axis.set_title(title.printed)
            # Below the axes: the gap may be anywhere in them.
            named = {
                label: handle
                for axis in axes
                for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
            }
            figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=2)
        figures[name] = figure
    return figures


def _panel(axis: Axes, points: pd.DataFrame, bound: str, theorem: str) -> None:
    axis.set_yscale("log")
    curve(axis, points, "step", bound, label=f"{theorem} (bound)", place=0)
    mean = points.groupby("step")["gap/loss"].mean()
    seeds = points["trial_id"].nunique()
    label = "|gap|" if seeds == 1 else f"|mean gap| ({seeds} seeds; each: thin)"
    axis.plot(mean.index, mean.abs(), color=COLOURS[1], label=label)
    hollow_below_zero(axis, points, "step", "gap/loss", place=1)
    for _, run in points.groupby("trial_id") if seeds > 1 else []:
        axis.plot(run["step"], run["gap/loss"].abs(), color=COLOURS[1], alpha=0.3, linewidth=0.7)
    log_scale(axis)
    axis.set_xlabel("iteration")
    axis.set_ylabel("loss")


SWEEP = Sweep(
    name="linear_relu",
    item="Figures 7 and 8",
    description="The generalization gap of a linear and of a two-layer ReLU "
    "network against Theorem 3 and Theorem 4, along training.",
    panels={"paper": PANELS},
    plot=plot,
    claims=claims,
    check=check,
    captions={
        "figure7": "Linear network: Theorem 3 after T iterations and the gap (test loss minus "
        "training loss) there. The bound is the mean over seeds with one standard deviation "
        "shaded; of the gap the size is shown, of its mean over seeds and, thin, of every seed.",
        "figure8": "Two-layer ReLU network: Theorem 4, with the active units measured at every "
        "step, and the gap, shown likewise.",
    },
    run_panels=[
        RunPanel(
            f"{theorem} and the gap (where it is positive: the axis is logarithmic)",
            "lines",
            [bound, "gap/loss"],
            x="step",
            log_y=True,
            only={"model.name": model},
        )
        for model, (bound, theorem, _) in THEOREMS.items()
    ],
)

if __name__ == "__main__":
    sys.exit(main(SWEEP))
