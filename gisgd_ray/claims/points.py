"""What the claims read from a sweep's tables: finished trials and their measured points."""

import math

import numpy as np
import pandas as pd

from gisgd_ray.results.tables import ResultTables

TRAIN, TEST = "train/accuracy", "test/accuracy"
NOISE_STDS = "measurement.noise_stds"


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
