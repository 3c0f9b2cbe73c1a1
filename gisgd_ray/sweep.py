"""A sweep: what a script in ``sweeps/`` declares."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gisgd_ray.claims.claim import Claim
from gisgd_ray.config.space import SearchSpace
from gisgd_ray.config.trial import TrialConfig
from gisgd_ray.figures.charts import Chart
from gisgd_ray.figures.run_panels import RunPanel
from gisgd_ray.figures.tables import Table
from gisgd_ray.results.tables import ResultTables


@dataclass(frozen=True)
class Sweep:
    """One figure or table of the paper.

    Attributes:
        name: folder of the results and W&B group.
        item: what of the paper it reproduces, e.g. "Figure 6".
        description: shown by ``--help`` and on the page.
        panels: for "laptop", "paper" or both, the spaces by panel name.
        plot: result tables -> charts by file name; from the tables alone.
        claims: result tables -> the paper's claims with this run's verdicts, from the finished
            trials alone; asked once any has finished.
        captions: what the page says under a figure, by its file name.
        tables: result tables -> tables as the paper prints them; on the page, in the terminal and
            in ``tables.md``.
        check: raises :class:`UserError` for a trial that does not suit the figure; asked for every
            trial before anything starts.
        own: a sweep of your own: its claims are not said to be the paper's.
        run_panels: the figure's panels as W&B rebuilds them from run data.
    """

    name: str
    item: str
    description: str
    panels: Mapping[str, Mapping[str, SearchSpace]]
    plot: Callable[[ResultTables], dict[str, Chart]]
    claims: Callable[[ResultTables], list[Claim]]
    captions: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[TrialConfig], None] | None = None
    tables: Callable[[ResultTables], list[Table]] | None = None
    run_panels: Sequence[RunPanel] = ()
    own: bool = False

    def spaces(self, scale: str) -> Mapping[str, SearchSpace]:
        """The spaces at a scale; those of the other where it has one alone."""
        return self.panels.get(scale) or next(iter(self.panels.values()))
