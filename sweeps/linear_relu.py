"""Figures 7 and 8: Theorem 3 for a linear network, Theorem 4 for a two-layer ReLU network.

    python sweeps/linear_relu.py                   # the paper's own size at either scale

Teacher data (d_0 = 200, n = 20,000), batch 100, learning rate 0.5, 5,000 iterations (Wang & Mao,
ICLR 2022, Figures 7 and 8, appendix E.4). Every 50 iterations, with T = the iterations so far:

    Theorem 3   bounds.theorem3, from the batch losses l(W_{t-1}, B_t)
    Theorem 4   bounds.theorem4, from the active units of every sample, measured at every step

against the gap, test loss minus training loss. Each seed draws its own samples.
"""

import sys
from typing import Any

import numpy as np
import pandas as pd

from gisgd_ray.claims.figures7_8 import BOUNDS, claims
from gisgd_ray.claims.points import finished, points_after_start
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.errors import UserError
from gisgd_ray.figures.charts import (
    BELOW_ZERO,
    Chart,
    Look,
    Panel,
    below_zero,
    figure,
    hollow,
    marked,
    mean_over_seeds,
)
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.theme import COLOURS
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


def plot(tables: ResultTables) -> dict[str, Chart]:
    """Figure 7 (linear) and Figure 8 (two-layer ReLU): gap and bound against iterations."""
    trials = finished(tables)
    figures: dict[str, Chart] = {}
    for model, (bound, theorem, name) in THEOREMS.items():
        shown = panels(trials[trials["model.name"] == model], [])
        if not shown:
            continue
        drawn = [
            Panel(
                _curves(points_after_start(tables, group), bound, theorem),
                title.printed,
                "iteration",
                "loss",
            )
            for title, group in shown.items()
        ]
        gaps = {label for each in drawn for label in each.rows["series"] if "|" in label}
        looks = {f"{theorem} (bound)": marked(0)}
        looks |= {label: Look(COLOURS[1]) for label in sorted(gaps)}
        looks[BELOW_ZERO.format("gap")] = hollow(Look(COLOURS[1]))
        placed: dict[str, Any] = {"columns": 1, "width": 432}
        figures[name] = figure(drawn, looks, log=True, letters=False, height=215, **placed)
    return figures


def _curves(points: pd.DataFrame, bound: str, theorem: str) -> pd.DataFrame:
    """The bound, and the gap's size: of the mean over seeds and of every seed."""
    seeds = points["trial_id"].nunique()
    label = "|gap|" if seeds == 1 else f"|mean gap| ({seeds} seeds; each: thin)"
    gap = mean_over_seeds(points, "step", "gap/loss", label).assign(std=np.nan)
    rows = [mean_over_seeds(points, "step", bound, f"{theorem} (bound)")]
    rows += [gap.assign(y=gap["y"].abs()), below_zero(gap.assign(series="gap"))]
    for trial_id, run in points.groupby("trial_id") if seeds > 1 else []:
        each = {"x": run["step"], "y": run["gap/loss"].abs(), "run": trial_id}
        rows.append(pd.DataFrame(each).assign(series=label))
    return pd.concat(rows)


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
