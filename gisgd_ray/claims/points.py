"""What the claims read from a sweep's tables: finished trials and their measured points."""

import math
from collections.abc import Callable, Sequence
from functools import wraps

import numpy as np
import pandas as pd

from gisgd_ray.claims.claim import Claim
from gisgd_ray.claims.statistics import NOT_MEASURED
from gisgd_ray.results.tables import ResultTables

TRAIN, TEST = "train/accuracy", "test/accuracy"
NOISE_STDS = "measurement.noise_stds"
ALWAYS = {
    "trials": ("trial_id", "status", "model.name", "data.dataset", "seed"),
    "history": ("trial_id",),
}
"""Columns by which the rows of either table belong together."""

Claims = Callable[[ResultTables], list[Claim]]


def reading(
    item: str, *, trials: Sequence[str] = (), history: Sequence[str] | None = None
) -> Callable[[Claims], Claims]:
    """Of a module's ``claims``: what to say where the tables lack a column that they all read.

    One undecided claim then, in place of all, which names what is lacking. A measured column is no
    such one: :func:`numbers` gives NaN, and the claims on other columns stand.

    Args:
        item: of the paper, as in "Figure 6".
        trials, history: columns, besides :data:`ALWAYS`; None where the history is not read.
    """
    needed = {"trials": trials, "history": history}

    def with_check(claims: Claims) -> Claims:
        @wraps(claims)
        def checked(tables: ResultTables) -> list[Claim]:
            if "status" in tables.trials.columns and finished(tables).empty:
                return []
            lacking = [
                f"no column {column} in the table {name}"
                for name, columns in needed.items()
                if columns is not None
                for column in (*ALWAYS[name], *columns)
                if column not in getattr(tables, name).columns
            ]
            if lacking:
                return [not_measured(f"What the paper reads off {item}.", "; ".join(lacking))]
            return claims(tables)

        return checked

    return with_check


def not_measured(text: str, why: str) -> Claim:
    """A claim that the tables say nothing of."""
    return Claim(text, "by columns that these tables do not have", f"{NOT_MEASURED}: {why} (n = 0)")


def finished(tables: ResultTables) -> pd.DataFrame:
    """The rows of the trials that reached their end."""
    trials = tables.trials
    return trials[trials["status"] == "finished"]


def points_after_start(tables: ResultTables, trials: pd.DataFrame) -> pd.DataFrame:
    """The measuring points of these trials after step 0, each trial's in the order of its steps.

    At step 0 nothing has been summed along the trajectory yet.
    """
    history = tables.history
    mine = history["trial_id"].isin(trials["trial_id"]) & (history["step"] > 0)
    return history[mine].sort_values(["trial_id", "step"], kind="stable")


def numbers(frame: pd.DataFrame, column: str) -> "pd.Series[float]":
    """A measured column as floats; NaN throughout where this run has no such column."""
    if column not in frame.columns:
        return pd.Series(math.nan, index=frame.index, dtype=np.float64)
    return pd.to_numeric(frame[column], errors="coerce").astype(np.float64)


def noise_stds(trials: pd.DataFrame) -> list[float]:
    """The auxiliary noise stds asked for in these trials, largest first."""
    if NOISE_STDS not in trials.columns:
        return []
    given = [value for value in trials[NOISE_STDS] if np.ndim(value) == 1]
    return sorted({float(std) for value in given for std in value}, reverse=True)
