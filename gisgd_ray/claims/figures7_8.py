"""What the paper reads off Figures 7 and 8 (appendix E.4): Theorems 3 and 4 against the gap."""

import pandas as pd

from gisgd_ray.claims.bound_and_gap import GAP, bound_above_gap
from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.points import finished, numbers, points_after_start, reading
from gisgd_ray.config.catalogue import MODELS
from gisgd_ray.results.panels import panels
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.theory.quantities import NBSP, symbol

BOUNDS = {
    name: (column := f"bound/{model.theorem}", symbol(column).replace(NBSP, " "))
    for name, model in MODELS.items()
    if model.theorem
}
"""The bound of each network: its column and its name. No other network has one here."""


@reading("Figures 7 and 8", history=["step"])
def claims(tables: ResultTables) -> list[Claim]:
    """Figure 7 (linear network) and Figure 8 (two-layer ReLU network): one claim a network.

    Statistic: count of the points at which the gap, less its value at W_0, is at most the bound.
    n: measuring points after step 0 of all trials of the network.
    """
    found = []
    for where, group in panels(finished(tables), []).items():
        if where.model not in BOUNDS:
            continue
        column, name = BOUNDS[where.model]
        points = points_after_start(tables, group)
        found.append(
            bound_above_gap(
                points,
                column,
                text=f"The bound of {name} stays above the generalization gap ({where}).",
                where="at every measured iteration after 0, in every trial",
                at_start=points["trial_id"].map(_gap_at_start(tables)),
            )
        )
    return found


def _gap_at_start(tables: ResultTables) -> "pd.Series[float]":
    """The gap at W_0, by trial; of several rows of it the first that knows it."""
    start = tables.history[tables.history["step"] == 0]
    return numbers(start, GAP).groupby(start["trial_id"]).first()
