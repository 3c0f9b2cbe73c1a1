"""What is shown of a sweep's results, on its page, on W&B and on the scoreboard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from gisgd_ray.claims.claim import Claim
from gisgd_ray.figures.tables import Table
from gisgd_ray.results.tables import ResultTables
from gisgd_ray.sweep import Sweep


@dataclass(frozen=True)
class Report:
    """A sweep's results, and what was made of them."""

    sweep: Sweep
    results: ResultTables
    trials: pd.DataFrame
    """Those of ``results``, as they were when this was made; failed and diverged ones included."""
    swept: Sequence[str]
    """Dotted fields in which the trials differ."""
    planned: int
    """Trials that the sweep has."""
    facts: Mapping[str, str]
    """Anything else about the launch, by name; ``scale`` and ``command`` are known."""
    versions: Mapping[str, str]
    """What made the numbers."""
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    """As the paper prints them."""
    figures: Mapping[str, Path] = field(default_factory=dict)
    """SVG files by name."""

    @property
    def page(self) -> Path:
        return self.results.folder / "report.html"

    @property
    def points(self) -> list[str]:
        """The swept fields that the table has, ``seed`` aside."""
        return [path for path in self.swept if path in self.trials.columns and path != "seed"]

    @property
    def over_seeds(self) -> bool:
        """Whether there are several seeds."""
        return "seed" in self.trials.columns and self.trials["seed"].nunique() > 1
