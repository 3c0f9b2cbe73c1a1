"""Tables in memory, for figures and claims."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gisgd_ray.errors import UserError
from gisgd_ray.results.tables import ResultTables


class Tables(ResultTables):
    """A sweep's tables that lie in no folder."""

    def __init__(
        self,
        trials: pd.DataFrame,
        history: pd.DataFrame | None = None,
        steps: Mapping[str, pd.DataFrame] | None = None,
    ):
        super().__init__(Path())
        self._trials = trials
        self._history = pd.DataFrame(columns=["trial_id", "step"]) if history is None else history
        self._steps = steps or {}

    @property
    def trials(self) -> pd.DataFrame:
        return self._trials

    @property
    def history(self) -> pd.DataFrame:
        return self._history

    def steps(self, trial_id: str) -> pd.DataFrame:
        if trial_id not in self._steps:
            raise UserError(f"steps/{trial_id}.parquet does not exist; run the sweep first")
        return self._steps[trial_id]


NO_TRIALS = Tables(pd.DataFrame(columns=["trial_id", "status"]))
"""What a sweep leaves behind in which nothing has ended."""


def trial(trial_id: str, **fields: Any) -> dict[str, Any]:
    """A finished trial's row; ``__`` in a field's name stands for a dot."""
    row = {"trial_id": trial_id, "status": "finished", "model__name": "mlp", "seed": 0}
    row |= {"data__dataset": "mnist", "num_test_samples": 10_000, "num_classes": 10} | fields
    return {name.replace("__", "."): value for name, value in row.items()}


def history(trial_id: str, **columns: Iterable[float]) -> pd.DataFrame:
    """A trial's points at steps 0, 10, 20, ...; ``__`` is a slash, ``_at_`` an at sign."""
    named = {
        name.replace("__", "/").replace("_at_", "@"): list(values)
        for name, values in columns.items()
    }
    frame = pd.DataFrame(named)
    frame.insert(0, "step", [10 * i for i in range(len(frame))])
    frame.insert(0, "trial_id", trial_id)
    return frame
